//! Manifests, indexes and image configs as registries serve them, and the pure
//! decisions on them: which platform to take, what kind of content it is.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::image::{Kind, ProcessConfig, Want};

/// What a manifest URL answered.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Box<Manifest>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// The media types asked for, most general first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Reads a manifest or index by its shape: media types of old pushers are often missing.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        schema_version: u64,
        manifests: Option<Vec<Descriptor>>,
        config: Option<serde_json::Value>,
        layers: Option<serde_json::Value>,
    }
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|error| format!("the manifest is no JSON: {error}"))?;
    if shape.schema_version == 1 {
        return Err(
            "it has a Docker schema 1 manifest, a format that is no longer used; \
             push it again with a current tool"
                .to_owned(),
        );
    }
    match (shape.manifests, shape.config, shape.layers) {
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(_), Some(_)) => serde_json::from_slice(bytes)
            .map(Document::Manifest)
            .map_err(|error| format!("the manifest cannot be read: {error}")),
        _ => Err(
            "its manifest is neither an image manifest nor an image index; \
             name a container image or a Wasm artifact"
                .to_owned(),
        ),
    }
}

impl Platform {
    /// The platform of Linux containers on this machine.
    pub(crate) fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: String::new(),
        }
    }

    /// Wasm by operating system or by architecture, in any spelling seen in the wild.
    pub(crate) fn is_wasm(&self) -> bool {
        wasm_rank(&self.os).is_some()
            || ["wasm", "wasm32", "wasm64"]
                .iter()
                .any(|name| self.architecture.eq_ignore_ascii_case(name))
    }

    fn is_host(&self) -> bool {
        let host = Platform::host();
        self.os.eq_ignore_ascii_case(&host.os)
            && (self.architecture.eq_ignore_ascii_case(&host.architecture)
                || (self.architecture == "x86_64" && host.architecture == "amd64")
                || (self.architecture == "aarch64" && host.architecture == "arm64"))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

fn wasm_rank(os: &str) -> Option<usize> {
    ["wasi", "wasip1", "wasip2", "wasip3", "js"]
        .iter()
        .position(|name| os.eq_ignore_ascii_case(name))
}

/// The entries of an index to fetch; the host variant first.
///
/// Entries without platform are taken when nothing else fits: their config tells.
/// The error is the sentence for the user.
pub(crate) fn choose(entries: &[Descriptor], want: Want) -> Result<Vec<&Descriptor>, String> {
    let platform = |entry: &&Descriptor| entry.platform.clone().unwrap_or_default();
    let host = entries
        .iter()
        .filter(|entry| platform(entry).is_host() && !platform(entry).is_wasm())
        // The base level of the architecture runs everywhere.
        .min_by_key(|entry| match platform(entry).variant.as_str() {
            "" | "v1" | "v8" => 0,
            "v2" => 1,
            _ => 2,
        });
    let wasm = entries
        .iter()
        .filter(|entry| platform(entry).is_wasm())
        .min_by_key(|entry| wasm_rank(&platform(entry).os).unwrap_or(usize::MAX));
    let unnamed = entries.iter().find(|entry| entry.platform.is_none());
    let chosen: Vec<&Descriptor> = match want {
        Want::Host => host.or(unnamed).into_iter().collect(),
        Want::Wasm => wasm.or(host).or(unnamed).into_iter().collect(),
        Want::Any if host.is_none() && wasm.is_none() => unnamed.into_iter().collect(),
        Want::Any => host.into_iter().chain(wasm).collect(),
    };
    if chosen.is_empty() {
        let mut present: Vec<String> = entries
            .iter()
            .map(|entry| platform(&entry).to_string())
            // Attestations of buildx carry this platform; they are no images.
            .filter(|platform| platform != "unknown/unknown")
            .collect();
        present.sort();
        present.dedup();
        present.truncate(16);
        let wanted = match want {
            Want::Host => Platform::host().to_string(),
            Want::Wasm => "wasi/wasm".to_owned(),
            Want::Any => format!("{} or wasi/wasm", Platform::host()),
        };
        return Err(format!(
            "it has no variant for {wanted}, only for {}; build it for that platform",
            if present.is_empty() {
                "none".to_owned()
            } else {
                present.join(", ")
            }
        ));
    }
    Ok(chosen)
}

/// What the layers of a manifest are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Tar layers of a root file system.
    RootFs,
    /// Raw Wasm modules; the root file system is empty.
    Modules,
}

