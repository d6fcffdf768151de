//! Mount namespaces with next to nothing in them. A copy of the host's costs
//! time for each of its mounts; a copy of one of these costs the same on a node
//! with ten pods and with a thousand.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use criw_engines::masks;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::{Context, on_fresh_thread, sys};
use crate::error::Result;

/// The one directory of a template: something to mount a root on, and what lies over
/// masked directories.
pub const MOUNT_POINT: &str = "/root";

/// A mount namespace for shims to start from: a read-only tmpfs that holds
/// nothing but [`MOUNT_POINT`] and an empty file, which lies over masked ones. It lives as long as somebody has it open.
/// `label` is the SELinux label of its files.
pub fn mount_template(label: Option<&str>) -> Result<OwnedFd> {
    on_fresh_thread(|| {
        let mut options = vec![("mode", "0755"), ("size", "4096"), ("nr_inodes", "4")];
        options.extend(label.map(|label| ("context", label)));
        let root = tmpfs(&options)?;
        rustix::fs::mkdirat(&root, &MOUNT_POINT[1..], Mode::from_raw_mode(0o755))
            .context(|| "create the mount point of a template")?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&root, &masks::FILE[1..], flags, Mode::from_raw_mode(0o444))
            .context(|| "create the empty file of a template")?;
        set_readonly(root.as_fd(), false)?;
        enter_new_namespace(root.as_fd())
    })
}

/// A detached tmpfs: no set-user-id, no devices, no programs.
pub(super) fn tmpfs(options: &[(&str, &str)]) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .context(|| "open a new tmpfs")?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)
            .context(|| format!("set {key}={value} of a new tmpfs"))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).context(|| "create a tmpfs")?;
    rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .context(|| "mount a tmpfs")
}

/// Makes a detached mount read-only, everything below included when asked.
pub(super) fn set_readonly(mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attributes = sys::MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        recursive,
        ..Default::default()
    };
    sys::mount_setattr(mount, c"", &attributes).context(|| "make a mount read-only")
}

/// Gives the calling thread (used for nothing else) a mount namespace that has
/// `root` and no other mount, and returns it.
pub(super) fn enter_new_namespace(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let proc = open_proc()?;
    sys::unshare(UnshareFlags::FS | UnshareFlags::NEWNS).context(|| "unshare a mount namespace")?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context(|| "make the mounts of a new namespace private")?;
    // Any directory will do, it is covered in the copy only.
    rustix::mount::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context(|| "mount the root of a new namespace")?;
    rustix::process::fchdir(root).context(|| "enter the root of a new namespace")?;
    // With both in one place the old root ends up on top of the new one.
    rustix::process::pivot_root(".", ".").context(|| "change to the root of a new namespace")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .context(|| "drop the old mounts of a new namespace")?;
    rustix::process::chdir("/").context(|| "enter the root of a new namespace")?;
    own_namespace(proc.as_fd(), "mnt")
}

/// The host's procfs, for threads that are about to leave its mount namespace.
pub(super) fn open_proc() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/proc", flags, Mode::empty()).context(|| "open /proc")
}

/// A namespace of the calling thread.
pub(super) fn own_namespace(proc: BorrowedFd<'_>, kind: &str) -> Result<OwnedFd> {
    rustix::fs::openat(
        proc,
        format!("thread-self/ns/{kind}"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open the thread's {kind} namespace"))
}

/// Moves the calling thread (used for nothing else) into a mount namespace.
pub(super) fn enter(namespace: BorrowedFd<'_>) -> Result<()> {
    // The kernel refuses while other threads share root and working directory.
    sys::unshare(UnshareFlags::FS).context(|| "unshare root and working directory")?;
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))
        .context(|| "enter a mount namespace")
}

/// Whether a file is on this file system.
pub(super) fn is_on(file: BorrowedFd<'_>, magic: rustix::fs::FsWord) -> Result<bool> {
    let stat = rustix::fs::fstatfs(file).context(|| "ask for the type of a file system")?;
    Ok(stat.f_type == magic)
}

/// Whether a name exists in a directory.
pub(super) fn exists_at(directory: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_template_has_one_directory_and_an_empty_file_and_takes_no_other() {
        let template = mount_template(None).unwrap();
        let proc = open_proc().unwrap();
        on_fresh_thread(|| {
            enter(template.as_fd())?;
            let mut names: Vec<_> = std::fs::read_dir("/")
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(names, ["empty", "root"]);
            assert_eq!(std::fs::read(masks::FILE).unwrap(), b"");
            assert!(std::fs::metadata(MOUNT_POINT).unwrap().is_dir());
            let refused = std::fs::write("/file", "").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            let mounts = rustix::fs::openat(
                proc.as_fd(),
                "thread-self/mountinfo",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap();
            let mounts = io::read_to_string(std::fs::File::from(mounts)).unwrap();
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
            Ok(())
        })
        .unwrap();
    }
}
