//! Files on a volume that several containers may use at the same time: each appears whole or
//! not at all, and who changes one after reading it holds a lock.
//!
//! What is made in a directory may be used by whom the directory may be used by: the kubelet
//! gives volumes to a group (`fsGroup`), and containers of it run as different users.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::names;

/// Bytes of all names in one directory, when they are listed.
const MAX_NAMES: usize = 64 << 20;

/// How long others may hold a lock.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Between two tries to lock.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// The lock of a directory, and the file that is being written in it: one, because who
/// writes holds the lock. One that is left over is written again.
const LOCK: &str = ".lock";
const NEW: &str = ".new";

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    file: File,
    /// Its permissions.
    mode: u32,
}

/// Held until dropped, or until this process ends.
#[derive(Debug)]
pub(super) struct Locked(#[allow(dead_code, reason = "closing it unlocks")] File);

impl Directory {
    /// The directory that an annotation names.
    pub(super) fn named(path: &str, annotation: &str) -> Result<Self, String> {
        Self::open(CWD, path, OFlags::empty()).map_err(|error| {
            format!(
                "open {path}, which annotation {annotation} names: {error}; a volume has to be mounted there"
            )
        })
    }

    fn open(at: impl rustix::fd::AsFd, path: &str, more: OFlags) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
        let file: File = rustix::fs::openat(at, path, flags, Mode::empty())?.into();
        let mode = file.metadata()?.mode();
        Ok(Self { file, mode })
    }

    /// A directory in it; `None` if there is none.
    pub(super) fn sub(&self, name: &str) -> io::Result<Option<Self>> {
        match Self::open(&self.file, name, OFlags::NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A directory in it, made if there is none.
    pub(super) fn make_sub(&self, name: &str) -> io::Result<Self> {
        if let Some(found) = self.sub(name)? {
            return Ok(found);
        }
        match rustix::fs::mkdirat(&self.file, name, Mode::from_raw_mode(self.mode & 0o777)) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let mut made = Self::open(&self.file, name, OFlags::NOFOLLOW)?;
        if made.mode & 0o777 != self.mode & 0o777 {
            // Against the umask. The maker's right, and of no harm to the others.
            let mode = (made.mode & 0o7000) | (self.mode & 0o777);
            if rustix::fs::fchmod(&made.file, Mode::from_raw_mode(mode)).is_ok() {
                made.mode = mode;
            }
        }
        Ok(made)
    }

    /// A regular file for reading; `None` if there is none.
    pub(super) fn file(&self, name: &str) -> io::Result<Option<File>> {
        // A FIFO would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = match rustix::fs::openat(&self.file, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Some(file))
    }

    /// A whole file of at most so many bytes.
    pub(super) fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            return Err(io::Error::other(format!("it has more than {max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// A new file of that name in place of any other.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        self.create_new(name, OFlags::EXCL)
    }

    fn create_new(&self, name: &str, more: OFlags) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        let mode = Mode::from_raw_mode(self.mode & 0o666);
        let file = rustix::fs::openat(&self.file, name, flags, mode)?;
        // Against the umask; fails for who did not make it, who has no need.
        let _ = rustix::fs::fchmod(&file, mode);
        Ok(file.into())
    }

    /// Puts these bytes in the place of a file in one step. Whoever calls holds the lock.
    pub(super) fn replace(&self, _: &Locked, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(NEW)?;
        let written = file
            .write_all(bytes)
            // Else a power failure could leave the name with nothing behind it.
            .and_then(|()| file.sync_data())
            .and_then(|()| self.rename(NEW, self, name));
        if written.is_err() {
            let _ = self.remove(NEW);
        }
        written
    }

    /// Moves a file in place of any other of its new name.
    pub(super) fn rename(&self, name: &str, to: &Self, new: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.file, name, &to.file, new)?)
    }

    /// Removes a file; none is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.unlink(name, AtFlags::empty())
    }

    /// Removes a directory with the files in it; none is fine.
    pub(super) fn remove_sub(&self, name: &str) -> io::Result<()> {
        if let Some(sub) = self.sub(name)? {
            sub.each(|file| sub.remove(file))?;
        }
        self.unlink(name, AtFlags::REMOVEDIR)
    }

    fn unlink(&self, name: &str, flags: AtFlags) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.file, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Guests' names of all that is in it, in order.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let (mut found, mut size) = (Vec::new(), 0);
        self.each(|file| {
            if let Some(name) = names::decode(file) {
                size += name.len();
                found.push(name);
            }
            if size > MAX_NAMES {
                let text = format!("the names in it have more than {MAX_NAMES} bytes");
                return Err(io::Error::other(text));
            }
            Ok(())
        })?;
        found.sort_unstable();
        Ok(found)
    }

    /// All entries, those of ours included. Names that are no text are nobody's here.
    pub(super) fn each(&self, mut act: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
        for entry in Dir::read_from(&self.file)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => act(name)?,
            }
        }
        Ok(())
    }

    /// When it was changed last, in seconds of Unix.
    pub(super) fn changed(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.mtime().max(0).cast_unsigned())
    }

    /// Keeps the others on this volume from changing anything in it.
    pub(super) fn lock(&self) -> io::Result<Locked> {
        let file = self.create_new(LOCK, OFlags::empty())?;
        let end = Instant::now() + LOCK_LIMIT;
        while !try_lock(&file)? {
            if Instant::now() > end {
                return Err(io::Error::other(format!(
                    "another container holds its lock for more than {LOCK_LIMIT:?}"
                )));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(Locked(file))
    }
}

/// Whether the lock of a file is ours now.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
