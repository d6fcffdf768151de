//! What every RPC works with: the rooms below and the facts of this node.

use criw_image_service::ImageService;
use criw_sandbox::{ContainerView, PodView, Sandboxes};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::config::Config;
use crate::error;
use crate::handlers::Handlers;
use crate::host::HostFacts;
use crate::streaming::Streaming;
use crate::toolbox::Toolbox;

/// The rooms. Shared by both services.
pub struct Daemon {
    /// As read at start.
    pub config: Config,
    /// Facts of this node.
    pub host: HostFacts,
    /// Runtime handlers.
    pub handlers: Handlers,
    /// Handlers whose engine was there at start, for Status, which must not touch the disk.
    pub usable_handlers: Vec<String>,
    /// Images.
    pub images: ImageService,
    /// Pods and containers.
    pub sandboxes: Sandboxes,
    /// What answers to commands that an image lacks.
    pub toolbox: Toolbox,
    /// Commands that are being started for other commands.
    pub spawning: Semaphore,
    /// Exec, attach and port-forward requests that wait for their clients.
    pub streaming: Streaming,
    /// Becomes true when the daemon ends: endless streams end then.
    pub ending: watch::Receiver<bool>,
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
impl Daemon {
    /// The pod with this id or unique prefix, if there is one.
    pub fn find_pod(&self, id: &str) -> Result<Option<PodView>, Status> {
        self.sandboxes.find_pod(id).map_err(|e| error::sandbox(&e))
    }

    /// The container with this id or unique prefix, if there is one.
    pub fn find_container(&self, id: &str) -> Result<Option<ContainerView>, Status> {
        self.sandboxes
            .find_container(id)
            .map_err(|e| error::sandbox(&e))
    }

    /// The pod, or NotFound.
    pub fn pod(&self, id: &str) -> Result<PodView, Status> {
        self.find_pod(id)?
            .ok_or_else(|| Status::not_found(format!("no pod sandbox has the id {id:?}")))
    }

    /// The container, or NotFound.
    pub fn container(&self, id: &str) -> Result<ContainerView, Status> {
        self.find_container(id)?
            .ok_or_else(|| Status::not_found(format!("no container has the id {id:?}")))
    }
}
