//! Roots of containers as detached mounts: they exist nowhere in the host's mount
//! namespace, cost it nothing, and end with their last user.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::{Context, on_fresh_thread, sys, template, userns};
use crate::error::{Error, Result};

/// The kernel copies at most this much of one mount option.
const LONGEST_OPTION: usize = 255;

/// The root of a container: layers (lowest first), and if it may write an upper
/// and a work directory, both on one file system and empty. Without an upper the
/// mount is read-only.
///
/// The upper is mounted `volatile`: nothing of it is worth an fsync, and it is
/// never mounted a second time.
pub fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<OwnedFd> {
    overlay_of(lowers, upper, Owner::Node, None)
}

/// Under whose ids the files of layers are shown.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// Under those that they have on disk.
    Node,
    /// Those of a user namespace: what is on disk as 0 belongs to its root. The upper is
    /// taken as it is: what a container writes has the node's ids of its users on disk, so
    /// that no file of root's is made by anybody else.
    Namespace(BorrowedFd<'a>),
}

/// As [`overlay`], for any owner. The overlay itself cannot be shown under other ids, so
/// each layer is. All files of an overlay show `label`, the SELinux label of a container's
/// files; what is no overlay shows what its files have on disk.
pub fn overlay_of(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    owner: Owner<'_>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    match (lowers, upper) {
        // An artifact has no file system at all.
        ([], None) => {
            let empty = template::tmpfs(&[("size", "4096"), ("mode", "0755")])?;
            template::set_readonly(empty.as_fd(), false)?;
            Ok(empty)
        }
        ([], Some((upper, _))) => clone_directory(upper),
        ([lower], None) => {
            let layer = Layer::new(lower, owner)?;
            let clone = match layer.lent {
                Some(lent) => lent,
                None => clone_directory(lower)?,
            };
            template::set_readonly(clone.as_fd(), false)?;
            Ok(clone)
        }
        _ => {
            let layers = Layer::all(lowers, owner)?;
            if collects_any_option() {
                return by_one_string(&layers, upper, label);
            }
            match by_layers(&layers, upper, label) {
                // Of the kernels that look at each option, those before 6.8 have no `lowerdir+`.
                Err(Failure::NoSuchOption) => by_one_string(&layers, upper, label),
                Err(Failure::Other(error)) => Err(error),
                Ok(mount) => Ok(mount),
            }
        }
    }
}

/// One lower directory.
struct Layer<'a> {
    path: &'a Path,
    /// A detached mount of it under the ids of a user namespace.
    lent: Option<OwnedFd>,
}

impl<'a> Layer<'a> {
    fn all(lowers: &'a [PathBuf], owner: Owner<'_>) -> Result<Vec<Self>> {
        lowers.iter().map(|path| Self::new(path, owner)).collect()
    }

    fn new(path: &'a Path, owner: Owner<'_>) -> Result<Self> {
        let lent = match owner {
            Owner::Node => None,
            Owner::Namespace(namespace) => {
                let clone = clone_directory(path)?;
                userns::lend(clone.as_fd(), namespace, false).context(|| {
                    format!(
                        "show {} under the ids of a user namespace (its file system and the kernel must know idmapped mounts)",
                        path.display()
                    )
                })?;
                Some(clone)
            }
        };
        Ok(Self { path, lent })
    }
}

/// A directory of the host as a mount of its own, without what is mounted below.
fn clone_directory(directory: &Path) -> Result<OwnedFd> {
    let what = || format!("clone {}", directory.display());
    let clone = rustix::mount::open_tree(
        CWD,
        directory,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .context(what)?;
    let private = sys::MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    sys::mount_setattr(clone.as_fd(), c"", &private).context(what)?;
    Ok(clone)
}

/// Options besides the directories. Hard links, inode numbers and metadata-only
/// copies behave the same whatever the kernel was built with.
fn options(writable: bool) -> &'static [(&'static str, Option<&'static str>)] {
    const SANE: [(&str, Option<&str>); 4] = [
        ("index", Some("off")),
        ("metacopy", Some("off")),
        ("xino", Some("auto")),
        ("volatile", None),
    ];
    if writable { &SANE } else { &SANE[..3] }
}

