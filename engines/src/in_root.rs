//! Looking up names in a tree that is not trusted.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often a look-up is tried that something on the machine has disturbed.
const TRIES: u32 = 1000;

/// Opens a name (`O_PATH`) as one whose root directory is `root` would see it: links
/// and `..` lead nowhere else. Errors are those of openat2(2).
///
/// The kernel gives up with EAGAIN at a `..` while anybody renames or mounts anything
/// anywhere on the machine, and leaves it to the caller to try again; after
/// many tries the error is passed on.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut left = TRIES;
    loop {
        let opened = rustix::fs::openat2(
            root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match opened {
            Err(Errno::AGAIN | Errno::INTR) if left > 0 => left -= 1,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Seen on a busy machine: "look up up of the image: resource temporarily unavailable".
    #[test]
    fn renames_elsewhere_do_not_disturb() {
        let tree = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("a")).unwrap();
        fs::write(tree.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("../../file", tree.path().join("a/link")).unwrap();
        let (one, two) = (elsewhere.path().join("1"), elsewhere.path().join("2"));
        fs::write(&one, "").unwrap();
        let root = fs::File::open(tree.path()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let failed =
                (0..20_000).find_map(|_| open_in_root(root.as_fd(), Path::new("a/link")).err());
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
