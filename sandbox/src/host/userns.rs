//! User namespaces of pods: made, asked for, and lent to mounts.
//!
//! Only a process can be in a new user namespace, never one thread of the daemon, and
//! only somebody outside may write its maps. So a child is born in it (and in the pod's
//! other namespaces, which then belong to it), waits, and ends once they are pinned.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::{Context, rootfs, sys, template};
use crate::error::{Error, Result};
use crate::model::{IdMap, IdRange};

impl IdRange {
    /// Whether an id of the namespace stands for anybody.
    pub fn has(self, id: u32) -> bool {
        id < self.length
    }

    /// A line of `/proc/<pid>/uid_map`.
    fn line(self) -> String {
        format!("0 {} {}\n", self.host, self.length)
    }
}

/// A process that is in new namespaces and does nothing. Dropped, it ends; the
/// namespaces live on as long as something holds them.
pub(super) struct Holder {
    directory: OwnedFd,
    pidfd: OwnedFd,
    /// It waits for the end of this.
    leash: Option<OwnedFd>,
}

impl Holder {
    /// A new user namespace with these ids, and these others that belong to it. `proc`
    /// is the host's procfs.
    pub(super) fn start(proc: BorrowedFd<'_>, others: UnshareFlags, ids: IdMap) -> Result<Self> {
        let flags = others | UnshareFlags::NEWUSER;
        let (pid, pidfd, leash) = sys::hold_namespaces(flags)
            .context(|| "make a user namespace (the node may have too few: see the sysctl user.max_user_namespaces)")?;
        let directory = rustix::fs::openat(
            proc,
            pid.to_string(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let holder = match directory {
            Ok(directory) => Self {
                directory,
                pidfd,
                leash: Some(leash),
            },
            Err(error) => {
                drop(leash);
                reap(&pidfd);
                let what = format!("open /proc/{pid}, a process in a new user namespace");
                return Err(Error::node(what, std::io::Error::from(error)));
            }
        };
        holder.put("uid_map", &ids.uids.line())?;
        holder.put("gid_map", &ids.gids.line())?;
        Ok(holder)
    }

    /// One of its namespaces.
    pub(super) fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, format!("ns/{kind}"), flags, Mode::empty())
            .context(|| format!("open the {kind} namespace of a pod"))
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        let what = || {
            format!(
                "write {:?} into {name} of a user namespace",
                text.trim_end()
            )
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty()).context(what)?;
        // The kernel takes a map whole, in one write.
        std::fs::File::from(file)
            .write_all(text.as_bytes())
            .context(what)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.leash = None;
        reap(&self.pidfd);
    }
}

fn reap(pidfd: &OwnedFd) {
    let wait = || rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    let _ = rustix::io::retry_on_intr(wait);
}

/// Shows the files of a detached mount under the ids of a user namespace: what the node
/// has as n, its processes see as n.
pub(super) fn lend(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> std::io::Result<()> {
    let attributes = sys::MountAttributes {
        recursive,
        ids_of: Some(namespace),
        ..Default::default()
    };
    sys::mount_setattr(mount, c"", &attributes)
}

/// Whether pods can have user namespaces on this node: tried with layers and an upper in
/// `directory`, which must be on the file system of the images and is left empty.
///
/// # Errors
/// The reason, with what was tried.
pub fn probe(directory: &Path) -> Result<()> {
    let ids = IdRange {
        host: 65536,
        length: 65536,
    };
    let ids = IdMap {
        uids: ids,
        gids: ids,
    };
    let proc = template::open_proc()?;
    let namespace = Holder::start(proc.as_fd(), UnshareFlags::empty(), ids)?.namespace("user")?;
    let place = directory.join(format!("probe-{}", std::process::id()));
    let paths = ["one", "two", "upper", "work"].map(|name| place.join(name));
    let tried = (|| {
        for path in &paths {
            std::fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
        }
        let [one, two, upper, work] = paths;
        let root = rootfs::Owner::Namespace(namespace.as_fd());
        rootfs::overlay_of(&[one, two], Some((&upper, &work)), root, None).map(drop)
    })();
    let removed = std::fs::remove_dir_all(&place);
    tried?;
    removed.context(|| format!("remove {}", place.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn ids(host: u32) -> IdMap {
        let range = IdRange {
            host,
            length: 65536,
        };
        IdMap {
            uids: range,
            gids: range,
        }
    }

    /// One in which ids from 0 on are the node's from `host` on.
    pub(in super::super) fn namespace(host: u32) -> Result<OwnedFd> {
        made(ids(host))
    }

    fn made(ids: IdMap) -> Result<OwnedFd> {
        let proc = template::open_proc()?;
        Holder::start(proc.as_fd(), UnshareFlags::empty(), ids)?.namespace("user")
    }

    #[test]
    fn a_holder_ends_and_what_it_held_stays() {
        let proc = template::open_proc().unwrap();
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        let holder = Holder::start(proc.as_fd(), flags, ids(100_000)).unwrap();
        let map = rustix::fs::openat(&holder.directory, "uid_map", OFlags::RDONLY, Mode::empty());
        let map = std::io::read_to_string(std::fs::File::from(map.unwrap())).unwrap();
        let words: Vec<_> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "65536"]);
        let mut inodes = std::collections::HashSet::new();
        for kind in ["user", "net", "ipc", "uts"] {
            let file = std::fs::File::from(holder.namespace(kind).unwrap());
            let own = std::fs::metadata(format!("/proc/thread-self/ns/{kind}")).unwrap();
            assert_ne!(file.metadata().unwrap().ino(), own.ino(), "{kind}");
            inodes.insert(file.metadata().unwrap().ino());
        }
        assert_eq!(inodes.len(), 4);
        let directory = holder.directory.try_clone().unwrap();
        drop(holder);
        let gone = rustix::fs::openat(&directory, "status", OFlags::RDONLY, Mode::empty());
        assert!(gone.is_err(), "the holder is still there");
    }

    #[test]
    fn maps_that_the_kernel_refuses_are_told() {
        let mut bad = ids(100_000);
        bad.gids.length = 0;
        let error = made(bad).unwrap_err();
        assert!(
            error.to_string().contains("\"0 100000 0\" into gid_map"),
            "{error}"
        );
    }

    #[test]
    fn lent_files_have_the_ids_of_the_namespace() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let namespace = namespace(100_000).unwrap();
        let mount = rustix::mount::open_tree(
            rustix::fs::CWD,
            directory.path(),
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
                | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap();
        lend(mount.as_fd(), namespace.as_fd(), true).unwrap();
        let stat = rustix::fs::statat(&mount, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (100_000, 100_000));
        // Only once, and only while it is detached.
        assert!(lend(mount.as_fd(), namespace.as_fd(), true).is_err());
    }

    #[test]
    fn this_node_can_and_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        probe(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(probe(Path::new("/proc/no-such")).is_err());
    }
}