enum Failure {
    NoSuchOption,
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn by_layers(
    lowers: &[Layer<'_>],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
) -> std::result::Result<OwnedFd, Failure> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .context(|| "open a new overlay")?;
    let context = context.as_fd();
    let mut kept = Vec::new();
    // The kernel wants the uppermost layer first.
    for (n, lower) in lowers.iter().rev().enumerate() {
        let path = match &lower.lent {
            Some(lent) => format!("/proc/self/fd/{}", lent.as_raw_fd()).into(),
            None => short(lower.path, &mut kept)?,
        };
        match rustix::mount::fsconfig_set_string(context, "lowerdir+", &path) {
            Err(Errno::INVAL) if n == 0 => {
                // An old kernel refuses the option, a new one a directory that is not there.
                return match std::fs::metadata(lower.path) {
                    Ok(metadata) if metadata.is_dir() => Err(Failure::NoSuchOption),
                    Ok(_) => Err(no_directory(lower.path, Errno::NOTDIR).into()),
                    Err(error) => Err(Error::node(layer(lower.path), error).into()),
                };
            }
            other => other.context(|| layer(lower.path))?,
        }
    }
    for (key, path) in [
        ("upperdir", upper.map(|u| u.0)),
        ("workdir", upper.map(|u| u.1)),
    ] {
        if let Some(path) = path {
            let short = short(path, &mut kept)?;
            rustix::mount::fsconfig_set_string(context, key, &short)
                .context(|| format!("use {} as {key} of an overlay", path.display()))?;
        }
    }
    for (key, value) in options(upper.is_some()) {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, *key, *value),
            None => rustix::mount::fsconfig_set_flag(context, *key),
        }
        .context(|| format!("set {key} of an overlay"))?;
    }
    if let Some(label) = label {
        rustix::mount::fsconfig_set_string(context, "context", label)
            .context(|| format!("set SELinux label {label} of an overlay"))?;
    }
    match rustix::mount::fsconfig_create(context) {
        // Before 6.15 a layer must be mounted somewhere.
        Err(Errno::INVAL) if lowers.iter().any(|lower| lower.lent.is_some()) => {
            return Err(Failure::NoSuchOption);
        }
        created => created.context(|| {
            format!(
                "create an overlay of {} layers{}",
                lowers.len(),
                says(context)
            )
        })?,
    }
    let attributes = match upper {
        Some(_) => MountAttrFlags::empty(),
        None => MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context(|| "mount an overlay")?;
    Ok(mount)
}

fn layer(lower: &Path) -> String {
    format!("use {} as layer of an overlay", lower.display())
}

fn no_directory(lower: &Path, error: Errno) -> Error {
    Error::node(layer(lower), std::io::Error::from(error))
}

/// A path that fits an option; a longer one by a descriptor, kept open in `kept`.
fn short(path: &Path, kept: &mut Vec<OwnedFd>) -> Result<PathBuf> {
    if path.as_os_str().len() <= LONGEST_OPTION {
        return Ok(path.to_owned());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())
        .context(|| format!("open {}", path.display()))?;
    let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
    kept.push(directory);
    Ok(short.into())
}

/// Until 6.5 overlayfs only collects its options, whatever they are, and refuses an unknown
/// one when the mount is made, with a line in the kernel's log. Asked once.
fn collects_any_option() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .and_then(|context| rustix::mount::fsconfig_set_flag(context.as_fd(), "no-such-option"))
            .is_ok()
    })
}

/// The kernel's own explanation of a failed mount, if it has one.
fn says(context: BorrowedFd<'_>) -> String {
    let mut message = [0u8; 512];
    match rustix::io::read(context, &mut message) {
        Ok(n) if n > 0 => {
            let text = String::from_utf8_lossy(&message[..n]);
            format!(" (kernel: {})", text.trim_end().trim_start_matches("e "))
        }
        _ => String::new(),
    }
}

