//! Which images an archive holds and how they are called: `index.json` of an OCI layout
//! with names in annotations, or `manifest.json` of Docker with `RepoTags`. New archives of
//! `docker save` and `ctr images export` have both.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::json;

use super::spool::Spool;
use crate::digest::Digest;
use crate::error::PullError;
use crate::reference::{Reference, Target};

/// Where tools write an image's name, the most telling first. The second is often a tag
/// alone, which is no name.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Images of one archive.
const MAX_IMAGES: usize = 1000;

const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[derive(Deserialize)]
struct Layout {
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: Digest,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image: the names that the archive has for it, and its manifest or index.
struct Found {
    names: Vec<String>,
    top: Digest,
}

fn bad(reason: impl std::fmt::Display) -> PullError {
    PullError::BadContent(format!("the archive cannot be used: {reason}"))
}

fn refused(reason: impl std::fmt::Display) -> PullError {
    PullError::Refused(format!("the archive is refused: {reason}"))
}

/// Names and tops of all images, in the archive's order.
pub(crate) fn images(
    spool: &mut Spool,
    name: Option<&str>,
    max: u64,
) -> Result<Vec<(Reference, Digest)>, PullError> {
    let mut found = match document::<Layout>(spool, "index.json", max)? {
        Some(layout) => layout.manifests.into_iter().map(listed).collect(),
        None => Vec::new(),
    };
    let named = |found: &[Found]| found.iter().any(|image| !image.names.is_empty());
    if !named(&found)
        && let Some(saved) = document::<Vec<Saved>>(spool, "manifest.json", max)?
        && (found.is_empty() || saved.iter().any(|image| image.repo_tags.is_some()))
    {
        found = Vec::new();
        for (position, image) in saved.into_iter().enumerate() {
            found.push(docker(spool, position, image)?);
        }
    }
    if found.is_empty() {
        return Err(bad(
            "it has neither an index.json (OCI) nor a manifest.json (Docker) that names images",
        ));
    }
    if found.len() > MAX_IMAGES {
        return Err(refused(format!(
            "it has {} images, more than the {MAX_IMAGES} that are allowed",
            found.len()
        )));
    }
    match (name, found.as_slice()) {
        (Some(name), [only]) => Ok(vec![(reference(name, &only.top)?, only.top.clone())]),
        (Some(_), several) => Err(refused(format!(
            "it has {} images, so that no single name can be given to it",
            several.len()
        ))),
        (None, found) if named(found) => {
            let mut seen = BTreeSet::new();
            let mut images = Vec::new();
            for (name, top) in found
                .iter()
                .flat_map(|image| image.names.iter().map(|name| (name, &image.top)))
            {
                let reference = reference(name, top)?;
                if !seen.insert(reference.to_string()) {
                    return Err(bad(format!("it has two images with the name {reference}")));
                }
                images.push((reference, top.clone()));
            }
            Ok(images)
        }
        (None, _) => Err(refused(
            "it names no image; give it one: criw images import FILE --name registry/image:tag",
        )),
    }
}

fn document<T: for<'a> Deserialize<'a>>(
    spool: &Spool,
    name: &str,
    max: u64,
) -> Result<Option<T>, PullError> {
    let Some(digest) = spool.digest_of(name).cloned() else {
        return Ok(None);
    };
    let bytes = spool.bytes(&digest, max)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| bad(format!("its {name} cannot be read: {error}")))
}

fn listed(entry: Listed) -> Found {
    let annotations = entry.annotations.unwrap_or_default();
    let name = NAMES
        .iter()
        .filter_map(|key| annotations.get(*key))
        .find(|name| name.contains(['/', ':', '@']));
    Found {
        names: name.cloned().into_iter().collect(),
        top: entry.digest,
    }
}

/// Docker's own list names files; a manifest with their digests is made of it.
fn docker(spool: &mut Spool, position: usize, image: Saved) -> Result<Found, PullError> {
    let describe = |name: &String, media_type: &str| {
        let digest = spool.digest_of(name);
        let size = digest.and_then(|digest| spool.size(digest));
        match (digest, size) {
            (Some(digest), Some(size)) => {
                Ok(json!({"mediaType": media_type, "digest": digest.as_str(), "size": size}))
            }
            _ => Err(bad(format!("it lacks the file {name:?}"))),
        }
    };
    let config = describe(&image.config, DOCKER_CONFIG)?;
    let layers = image
        .layers
        .iter()
        .map(|layer| describe(layer, DOCKER_LAYER))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    Ok(Found {
        names: image.repo_tags.unwrap_or_default(),
        top: spool.add(&position.to_string(), manifest.to_string().as_bytes())?,
    })
}

fn reference(name: &str, top: &Digest) -> Result<Reference, PullError> {
    let reference = Reference::parse(name)?;
    match &reference.target {
        Target::Digest(digest) if digest != top => {
            Err(bad(format!("it calls {name} what has the digest {top}")))
        }
        _ => Ok(reference),
    }
}
