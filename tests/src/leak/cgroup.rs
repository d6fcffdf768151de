//! cgroups, in every v1 hierarchy and the v2 tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Roots of all hierarchies: the v2 tree itself, or each directory of a v1 or hybrid one.
pub fn roots() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.procs").exists() {
        return vec![top.into()];
    }
    subdirectories(top)
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Every group at or below `/<name>` of each hierarchy.
pub fn directories(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = roots()
        .into_iter()
        .map(|root| root.join(name))
        .filter(|path| path.is_dir())
        .collect();
    while let Some(path) = open.pop() {
        open.extend(subdirectories(&path));
        found.push(path);
    }
    found
}

/// Pids in a group.
pub fn members(group: &Path) -> Vec<i32> {
    fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

/// Paths of all groups below (not at) our parent, which stays for the next pod.
pub(super) fn names(name: &str) -> BTreeSet<String> {
    directories(name)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|last| last != name))
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}
