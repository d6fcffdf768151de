//! The first call to a shim that was just started, the container's or an exec's.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use criw_engines::client::{CallError, Child, ShimSocket};
use criw_engines::protocol::{ExitRecord, FdRole, Reply, Request, VERSION};

use super::chain;
use crate::error::Error;
use crate::host::boot;

/// Why a shim did not build what it was asked for.
pub(super) enum CreateError {
    /// Its own words, for the user.
    Refused(String),
    /// It did not answer as a shim does.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl CreateError {
    /// As a failure of the node.
    pub(super) fn on(self, what: String) -> Error {
        match self {
            Self::Refused(text) => Error::node(what, text),
            Self::Broken(source) => Error::node(what, source),
        }
    }
}

/// Create with its descriptors; the pid that the shim tells.
pub(super) fn create(
    child: &Child,
    socket: &ShimSocket,
    parts: &[(FdRole, BorrowedFd<'_>)],
    deadline: Duration,
) -> Result<Option<i32>, CreateError> {
    let request = Request::Create {
        version: VERSION,
        fds: parts.iter().map(|(role, _)| *role).collect(),
    };
    let fds: Vec<_> = parts.iter().map(|(_, fd)| *fd).collect();
    match socket.call(&request, &fds, deadline) {
        Ok(Reply::Created { pid }) => Ok(pid),
        Ok(Reply::Failed { message } | Reply::StartFailed { message }) => {
            Err(CreateError::Refused(message))
        }
        Ok(other) => Err(CreateError::Broken(
            format!("the shim answered {other:?}").into(),
        )),
        Err(error @ CallError::Gone { .. }) => {
            // Confined by a profile that lets it have no socket, it can only write.
            let record = parts
                .iter()
                .find(|(role, _)| matches!(role, FdRole::ExitRecord))
                .and_then(|(_, fd)| ExitRecord::read(*fd).ok().flatten());
            if let Some(record) = record.filter(|record| !record.message.is_empty()) {
                return Err(CreateError::Refused(record.message));
            }
            let status = boot::exit_status(child.pidfd.as_fd()).ok().flatten();
            let how = format!("{} (process status: {status:?})", chain(&error));
            Err(CreateError::Broken(how.into()))
        }
        Err(error) => Err(CreateError::Broken(error.into())),
    }
}
