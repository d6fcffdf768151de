//! Unpacks one layer archive into its own directory, on top of the layers below,
//! in the form overlayfs reads: whiteouts as 0:0 devices, opaque directories by xattr.
//!
//! The layers below are only read: for the metadata of directories the archive does
//! not name, for links on the way of a path, and for the targets of hard links.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use sha2::Digest as _;

use super::Fault;
use super::archive::{self, Archive, Entry, Kind};
use super::decompress;
use super::tree::{self, Directory, Found, OPAQUE, Place, Tree};
use crate::digest::Digest;

/// One layer to unpack.
pub(crate) struct Job<'a> {
    /// The blob as it came.
    pub(crate) blob: &'a File,
    /// The layers below, bottom first.
    pub(crate) lowers: &'a [PathBuf],
    /// An empty directory.
    pub(crate) target: &'a Path,
    pub(crate) diff_id: &'a Digest,
    pub(crate) bounds: Bounds,
    /// Set when nobody waits any more.
    pub(crate) cancelled: &'a AtomicBool,
}

/// What the layer may still take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Larger Wasm files are not recorded as modules.
    pub(crate) module_bytes: u64,
}

/// What was unpacked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Files that begin as Wasm: path in the layer, digest and size.
    pub(crate) modules: BTreeMap<PathBuf, (Digest, u64)>,
}

/// More files that begin as Wasm are just files.
const MAX_MODULES: usize = 64;
/// From this size on the free space is asked for before anything is written.
const LARGE: u64 = 16 << 20;
/// A tar stream may be this much longer than its content by headers and padding.
const SLACK: u64 = 64 << 20;
const WHITEOUT: &[u8] = b".wh.";

/// Unpacks and checks the digest of the whole uncompressed stream.
pub(crate) fn unpack(job: &Job<'_>) -> Result<Unpacked, Fault> {
    let mut blob = job.blob;
    blob.rewind()
        .map_err(|error| Fault::io("read", job.target, error))?;
    let stream = decompress::open(blob).map_err(|error| archive::stream_fault(&error))?;
    let mut archive = Archive::new(Counted {
        stream,
        hasher: sha2::Sha256::new(),
        left: job.bounds.bytes.saturating_add(SLACK),
    });
    let mut layers: Vec<&Path> = vec![job.target];
    layers.extend(job.lowers.iter().rev().map(PathBuf::as_path));
    let mut unpacking = Unpacking {
        tree: Tree::open(&layers)?,
        job,
        done: Unpacked::default(),
        times: Vec::new(),
        parent: None,
        buffer: vec![0; 128 << 10],
    };
    unpacking.root_metadata()?;
    while let Some(entry) = archive.next()? {
        unpacking.entry(&entry, &mut archive)?;
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| archive::stream_fault(&error))?;
    let found = Digest::from_hasher(rest.hasher);
    if found != *job.diff_id {
        return Err(Fault::Content(format!(
            "a layer unpacks to the digest {found}, but the image's config says {}",
            job.diff_id
        )));
    }
    unpacking.directory_times();
    Ok(unpacking.done)
}

