//! Builds a container's root from detached mounts. Every name in it comes from an
//! image or a pod and is hostile: it is resolved inside the new root only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::in_root::open_in_root;
use crate::sys;

/// Puts the detached mount on top of the present root and steps into it; the
/// process's root changes only with [`pivot`].
pub(crate) fn attach_root(rootfs: BorrowedFd<'_>) -> io::Result<()> {
    rustix::mount::move_mount(
        rootfs,
        "",
        CWD,
        "/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Attaches one detached mount at `destination` inside `root`.
pub(crate) fn attach(
    root: BorrowedFd<'_>,
    mount: BorrowedFd<'_>,
    destination: &Path,
) -> io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode);
    let point = mount_point(root, destination, kind == FileType::Directory)?;
    rustix::mount::move_mount(
        mount,
        "",
        &point,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// Makes the attached root the process's root and forgets everything above it.
pub(crate) fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // With the same place for both, the old root ends up on top of the new one.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Opens the place of a mount, making missing directories (and the file, when the
/// mount is one).
fn mount_point(root: BorrowedFd<'_>, destination: &Path, directory: bool) -> io::Result<OwnedFd> {
    let names = names(destination)?;
    let mut resolved = PathBuf::from(".");
    let mut here = open_in_root(root, &resolved)?;
    for (n, name) in names.iter().enumerate() {
        resolved.push(name);
        here = match open_in_root(root, &resolved) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                let last = n + 1 == names.len();
                make(here.as_fd(), name, directory || !last).map_err(|error| {
                    let text = match error {
                        Errno::ROFS => "is missing in a read-only root: the image must have it, or the root must be writable",
                        Errno::EXIST => "is a symbolic link that leads nowhere inside the root",
                        _ => "cannot be made",
                    };
                    io::Error::new(
                        io::Error::from(error).kind(),
                        format!("mount point {} {text} ({error})", resolved.display()),
                    )
                })?;
                open_in_root(root, &resolved)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(here)
}

/// The names on the way to a mount point; `..` has no business there.
fn names(destination: &Path) -> io::Result<Vec<&std::ffi::OsStr>> {
    let mut names = Vec::new();
    for component in destination.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("mount point {} has \"..\" in it", destination.display()),
                ));
            }
        }
    }
    if names.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a mount cannot replace the root itself",
        ));
    }
    Ok(names)
}

fn make(parent: BorrowedFd<'_>, name: &std::ffi::OsStr, directory: bool) -> rustix::io::Result<()> {
    if directory {
        return rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    rustix::fs::openat(
        parent,
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )?;
    Ok(())
}

/// Makes each procfs and sysfs in the root read-only: through a writable
/// `/proc/self/mem` a guest rewrites its engine. They come with volumes that the
/// pod asked for (a hostPath of `/`), never from us. `process` is `/proc/self` of
/// the world outside; its `mountinfo` shows what this process can reach.
pub(crate) fn disarm_kernel_file_systems(process: BorrowedFd<'_>) -> io::Result<()> {
    let file = rustix::fs::openat(
        process,
        "mountinfo",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let table = io::read_to_string(std::fs::File::from(file))?;
    for path in table.lines().filter_map(kernel_file_system) {
        let place = match rustix::fs::openat2(
            CWD,
            &path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        ) {
            Ok(place) => place,
            // Hidden below another mount: nobody gets there, nobody may unmount.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        sys::make_mount_read_only(place.as_fd())?;
    }
    Ok(())
}

/// Mount point of a `mountinfo` line, if procfs or sysfs is mounted there.
fn kernel_file_system(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let kind = right.split(' ').next()?;
    if kind != "proc" && kind != "sysfs" {
        return None;
    }
    Some(unescape(left.split(' ').nth(4)?))
}

/// `mountinfo` writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn mount_points_stay_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("real/dir")).unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        symlink("/real", root.join("absolute")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        symlink(outside.path(), root.join("escape")).unwrap();
        let handle = std::fs::File::open(&root).unwrap();
        let root_fd = handle.as_fd();
        // (destination, mount is a directory, what exists afterwards)
        for (destination, directory, expected) in [
            ("/real/dir", true, Some("real/dir")),
            ("/new/deep/dir", true, Some("new/deep/dir")),
            ("/new/file", false, Some("new/file")),
            ("/absolute/sub", true, Some("real/sub")),
            ("/up/top", true, Some("top")),
            ("relative", true, Some("relative")),
            ("/dangling/x", true, None),
            ("/escape/x", true, None),
            ("/file/x", true, None),
            ("/real/../x", true, None),
            ("/", true, None),
        ] {
            let found = mount_point(root_fd, Path::new(destination), directory);
            assert_eq!(found.is_ok(), expected.is_some(), "{destination} {found:?}");
            if let Some(path) = expected {
                let is_directory = std::fs::metadata(root.join(path)).unwrap().is_dir();
                assert_eq!(is_directory, directory, "{destination}");
            }
        }
        let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "something was made outside the root");
    }

    #[test]
    fn kernel_file_systems_are_found_in_mountinfo() {
        let head = "36 35 98:0 /";
        for (line, expected) in [
            (
                format!("{head} /host/proc rw,nosuid shared:3 - proc proc rw"),
                Some("/host/proc"),
            ),
            (format!("{head} /a\\040b rw - sysfs x rw"), Some("/a b")),
            (format!("{head} /a\\134 rw - proc x rw"), Some("/a\\")),
            (format!("{head} /proc rw - tmpfs proc rw"), None),
            (
                format!("{head} / rw - overlay overlay rw,lowerdir=proc"),
                None,
            ),
            ("".to_owned(), None),
        ] {
            assert_eq!(
                kernel_file_system(&line),
                expected.map(PathBuf::from),
                "{line}"
            );
        }
    }
}
