//! Images out of an archive instead of a registry: an OCI layout in a tar, or what
//! `docker save` writes. The archive is written out and verified as a whole first; then each
//! image in it takes the way of a pull, with the archive's files in the place of a registry.

mod contents;
mod spool;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub(crate) use spool::Spool;

use crate::digest::Digest;
use crate::error::PullError;
use crate::image::{ImageId, Want};
use crate::manifest::Descriptor;
use crate::pull::Puller;
use crate::reference::Target;

/// One image of an archive, as a [`crate::pull::Puller`] sees it.
#[derive(Debug)]
pub(crate) struct ArchivedImage {
    spool: Arc<Spool>,
    top: Digest,
}

impl ArchivedImage {
    /// The bytes of a manifest or index.
    pub(crate) fn manifest(&self, target: &Target, max: u64) -> Result<Vec<u8>, PullError> {
        let digest = match target {
            Target::Tag(_) => &self.top,
            Target::Digest(digest) => digest,
        };
        self.spool.bytes(digest, max)
    }

    /// A blob as a file of its own in `directory`.
    pub(crate) fn blob(
        &self,
        descriptor: &Descriptor,
        directory: &Path,
    ) -> Result<tempfile::NamedTempFile, PullError> {
        self.spool.link(descriptor, directory)
    }
}

/// What became of one image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Full name with tag or digest.
    pub name: String,
    pub id: ImageId,
}

/// Reads an archive to its end, then records its images. `name` stands for those that the
/// archive has; it then must hold exactly one image.
pub(crate) async fn import(
    puller: &Puller,
    archive: impl Read + Send + 'static,
    name: Option<String>,
) -> Result<Vec<Imported>, PullError> {
    let (tmp, limits) = (puller.store.tmp(), puller.config.limits.clone());
    let reading = tokio::task::spawn_blocking(move || -> Result<_, PullError> {
        let mut spool = Spool::read(archive, &tmp, &limits)?;
        let images = contents::images(&mut spool, name.as_deref(), limits.manifest_bytes)?;
        Ok((Arc::new(spool), images))
    });
    let (spool, images) = reading
        .await
        .map_err(|error| PullError::BadContent(format!("the archive cannot be read: {error}")))??;
    let mut imported = Vec::new();
    for (reference, top) in images {
        let image = ArchivedImage {
            spool: Arc::clone(&spool),
            top,
        };
        let id = puller.take_in(&reference, image, Want::Any).await?;
        imported.push(Imported {
            name: reference.to_string(),
            id,
        });
    }
    // Files are removed where that may block.
    let _ = tokio::task::spawn_blocking(move || drop(spool)).await;
    Ok(imported)
}
