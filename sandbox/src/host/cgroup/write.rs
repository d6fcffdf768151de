//! Reading and writing of cgroup files: a set of writes happens whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Context;
use crate::error::{Error, Result};

/// One value for one file.
#[derive(Debug)]
pub(super) struct Write {
    file: PathBuf,
    value: String,
}

/// Whether values before a failed write are put back. A fresh leaf is removed
/// instead, which saves reading each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    No,
    Yes,
}

impl Write {
    pub(super) fn new(file: PathBuf, value: String) -> Self {
        Self { file, value }
    }
}

/// What files said before a set of writes; empty with [`Undo::No`].
#[derive(Debug, Default)]
pub(super) struct Before(Vec<(PathBuf, String)>);

impl Before {
    /// The last write first.
    pub(super) fn put_back(self) {
        for (file, old) in self.0.iter().rev() {
            if let Err(error) = put(file, old.trim_end()) {
                tracing::warn!(
                    file = %file.display(), value = old.trim_end(), %error,
                    "cannot put a cgroup value back after a failed update"
                );
            }
        }
    }
}

pub(super) fn all(writes: &[Write], undo: Undo) -> Result<Before> {
    let mut before = Before::default();
    for write in writes {
        let old = match undo {
            Undo::Yes => read_if_there(&write.file)?,
            Undo::No => None,
        };
        if let Err(error) = put(&write.file, &write.value) {
            let error = explain(write, error);
            before.put_back();
            return Err(error);
        }
        if let Some(old) = old {
            before.0.push((write.file.clone(), old));
        }
    }
    Ok(before)
}

/// One write call: cgroup files take a value whole.
fn put(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

pub(super) fn one(file: PathBuf, value: String) -> Result<()> {
    let write = Write::new(file, value);
    put(&write.file, &write.value).map_err(|error| explain(&write, error))
}

/// What the caller can do about a refused value.
fn explain(write: &Write, error: io::Error) -> Error {
    let tried = format!("write {:?} to {}", write.value, write.file.display());
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INVAL | Errno::RANGE | Errno::OPNOTSUPP) => {
            Error::Invalid(format!("{tried}: the kernel refuses the value: {error}"))
        }
        Some(Errno::BUSY) => {
            Error::Invalid(format!("{tried}: what is in use now does not fit: {error}"))
        }
        Some(Errno::NOENT) if write.file.parent().is_some_and(Path::exists) => {
            Error::Invalid(format!("{tried}: the node's kernel has no such limit"))
        }
        _ => Error::node(tried, error),
    }
}

/// Text of a file, `None` when it does not exist.
pub(super) fn read_if_there(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        // A cgroup that is being removed answers ENODEV to those who have a file open.
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::node(format!("read {}", file.display()), error)),
    }
}

/// Text of a file of an existing leaf.
pub(super) fn read(file: &Path) -> Result<String> {
    match read_if_there(file)? {
        Some(text) => Ok(text),
        None => Err(Error::NotFound(format!(
            "{} does not exist",
            file.display()
        ))),
    }
}

/// A file that holds one number; "max" is no limit at all.
pub(super) fn number(file: &Path) -> Result<u64> {
    let text = read(file)?;
    match text.trim() {
        "max" => Ok(u64::MAX),
        number => number
            .parse()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
            .context(|| format!("parse {} of {}", number, file.display())),
    }
}

/// The number behind `key` in lines of `key number`; 0 when there is none.
pub(super) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// Names of the groups in a group; none when it does not exist.
pub(super) fn sub_groups(directory: &Path) -> Result<Vec<String>> {
    let what = || format!("list cgroup {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::node(what(), error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(what)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Adds the pids of a group and all groups in it.
pub(super) fn processes_below(directory: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let Some(text) = read_if_there(&directory.join("cgroup.procs"))? else {
        return Ok(());
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if has_sub_groups(directory) {
        for child in sub_groups(directory)? {
            processes_below(&directory.join(child), pids)?;
        }
    }
    Ok(())
}

/// A directory has a link for itself, its parent, and each directory in it.
fn has_sub_groups(directory: &Path) -> bool {
    File::open(directory)
        .and_then(|file| file.metadata())
        .is_ok_and(|metadata| metadata.nlink() != 2)
}
