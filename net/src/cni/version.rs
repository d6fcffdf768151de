//! CNI specification versions: which we speak and what each one brought.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u8, u8, u8);

const SUPPORTED: [Version; 7] = [
    Version(0, 1, 0),
    Version(0, 2, 0),
    Version(0, 3, 0),
    Version(0, 3, 1),
    Version(0, 4, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
];

impl Version {
    /// `ips` and `interfaces` replace `ip4` and `ip6`; lists and prevResult exist.
    pub(crate) const LISTS: Self = Self(0, 3, 0);
    /// CHECK, and prevResult on DEL.
    pub(crate) const CHECK: Self = Self(0, 4, 0);
    /// Entries of `ips` lose their `version`.
    pub(crate) const V1: Self = Self(1, 0, 0);
    /// GC and STATUS.
    pub(crate) const GC_AND_STATUS: Self = Self(1, 1, 0);

    /// `None` unless it is a version that we can speak.
    pub(crate) fn supported(text: &str) -> Option<Self> {
        SUPPORTED.into_iter().find(|v| v.to_string() == text)
    }

    pub(crate) fn all() -> String {
        SUPPORTED.map(|v| v.to_string()).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}
