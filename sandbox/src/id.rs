//! Ids of pods and containers: 64 hex digits, as every CRI client expects.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// All 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAnId;

            fn try_from(text: String) -> Result<Self, NotAnId> {
                if is_id(&text) { Ok(Self(text)) } else { Err(NotAnId(text)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// Id of a pod sandbox.
    SandboxId
);
id_type!(
    /// Id of a container.
    ContainerId
);

/// A text that is not 64 lower-case hex digits; never becomes a path.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an id of 64 hex digits")]
pub struct NotAnId(String);

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_hex() -> String {
    use std::fmt::Write as _;
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom never fails for such sizes once the pool is ready; EINTR is the one retry.
        if let Ok(n) =
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
        {
            filled += n;
        }
    }
    bytes.iter().fold(String::with_capacity(64), |mut hex, b| {
        let _ = write!(hex, "{b:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hex_digits_are_ids() {
        let good = "a".repeat(64);
        assert!(SandboxId::try_from(good.clone()).is_ok());
        for bad in [
            "",
            "abc",
            &good[1..],
            &good.to_uppercase(),
            &"g".repeat(64),
            &format!("../{}", &good[3..]),
        ] {
            assert!(ContainerId::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert_ne!(SandboxId::random(), SandboxId::random());
    }
}
