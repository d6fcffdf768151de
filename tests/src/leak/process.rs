//! Processes, zombies and descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::world::World;

/// All pids of the machine.
fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn link(pid: u32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/{name}"))
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn text(pid: u32, name: &str) -> String {
    fs::read(format!("/proc/{pid}/{name}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}

/// Whether a `/proc/PID/cgroup` text names a group of that name.
fn in_group(cgroup: &str, name: &str) -> bool {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.split('/').any(|part| part == name))
}

/// Pids that belong to the world: by cgroup, by network or mount namespace, or
/// because their arguments name its directory. The daemon itself is not among them.
pub(super) fn of_world(world: &World, daemon: u32) -> Vec<u32> {
    let netns = link(world.holder(), "ns/net");
    let mntns = link(world.holder(), "ns/mnt");
    let dir = world.dir.to_string_lossy().into_owned();
    pids()
        .filter(|&pid| pid != daemon && pid != world.holder())
        .filter(|&pid| {
            in_group(&text(pid, "cgroup"), &world.name)
                || link(pid, "ns/net") == netns
                || link(pid, "ns/mnt") == mntns
                || names_dir(&text(pid, "cmdline"), &dir)
        })
        .collect()
}

/// `/tmp/cw1-1` must not match `/tmp/cw1-12`.
fn names_dir(cmdline: &str, dir: &str) -> bool {
    cmdline
        .match_indices(dir)
        .any(|(at, _)| !cmdline[at + dir.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// Pid and command of each.
pub(super) fn names(pids: &[u32]) -> BTreeSet<String> {
    pids.iter()
        .map(|&pid| format!("{pid} {}", text(pid, "cmdline").trim()))
        // Gone between two looks.
        .filter(|name| {
            fs::metadata(format!("/proc/{}", name.split(' ').next().unwrap_or(""))).is_ok()
        })
        .collect()
}

/// Dead children of the daemon.
pub(super) fn zombies(daemon: u32) -> BTreeSet<String> {
    pids()
        .filter_map(|pid| {
            let stat = text(pid, "stat");
            // The command, in parentheses, may contain anything.
            let (_, rest) = stat.rsplit_once(')')?;
            let mut fields = rest.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?);
            (state == "Z" && parent.parse() == Ok(daemon)).then(|| stat.clone())
        })
        .collect()
}

/// Descriptors of the daemon by kind, counted: `socket #3` is the third one.
pub(super) fn descriptors(daemon: u32) -> BTreeSet<String> {
    let mut counts = BTreeMap::<String, u32>::new();
    for entry in fs::read_dir(format!("/proc/{daemon}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let kind = if is_namespace(&entry.path()) {
            // The same one can be reached by its pin or by a process: other names.
            "namespace".into()
        } else {
            kind(&target.to_string_lossy())
        };
        *counts.entry(kind).or_default() += 1;
    }
    counts
        .into_iter()
        .flat_map(|(kind, count)| (1..=count).map(move |number| format!("{kind} #{number}")))
        .collect()
}

/// Whether a path leads to a file of the namespace file system.
pub(super) fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// `socket:[123]` is a `socket`; files keep their names.
fn kind(target: &str) -> String {
    match target.split_once(":[") {
        Some((kind, _)) if !kind.starts_with('/') => kind.into(),
        _ => target.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        assert!(in_group("4:memory:/cw1-1/pod\n0::/", "cw1-1"));
        assert!(!in_group("4:memory:/cw1-12/pod\n0::/", "cw1-1"));
        assert!(names_dir(
            "criw --config /tmp/cw1-1/config.toml",
            "/tmp/cw1-1"
        ));
        assert!(names_dir("criw /tmp/cw1-12/s /tmp/cw1-1", "/tmp/cw1-1"));
        assert!(!names_dir(
            "criw --config /tmp/cw1-12/config.toml",
            "/tmp/cw1-1"
        ));
    }

    #[test]
    fn descriptors_have_kinds() {
        assert_eq!(kind("socket:[17]"), "socket");
        assert_eq!(kind("anon_inode:[pidfd]"), "anon_inode");
        assert_eq!(kind("/var/lib/criw/x"), "/var/lib/criw/x");
    }
}