/// Older kernels: mount(2) in a mount namespace that ends with its thread. Layers
/// go by descriptor, because all options together have one page.
fn by_one_string(
    lowers: &[Layer<'_>],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    on_fresh_thread(|| {
        sys::unshare(UnshareFlags::FS | UnshareFlags::NEWNS)
            .context(|| "unshare a mount namespace for an overlay")?;
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE
                | rustix::mount::MountPropagationFlags::REC,
        )
        .context(|| "make the mounts of a new namespace private")?;
        let proc = template::open_proc()?;
        let mut kept = Vec::new();
        let mut data = String::from("lowerdir=");
        for (n, lower) in lowers.iter().rev().enumerate() {
            if n > 0 {
                data.push(':');
            }
            match &lower.lent {
                Some(lent) => {
                    cover_proc(lent.as_fd()).context(|| layer(lower.path))?;
                    data.push_str(&name_of(lent.as_fd()));
                }
                None => data.push_str(&by_descriptor(lower.path, &mut kept)?),
            }
        }
        if let Some((upper, work)) = upper {
            data.push_str(",upperdir=");
            data.push_str(&by_descriptor(upper, &mut kept)?);
            data.push_str(",workdir=");
            data.push_str(&by_descriptor(work, &mut kept)?);
        }
        for (key, value) in options(upper.is_some()) {
            data.push(',');
            data.push_str(key);
            if let Some(value) = value {
                data.push('=');
                data.push_str(value);
            }
        }
        if let Some(label) = label {
            // In quotes, because a level has commas.
            data.push_str(&format!(",context=\"{label}\""));
        }
        let data = std::ffi::CString::new(data).expect("made of digits, our own words and a label");
        let flags = match upper {
            Some(_) => MountFlags::empty(),
            None => MountFlags::RDONLY,
        };
        rustix::process::fchdir(&proc).context(|| "enter /proc")?;
        rustix::mount::mount("overlay", POINT, "overlay", flags, data.as_c_str())
            .context(|| format!("mount an overlay of {} layers", lowers.len()))?;
        rustix::mount::open_tree(
            CWD,
            POINT,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .context(|| "detach an overlay")
    })
}

/// Covered in a thread's own namespace only: every machine has it.
const POINT: &str = "/proc";

/// Layers that are detached become mounts of this namespace. They may lie on each other,
/// because they are named by their descriptors, from within the procfs below them.
fn cover_proc(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, POINT, flags)
}

/// For one whose working directory is `/proc`.
fn name_of(descriptor: BorrowedFd<'_>) -> String {
    format!("thread-self/fd/{}", descriptor.as_raw_fd())
}

