//! Mounts, and the namespaces that processes, mounts and descriptors keep alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use super::sys;
use crate::world::World;

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// One line of a mountinfo, as far as it matters here.
struct Line {
    root: String,
    target: String,
    filesystem: String,
}

fn parse(mountinfo: &str) -> Vec<Line> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            Some(Line {
                root: left.next()?.into(),
                target: left.next()?.into(),
                filesystem: right.split(' ').next()?.into(),
            })
        })
        .collect()
}

/// Every mount table that can hold a mount of ours, by a name for it.
fn tables(world: &World, daemon: u32) -> Vec<(String, Vec<Line>)> {
    let mut tables = Vec::new();
    let mut add = |name: &str, text: String| tables.push((name.to_owned(), parse(&text)));
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let dir = world.dir.to_string_lossy().into_owned();
    // Of the host only what is about us: other tests mount there too.
    let host: String = of("self")
        .lines()
        .filter(|line| line.contains(&dir))
        .map(|line| format!("{line}\n"))
        .collect();
    add("host", host);
    add("world", of(&world.holder().to_string()));
    add("daemon", of(&daemon.to_string()));
    for path in kept_mount_namespaces(daemon) {
        // One that has just gone holds nothing.
        if let Ok(text) = inside(&path) {
            add("kept", text);
        }
    }
    tables
}

/// The mount table of a namespace in which there may be no program and no procfs.
fn inside(path: &str) -> std::io::Result<String> {
    let namespace = fs::File::open(path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    let look = || {
        sys::unshare_root()?;
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let table = rustix::fs::openat(&proc, "thread-self/mountinfo", flags, Mode::empty())?;
        std::io::read_to_string(fs::File::from(table))
    };
    std::thread::scope(|scope| {
        scope
            .spawn(look)
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}

/// Mount namespaces that the daemon holds by a descriptor or one of its threads
/// lives in; the pins of pods are in such a one. In a stable order.
fn kept_mount_namespaces(daemon: u32) -> Vec<String> {
    let own = fs::read_link(format!("/proc/{daemon}/ns/mnt")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for (directory, suffix) in [("fd", ""), ("task", "/ns/mnt")] {
        let entries = fs::read_dir(format!("/proc/{daemon}/{directory}"));
        for entry in entries.into_iter().flatten().flatten() {
            let path = format!("{}{suffix}", entry.path().display());
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            if target.to_string_lossy().starts_with("mnt:[") && target != own {
                found.insert(target, path);
            }
        }
    }
    found.into_values().collect()
}

/// All mounts, by table and place.
pub(super) fn all(world: &World, daemon: u32) -> BTreeSet<String> {
    let mut counts = BTreeMap::<String, u32>::new();
    for (name, lines) in tables(world, daemon) {
        for line in lines {
            // nsfs mounts differ by inode, which is what may leak.
            let root = if line.filesystem == "nsfs" {
                &*line.root
            } else {
                ""
            };
            let what = format!("{name}: {} {} {root}", line.target, line.filesystem);
            *counts.entry(what).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .flat_map(|(what, count)| (1..=count).map(move |number| format!("{what} #{number}")))
        .collect()
}

/// Namespaces of processes and nsfs mounts. Those that only a descriptor of the daemon
/// keeps are counted among its descriptors: a new daemon may have made others.
pub(super) fn namespaces(world: &World, daemon: u32, processes: &[u32]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in processes.iter().chain([&daemon, &world.holder()]) {
        for name in NAMESPACES {
            if let Ok(target) = fs::read_link(format!("/proc/{pid}/ns/{name}")) {
                found.insert(target.to_string_lossy().into_owned());
            }
        }
    }
    for (_, lines) in tables(world, daemon) {
        let nsfs = lines.into_iter().filter(|line| line.filesystem == "nsfs");
        found.extend(nsfs.map(|line| line.root));
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_mount_line_is_taken_apart() {
        let lines = super::parse(
            "41 25 0:4 net:[4026532] /run/netns/x rw shared:9 - nsfs nsfs rw\n42 25 0:5 / /a rw - tmpfs t rw\n",
        );
        let seen: Vec<_> = lines
            .iter()
            .map(|line| (&*line.root, &*line.target, &*line.filesystem))
            .collect();
        assert_eq!(
            seen,
            [
                ("net:[4026532]", "/run/netns/x", "nsfs"),
                ("/", "/a", "tmpfs")
            ]
        );
    }
}
