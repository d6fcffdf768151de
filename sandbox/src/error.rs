//! What can go wrong, sorted by what the caller does next.

/// An operation on a pod or container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such pod or container.
    #[error("{0}")]
    NotFound(String),
    /// A name is taken, an id prefix is ambiguous.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request can never work as it is.
    #[error("{0}")]
    Invalid(String),
    /// Right request, wrong moment.
    #[error("{0}")]
    WrongState(String),
    /// A needed part is not there now (network not ready, pod not ready).
    #[error("{0}")]
    Unavailable(String),
    /// A deadline passed.
    #[error("{0}")]
    Deadline(String),
    /// The guest could not be started; the container is EXITED 128 StartError.
    #[error("{0}")]
    StartFailed(String),
    /// The node failed us; `what` says what was tried on what.
    #[error("{what}")]
    Node {
        /// What was tried on what.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps a cause with what was tried.
    pub fn node(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Node {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, Error>;
