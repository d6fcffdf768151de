//! Namespaces of pods outlive every process of the pod and the daemon, so
//! something must hold them: bind mounts of their files, in one mount namespace
//! of the daemon's own, where they cost no other process anything.
//!
//! ```text
//!   host mount namespace        the pin room
//!     <state>/pins      (private bind mount)
//!     <state>/pins/mnt  ------> /                     (tmpfs, the only mount)
//!                               /<pod>/user net ipc uts  (nsfs)
//!                               /<pod>/shm               (tmpfs)
//! ```
//!
//! After a reboot `<state>/pins/mnt`, if it is still there, is a plain file, and
//! a new room is made. [`host`] is for the one kind of pin that others must see.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::{Context, on_fresh_thread, sys, template, userns};
use crate::error::{Error, Result};
use crate::model::IdMap;

/// `f_type` of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The pins of all pods of one daemon.
#[derive(Debug)]
pub struct PinRoom {
    directory: PathBuf,
    namespace: OwnedFd,
    root: OwnedFd,
}

/// Which namespaces a pod has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Users; then the others belong to it.
    pub user: Option<IdMap>,
    /// Network.
    pub net: bool,
    /// System V IPC, POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
}

/// Namespaces of a pod; those that it shares with the node are `None`.
#[derive(Debug, Default)]
pub struct PodNamespaces {
    /// Users.
    pub user: Option<OwnedFd>,
    /// Network.
    pub net: Option<OwnedFd>,
    /// System V IPC, POSIX message queues.
    pub ipc: Option<OwnedFd>,
    /// Host name.
    pub uts: Option<OwnedFd>,
}

const KINDS: [&str; 4] = ["user", "net", "ipc", "uts"];

impl Want {
    fn flags(self) -> UnshareFlags {
        let mut flags = UnshareFlags::empty();
        flags.set(UnshareFlags::NEWNET, self.net);
        flags.set(UnshareFlags::NEWIPC, self.ipc);
        flags.set(UnshareFlags::NEWUTS, self.uts);
        flags
    }

    fn kinds(self) -> impl Iterator<Item = &'static str> {
        let wanted = [self.user.is_some(), self.net, self.ipc, self.uts];
        KINDS
            .into_iter()
            .zip(wanted)
            .filter_map(|(kind, wanted)| wanted.then_some(kind))
    }
}

impl PodNamespaces {
    fn slot(&mut self, kind: &str) -> &mut Option<OwnedFd> {
        match kind {
            "user" => &mut self.user,
            "net" => &mut self.net,
            "ipc" => &mut self.ipc,
            _ => &mut self.uts,
        }
    }
}

impl PinRoom {
    /// Opens the room of this state directory, or makes it: once per boot.
    pub fn open(state: &Path) -> Result<Self> {
        let directory = state.join("pins");
        std::fs::create_dir_all(&directory)
            .context(|| format!("create {}", directory.display()))?;
        let lock = lock_directory(&directory)?;
        let namespace = match existing(&directory.join("mnt"))? {
            Some(namespace) => namespace,
            None => make(&directory)?,
        };
        drop(lock);
        let root = on_fresh_thread(|| {
            template::enter(namespace.as_fd())?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open("/", flags, Mode::empty()).context(|| "open the pin room")
        })?;
        Ok(Self {
            directory,
            namespace,
            root,
        })
    }

    /// New namespaces, pinned as `name`. On failure nothing is left.
    pub fn create(&self, name: &str, want: Want) -> Result<PodNamespaces> {
        check_name(name)?;
        let built = on_fresh_thread(|| {
            let proc = template::open_proc()?;
            let mut namespaces = PodNamespaces::default();
            if let Some(ids) = want.user {
                let born = userns::Holder::start(proc.as_fd(), want.flags(), ids)?;
                for kind in want.kinds() {
                    *namespaces.slot(kind) = Some(born.namespace(kind)?);
                }
            } else {
                sys::unshare(want.flags()).context(|| "unshare the namespaces of a pod")?;
                for kind in want.kinds() {
                    *namespaces.slot(kind) = Some(template::own_namespace(proc.as_fd(), kind)?);
                }
            }
            let pod = self.make_directory(name)?;
            self.enter()?;
            for kind in want.kinds() {
                let namespace = namespaces.slot(kind).as_ref().expect("opened just now");
                pin(namespace.as_fd(), pod.as_fd(), kind.as_ref())?;
            }
            Ok(namespaces)
        });
        if built.is_err() {
            self.remove(name)?;
        }
        built
    }

