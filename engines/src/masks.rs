//! Masked and read-only paths of a container, as runc has them: over a masked file lies an
//! empty one, over a masked directory an empty one, over a read-only path the same
//! again, read-only. A path that is not there is passed over, because Kubernetes asks for the same list
//! in every container, and most of it is in procfs, which no Wasm container has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::in_root::open_in_root;
use crate::sys;

/// An empty directory of the daemon's template (see its `MOUNT_POINT`).
const DIRECTORY: &str = "/root";

/// An empty file there.
pub const FILE: &str = "/empty";

/// What masked paths show.
pub(crate) struct Covers {
    directory: rustix::io::Result<OwnedFd>,
    file: rustix::io::Result<OwnedFd>,
}

impl Covers {
    /// For a process that is in a copy of the template, before it leaves that. What the
    /// template of an older daemon lacks is missed only where it is needed.
    pub(crate) fn open() -> Self {
        let open = |path: &str| {
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(path, flags, Mode::empty())
        };
        Self {
            directory: open(DIRECTORY),
            file: open(FILE),
        }
    }

    /// Hides what is there of `paths` in `root`.
    pub(crate) fn mask(&self, root: BorrowedFd<'_>, paths: &[String]) -> io::Result<()> {
        for path in paths {
            let Some(place) = find(root, path)? else {
                continue;
            };
            let cover = match kind(place.as_fd())? {
                FileType::Directory => &self.directory,
                _ => &self.file,
            };
            // The template is read-only, so its copies are.
            cover
                .as_ref()
                .map_err(|error| io::Error::from(*error))
                .and_then(|cover| clone(cover.as_fd(), OpenTreeFlags::empty()))
                .and_then(|cover| lay(cover.as_fd(), place.as_fd()))
                .map_err(|error| about("mask", path, error))?;
        }
        Ok(())
    }
}

/// Makes read-only what is there of `paths` in `root`; mounts below one keep their own mode.
pub(crate) fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> io::Result<()> {
    for path in paths {
        let Some(place) = find(root, path)? else {
            continue;
        };
        clone(place.as_fd(), OpenTreeFlags::AT_RECURSIVE)
            .and_then(|again| {
                sys::make_mount_read_only(again.as_fd())?;
                lay(again.as_fd(), place.as_fd())
            })
            .map_err(|error| about("make read-only", path, error))?;
    }
    Ok(())
}

/// `None` when nothing of that name is in the root.
fn find(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    let relative = Path::new(".").join(path.trim_start_matches('/'));
    let place = match open_in_root(root, &relative) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(about("look up", path, error.into())),
    };
    let (found, top) = (rustix::fs::fstat(&place)?, rustix::fs::fstat(root)?);
    if (found.st_dev, found.st_ino) == (top.st_dev, top.st_ino) {
        // It would lie over the root that the guest is already in.
        let text = "is the root itself, which only readOnlyRootFilesystem makes read-only";
        let error = io::Error::new(io::ErrorKind::InvalidInput, text);
        return Err(about("cover", path, error));
    }
    Ok(Some(place))
}

fn kind(file: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

fn clone(of: BorrowedFd<'_>, how: OpenTreeFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(of, "", flags | how)?)
}

fn lay(mount: BorrowedFd<'_>, over: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", over, "", flags)?)
}

fn about(what: &str, path: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::mount::{MountFlags, MountPropagationFlags};
    use rustix::thread::UnshareFlags;

    use super::*;

    /// As in a shim: a mount namespace of its own, in which a directory is a root.
    fn in_a_root(work: impl FnOnce(&Path, &Covers) + Send) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("etc/deep")).unwrap();
        fs::create_dir(root.join("tmp")).unwrap();
        for name in ["etc/file", "etc/deep/file", "tmp/file"] {
            fs::write(root.join(name), name).unwrap();
        }
        symlink("/etc/file", root.join("link")).unwrap();
        symlink("../../../../etc", root.join("up")).unwrap();
        symlink("/", root.join("top")).unwrap();
        let empty = directory.path().join("empty");
        fs::write(&empty, "").unwrap();
        let nothing = directory.path().join("nothing");
        fs::create_dir(&nothing).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sys::unshare_namespaces(UnshareFlags::FS | UnshareFlags::NEWNS).unwrap();
                let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", all).unwrap();
                rustix::mount::mount_bind(&root, &root).unwrap();
                let path = |path: &Path| rustix::fs::open(path, OFlags::PATH, Mode::empty());
                let covers = Covers {
                    directory: path(&nothing),
                    file: path(&empty),
                };
                work(&root, &covers);
            });
        });
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_is_masked_is_empty_and_the_rest_as_it_was() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs CAP_SYS_ADMIN");
            return;
        }
        in_a_root(|root, covers| {
            let handle = fs::File::open(root).unwrap();
            // Nothing in procfs; a link leads to its file, inside the root only.
            let paths = words(&[
                "/proc/kcore",
                "/etc/file/below",
                "/link",
                "/up/deep",
                "tmp/file",
            ]);
            covers.mask(handle.as_fd(), &paths).unwrap();
            let read = |name: &str| fs::read_to_string(root.join(name)).ok();
            assert_eq!(read("etc/file").as_deref(), Some(""));
            assert_eq!(read("etc/deep/file"), None);
            assert_eq!(fs::read_dir(root.join("etc/deep")).unwrap().count(), 0);
            assert_eq!(read("tmp/file").as_deref(), Some(""));
            fs::write(root.join("tmp/new"), "").unwrap();
            for path in ["/", "/top", "."] {
                let refused = covers.mask(handle.as_fd(), &words(&[path])).unwrap_err();
                assert!(refused.to_string().contains("the root itself"), "{refused}");
            }
        });
    }

    #[test]
    fn what_is_read_only_takes_no_file_but_what_is_mounted_below_does() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs CAP_SYS_ADMIN");
            return;
        }
        in_a_root(|root, _| {
            let deep = root.join("etc/deep");
            rustix::mount::mount("x", &deep, "tmpfs", MountFlags::empty(), None).unwrap();
            let handle = fs::File::open(root).unwrap();
            make_read_only(handle.as_fd(), &words(&["/etc", "/sys/nothing"])).unwrap();
            let write = |name: &str| fs::write(root.join(name), "").map_err(|e| e.kind());
            let refused = Err(io::ErrorKind::ReadOnlyFilesystem);
            assert_eq!(write("etc/file"), refused);
            assert_eq!(write("etc/new"), refused);
            assert_eq!(write("etc/deep/new"), Ok(()));
            assert_eq!(write("tmp/new"), Ok(()));
            assert!(make_read_only(handle.as_fd(), &words(&["/"])).is_err());
        });
    }
}