/// What the layers are, or why they can never run.
pub(crate) fn classify(manifest: &Manifest) -> Result<Content, String> {
    let mut modules = 0;
    let mut tars = 0;
    for layer in &manifest.layers {
        let media_type = layer.media_type.as_str();
        if media_type.starts_with("application/vnd.fermyon.spin")
            || media_type == "application/vnd.wasm.content.layer.v1+data"
            || media_type.starts_with("application/vnd.wasm.content.bundle.")
        {
            return Err(crate::foreign::SPIN.to_owned());
        }
        if media_type.ends_with("+encrypted") {
            return Err("its layers are encrypted; decrypt the image before pushing it".to_owned());
        }
        match media_type {
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/wasm"
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.module.wasm.content.layer.v1+wasm" => modules += 1,
            _ if is_tar(media_type) => tars += 1,
            other => {
                return Err(format!(
                    "a layer has the media type {:?}, which is neither a file system layer nor a Wasm module; \
                     this artifact is no container image",
                    other.chars().take(128).collect::<String>()
                ));
            }
        }
    }
    if manifest.config.media_type == "application/vnd.wasm.config.v0+json" && modules > 1 {
        return Err(format!(
            "it is a Wasm artifact with {modules} layers, but the format allows exactly one; push it again"
        ));
    }
    match (modules, tars) {
        (0, _) => Ok(Content::RootFs),
        (_, 0) => Ok(Content::Modules),
        _ => Err("it mixes Wasm layers with file system layers; use one or the other".to_owned()),
    }
}

fn is_tar(media_type: &str) -> bool {
    let Some(rest) = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs."))
    else {
        return false;
    };
    let rest = rest
        .trim_start_matches("nondistributable.")
        .trim_start_matches("foreign.");
    matches!(
        rest,
        "v1.tar" | "v1.tar+gzip" | "v1.tar+zstd" | "diff.tar" | "diff.tar.gzip" | "diff.tar.zstd"
    )
}

/// The parts of an image config, or of a Wasm artifact's config, that matter here.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageConfig {
    pub(crate) platform: Platform,
    pub(crate) process: ProcessConfig,
    pub(crate) diff_ids: Vec<Digest>,
    /// Whether the config names its layers, so that its digest stands for the content.
    pub(crate) identifies_content: bool,
    pub(crate) is_spin: bool,
}

/// Reads a config blob; Wasm artifacts often have `{}`.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, String> {
    #[derive(Default, Deserialize)]
    struct Raw {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        #[serde(default)]
        variant: String,
        config: Option<Process>,
        rootfs: Option<RootFs>,
        #[serde(rename = "layerDigests")]
        layer_digests: Option<Vec<String>>,
    }
    #[derive(Default, Deserialize)]
    struct RootFs {
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Process {
        #[serde(default)]
        user: String,
        env: Option<Vec<String>>,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        #[serde(default)]
        working_dir: String,
        #[serde(default)]
        stop_signal: String,
        labels: Option<BTreeMap<String, String>>,
        volumes: Option<BTreeMap<String, serde_json::Value>>,
        exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    }
    let raw: Raw = serde_json::from_slice(bytes)
        .map_err(|error| format!("its config cannot be read: {error}"))?;
    let process = raw.config.unwrap_or_default();
    let diff_ids = raw
        .rootfs
        .and_then(|rootfs| rootfs.diff_ids)
        .unwrap_or_default();
    let labels = process.labels.unwrap_or_default();
    Ok(ImageConfig {
        platform: Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
        },
        identifies_content: !diff_ids.is_empty()
            || raw.layer_digests.is_some_and(|layers| !layers.is_empty()),
        diff_ids,
        is_spin: labels.contains_key("com.fermyon.spin.lockedAppDigest"),
        process: ProcessConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            working_dir: process.working_dir,
            user: process.user,
            stop_signal: process.stop_signal,
            labels,
            volumes: keys(process.volumes),
            exposed: keys(process.exposed_ports),
            annotations: BTreeMap::new(),
        },
    })
}

fn keys(map: Option<BTreeMap<String, serde_json::Value>>) -> Vec<String> {
    map.unwrap_or_default().into_keys().collect()
}

