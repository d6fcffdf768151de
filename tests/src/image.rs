//! Builds images in memory: tar layers, configs, manifests, indexes, artifacts, in
//! the forms that real tools make, and hostile ones that no tool would.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Bytes with their name and type.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Media type.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Names bytes by their digest.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            media_type: media_type.into(),
            digest: digest(&bytes),
            bytes,
        }
    }

    /// Its OCI descriptor.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// What a reference names: a manifest or an index, with all that it needs.
#[derive(Debug, Clone)]
pub struct Image {
    /// Manifest or index.
    pub top: Blob,
    /// Manifests below an index.
    pub manifests: Vec<Blob>,
    /// Configs and layers.
    pub blobs: Vec<Blob>,
    /// Platform of a manifest, for an index above it.
    pub platform: Value,
}

/// One thing in a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Path, mode, content.
    File(String, u32, Vec<u8>),
    /// Path, mode.
    Directory(String, u32),
    /// Path, target.
    Symlink(String, String),
    /// Path, target.
    Hardlink(String, String),
    /// A file with a hole of that many bytes and nothing else.
    Sparse(String, u64),
}

/// Shorthand for a file.
pub fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Entry {
    Entry::File(path.into(), mode, content.into())
}

/// What the image config says besides its platform.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// ENTRYPOINT
    pub entrypoint: Vec<String>,
    /// CMD
    pub cmd: Vec<String>,
    /// `KEY=value`
    pub env: Vec<String>,
    /// USER
    pub user: String,
    /// WORKDIR
    pub cwd: String,
    /// STOPSIGNAL
    pub stop_signal: String,
}

impl Settings {
    /// Only an entrypoint.
    pub fn entrypoint(argv: &[&str]) -> Self {
        Self {
            entrypoint: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Self::default()
        }
    }
}

/// An uncompressed tar of entries; names are written as they are, also hostile ones.
pub fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let (path, kind, mode) = match entry {
            Entry::File(path, mode, content) => {
                header.set_size(content.len() as u64);
                (path, tar::EntryType::Regular, *mode)
            }
            Entry::Directory(path, mode) => (path, tar::EntryType::Directory, *mode),
            Entry::Symlink(path, target) => {
                header.set_link_name_literal(target)?;
                (path, tar::EntryType::Symlink, 0o777)
            }
            Entry::Hardlink(path, target) => {
                header.set_link_name_literal(target)?;
                (path, tar::EntryType::Link, mode_of(entries, target))
            }
            Entry::Sparse(path, size) => {
                if let Some(gnu) = header.as_gnu_mut() {
                    // One empty chunk at the very end: all before it is hole.
                    base256(&mut gnu.sparse[0].offset, *size);
                    gnu.sparse[0].numbytes = *b"00000000000\0";
                    base256(&mut gnu.realsize, *size);
                }
                (path, tar::EntryType::GNUSparse, 0o644)
            }
        };
        // `set_path` refuses "..", and a hostile layer is what we want to write.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_cksum();
        match entry {
            Entry::File(_, _, content) => builder.append(&header, content.as_slice())?,
            _ => builder.append(&header, std::io::empty())?,
        }
    }
    Ok(builder.into_inner()?)
}

/// A link says the mode of its file, and some runtimes set it: one that says less takes
/// it away from the file.
fn mode_of(entries: &[Entry], target: &str) -> u32 {
    entries
        .iter()
        .find_map(|entry| match entry {
            Entry::File(path, mode, _) if path == target => Some(*mode),
            _ => None,
        })
        .unwrap_or(0o644)
}

/// GNU tar's form for numbers that do not fit in octal.
fn base256(field: &mut [u8; 12], value: u64) {
    *field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&value.to_be_bytes());
}

/// Compresses as registries expect layers.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// An ordinary image: `platform` as `os/architecture`, one layer for each list of entries.
pub fn rootfs(platform: &str, layers: &[Vec<Entry>], settings: &Settings) -> Result<Image> {
    let tars = layers
        .iter()
        .map(|layer| tar(layer))
        .collect::<Result<Vec<_>>>()?;
    let blobs = tars
        .iter()
        .map(|tar| Ok(Blob::new(OCI_LAYER, gzip(tar)?)))
        .collect::<Result<Vec<_>>>()?;
    let diff_ids = tars.iter().map(|tar| digest(tar)).collect::<Vec<_>>();
    Ok(assemble(platform, blobs, &diff_ids, settings))
}

