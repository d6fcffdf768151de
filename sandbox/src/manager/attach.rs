//! Attaching to the streams of a running container, and the size of its terminal. The
//! shim has the streams; the daemon hands it pipes.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use criw_engines::client::ShimSocket;
use criw_engines::protocol::{FdRole, Reply, Request};

use super::streams::{Ends, Pipes, Streams};
use super::{Container, Inner, Sandboxes, blocking};
use crate::error::{Error, Result};
use crate::id::ContainerId;

/// A shim answers these at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes that a client may lag behind a container's output before it is left behind.
const LAG: usize = 1 << 20;

impl Sandboxes {
    /// Copies the output of a running container from now on, and lets the caller write
    /// to its input where it has one. Output that ends while the container runs means
    /// that the caller fell behind by more than a MiB.
    ///
    /// # Errors
    /// `WrongState` when the container does not run, or its shim is of an older version
    /// that cannot do this.
    pub async fn attach(&self, id: &ContainerId, wanted: Streams) -> Result<Pipes> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        let ends = blocking(move || inner.attach(&container, wanted)).await?;
        ends.into_pipes()
    }

    /// Tells the terminal of a container its size, in characters.
    pub async fn resize(&self, id: &ContainerId, width: u16, height: u16) -> Result<()> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        blocking(move || resize(&container.socket(&inner.config.state), width, height)).await
    }

    /// Hands the shim of a container its end of a spawner's socket: from now on it asks
    /// whoever has the other end for further commands.
    ///
    /// # Errors
    /// `WrongState` when its program starts no commands, or it has ended.
    pub async fn hand_spawner(&self, id: &ContainerId, socket: OwnedFd) -> Result<()> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        blocking(move || {
            const WHAT: &str = "hand over a spawner";
            let request = Request::Spawner {
                fds: vec![FdRole::Spawner],
            };
            let shim = container.socket(&inner.config.state);
            match shim.call(&request, &[socket.as_fd()], DEADLINE) {
                Ok(Reply::Done) => Ok(()),
                Ok(Reply::Failed { message }) => Err(Error::WrongState(message)),
                Ok(other) => Err(Error::node(WHAT, format!("the shim answered {other:?}"))),
                Err(error) => Err(Error::node(WHAT, error)),
            }
        })
        .await
    }

    /// Completes when a container has ended, or is not there.
    pub async fn exited(&self, id: &ContainerId) {
        if let Ok(container) = self.inner.container(id) {
            let mut exited = container.exited.subscribe();
            let _ = exited.wait_for(|exited| *exited).await;
        }
    }
}

impl Inner {
    fn attach(&self, container: &Arc<Container>, wanted: Streams) -> Result<Ends> {
        let what = || format!("attach to container {}", container.id);
        if !container.state().is_running() {
            return Err(Error::WrongState(format!("{}: it is not running", what())));
        }
        let socket = container.socket(&self.config.state);
        match socket.call(&Request::State, &[], DEADLINE) {
            Ok(Reply::State { revision: 1.., .. }) => {}
            Ok(Reply::State { .. }) => {
                return Err(Error::WrongState(format!(
                    "{}: it was started by an older version of criw, whose shim cannot do this; it will after a restart of the container",
                    what()
                )));
            }
            Ok(other) => return Err(Error::node(what(), format!("the shim answered {other:?}"))),
            Err(error) => return Err(Error::node(what(), error)),
        }
        let (guest_ends, ends) =
            super::streams::pipes(wanted).map_err(|e| Error::node(what(), e))?;
        for (role, fd) in &guest_ends {
            if *role != FdRole::Stdin {
                // With less room a client is left behind sooner.
                let _ = rustix::pipe::fcntl_setpipe_size(fd, LAG);
            }
        }
        let request = Request::Attach {
            fds: guest_ends.iter().map(|(role, _)| *role).collect(),
        };
        let fds: Vec<BorrowedFd<'_>> = guest_ends.iter().map(|(_, fd)| fd.as_fd()).collect();
        match socket.call(&request, &fds, DEADLINE) {
            Ok(Reply::Done) => Ok(ends),
            Ok(Reply::Failed { message }) => Err(Error::node(what(), message)),
            Ok(other) => Err(Error::node(what(), format!("the shim answered {other:?}"))),
            Err(error) => Err(Error::node(what(), error)),
        }
    }
}

/// Tells a terminal its size, in characters.
pub(super) fn resize(socket: &ShimSocket, width: u16, height: u16) -> Result<()> {
    const WHAT: &str = "resize a terminal";
    let answer = socket
        .call(&Request::Resize { width, height }, &[], DEADLINE)
        .map_err(|e| Error::node(WHAT, e))?;
    match answer {
        Reply::Done => Ok(()),
        Reply::Failed { message } => Err(Error::WrongState(message)),
        other => Err(Error::node(WHAT, format!("the shim answered {other:?}"))),
    }
}