/// What a variant is for, as far as its manifest and config tell; the entrypoint decides the rest.
pub(crate) fn kind_by_platform(platform: &Platform, content: Content) -> Kind {
    match content {
        Content::Modules => Kind::Wasm,
        Content::RootFs if platform.is_wasm() => Kind::Wasm,
        Content::RootFs => Kind::Linux,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str, tag: u8) -> Descriptor {
        let mut parts = platform.split('/').map(str::to_owned);
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(&[tag]),
            size: 1,
            platform: (!platform.is_empty()).then(|| Platform {
                os: parts.next().unwrap(),
                architecture: parts.next().unwrap(),
                variant: parts.next().unwrap_or_default(),
            }),
        }
    }

    #[test]
    fn platforms_are_chosen_by_what_is_wanted() {
        let host = Platform::host().to_string();
        let host = host.as_str();
        let table: [(&[&str], Want, &[usize]); 14] = [
            (&[host, "wasi/wasm"], Want::Host, &[0]),
            (&[host, "wasi/wasm"], Want::Wasm, &[1]),
            (&[host, "wasi/wasm"], Want::Any, &[0, 1]),
            (&["wasi/wasm", host], Want::Any, &[1, 0]),
            (&["linux/s390x", host], Want::Any, &[1]),
            (&["wasip1/wasm"], Want::Any, &[0]),
            (&["Wasip1/wasm"], Want::Wasm, &[0]),
            (&["wasi/wasm32"], Want::Wasm, &[0]),
            (&["js/wasm"], Want::Wasm, &[0]),
            (&["linux/wasm64"], Want::Wasm, &[0]),
            (
                &["wasip3/wasm", "wasip1/wasm", "wasip2/wasm"],
                Want::Wasm,
                &[1],
            ),
            (&[host], Want::Wasm, &[0]),
            (&[""], Want::Any, &[0]),
            (&["unknown/unknown", host], Want::Any, &[1]),
        ];
        for (platforms, want, expected) in table {
            let entries: Vec<Descriptor> = platforms
                .iter()
                .enumerate()
                .map(|(i, platform)| entry(platform, i as u8))
                .collect();
            let chosen: Vec<&Digest> = choose(&entries, want)
                .unwrap()
                .iter()
                .map(|entry| &entry.digest)
                .collect();
            let expected: Vec<&Digest> = expected.iter().map(|i| &entries[*i].digest).collect();
            assert_eq!(chosen, expected, "{platforms:?} {want:?}");
        }
        let foreign = [entry("linux/s390x", 0), entry("unknown/unknown", 1)];
        let text = choose(&foreign, Want::Any).unwrap_err();
        assert!(text.contains("only for linux/s390x;"), "{text}");
        let wasm = [entry("wasi/wasm", 0)];
        let text = choose(&wasm, Want::Host).unwrap_err();
        assert!(text.contains(host) && text.contains("wasi/wasm"), "{text}");
    }

    #[test]
    fn layers_are_classified_or_refused_with_a_sentence() {
        let classify_types = |config: &str, layers: &[&str]| {
            let descriptor = |media_type: &str| Descriptor {
                media_type: media_type.to_owned(),
                ..entry("", 0)
            };
            classify(&Manifest {
                config: descriptor(config),
                layers: layers.iter().map(|layer| descriptor(layer)).collect(),
                annotations: None,
            })
        };
        const OCI: &str = "application/vnd.oci.image.config.v1+json";
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        for layers in [
            &[][..],
            &[tar],
            &["application/vnd.docker.image.rootfs.diff.tar.gzip"],
            &["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"],
            &["application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"],
        ] {
            assert_eq!(
                classify_types(OCI, layers),
                Ok(Content::RootFs),
                "{layers:?}"
            );
        }
        for layer in [
            "application/wasm",
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.module.wasm.content.layer.v1+wasm",
        ] {
            assert_eq!(
                classify_types(OCI, &[layer]),
                Ok(Content::Modules),
                "{layer}"
            );
        }
        let refused: [(&str, &[&str], &str); 5] = [
            (
                OCI,
                &["application/vnd.fermyon.spin.application.v1+config"],
                "Spin",
            ),
            (
                OCI,
                &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"],
                "encrypted",
            ),
            (
                OCI,
                &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"],
                "no container image",
            ),
            (OCI, &[tar, "application/wasm"], "mixes"),
            (
                "application/vnd.wasm.config.v0+json",
                &["application/wasm", "application/wasm"],
                "exactly one",
            ),
        ];
        for (config, layers, part) in refused {
            let text = classify_types(config, layers).unwrap_err();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn documents_are_told_apart_by_shape() {
        let descriptor = format!(r#"{{"digest":"{}","size":2}}"#, Digest::of(b"{}"));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        assert!(matches!(
            parse(manifest.as_bytes()),
            Ok(Document::Manifest(_))
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        assert!(matches!(parse(index.as_bytes()), Ok(Document::Index(list)) if list.len() == 1));
        for (text, part) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (r#"{"schemaVersion":2}"#, "neither"),
            ("<html>", "no JSON"),
            (
                r#"{"config":{"digest":"md5:1","size":1},"layers":[]}"#,
                "sha256",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn configs_of_images_and_artifacts_are_read() {
        let config = parse_config(
            br#"{"os":"linux","architecture":"amd64","config":{"User":"7:8","Entrypoint":["/a"],"Cmd":null,
                "Env":["A=b"],"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}}},"rootfs":{"diff_ids":[]}}"#,
        )
        .unwrap();
        assert_eq!(config.process.user, "7:8");
        assert_eq!(config.process.exposed, ["80/tcp"]);
        assert_eq!(config.process.volumes, ["/v"]);
        assert!(!config.identifies_content);
        assert!(!parse_config(b"{}").unwrap().identifies_content);
        assert!(
            parse_config(br#"{"layerDigests":["x"]}"#)
                .unwrap()
                .identifies_content
        );
        assert!(parse_config(b"[").is_err());
    }
}