/// No escaping is needed in `thread-self/fd/N`, whatever the path has in it.
fn by_descriptor(path: &Path, kept: &mut Vec<OwnedFd>) -> Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())
        .context(|| format!("open {}", path.display()))?;
    let name = name_of(directory.as_fd());
    kept.push(directory);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::super::rootview::RootView;
    use super::*;

    fn layers(directory: &Path) -> Vec<PathBuf> {
        let mut layers = Vec::new();
        for (n, files) in [["a", "b"], ["b", "c"], ["c", "d"]].iter().enumerate() {
            let layer = directory.join(format!("layer:{n},\\x"));
            fs::create_dir(&layer).unwrap();
            for file in files {
                fs::write(layer.join(file), format!("{file}{n}")).unwrap();
            }
            layers.push(layer);
        }
        layers
    }

    fn read(mount: &OwnedFd, name: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(mount, name, flags, Mode::empty()).ok()?;
        Some(std::io::read_to_string(fs::File::from(file)).unwrap())
    }

    fn write(mount: &OwnedFd, name: &str) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(mount, name, flags, Mode::RUSR).map(drop)
    }

    #[test]
    fn upper_layers_win_by_every_way() {
        let directory = tempfile::tempdir().unwrap();
        let lowers = layers(directory.path());
        type Way = fn(&[PathBuf], Option<(&Path, &Path)>) -> Result<OwnedFd>;
        let old: Way =
            |lowers, upper| by_one_string(&Layer::all(lowers, Owner::Node).unwrap(), upper, None);
        for (n, way) in [overlay, old].iter().enumerate() {
            let upper = directory.path().join(format!("upper{n}"));
            let work = directory.path().join(format!("work{n}"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            for writable in [false, true] {
                let mount = way(&lowers, writable.then_some((&*upper, &*work))).unwrap();
                for (name, expected) in [("a", "a0"), ("b", "b1"), ("c", "c2"), ("d", "d2")] {
                    assert_eq!(read(&mount, name).as_deref(), Some(expected), "way {n}");
                }
                assert_eq!(write(&mount, "new").is_ok(), writable, "way {n}");
            }
            assert!(upper.join("new").exists());
        }
    }

    #[test]
    fn layers_are_shown_under_the_ids_of_a_namespace_by_every_way() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let lowers = layers(directory.path());
        std::os::unix::fs::chown(lowers[0].join("a"), Some(7), Some(8)).unwrap();
        let namespace = userns::tests::namespace(100_000).unwrap();
        let owner = Owner::Namespace(namespace.as_fd());
        type Way = fn(&[PathBuf], Option<(&Path, &Path)>, Owner<'_>) -> Result<OwnedFd>;
        let new: Way = |lowers, upper, owner| overlay_of(lowers, upper, owner, None);
        let old: Way =
            |lowers, upper, owner| by_one_string(&Layer::all(lowers, owner)?, upper, None);
        for (n, way) in [new, old].iter().enumerate() {
            let upper = directory.path().join(format!("upper{n}"));
            let work = directory.path().join(format!("work{n}"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            // A volatile overlay leaves a mark in its work directory: there is one of them.
            let with_upper = (&lowers[..], Some((&*upper, &*work)));
            for (lowers, upper) in [(&lowers[..], None), (&lowers[..1], None), with_upper] {
                if lowers.len() == 1 && n == 1 {
                    continue;
                }
                let mount = way(lowers, upper, owner).unwrap();
                let ids = |name: &str| {
                    let stat = rustix::fs::statat(&mount, name, rustix::fs::AtFlags::empty());
                    stat.map(|stat| (stat.st_uid, stat.st_gid)).unwrap()
                };
                assert_eq!(ids("a"), (100_007, 100_008), "way {n}");
                assert_eq!(ids("b"), (100_000, 100_000), "way {n}");
                if let Some((upper, _)) = upper {
                    write(&mount, "new").unwrap();
                    // Copied up with its owner.
                    let none = rustix::fs::AtFlags::empty();
                    rustix::fs::chmodat(&mount, "a", Mode::RUSR, none).unwrap();
                    let copied = fs::metadata(upper.join("a")).unwrap();
                    assert_eq!((copied.uid(), copied.gid()), (100_007, 100_008), "way {n}");
                }
            }
        }
    }

    #[test]
    fn one_layer_and_none_need_no_overlay() {
        let directory = tempfile::tempdir().unwrap();
        let lowers = layers(directory.path());
        let one = overlay(&lowers[..1], None).unwrap();
        assert_eq!(read(&one, "a").as_deref(), Some("a0"));
        assert_eq!(write(&one, "new"), Err(Errno::ROFS));
        let none = overlay(&[], None).unwrap();
        assert_eq!(write(&none, "new"), Err(Errno::ROFS));
        let upper = directory.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let artifact = overlay(&[], Some((&upper, directory.path()))).unwrap();
        write(&artifact, "new").unwrap();
        assert!(upper.join("new").exists());
    }

    #[test]
    fn long_paths_and_missing_layers() {
        let directory = tempfile::tempdir().unwrap();
        let mut lowers = layers(directory.path());
        let deep = directory.path().join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("deep"), "x").unwrap();
        lowers.push(deep);
        let mount = overlay(&lowers, None).unwrap();
        assert_eq!(read(&mount, "deep").as_deref(), Some("x"));
        lowers.push(directory.path().join("missing"));
        let error = overlay(&lowers, None).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn costs_of_a_root() {
        let directory = tempfile::tempdir().unwrap();
        let lowers = layers(directory.path());
        let median = |what: &str, make: &dyn Fn(usize)| {
            let mut times: Vec<_> = (0..30)
                .map(|n| {
                    let begin = Instant::now();
                    make(n);
                    begin.elapsed()
                })
                .collect();
            times.sort_unstable();
            eprintln!("{what}: p50 {:?}, max {:?}", times[15], times[29]);
            assert!(times[15].as_millis() < 500, "{what}");
        };
        median("read-only overlay of 3 layers", &|_| {
            drop(overlay(&lowers, None).unwrap())
        });
        median("read-only root of 1 layer", &|_| {
            drop(overlay(&lowers[..1], None).unwrap())
        });
        median("writable overlay of 3 layers, directories included", &|n| {
            let upper = directory.path().join(format!("u{n}"));
            let work = directory.path().join(format!("w{n}"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            drop(overlay(&lowers, Some((&upper, &work))).unwrap());
        });
        median("view of an image's files, one read", &|_| {
            let view = RootView::open(&lowers).unwrap();
            assert!(view.read("/a", 10).unwrap().is_some());
        });
    }
}