/// Hashes what passes and ends a stream that is longer than allowed.
struct Counted<R> {
    stream: R,
    hasher: sha2::Sha256,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the layer unpacks to more bytes than are allowed",
            )
        })?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Unpacking<'a> {
    tree: Tree,
    job: &'a Job<'a>,
    done: Unpacked,
    /// Set at the end, because each new file changes its directory's time.
    times: Vec<(PathBuf, (i64, u32))>,
    /// The parent of the entry before: archives come directory by directory.
    parent: Option<(PathBuf, Vec<Directory>)>,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    /// The merged root shows the topmost layer's metadata: take over those below.
    fn root_metadata(&self) -> Result<(), Fault> {
        let root = self.tree.root();
        match root.parts.get(1) {
            Some((_, lower)) => copy_directory_metadata(lower, root.top(), Path::new("/")),
            None => rustix::fs::fchmod(root.top(), Mode::from_raw_mode(0o755))
                .map_err(|error| Fault::io("set mode of", self.job.target, error)),
        }
    }

    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Fault> {
        if self.job.cancelled.load(Ordering::Relaxed) {
            return Err(Fault::Cancelled);
        }
        self.done.entries += 1;
        if self.done.entries > self.job.bounds.entries {
            return Err(Fault::Limit(format!(
                "the image has more than the {} files that are allowed",
                self.job.bounds.entries
            )));
        }
        let path = clean(&entry.path)?;
        if path.as_os_str().is_empty() {
            if entry.kind != Kind::Directory {
                return Err(Fault::Content(
                    "the archive replaces its root by a file".into(),
                ));
            }
            let root = self.tree.root().clone();
            return self.directory_metadata(root.top(), entry, Path::new(""));
        }
        let name = path.file_name().unwrap_or_default().as_bytes();
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&path, hidden);
        }
        let place = self.place(&path)?;
        let parent = written(&place)?;
        let full = parent_path(&place).join(&place.name);
        if entry.kind == Kind::Directory {
            let directory = self.directory(&place, &parent, &full)?;
            return self.directory_metadata(directory.as_fd(), entry, &full);
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(&place, &parent, &full, entry);
        }
        self.clear(&parent, &place.name, &full)?;
        match entry.kind {
            Kind::File => self.file(&parent, &place.name, &full, entry, archive),
            Kind::Symlink => {
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, &place.name)
                    .map_err(|error| Fault::io("make link", &full, error))?;
                node_metadata(&parent, &place.name, &full, entry, false)
            }
            kind => {
                let (file_type, device) = match kind {
                    Kind::CharDevice => (FileType::CharacterDevice, entry.device),
                    Kind::BlockDevice => (FileType::BlockDevice, entry.device),
                    _ => (FileType::Fifo, (0, 0)),
                };
                if file_type == FileType::CharacterDevice && device == (0, 0) {
                    return Err(Fault::Content(format!(
                        "{full:?} is a character device 0:0, which would hide files of other layers"
                    )));
                }
                rustix::fs::mknodat(
                    &parent,
                    &place.name,
                    file_type,
                    Mode::from_raw_mode(entry.mode & 0o777),
                    rustix::fs::makedev(device.0, device.1),
                )
                .map_err(|error| Fault::io("make device", &full, error))?;
                node_metadata(&parent, &place.name, &full, entry, true)
            }
        }
    }

    /// The parent of `path`, there in the written layer.
    fn place(&mut self, path: &Path) -> Result<Place, Fault> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((known, parents)) = &self.parent
            && known == parent
        {
            return Ok(Place {
                parents: parents.clone(),
                name: path.file_name().unwrap_or_default().to_owned(),
            });
        }
        let mut place = self.tree.place(path, |parents, name| {
            write_parents(parents)?;
            let here = parents.last().expect("the root is always there");
            let full = here.path.join(name);
            // Nothing is visible there, but this layer's own whiteout may be: as overlayfs
            // does, the new directory then hides what the whiteout hid.
            let whiteout = match rustix::fs::unlinkat(here.top(), name, AtFlags::empty()) {
                Ok(()) => true,
                Err(Errno::NOENT) => false,
                Err(error) => return Err(Fault::io("replace", &full, error)),
            };
            let fd = make_directory(here.top(), name, &full)?;
            if whiteout {
                set_opaque(&fd, &full)?;
            }
            Ok(Directory {
                parts: vec![(0, Rc::new(fd))],
                path: full,
            })
        })?;
        write_parents(&mut place.parents)?;
        self.parent = Some((parent.to_owned(), place.parents.clone()));
        Ok(place)
    }

    fn directory(
        &mut self,
        place: &Place,
        parent: &Rc<OwnedFd>,
        full: &Path,
    ) -> Result<Rc<OwnedFd>, Fault> {
        let here = place.parents.last().expect("the root is always there");
        if let Found::Directory(mut found) = here.look(&place.name)? {
            if let Some(fd) = found.written() {
                return Ok(fd.clone());
            }
            write_directory(here, &mut found)?;
            return Ok(found.parts[0].1.clone());
        }
        // A directory over a file of this layer, or over a file or whiteout: nothing below shows.
        let hid = self.clear(parent, &place.name, full)?;
        let fd = make_directory(parent.as_fd(), &place.name, full)?;
        if hid {
            set_opaque(&fd, full)?;
        }
        Ok(Rc::new(fd))
    }

    fn directory_metadata(
        &mut self,
        fd: impl AsFd,
        entry: &Entry,
        full: &Path,
    ) -> Result<(), Fault> {
        owned_metadata(fd, full, entry)?;
        self.times.push((full.to_owned(), entry.mtime));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        full: &Path,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Fault> {
        self.reserve(parent, full, entry.size)?;
        let mut file = create(parent, name, full)?;
        let whole = [(0, entry.size)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        let mut magic: Option<bool> = None;
        let mut hasher = sha2::Sha256::new();
        if entry.pieces.is_some() {
            file.set_len(entry.size)
                .map_err(|error| Fault::io("write", full, error))?;
        }
        for (offset, length) in pieces {
            if entry.pieces.is_some() {
                file.seek(io::SeekFrom::Start(*offset))
                    .map_err(|error| Fault::io("write", full, error))?;
            }
            let mut left = *length;
            while left > 0 {
                if self.job.cancelled.load(Ordering::Relaxed) {
                    return Err(Fault::Cancelled);
                }
                let most = usize::try_from(left)
                    .map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
                let mut count = 0;
                // Whole buffers, so that the magic is never split.
                while count < most {
                    match archive.read_data(&mut self.buffer[count..most])? {
                        0 => return Err(Fault::Content("the layer is cut short".into())),
                        more => count += more,
                    }
                }
                let data = &self.buffer[..count];
                let is_wasm = *magic.get_or_insert_with(|| {
                    entry.pieces.is_none()
                        && data.starts_with(b"\0asm")
                        && entry.size <= self.job.bounds.module_bytes
                });
                if is_wasm {
                    hasher.update(data);
                }
                file.write_all(data)
                    .map_err(|error| Fault::io("write", full, error))?;
                left -= count as u64;
            }
        }
        owned_metadata(&file, full, entry)?;
        set_time(&file, entry.mtime, full)?;
        // The index holds paths as text; a module with another name can still be run by `compile_file`.
        if magic == Some(true) && self.done.modules.len() < MAX_MODULES && full.to_str().is_some() {
            let module = (Digest::from_hasher(hasher), entry.size);
            self.done.modules.insert(full.to_owned(), module);
        }
        Ok(())
    }

    /// Counts a file before it is written, holes included: what it claims is refused early.
    fn reserve(&mut self, at: &OwnedFd, full: &Path, size: u64) -> Result<(), Fault> {
        self.done.bytes = self
            .done
            .bytes
            .checked_add(size)
            .filter(|bytes| *bytes <= self.job.bounds.bytes)
            .ok_or_else(|| {
                Fault::Limit(format!(
                    "the image unpacks to more than the {} bytes that are allowed (at {:?}, {size} bytes)",
                    self.job.bounds.bytes,
                    Path::new("/").join(full)
                ))
            })?;
        if size >= LARGE
            && let Ok(space) = rustix::fs::fstatvfs(at)
            && space.f_bavail.saturating_mul(space.f_frsize) < size
        {
            return Err(Fault::io("write", full, Errno::NOSPC));
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        place: &Place,
        parent: &Rc<OwnedFd>,
        full: &Path,
        entry: &Entry,
    ) -> Result<(), Fault> {
        let target = clean(&entry.link)?;
        let missing = || {
            Fault::Content(format!(
                "{full:?} is a hard link to {target:?}, which is not there or no file"
            ))
        };
        if target.as_os_str().is_empty() {
            return Err(missing());
        }
        let mut source = self.tree.place(&target, |_, _| Err(missing()))?;
        let here = source.parents.last().expect("the root is always there");
        let source_full = here.path.join(&source.name);
        if source_full == full {
            return Ok(());
        }
        let Found::Other {
            layer,
            parent: from,
            stat,
        } = here.look(&source.name)?
        else {
            return Err(missing());
        };
        let from = if layer == 0 {
            from
        } else {
            // overlayfs would copy the file up to link it; so must we.
            write_parents(&mut source.parents)?;
            let to = written(&source)?;
            self.reserve(
                &to,
                &source_full,
                u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            )?;
            copy_up(&from, &to, &source.name, &stat, &source_full)?;
            self.parent = None;
            to
        };
        let module = self.done.modules.get(&source_full).cloned();
        self.clear(parent, &place.name, full)?;
        rustix::fs::linkat(&from, &source.name, parent, &place.name, AtFlags::empty())
            .map_err(|error| Fault::io("link", full, error))?;
        if let Some(module) = module
            && self.done.modules.len() < MAX_MODULES
            && full.to_str().is_some()
        {
            self.done.modules.insert(full.to_owned(), module);
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, hidden: &[u8]) -> Result<(), Fault> {
        // Names that begin with .wh..wh. are for the writer itself; only the opaque mark has a meaning.
        let opaque = hidden == b".wh..opq";
        if !opaque && hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::Content(format!(
                "the whiteout {path:?} names nothing"
            )));
        }
        let place = self.place(path)?;
        let parent = written(&place)?;
        let full = parent_path(&place).join(OsStr::from_bytes(hidden));
        if opaque {
            // What was opened through the directory before still shows the layers below.
            self.parent = None;
            return if place.parents.len() > 1 || self.tree.root().parts.len() > 1 {
                set_opaque(&parent, parent_path(&place))
            } else {
                Ok(())
            };
        }
        let name = OsStr::from_bytes(hidden);
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout only hides what is below: this layer's own entry stays.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let fd = tree::open_directory(&parent, name)
                    .map_err(|error| Fault::io("open", &full, error))?;
                self.parent = None;
                set_opaque(&fd, &full)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                let here = place.parents.last().expect("the root is always there");
                if matches!(here.look(name)?, Found::Nothing) {
                    return Ok(());
                }
                rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|error| Fault::io("make whiteout", &full, error))
            }
            Err(error) => Err(Fault::io("stat", &full, error)),
        }
    }

    /// Removes what this layer has at a name; tells whether that hid something below.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr, full: &Path) -> Result<bool, Fault> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(Fault::io("stat", full, error)),
        };
        self.parent = None;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.done.modules.retain(|path, _| !path.starts_with(full));
            // The descriptor's own path: nothing of the image is resolved on the way.
            let own = Path::new("/proc/self/fd")
                .join(parent.as_raw_fd().to_string())
                .join(name);
            std::fs::remove_dir_all(own).map_err(|error| Fault::io("replace", full, error))?;
        } else {
            self.done.modules.remove(full);
            rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(|error| Fault::io("replace", full, error))?;
        }
        Ok(true)
    }

    /// Best effort: a directory may have been replaced since.
    fn directory_times(&self) {
        let root = self.tree.root().top();
        for (path, mtime) in self.times.iter().rev() {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            let opened = rustix::fs::openat2(
                root,
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            );
            if let Ok(fd) = opened {
                let _ = set_time(fd, *mtime, path);
            }
        }
    }
}

