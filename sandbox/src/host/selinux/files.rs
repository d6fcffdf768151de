//! Labels of files: one, a volume, a layer.
//!
//! A volume belongs to a pod that may be changing it meanwhile, so no name in it is
//! followed anywhere: directories are opened below the volume without links, and a link
//! gets a label itself.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::super::Context as _;
use crate::error::{Error, Result};

/// Where a file's label is.
const ATTRIBUTE: &str = "security.selinux";

/// Bytes of a label that are read; a longer one is not ours.
const LONGEST: usize = 256;

/// Below these the node itself would stop to work.
const NODE: [&str; 10] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr",
];

/// As a whole these are the node's; a directory in them may be a volume.
const SHARED: [&str; 6] = [
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// Labels one file or directory, a link itself. A file system that has no labels is fine.
///
/// # Errors
/// `Node` with what could not be labelled.
pub fn label_file(path: &Path, label: &str) -> Result<()> {
    set(path, label).context(|| failed(path, label))
}

/// Labels an open file that containers share, if it has another label.
///
/// # Errors
/// As [`label_file`].
pub fn label_shared(file: &File, label: &str) -> Result<()> {
    let mut value = [0_u8; LONGEST];
    let found = rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value);
    if found.is_ok_and(|n| is(&value[..n], label)) {
        return Ok(());
    }
    match rustix::fs::fsetxattr(file, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other.context(|| format!("give compiled code the SELinux label {label}")),
    }
}

/// Labels layers of images, each once: its top is labelled last and tells that the rest is.
///
/// # Errors
/// As [`label_file`].
pub fn label_layers(layers: &[PathBuf], label: &str) -> Result<()> {
    for layer in layers {
        if has(layer, label) || !takes_labels(layer) {
            continue;
        }
        label_tree(layer, label)?;
        label_file(layer, label)?;
    }
    Ok(())
}

/// Labels a volume, with all below it.
///
/// # Errors
/// `Invalid` for what is no volume but the node itself; `Node` as [`label_file`].
pub fn relabel(path: &Path, label: &str) -> Result<()> {
    if is_of_the_node(path) {
        return Err(Error::Invalid(format!(
            "SELinux relabelling of {} is asked for, which the node needs as it is; mount a directory of its own",
            path.display()
        )));
    }
    label_file(path, label)?;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => label_tree(path, label),
        _ => Ok(()),
    }
}

/// A file system that has no labels is fine.
fn set(path: &Path, label: &str) -> rustix::io::Result<()> {
    match rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn failed(path: &Path, label: &str) -> String {
    format!("give {} the SELinux label {label}", path.display())
}

/// Whether the file system of a file keeps labels, tried with the one that it has. Else each
/// container would walk the layers in vain.
fn takes_labels(path: &Path) -> bool {
    let mut value = [0_u8; LONGEST];
    let Ok(n) = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value) else {
        // It has none yet.
        return true;
    };
    let again = rustix::fs::lsetxattr(path, ATTRIBUTE, &value[..n], XattrFlags::empty());
    again != Err(Errno::OPNOTSUPP)
}

fn has(path: &Path, label: &str) -> bool {
    let mut value = [0_u8; LONGEST];
    rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value).is_ok_and(|n| is(&value[..n], label))
}

/// The kernel may end the text with a NUL.
fn is(value: &[u8], label: &str) -> bool {
    value.strip_suffix(b"\0").unwrap_or(value) == label.as_bytes()
}

fn is_of_the_node(path: &Path) -> bool {
    // "/" and its directories.
    path.components().count() <= 2
        || NODE.iter().any(|one| path.starts_with(one))
        || SHARED.iter().any(|one| path == Path::new(one))
}

/// Labels everything below a directory.
fn label_tree(top: &Path, label: &str) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::openat(CWD, top, flags, Mode::empty())
        .context(|| format!("open {}", top.display()))?;
    let mut waiting = vec![PathBuf::from(".")];
    while let Some(path) = waiting.pop() {
        let what = || failed(&top.join(&path), label);
        let directory = match open_below(root.as_fd(), &path) {
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            other => other.context(what)?,
        };
        for (name, kind) in entries(&directory).context(what)? {
            let child = path.join(&name);
            // By the open directory, whatever has come on the way to it meanwhile.
            let place = Path::new("/proc/self/fd")
                .join(directory.as_raw_fd().to_string())
                .join(&name);
            match set(&place, label) {
                // Removed meanwhile.
                Err(Errno::NOENT) => {}
                other => other.context(|| failed(&top.join(&child), label))?,
            }
            if matches!(kind, FileType::Directory | FileType::Unknown) {
                waiting.push(child);
            }
        }
    }
    Ok(())
}

fn open_below(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn entries(directory: &OwnedFd) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            all.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    #[test]
    fn what_the_node_needs_is_not_relabelled() {
        for (path, refused) in [
            ("/", true),
            ("/srv", true),
            ("/etc", true),
            ("/usr/share/doc", true),
            ("/proc/self", true),
            ("/var/lib", true),
            ("/var/lib/kubelet/pods/x/volumes/y", false),
            ("/srv/data", false),
            ("/etc/app", true),
        ] {
            assert_eq!(is_of_the_node(Path::new(path)), refused, "{path}");
        }
        let error = relabel(Path::new("/usr/lib"), LABEL).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }

    /// Root may set the attribute on a kernel without SELinux too.
    #[test]
    fn a_tree_is_labelled_and_nothing_that_its_links_name() {
        let outside = tempfile::tempdir().unwrap();
        let top = outside.path().join("top");
        std::fs::create_dir_all(top.join("a/b/c")).unwrap();
        let mut inside = vec![
            top.clone(),
            top.join("a"),
            top.join("a/b"),
            top.join("a/b/c"),
        ];
        for name in ["file", "a/file", "a/b/c/file"] {
            std::fs::write(top.join(name), "").unwrap();
            inside.push(top.join(name));
        }
        let other = outside.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&other, top.join("link")).unwrap();
        inside.push(top.join("link"));
        if let Err(error) = label_layers(std::slice::from_ref(&top), LABEL) {
            eprintln!("skipped: no label can be set here: {error}");
            return;
        }
        if !has(&top, LABEL) {
            eprintln!("skipped: this file system has no labels");
            return;
        }
        for path in inside {
            assert!(has(&path, LABEL), "{}", path.display());
        }
        assert!(!has(&other, LABEL) && !has(&other.join("file"), LABEL));
        // What has the label at its top is done.
        std::fs::write(top.join("later"), "").unwrap();
        label_layers(std::slice::from_ref(&top), LABEL).unwrap();
        assert!(!has(&top.join("later"), LABEL));
        relabel(&top, LABEL).unwrap();
        assert!(has(&top.join("later"), LABEL));
        let open = File::open(top.join("later")).unwrap();
        let other = "system_u:object_r:container_ro_file_t:s0";
        for _ in 0..2 {
            label_shared(&open, other).unwrap();
            assert!(has(&top.join("later"), other));
        }
        let missing = relabel(&top.join("missing"), LABEL).unwrap_err();
        assert!(missing.to_string().starts_with("give /"), "{missing}");
    }
}
