//! Layers: reading their archives, seeing a stack of them as one tree, and
//! unpacking one on top of those below.

pub(crate) mod archive;
pub(crate) mod decompress;
pub(crate) mod tree;
pub(crate) mod unpack;

use std::io;
use std::path::{Path, PathBuf};

/// Why a layer could not be read or unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The archive is damaged or hostile.
    #[error("{0}")]
    Content(String),
    /// The archive is beyond a limit.
    #[error("{0}")]
    Limit(String),
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nobody waits for the result any more.
    #[error("the pull was abandoned")]
    Cancelled,
}

impl Fault {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Fault {
        Fault::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