/// A name of the archive as a path below the root; one that leaves it is refused.
fn clean(name: &[u8]) -> Result<PathBuf, Fault> {
    if name.contains(&0) {
        return Err(Fault::Content(
            "a name in the archive holds a zero byte".into(),
        ));
    }
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !path.pop() {
                    return Err(Fault::Content(format!(
                        "the archive has the name {:?}, which leads out of the image",
                        String::from_utf8_lossy(name)
                    )));
                }
            }
            part if part.len() > 255 => {
                return Err(Fault::Content(
                    "a file name in the archive is longer than 255 bytes".into(),
                ));
            }
            part => path.push(OsString::from_vec(part.to_vec())),
        }
    }
    Ok(path)
}

fn written(place: &Place) -> Result<Rc<OwnedFd>, Fault> {
    let parent = place.parents.last().expect("the root is always there");
    Ok(parent
        .written()
        .expect("write_parents gave every parent a part in layer 0")
        .clone())
}

fn parent_path(place: &Place) -> &Path {
    &place.parents.last().expect("the root is always there").path
}

/// Makes the directories of the layers below in the written layer, as they are there.
fn write_parents(parents: &mut [Directory]) -> Result<(), Fault> {
    for index in 1..parents.len() {
        let (above, below) = parents.split_at_mut(index);
        if below[0].written().is_none() {
            write_directory(&above[index - 1], &mut below[0])?;
        }
    }
    Ok(())
}

