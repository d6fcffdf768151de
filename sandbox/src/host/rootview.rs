//! A read-only look at an image's files from the daemon. Their names and links
//! are hostile: everything is resolved beneath the root, nothing but regular
//! files is opened, and reads are bounded.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use criw_engines::in_root::open_in_root;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Context, rootfs};
use crate::error::{Error, Result};

/// The files of an image, all layers seen as one.
#[derive(Debug)]
pub struct RootView {
    root: OwnedFd,
}

/// What a name in the root stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Inside the root, absolute, links resolved.
    pub path: PathBuf,
    /// Type and permissions as `stat` has them.
    pub mode: u32,
    /// Whether it is a regular file.
    pub is_file: bool,
}

impl RootView {
    /// Layers, lowest first.
    pub fn open(lowers: &[PathBuf]) -> Result<Self> {
        Ok(Self {
            root: rootfs::overlay(lowers, None)?,
        })
    }

    /// Bytes of a regular file; `None` when there is none of that name. A file
    /// longer than `max` bytes is an error.
    pub fn read(&self, path: &str, max: usize) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit)
            .read_to_end(&mut bytes)
            .context(|| format!("read {path} of the image"))?;
        if bytes.len() > max {
            return Err(Error::Invalid(format!(
                "{path} of the image is longer than {max} bytes"
            )));
        }
        Ok(Some(bytes))
    }

    /// What a name stands for; `None` when it leads nowhere.
    pub fn resolve(&self, path: &str) -> Result<Option<Resolved>> {
        let Some(file) = self.open_path(path)? else {
            return Ok(None);
        };
        let mode = rustix::fs::fstat(&file)
            .context(|| format!("stat {path} of the image"))?
            .st_mode;
        // A detached mount is a world of its own: the kernel names what is in it from its root.
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let path = std::fs::read_link(&link).context(|| format!("name {path} of the image"))?;
        Ok(Some(Resolved {
            path: absolute(&path),
            mode,
            is_file: FileType::from_raw_mode(mode) == FileType::RegularFile,
        }))
    }

    /// A regular file, read-only; `None` when there is none of that name.
    pub fn open_file(&self, path: &str) -> Result<Option<File>> {
        // Looked at before it is opened: opening a device or a pipe has effects.
        let Some(found) = self.open_path(path)? else {
            return Ok(None);
        };
        let mode = rustix::fs::fstat(&found)
            .context(|| format!("stat {path} of the image"))?
            .st_mode;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Ok(None);
        }
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = File::open(&link).context(|| format!("open {path} of the image"))?;
        Ok(Some(file))
    }

    fn open_path(&self, path: &str) -> Result<Option<OwnedFd>> {
        if path.contains('\0') {
            return Ok(None);
        }
        let opened = open_in_root(self.root.as_fd(), Path::new(path));
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(Error::node(
                format!("look up {path} of the image"),
                io::Error::from(error),
            )),
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::Mode;

    use super::*;

    #[test]
    fn nothing_leads_out_of_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let (lower, upper) = (
            directory.path().join("lower"),
            directory.path().join("upper"),
        );
        fs::create_dir_all(lower.join("etc")).unwrap();
        fs::create_dir_all(upper.join("bin")).unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        fs::write(lower.join("etc/passwd"), "root:x:0:0::/:\n").unwrap();
        symlink("../../../secret", lower.join("up")).unwrap();
        symlink("/etc/passwd", upper.join("bin/absolute")).unwrap();
        symlink("/proc/self/environ", lower.join("magic")).unwrap();
        symlink("loop", lower.join("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, lower.join("fifo"), Mode::RUSR).unwrap();
        for lowers in [vec![lower.clone()], vec![lower.clone(), upper.clone()]] {
            let view = RootView::open(&lowers).unwrap();
            for path in [
                "up",
                "/up",
                "../secret",
                "magic",
                "loop",
                "fifo",
                "etc",
                "none",
                "etc/passwd/x",
            ] {
                assert_eq!(view.read(path, 100).unwrap(), None, "{path}");
            }
            assert_eq!(
                view.read("/etc/passwd", 15).unwrap().unwrap(),
                b"root:x:0:0::/:\n"
            );
            assert!(view.read("/etc/passwd", 14).is_err());
            let etc = view.resolve("etc").unwrap().unwrap();
            assert_eq!((etc.path.to_str(), etc.is_file), (Some("/etc"), false));
            assert!(
                view.resolve("fifo")
                    .unwrap()
                    .is_some_and(|fifo| !fifo.is_file)
            );
            assert_eq!(view.resolve("up").unwrap(), None);
        }
        let view = RootView::open(&[lower, upper]).unwrap();
        let found = view.resolve("/bin/absolute").unwrap().unwrap();
        assert_eq!(
            (found.path.to_str(), found.is_file),
            (Some("/etc/passwd"), true)
        );
        assert!(
            RootView::open(&[])
                .unwrap()
                .resolve("/x")
                .unwrap()
                .is_none()
        );
    }
}
