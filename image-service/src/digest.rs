//! Content is named by its SHA-256 everywhere in this crate; a [`Digest`] is
//! checked once, when it is parsed, and is safe as a file name afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// `sha256:<64 lower-case hex digits>`, the only algorithm that is accepted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

/// The text is no SHA-256 digest.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no sha256 digest (sha256: and 64 lower-case hex digits)")]
pub struct InvalidDigest(String);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_hash(sha2::Sha256::digest(bytes).as_slice())
    }

    /// The digest that a finished hasher stands for.
    pub(crate) fn from_hasher(hasher: sha2::Sha256) -> Digest {
        Digest::from_hash(hasher.finalize().as_slice())
    }

    fn from_hash(hash: &[u8]) -> Digest {
        Digest(format!("{PREFIX}{}", hex::encode(hash)))
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The whole text, `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text.strip_prefix(PREFIX) {
            Some(hex) if is_hex64(hex) => Ok(Digest(text.to_owned())),
            _ => Err(InvalidDigest(text.chars().take(128).collect())),
        }
    }
}

/// 64 lower-case hex digits.
pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && is_lower_hex(text)
}

pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_sha256_is_a_digest() {
        let good = format!("sha256:{}", "a1".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().hex(), "a1".repeat(32));
        for bad in [
            "",
            "sha256:",
            "sha256:abc",
            &format!("sha256:{}", "A1".repeat(32)),
            &format!("sha512:{}", "a1".repeat(32)),
            &format!("sha256:../{}", "a1".repeat(31)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
