//! The files of an image archive, written out under numbers (a hostile name reaches no
//! file system), bounded, and hashed on the way. Removed when dropped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use crate::digest::Digest;
use crate::error::PullError;
use crate::image::Limits;
use crate::layer::archive::{Archive, Entry, Kind};
use crate::layer::{Fault, decompress};
use crate::manifest::Descriptor;
use crate::store::io_error;

/// Files, directories and links of one archive; 1,000 images of 20 layers have fewer.
const MAX_ENTRIES: usize = 100_000;

/// Links that lead to links.
const MAX_LINKS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: tempfile::TempDir,
    files: BTreeMap<String, Digest>,
    links: BTreeMap<String, String>,
    blobs: BTreeMap<Digest, (PathBuf, u64)>,
}

fn bad(reason: impl std::fmt::Display) -> PullError {
    PullError::BadContent(format!("the archive cannot be used: {reason}"))
}

fn refused(reason: impl std::fmt::Display) -> PullError {
    PullError::Refused(format!("the archive is refused: {reason}"))
}

fn fault(fault: Fault) -> PullError {
    // The reader's texts are about layers.
    let about_it = |text: &str| text.replacen("the layer", "it", 1);
    match fault {
        Fault::Limit(text) => refused(about_it(&text)),
        other => bad(about_it(&other.to_string())),
    }
}

impl Spool {
    /// Reads a tar, also a compressed one, to its end. Blocks.
    pub(crate) fn read(
        archive: impl Read,
        tmp: &Path,
        limits: &Limits,
    ) -> Result<Spool, PullError> {
        let mut spool = Spool {
            directory: tempfile::tempdir_in(tmp)
                .map_err(|error| io_error("create a directory in", tmp, error))?,
            files: BTreeMap::new(),
            links: BTreeMap::new(),
            blobs: BTreeMap::new(),
        };
        let stream = decompress::open(archive).map_err(bad)?;
        let mut archive = Archive::new(stream);
        let (mut left, mut entries) = (limits.unpacked_bytes, 0);
        while let Some(entry) = archive.next().map_err(fault)? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(refused(format!(
                    "it has more than the {MAX_ENTRIES} entries that are allowed"
                )));
            }
            spool.take(&mut archive, &entry, limits.blob_bytes, &mut left)?;
        }
        if spool.files.is_empty() {
            return Err(bad("it has no files; is it a tar of images?"));
        }
        Ok(spool)
    }

    fn take<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
        max_file: u64,
        left: &mut u64,
    ) -> Result<(), PullError> {
        let name = plain(&entry.path)?;
        match entry.kind {
            Kind::Directory => return Ok(()),
            Kind::File => {}
            Kind::Symlink | Kind::HardLink => {
                let target = match entry.kind {
                    Kind::HardLink => plain(&entry.link)?,
                    // `docker save` used to write `../<layer>/layer.tar`.
                    _ => beside(&name, &String::from_utf8_lossy(&entry.link))?,
                };
                self.free(&name)?;
                self.links.insert(name, target);
                return Ok(());
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                return Err(bad(format!("{name:?} in it is a device")));
            }
        }
        self.free(&name)?;
        if entry.pieces.is_some() {
            return Err(refused(format!("{name:?} in it is a sparse file")));
        }
        if entry.size > max_file.min(*left) {
            return Err(refused(format!(
                "{name:?} in it has {} bytes, more than are allowed",
                entry.size
            )));
        }
        *left -= entry.size;
        let (path, mut file) = self.next_file()?;
        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            match archive.read_data(&mut buffer).map_err(fault)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    file.write_all(&buffer[..count])
                        .map_err(|error| io_error("write", &path, error))?;
                }
            }
        }
        let digest = Digest::from_hasher(hasher);
        if let Some(hex) = name.strip_prefix("blobs/sha256/")
            && hex != digest.hex()
        {
            return Err(bad(format!(
                "its file {name:?} has content with the digest {digest}; it is damaged, write it again"
            )));
        }
        self.blobs.insert(digest.clone(), (path, entry.size));
        self.files.insert(name, digest);
        Ok(())
    }

    fn free(&self, name: &str) -> Result<(), PullError> {
        if self.files.contains_key(name) || self.links.contains_key(name) {
            return Err(bad(format!("it has {name:?} twice")));
        }
        Ok(())
    }

    fn next_file(&self) -> Result<(PathBuf, File), PullError> {
        let path = self.directory.path().join(self.files.len().to_string());
        let file = File::create_new(&path).map_err(|error| io_error("create", &path, error))?;
        Ok((path, file))
    }

    /// The digest of a file by its name in the archive.
    pub(crate) fn digest_of(&self, name: &str) -> Option<&Digest> {
        let mut name = plain(name.as_bytes()).ok()?;
        for _ in 0..MAX_LINKS {
            if let Some(digest) = self.files.get(&name) {
                return Some(digest);
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }

    /// Bytes of a blob, if there is one.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|(_, size)| *size)
    }

    /// A small blob.
    pub(crate) fn bytes(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, PullError> {
        let (path, size) = self.blobs.get(digest).ok_or_else(|| missing(digest))?;
        if *size > max {
            return Err(refused(format!(
                "its manifest or config {digest} has {size} bytes, more than the {max} that are allowed"
            )));
        }
        Ok(std::fs::read(path).map_err(|error| io_error("read", path, error))?)
    }

    /// Adds what the archive's format leaves out.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<Digest, PullError> {
        let (path, mut file) = self.next_file()?;
        file.write_all(bytes)
            .map_err(|error| io_error("write", &path, error))?;
        let digest = Digest::of(bytes);
        self.blobs
            .insert(digest.clone(), (path, bytes.len() as u64));
        // A name that no archive can have.
        self.files.insert(format!("//{name}"), digest.clone());
        Ok(digest)
    }

    /// A blob as a file of its own, without a copy: it was verified when it was written.
    pub(crate) fn link(
        &self,
        descriptor: &Descriptor,
        directory: &Path,
    ) -> Result<tempfile::NamedTempFile, PullError> {
        let digest = &descriptor.digest;
        let (path, size) = self.blobs.get(digest).ok_or_else(|| missing(digest))?;
        if *size != descriptor.size {
            return Err(bad(format!(
                "its file {digest} has {size} bytes where its manifest says {}",
                descriptor.size
            )));
        }
        tempfile::Builder::new()
            .make_in(directory, |target| {
                std::fs::hard_link(path, target)?;
                File::open(target)
            })
            .map_err(|error| io_error("link a file into", directory, error).into())
    }
}

fn missing(digest: &Digest) -> PullError {
    bad(format!(
        "it lacks {digest}; write it again, for all platforms that its index names or for one"
    ))
}

/// A name without `.`; one that leads out is hostile.
fn plain(name: &[u8]) -> Result<String, PullError> {
    beside("", &String::from_utf8_lossy(name))
}

/// A name as seen from the directory of another.
fn beside(from: &str, name: &str) -> Result<String, PullError> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.is_empty() => {
                return Err(bad(format!("{name:?} in it leads out of the archive")));
            }
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if name.starts_with('/') {
        return Err(bad(format!("{name:?} in it leads out of the archive")));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (from, name, expected) in [
            ("", "./a/b", Some("a/b")),
            ("", "a/", Some("a")),
            ("x/layer.tar", "../y/layer.tar", Some("y/layer.tar")),
            ("", "../a", None),
            ("", "/etc/passwd", None),
            ("x/layer.tar", "../../y", None),
        ] {
            assert_eq!(beside(from, name).ok().as_deref(), expected, "{name}");
        }
    }
}
