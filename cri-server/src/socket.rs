//! The daemon's socket and the lock that keeps a second daemon off the same state.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::net::UnixListener;

/// A shim that a killed daemon was just starting has the daemon's descriptors until it is
/// executed, which on a busy node takes a while.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Why the daemon cannot have its socket or its state.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error(
        "another daemon answers on {}; stop it or set another `socket`",
        .0.display()
    )]
    Taken(PathBuf),
    /// The lock is held.
    #[error(
        "another daemon uses the state directory {}; stop it or set another `state`",
        .0.display()
    )]
    Locked(PathBuf),
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// A verb phrase.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The state directory belongs to this process while this lives.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Creates the state directory and takes its lock.
pub fn lock(state: &Path) -> Result<StateLock, SocketError> {
    create_parent(state)?;
    make_directory(state)?;
    let path = state.join("lock");
    let file = rustix::fs::open(
        &path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(|error| io_error("open", &path, error.into()))?;
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                return Ok(StateLock {
                    _file: File::from(file),
                });
            }
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(LOCK_WAIT / 200);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SocketError::Locked(state.to_owned()));
            }
            Err(error) => return Err(io_error("lock", &path, error.into())),
        }
    }
}

/// Binds under a temporary name and renames, so that clients never see a socket
/// that does not answer. A stale one is replaced, a living one is not.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    create_parent(path)?;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(SocketError::Taken(path.to_owned())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) => {}
        Err(error) => return Err(io_error("try the socket", path, error)),
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let bound = UnixListener::bind(&temporary)
        .map_err(|error| io_error("bind", &temporary, error))
        .and_then(|listener| {
            std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))
                .map_err(|error| io_error("set the mode of", &temporary, error))?;
            std::fs::rename(&temporary, path)
                .map_err(|error| io_error("put in place", path, error))?;
            Ok(listener)
        });
    if bound.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    bound
}

/// Creates a directory that others may pass through but not list.
pub fn make_directory(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|error| io_error("create directory", path, error))
}

fn create_parent(path: &Path) -> Result<(), SocketError> {
    match path.parent() {
        Some(parent) => make_directory(parent),
        None => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/criw.sock");
        let first = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(bind(&path), Err(SocketError::Taken(_))));
        drop(first);
        let _second = bind(&path).unwrap();
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
        std::fs::write(directory.path().join("file"), b"x").unwrap();
        let error = bind(&directory.path().join("file/criw.sock")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn one_daemon_per_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let held = lock(&state).unwrap();
        let error = lock(&state).unwrap_err();
        assert!(matches!(error, SocketError::Locked(_)), "{error}");
        drop(held);
        lock(&state).unwrap();
    }
}