    /// The pinned namespaces of a pod; all `None` when it has none.
    pub fn open_pod(&self, name: &str) -> Result<PodNamespaces> {
        check_name(name)?;
        let mut namespaces = PodNamespaces::default();
        for kind in KINDS {
            let path = format!("{name}/{kind}");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(&self.root, &path, flags, Mode::empty()) {
                // A file without its mount is what an interrupted create leaves.
                Ok(file) if template::is_on(file.as_fd(), NSFS_MAGIC)? => {
                    *namespaces.slot(kind) = Some(file);
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(Error::node(
                        format!("open pin {path}"),
                        io::Error::from(error),
                    ));
                }
            }
        }
        Ok(namespaces)
    }

    /// Drops the pins of a pod. Idempotent; the namespaces end with their last user.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if !template::exists_at(self.root.as_fd(), name) {
            return Ok(());
        }
        on_fresh_thread(|| {
            self.enter()?;
            for kind in KINDS.into_iter().chain(["shm"]) {
                let path = format!("/{name}/{kind}");
                unmount(Path::new(&path))?;
                // The shared memory is mounted on a directory, namespaces on files.
                let flags = match kind {
                    "shm" => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                ignore_absent(rustix::fs::unlinkat(CWD, &path, flags))
                    .context(|| format!("remove pin {path}"))?;
            }
            ignore_absent(rustix::fs::unlinkat(
                CWD,
                format!("/{name}"),
                AtFlags::REMOVEDIR,
            ))
            .context(|| format!("remove pins of {name}"))
        })
    }

    /// Names of everything pinned.
    pub fn list(&self) -> Result<Vec<String>> {
        let directory = rustix::fs::Dir::read_from(&self.root).context(|| "list the pin room")?;
        let mut names = Vec::new();
        for entry in directory {
            let entry = entry.context(|| "list the pin room")?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Ends the room with all its pins and removes its directory: for uninstalling.
    pub fn destroy(self) -> Result<()> {
        for name in self.list()? {
            self.remove(&name)?;
        }
        let file = self.directory.join("mnt");
        unmount(&file)?;
        unmount(&self.directory)?;
        std::fs::remove_dir_all(&self.directory)
            .context(|| format!("remove {}", self.directory.display()))
    }

    /// Moves the calling thread (used for nothing else) into the room.
    pub(super) fn enter(&self) -> Result<()> {
        template::enter(self.namespace.as_fd())
    }

    /// Runs on a fresh thread inside the room.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_fresh_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// The directory of a pod in the room, made when missing.
    pub(super) fn make_directory(&self, name: &str) -> Result<OwnedFd> {
        match rustix::fs::mkdirat(&self.root, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(Error::node(
                    format!("create pins of {name}"),
                    io::Error::from(error),
                ));
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.root, name, flags, Mode::empty())
            .context(|| format!("open pins of {name}"))
    }
}

/// The room pinned here, if this boot has one.
fn existing(file: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let namespace = match rustix::fs::open(file, flags, Mode::empty()) {
        Ok(namespace) => namespace,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => {
            return Err(Error::node(
                format!("open {}", file.display()),
                io::Error::from(error),
            ));
        }
    };
    // Anything else is a left-over of another boot, or of a start that was interrupted.
    let is_room = template::is_on(namespace.as_fd(), NSFS_MAGIC)?
        && sys::namespace_type(namespace.as_fd()).context(|| "ask for the type of a namespace")?
            == libc::CLONE_NEWNS;
    Ok(is_room.then_some(namespace))
}

fn make(directory: &Path) -> Result<OwnedFd> {
    // A mount namespace may be pinned on a private mount only.
    unmount(directory)?;
    rustix::mount::mount_bind(directory, directory)
        .context(|| format!("bind {} to itself", directory.display()))?;
    rustix::mount::mount_change(directory, MountPropagationFlags::PRIVATE)
        .context(|| format!("make {} private", directory.display()))?;
    let handle = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open {}", directory.display()))?;
    // The kernel pins a mount namespace only in one that is older, by number. Since
    // 6.18 each CPU hands out numbers from a stock of its own, so a younger namespace
    // may have a smaller number; on the CPU that numbered ours it never has.
    let mut cpus = std::iter::once(None).chain((0..rustix::thread::CpuSet::MAX_CPU).map(Some));
    loop {
        let cpu = cpus.next().flatten();
        let namespace = on_fresh_thread(|| {
            if let Some(cpu) = cpu {
                let mut only = rustix::thread::CpuSet::new();
                only.set(cpu);
                rustix::thread::sched_setaffinity(None, &only)
                    .context(|| "pin a mount namespace: no CPU is left to try")?;
            }
            let root = template::tmpfs(&[("mode", "0700")])?;
            template::enter_new_namespace(root.as_fd())
        })?;
        match pin(namespace.as_fd(), handle.as_fd(), "mnt".as_ref()) {
            Err(error) if is_loop(&error) => {}
            other => return other.map(|()| namespace),
        }
    }
}

fn is_loop(error: &Error) -> bool {
    let Error::Node { source, .. } = error else {
        return false;
    };
    source
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .is_some_and(|code| code == libc::ELOOP || code == libc::EINVAL)
}

/// Binds a namespace to a (new, empty) file. The caller is in the mount namespace
/// of `directory`.
fn pin(namespace: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let what = || format!("pin a namespace as {}", name.display());
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(directory, name, flags, Mode::RUSR).context(what)?;
    let clone = rustix::mount::open_tree(
        namespace,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .context(what)?;
    rustix::mount::move_mount(
        &clone,
        "",
        directory,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .context(what)
}

/// Unmounts a path, also one that is no mount point or does not exist.
fn unmount(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => Ok(()),
        Err(error) => Err(Error::node(
            format!("unmount {}", path.display()),
            io::Error::from(error),
        )),
    }
}

fn ignore_absent(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// One lock for everyone who makes mounts of this directory.
fn lock_directory(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, flags, Mode::empty())
        .context(|| format!("open {}", directory.display()))?;
    rustix::fs::flock(&handle, FlockOperation::LockExclusive)
        .context(|| format!("lock {}", directory.display()))?;
    Ok(handle)
}

/// Names are ids; nothing else becomes a path.
fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
        return Err(Error::Invalid(format!(
            "{name:?} cannot be the name of a pin: use letters, digits, - and _"
        )));
    }
    Ok(())
}

