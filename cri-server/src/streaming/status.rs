//! How a command ended, as the error stream tells it. Pure.

use serde_json::json;

use super::upgrade::Version;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or an attached container that ended.
    Success,
    /// Another exit code.
    Exit(i32),
    /// It could not be run, or not to its end.
    Failed(String),
}

impl Outcome {
    /// Of an exit code.
    pub fn exit(code: i32) -> Self {
        match code {
            0 => Self::Success,
            code => Self::Exit(code),
        }
    }

    /// The bytes of the error stream: a Status object from version 4 on, before it the
    /// text of an error and nothing for a success.
    pub fn bytes(&self, version: Version) -> Vec<u8> {
        let message = match self {
            Self::Success => String::new(),
            Self::Exit(code) => format!("command terminated with exit code {code}"),
            Self::Failed(text) => text.clone(),
        };
        if version < Version::V4 {
            return message.into_bytes();
        }
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(text) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": text}]},
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn old_clients_get_text_and_new_ones_an_object() {
        let failed = Outcome::Failed("no such file".into());
        for (outcome, old, pointer, value) in [
            (Outcome::exit(0), "", "/status", "Success"),
            (
                Outcome::exit(3),
                "command terminated with exit code 3",
                "/details/causes/0/message",
                "3",
            ),
            (
                Outcome::exit(3),
                "command terminated with exit code 3",
                "/reason",
                "NonZeroExitCode",
            ),
            (failed.clone(), "no such file", "/message", "no such file"),
            (failed, "no such file", "/reason", "InternalError"),
        ] {
            for version in [Version::V1, Version::V2, Version::V3] {
                assert_eq!(outcome.bytes(version), old.as_bytes());
            }
            for version in [Version::V4, Version::V5] {
                let object: Value = serde_json::from_slice(&outcome.bytes(version)).unwrap();
                assert_eq!(object.pointer(pointer).unwrap(), value);
            }
        }
    }
}