/// The form of runwasi's tar builder: the module itself is the layer.
pub fn module_layer(module: &[u8], entrypoint: &str) -> Image {
    let layer = Blob::new(
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        module.to_vec(),
    );
    let diff_id = layer.digest.clone();
    assemble(
        "wasip1/wasm",
        vec![layer],
        &[diff_id],
        &Settings::entrypoint(&[entrypoint]),
    )
}

fn assemble(platform: &str, layers: Vec<Blob>, diff_ids: &[String], settings: &Settings) -> Image {
    let (os, architecture) = platform.split_once('/').unwrap_or((platform, "wasm"));
    let mut config = json!({
        "os": os,
        "architecture": architecture,
        "created": "2026-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {
            "Entrypoint": settings.entrypoint,
            "Cmd": settings.cmd,
            "Env": settings.env,
            "User": settings.user,
            "WorkingDir": settings.cwd,
        },
    });
    if !settings.stop_signal.is_empty() {
        config["config"]["StopSignal"] = json!(settings.stop_signal);
    }
    let config = Blob::new(OCI_CONFIG, config.to_string().into_bytes());
    Image {
        platform: json!({"os": os, "architecture": architecture}),
        ..manifest(config, layers)
    }
}

/// The CNCF artifact: config type wasm, one layer that is the module.
pub fn artifact(module: &[u8]) -> Image {
    let layer = Blob::new("application/wasm", module.to_vec());
    let config = json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip1",
        "layerDigests": [layer.digest],
    });
    let config = Blob::new(
        "application/vnd.wasm.config.v0+json",
        config.to_string().into_bytes(),
    );
    Image {
        platform: json!({"os": "wasip1", "architecture": "wasm"}),
        ..manifest(config, vec![layer])
    }
}

/// A manifest over a config and layers.
pub fn manifest(config: Blob, layers: Vec<Blob>) -> Image {
    let text = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    let mut blobs = layers;
    blobs.push(config);
    Image {
        top: Blob::new(OCI_MANIFEST, text.to_string().into_bytes()),
        manifests: Vec::new(),
        blobs,
        platform: Value::Null,
    }
}

/// An index over images for several platforms.
pub fn index(images: &[Image]) -> Image {
    let descriptors = images.iter().map(|image| {
        let mut descriptor = image.top.descriptor();
        descriptor["platform"] = image.platform.clone();
        descriptor
    });
    let text = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": descriptors.collect::<Vec<_>>(),
    });
    Image {
        top: Blob::new(OCI_INDEX, text.to_string().into_bytes()),
        manifests: images.iter().map(|image| image.top.clone()).collect(),
        blobs: images
            .iter()
            .flat_map(|image| image.blobs.clone())
            .collect(),
        platform: Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_as_they_are() {
        let bytes = tar(&[
            file("../escape", 0o644, "x"),
            Entry::Symlink("link".into(), "/etc".into()),
            Entry::Sparse("hole".into(), 1 << 40),
        ])
        .unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let seen: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                (name, entry.size())
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("../escape".into(), 1),
                ("link".into(), 0),
                ("hole".into(), 1 << 40)
            ]
        );
    }

    #[test]
    fn a_hard_link_has_the_mode_of_its_file() {
        let link = Entry::Hardlink("bin/sh".into(), "bin/busybox".into());
        let bytes = tar(&[file("bin/busybox", 0o4755, "x"), link]).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        for entry in archive.entries().unwrap() {
            assert_eq!(entry.unwrap().header().mode().unwrap(), 0o4755);
        }
    }

    #[test]
    fn an_index_names_its_manifests_by_platform() {
        let wasm = rootfs("wasi/wasm", &[vec![]], &Settings::default()).unwrap();
        let linux = rootfs("linux/amd64", &[vec![]], &Settings::default()).unwrap();
        let index = index(&[wasm.clone(), linux]);
        let text: Value = serde_json::from_slice(&index.top.bytes).unwrap();
        assert_eq!(text["manifests"][0]["digest"], json!(wasm.top.digest));
        assert_eq!(text["manifests"][1]["platform"]["os"], json!("linux"));
        assert_eq!(index.blobs.len(), 4);
    }
}