fn write_directory(parent: &Directory, directory: &mut Directory) -> Result<(), Fault> {
    let name = directory.path.file_name().unwrap_or_default().to_owned();
    let fd = make_directory(parent.top(), &name, &directory.path)?;
    copy_directory_metadata(&directory.parts[0].1, &fd, &directory.path)?;
    directory.parts.insert(0, (0, Rc::new(fd)));
    Ok(())
}

fn make_directory(parent: impl AsFd, name: &OsStr, full: &Path) -> Result<OwnedFd, Fault> {
    let parent = parent.as_fd();
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        .map_err(|error| Fault::io("make directory", full, error))?;
    let fd = tree::open_directory(parent, name).map_err(|error| Fault::io("open", full, error))?;
    // The umask of the daemon is no part of an image.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
        .map_err(|error| Fault::io("set mode of", full, error))?;
    Ok(fd)
}

fn create(parent: &OwnedFd, name: &OsStr, full: &Path) -> Result<File, Fault> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )
    .map(File::from)
    .map_err(|error| Fault::io("create", full, error))
}

/// Owner first: changing it clears the set-user-id bit and capabilities.
fn owned_metadata(fd: impl AsFd, full: &Path, entry: &Entry) -> Result<(), Fault> {
    let fd = fd.as_fd();
    rustix::fs::fchown(
        fd,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
    .map_err(|error| Fault::io("set owner of", full, error))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))
        .map_err(|error| Fault::io("set mode of", full, error))?;
    for (name, value) in &entry.xattrs {
        // trusted.overlay.* from an image would forge whiteouts; labels of the builder's
        // host mean nothing here.
        if !name.starts_with("user.") && name != "security.capability" {
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(Fault::io("set extended attribute of", full, error)),
        }
    }
    Ok(())
}

