//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, and a thread that failed to come back
//! would poison a pool: so each visit is a fresh thread that ends afterwards.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::NetError;

/// Runs `work` on a thread of its own; it goes on to its end even when the
/// caller's future is dropped.
pub(crate) async fn on_fresh_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let (done, wait) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("criw-net".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(|e| NetError::io("start a thread for a network namespace", e))?;
    wait.await.map_err(|_| {
        NetError::io(
            "work in a network namespace",
            std::io::Error::other("the thread panicked"),
        )
    })?
}

/// As above, blocking, for callers without a runtime.
pub(crate) fn visit<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("criw-net".into())
            .spawn_scoped(scope, || {
                enter(netns)?;
                work()
            })
            .map_err(|e| NetError::io("start a thread for a network namespace", e))?
            .join()
            .unwrap_or_else(|_| {
                Err(NetError::io(
                    "work in a network namespace",
                    std::io::Error::other("the thread panicked"),
                ))
            })
    })
}

/// Moves the calling thread for good.
pub(crate) fn enter(netns: impl AsFd) -> Result<(), NetError> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| NetError::io("enter the pod's network namespace", e.into()))
}
