//! What can go wrong, by what the caller does next. Texts are for the person
//! who reads a pod's events: what was tried, on what, why it failed, what to do.

use std::io;
use std::path::PathBuf;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The text given as an image is no reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference { reference: String, reason: String },
    /// The registry could not be reached, hangs, is overloaded or broken: try again later.
    #[error("{0}")]
    Transport(String),
    /// The registry refuses these credentials, or none were given where some are needed.
    #[error("{0}")]
    Denied(String),
    /// The registry has no such repository, tag or digest.
    #[error("{0}")]
    NotFound(String),
    /// What the registry sent is not what its digest, size or format promise.
    #[error("{0}")]
    BadContent(String),
    /// The image can never run here; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// This machine failed: disk full, no permission, broken index.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// A verb phrase, such as `write`.
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The index could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The index or the content on disk failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The embedded database refused or failed.
    #[error("{action} the image index {path}: {source}", path = path.display())]
    Index {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A name stands for more than one image.
    #[error(transparent)]
    Ambiguous(#[from] AmbiguousId),
    /// The image that should be held or prepared is not there.
    #[error("image {0} is not in the store; pull it first")]
    UnknownImage(String),
}

/// Why the service could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The index was written by a newer criw.
    #[error(
        "the image index {path} has format {found}, this criw knows up to {known}; \
         run the newer criw or remove the directory to start with an empty store",
        path = path.display()
    )]
    Newer {
        path: PathBuf,
        found: u64,
        known: u64,
    },
    /// The HTTP client could not be set up.
    #[error("set up the registry client: {0}")]
    Client(String),
    /// Directory or index failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A short id that fits several images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image id prefix {prefix:?} fits {count} images; give more digits")]
pub struct AmbiguousId {
    pub prefix: String,
    pub count: usize,
}

/// Why an image cannot be handed to a container.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No such image.
    #[error("image {0} is not in the store; pull it first")]
    Unknown(String),
    /// The image is here, but not for what the handler needs.
    #[error("image {image} has no {wanted} variant here (it has {present}); {hint}")]
    NoVariant {
        image: String,
        wanted: &'static str,
        present: String,
        hint: &'static str,
    },
    /// The content on disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is no compiled code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module is at fault; the text is the compiler's, for the user.
    #[error("{0}")]
    Invalid(String),
    /// No compiler is configured or it cannot be started.
    #[error("no Wasm compiler: {0}")]
    Unavailable(String),
    /// Compiling took longer than allowed.
    #[error("compiling {module} took longer than {seconds} s and was stopped")]
    TimedOut { module: String, seconds: u64 },
    /// The compiler failed by its own fault; trying again may help.
    #[error("the Wasm compiler failed on {module}: {reason}")]
    Failed { module: String, reason: String },
    /// No module of this digest is in the store.
    #[error("module {0} is not in the store; pull its image again")]
    UnknownModule(String),
    /// The cache on disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
