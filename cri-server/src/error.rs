//! Errors of the rooms below become gRPC statuses here and nowhere else: one
//! function for each foreign type.

use criw_image_service::{AmbiguousId, PrepareError, PullError, StoreError};
use criw_net::NetError;
use criw_sandbox::Error as SandboxError;
use tonic::{Code, Status};

/// An error and all its causes in one line, as users see it in a pod's events.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some foreign errors repeat their cause's text in their own.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Pods and containers.
pub fn sandbox(error: &SandboxError) -> Status {
    let code = match error {
        SandboxError::NotFound(_) => Code::NotFound,
        SandboxError::AlreadyExists(_) => Code::AlreadyExists,
        SandboxError::Invalid(_) => Code::InvalidArgument,
        SandboxError::WrongState(_) => Code::FailedPrecondition,
        SandboxError::Unavailable(_) => Code::Unavailable,
        SandboxError::Deadline(_) => Code::DeadlineExceeded,
        // As every runtime answers it; the text is what the user reads.
        SandboxError::StartFailed(_) => Code::Unknown,
        SandboxError::Node { .. } => Code::Internal,
    };
    Status::new(code, chain(error))
}

/// Pulls. The kubelet looks for the sentinel `RegistryUnavailable` at the start of an
/// `Unknown` error's text.
pub fn pull(error: &PullError) -> Status {
    let text = chain(error);
    match error {
        PullError::InvalidReference { .. } => Status::invalid_argument(text),
        PullError::Transport(_) => Status::unknown(format!("RegistryUnavailable: {text}")),
        PullError::NotFound(_) => Status::not_found(text),
        PullError::Denied(_) => Status::permission_denied(text),
        PullError::BadContent(_) => Status::data_loss(text),
        PullError::Refused(_) => Status::failed_precondition(text),
        PullError::Io { .. } => Status::internal(text),
        PullError::Store(error) => store(error),
    }
}

/// The image store.
pub fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Index { .. } | StoreError::Io { .. } => Status::internal(chain(error)),
        StoreError::Ambiguous(error) => ambiguous(error),
        StoreError::UnknownImage(_) => Status::not_found(chain(error)),
    }
}

/// A short image id that fits several.
pub fn ambiguous(error: &AmbiguousId) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Handing an image to a container.
pub fn prepare(error: &PrepareError) -> Status {
    match error {
        PrepareError::Unknown(_) => Status::not_found(chain(error)),
        PrepareError::NoVariant { .. } => Status::failed_precondition(chain(error)),
        PrepareError::Store(error) => store(error),
    }
}

/// The pod network, where it is called directly.
pub fn net(error: &NetError) -> Status {
    match error {
        NetError::NotReady(_) => Status::unavailable(chain(error)),
        NetError::InvalidPod(_) => Status::invalid_argument(chain(error)),
        _ => Status::internal(chain(error)),
    }
}

/// A request that can never work as it is; the converters' only error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Status::invalid_argument(error.0)
    }
}

/// Shorthand of the converters.
pub fn invalid<T>(text: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_errors_have_the_codes_of_the_contract() {
        let text = || "x".to_owned();
        for (error, code) in [
            (SandboxError::NotFound(text()), Code::NotFound),
            (SandboxError::AlreadyExists(text()), Code::AlreadyExists),
            (SandboxError::Invalid(text()), Code::InvalidArgument),
            (SandboxError::WrongState(text()), Code::FailedPrecondition),
            (SandboxError::Unavailable(text()), Code::Unavailable),
            (SandboxError::Deadline(text()), Code::DeadlineExceeded),
            (SandboxError::StartFailed(text()), Code::Unknown),
        ] {
            let status = sandbox(&error);
            assert_eq!((status.code(), status.message()), (code, "x"));
        }
        let status = sandbox(&SandboxError::node(
            "pin network namespace",
            std::io::Error::other("no room"),
        ));
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "pin network namespace: no room");
    }

    #[test]
    fn pull_errors_start_with_the_sentinel_only_when_the_registry_is_away() {
        for (error, code, start) in [
            (
                PullError::Transport("no route".into()),
                Code::Unknown,
                "RegistryUnavailable: no route",
            ),
            (
                PullError::Denied("401".into()),
                Code::PermissionDenied,
                "401",
            ),
            (
                PullError::NotFound("no tag".into()),
                Code::NotFound,
                "no tag",
            ),
            (
                PullError::BadContent("digest".into()),
                Code::DataLoss,
                "digest",
            ),
            (
                PullError::Refused("arm64".into()),
                Code::FailedPrecondition,
                "arm64",
            ),
            (
                PullError::InvalidReference {
                    reference: "A B".into(),
                    reason: "space".into(),
                },
                Code::InvalidArgument,
                "invalid image reference",
            ),
            (
                PullError::Store(StoreError::UnknownImage("a".into())),
                Code::NotFound,
                "image a",
            ),
        ] {
            let status = pull(&error);
            assert_eq!(status.code(), code, "{error}");
            assert!(status.message().starts_with(start), "{status:?}");
        }
    }

    #[test]
    fn a_chain_does_not_say_the_same_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("write file: {0}")]
        struct Repeats(#[source] std::io::Error);
        assert_eq!(
            chain(&Repeats(std::io::Error::other("full"))),
            "write file: full"
        );
    }
}