fn node_metadata(
    parent: &OwnedFd,
    name: &OsStr,
    full: &Path,
    entry: &Entry,
    has_mode: bool,
) -> Result<(), Fault> {
    rustix::fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|error| Fault::io("set owner of", full, error))?;
    if has_mode {
        // The node was just made here and is no link.
        rustix::fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )
        .map_err(|error| Fault::io("set mode of", full, error))?;
    }
    rustix::fs::utimensat(
        parent,
        name,
        &timestamps(entry.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|error| Fault::io("set time of", full, error))
}

fn timestamps((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn set_time(fd: impl AsFd, mtime: (i64, u32), full: &Path) -> Result<(), Fault> {
    rustix::fs::futimens(fd, &timestamps(mtime))
        .map_err(|error| Fault::io("set time of", full, error))
}

fn set_opaque(fd: impl AsFd, full: &Path) -> Result<(), Fault> {
    rustix::fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())
        .map_err(|error| Fault::io("mark as opaque", full, error))
}

fn copy_directory_metadata(from: impl AsFd, to: impl AsFd, full: &Path) -> Result<(), Fault> {
    let stat = rustix::fs::fstat(from.as_fd()).map_err(|error| Fault::io("stat", full, error))?;
    copy_metadata(from, to, &stat, full)
}

fn copy_metadata(from: impl AsFd, to: impl AsFd, stat: &Stat, full: &Path) -> Result<(), Fault> {
    let entry = Entry {
        kind: Kind::File,
        path: Vec::new(),
        link: Vec::new(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        size: 0,
        device: (0, 0),
        xattrs: xattrs(from.as_fd()),
        pieces: None,
    };
    owned_metadata(to.as_fd(), full, &entry)?;
    set_time(to, entry.mtime, full)
}

fn xattrs(fd: impl AsFd) -> Vec<(String, Vec<u8>)> {
    let fd = fd.as_fd();
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::flistxattr(fd, &mut names[..]).unwrap_or(0);
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let mut value = vec![0u8; 64 << 10];
        if !name.is_empty()
            && let Ok(length) = rustix::fs::fgetxattr(fd, name, &mut value[..])
        {
            value.truncate(length);
            found.push((name.to_owned(), value));
        }
    }
    found
}

fn copy_up(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &OsStr,
    stat: &Stat,
    full: &Path,
) -> Result<(), Fault> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let source = rustix::fs::openat(
                from,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| Fault::io("open", full, error))?;
            let mut source = File::from(source);
            let mut target = create(to, name, full)?;
            io::copy(&mut source, &mut target).map_err(|error| Fault::io("copy", full, error))?;
            copy_metadata(&source, &target, stat, full)
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(from, name, Vec::new())
                .map_err(|error| Fault::io("read link", full, error))?;
            rustix::fs::symlinkat(link.as_c_str(), to, name)
                .map_err(|error| Fault::io("make link", full, error))
        }
        _ => Err(Fault::Content(format!(
            "a hard link to the device or pipe {full:?} of a lower layer is not supported"
        ))),
    }
}

#[cfg(test)]
mod tests;
