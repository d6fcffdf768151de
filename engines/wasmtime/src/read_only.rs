//! What a guest is told when it writes to a read-only file system. wasmtime-wasi has no word for
//! EROFS and says EIO, "I/O error", which sends people to look for a broken disk.

pub(crate) mod components;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfs, StatVfsMountFlags};

use crate::sockets::Errno;

/// The error of a call that would have changed something at `path` below `/`, given what
/// wasmtime-wasi made of it. The process's root is the guest's, so the path means the same.
pub(crate) fn errno(told: i32, path: &[u8]) -> i32 {
    if told != i32::from(Errno::IO.0) || !is_read_only(path) {
        return told;
    }
    Errno::ROFS.0.into()
}

/// Whether what is there, or the directory that it would be in, is on a read-only mount.
fn is_read_only(path: &[u8]) -> bool {
    let path = Path::new("/").join(OsStr::from_bytes(path));
    let places = [Some(path.as_path()), path.parent()];
    first_is_read_only(&places, |path| rustix::fs::statvfs(path))
}

/// As [`is_read_only`], for a path below an open directory.
fn is_read_only_at(directory: &File, path: &str) -> bool {
    let path = Path::new(path);
    let places = [Some(path), path.parent(), Some(Path::new("."))];
    first_is_read_only(&places, |path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let below = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let place = rustix::fs::openat2(directory, path, flags, Mode::empty(), below)?;
        rustix::fs::fstatvfs(place)
    })
}

/// Of the first of the places that is there.
fn first_is_read_only(
    places: &[Option<&Path>],
    look: impl Fn(&Path) -> rustix::io::Result<StatVfs>,
) -> bool {
    let found = places.iter().flatten().find_map(|path| look(path).ok());
    found.is_some_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_io_error_on_a_writable_place_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name).into_os_string();
        for (name, told) in [("new", 29), ("no/such/directory", 29), ("", 29), ("new", 2)] {
            assert_eq!(errno(told, inside(name).as_bytes()), told, "{name}");
        }
    }
}