/// Network namespaces in the host's mount namespace, where CNI plugins and agents
/// look for them. Each costs every copy of that mount namespace a mount.
pub mod host {
    use super::*;

    /// Pins a network namespace at a path such as `/run/netns/criw-<id>`. Its
    /// directory becomes a shared mount of itself, as `ip netns` makes it.
    pub fn pin_netns_at(namespace: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Invalid(format!(
                "{} names no file to pin a network namespace at",
                path.display()
            )));
        };
        std::fs::create_dir_all(parent).context(|| format!("create {}", parent.display()))?;
        let lock = lock_directory(parent)?;
        make_shared(parent)?;
        drop(lock);
        // The handle above may be of the directory below the bind mount.
        let handle = rustix::fs::open(
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| format!("open {}", parent.display()))?;
        let pinned = pin(namespace, handle.as_fd(), Path::new(name));
        if pinned.is_err() {
            unpin(path)?;
        }
        pinned
    }

    /// Drops such a pin. Idempotent.
    pub fn unpin(path: &Path) -> Result<()> {
        unmount(path)?;
        ignore_absent(rustix::fs::unlink(path)).context(|| format!("remove {}", path.display()))
    }

    fn make_shared(directory: &Path) -> Result<()> {
        let shared = || {
            rustix::mount::mount_change(
                directory,
                MountPropagationFlags::SHARED | MountPropagationFlags::REC,
            )
        };
        match shared() {
            // Not a mount point yet.
            Err(Errno::INVAL) => {
                rustix::mount::mount_bind_recursive(directory, directory)
                    .context(|| format!("bind {} to itself", directory.display()))?;
                shared().context(|| format!("make {} shared", directory.display()))
            }
            other => other.context(|| format!("make {} shared", directory.display())),
        }
    }
}

#[cfg(test)]
mod tests;
