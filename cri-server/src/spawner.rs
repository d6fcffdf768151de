//! Commands that a command starts: the daemon's end of `criw_engines::spawner`.
//!
//! ```text
//!   Session (an exec, or a container whose program is the toolbox)
//!     serve  one task per socket: asks in, answers out
//!       command  one task per command: waits for its end, tells the exit code
//!         serve  of that command's own socket, one deeper
//! ```
//!
//! A socket that closes ends all that was started through it, and theirs, so nothing
//! outlives its session. What comes from a shim is hostile: it is bounded, parsed strictly, and
//! the daemon never reads from a descriptor that could make it wait.

mod command;
mod session;

use std::sync::Arc;

use criw_sandbox::model::EngineSpec;
use criw_sandbox::{ContainerId, ContainerView};

use crate::daemon::Daemon;
use crate::error;

pub use session::Session;

/// Commands that are being started at the same time, of all containers.
pub const AT_ONCE: usize = 4;

/// Whether a program may ask for commands.
pub fn may_spawn(engine: &EngineSpec) -> bool {
    matches!(engine, EngineSpec::Wasm { section, .. } if section.spawner)
}

/// Answers to the containers that an older daemon has started.
pub fn adopt(daemon: &Arc<Daemon>) {
    for container in daemon.sandboxes.containers() {
        if !container.state.is_exited() {
            serve(daemon, &container);
        }
    }
}

/// Answers to a container that was just created, until it ends.
pub fn serve_container(daemon: &Arc<Daemon>, id: &ContainerId) {
    if let Ok(Some(container)) = daemon.find_container(id.as_str()) {
        serve(daemon, &container);
    }
}

fn serve(daemon: &Arc<Daemon>, container: &ContainerView) {
    if !may_spawn(&container.spec.engine) {
        return;
    }
    let (daemon, id) = (daemon.clone(), container.id.clone());
    tokio::spawn(async move {
        let begun = Session::begin(&daemon, &id);
        let (session, socket) = match begun {
            Ok(begun) => begun,
            Err(status) => {
                tracing::error!(container = %id, error = status.message(), "make a spawner");
                return;
            }
        };
        match daemon.sandboxes.hand_spawner(&id, socket).await {
            Ok(()) => session.over().await,
            Err(error) => {
                tracing::warn!(container = %id, error = %error::chain(&error), "hand over a spawner; the container can start no commands");
            }
        }
    });
}
