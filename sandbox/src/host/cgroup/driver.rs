//! Who makes cgroups, and what that means for the names of leaves and parents.

use super::{slice_name, systemd};
use crate::error::{Error, Result};

const PREFIX: &str = "criw-";
const SCOPE: &str = ".scope";

/// What the node's operator has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// What the name of each parent says, and for pods without one what fits the node.
    #[default]
    Auto,
    /// This daemon makes them all, by file writes.
    Cgroupfs,
    /// systemd makes them all.
    Systemd,
}

impl Driver {
    /// Whether pods without a parent have scopes of systemd: what the kubelet is told to
    /// ask for. Two writers in one tree disturb each other, so where systemd is the init,
    /// it is the one.
    pub fn prefers_systemd(self) -> bool {
        match self {
            Self::Auto => systemd::is_reachable(),
            Self::Cgroupfs => false,
            Self::Systemd => true,
        }
    }

    /// # Errors
    /// `Invalid` when leaves below this parent cannot be made, with what to change.
    pub fn check(self, parent: &str) -> Result<()> {
        self.check_with(parent, systemd::runs())
    }

    fn check_with(self, parent: &str, systemd_runs: bool) -> Result<()> {
        let why = match (slice_name(parent), self) {
            (Some(_), Self::Cgroupfs) => {
                "is a systemd slice, but cgroup.driver of this daemon is cgroupfs: \
                 set the kubelet's cgroupDriver to cgroupfs, or the daemon's to auto"
            }
            (Some(_), _) if !systemd_runs => {
                "is a systemd slice, but systemd does not run on this node: \
                 set the kubelet's cgroupDriver to cgroupfs"
            }
            (Some(slice), _) => return super::group_path(slice).map(drop),
            (None, Self::Systemd) => {
                "is no systemd slice, but cgroup.driver of this daemon is systemd: \
                 set the kubelet's cgroupDriver to systemd, or the daemon's to auto"
            }
            (None, _) => return super::normal_parent(parent).map(drop),
        };
        Err(Error::Invalid(format!("cgroup parent {parent} {why}")))
    }
}

/// The name of a leaf of ours below a parent: `criw-<name>.scope` in a slice, else `name`.
pub fn own_name(parent: &str, name: &str) -> String {
    match slice_name(parent) {
        Some(_) => format!("{PREFIX}{name}{SCOPE}"),
        None => name.to_owned(),
    }
}

/// The plain name of a leaf beside that of the pod or container with this id. The dash in
/// the middle of the id is for cAdvisor, which takes every group with 64 digits and letters in
/// a row for a container of that id, and none of two groups when both are idle.
pub fn beside(id: &str, what: &str) -> String {
    let (first, second) = id.split_at(id.len() / 2);
    format!("{first}-{second}.{what}")
}

/// The id in a plain name, if it is one; older daemons put no dash into it.
pub fn id_in(plain: &str) -> String {
    plain.split('.').next().unwrap_or_default().replace('-', "")
}

/// What [`own_name`] was made from.
pub fn plain_name(leaf: &str) -> &str {
    leaf.strip_prefix(PREFIX)
        .and_then(|name| name.strip_suffix(SCOPE))
        .unwrap_or(leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_back() {
        for (parent, name, leaf) in [
            ("/pods", "a.shim", "a.shim"),
            ("pods.slice", "a", "criw-a.scope"),
            ("/pods.slice/pods-x.slice/", "a.shim", "criw-a.shim.scope"),
        ] {
            assert_eq!(own_name(parent, name), leaf);
            assert_eq!(plain_name(leaf), name);
        }
        assert_eq!(plain_name("other.scope"), "other.scope");
        assert_eq!(beside("abcd", "shim"), "ab-cd.shim");
        for plain in ["abcd", "ab-cd.shim", "abcd.shim"] {
            assert_eq!(id_in(plain), "abcd");
        }
    }

    #[test]
    fn parents_that_fit_the_driver() {
        for (driver, parent, systemd_runs, refusal) in [
            (Driver::Auto, "/pods", true, None),
            (Driver::Auto, "/pods", false, None),
            (Driver::Auto, "a-b.slice", true, None),
            (Driver::Auto, "/a.slice/a-b.slice", true, None),
            (Driver::Auto, "a.slice", false, Some("does not run")),
            (
                Driver::Auto,
                "a--b.slice",
                true,
                Some("with a dash for each level"),
            ),
            (Driver::Auto, "/a/../b", true, Some("component \"..\"")),
            (Driver::Cgroupfs, "/pods", true, None),
            (
                Driver::Cgroupfs,
                "a.slice",
                true,
                Some("or the daemon's to auto"),
            ),
            (Driver::Systemd, "a.slice", true, None),
            (Driver::Systemd, "a.slice", false, Some("does not run")),
            (Driver::Systemd, "/pods", true, Some("is no systemd slice")),
        ] {
            let result = driver.check_with(parent, systemd_runs);
            match (result, refusal) {
                (Ok(()), None) => {}
                (Err(Error::Invalid(text)), Some(why)) if text.contains(why) => {}
                (other, _) => panic!("{driver:?} {parent} {systemd_runs}: {other:?}"),
            }
        }
    }
}
