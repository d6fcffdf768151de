//! skeleton
use crate::*;
use std::fs::File;
use std::sync::Arc;

/// The store and its registry client; cheap to clone.
#[derive(Clone)]
pub struct ImageService {
    config: Arc<Config>,
}

impl ImageService {
    /// Opens or creates the store, and clears what a crash left behind.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Ok(ImageService {
            config: Arc::new(config),
        })
    }
    /// Fetches, verifies, unpacks and compiles an image, and records it at the end.
    pub async fn pull(&self, request: PullRequest) -> Result<ImageId, PullError> {
        Err(PullError::Transport(request.reference))
    }
    /// The image that a name stands for.
    pub fn find(&self, _name: &str) -> Result<Option<Image>, AmbiguousId> {
        Ok(None)
    }
    /// All images, or those a reference stands for.
    pub fn list(&self, _filter: Option<&str>) -> Vec<Image> {
        Vec::new()
    }
    /// Removes the whole record with all its names.
    pub async fn remove(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// What the store takes of its file system.
    pub fn usage(&self) -> FsUsage {
        FsUsage {
            mountpoint: self.config.root.clone(),
            used_bytes: 0,
            inodes_used: 0,
        }
    }
    /// Layers, config and modules for a container.
    pub async fn prepare(&self, image: &ImageId, _want: Want) -> Result<Prepared, PrepareError> {
        Err(PrepareError::Unknown(image.to_string()))
    }
    /// Compiled code of a stored module.
    pub async fn code(&self, module: &Digest) -> Result<Code, CompileError> {
        Err(CompileError::UnknownModule(module.to_string()))
    }
    /// Compiled code of a module that is not of an image (from a volume).
    pub async fn compile_file(&self, _module: File) -> Result<Code, CompileError> {
        Err(CompileError::Unavailable("none".into()))
    }
    /// Keeps the layers of a prepared image on disk for `owner` (a container id), over
    /// restarts of the daemon, until [`ImageService::release`].
    pub async fn hold(&self, _owner: &str, image: &ImageId, _kind: Kind) -> Result<(), StoreError> {
        Err(StoreError::UnknownImage(image.to_string()))
    }
    /// Ends a hold; an unknown owner is fine.
    pub async fn release(&self, _owner: &str) -> Result<(), StoreError> {
        Ok(())
    }
    /// Owners that hold something, to be compared with the containers that exist.
    pub fn holders(&self) -> Vec<String> {
        Vec::new()
    }
}
