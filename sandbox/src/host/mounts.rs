//! CRI mounts as detached mounts, which the shim attaches in its own namespace.
//!
//! A shim makes every procfs and sysfs *below* a mount read-only once it is
//! attached, where its own mount table shows them cheaply. Here only a mount that
//! is one of them itself is refused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::OpenTreeFlags;

use super::{Context, sys, template, userns, volume};
use crate::error::{Error, Result};
use crate::model::{Mount, Propagation};

/// Which kind of container gets the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Its engine must be out of its own reach.
    Wasm,
    /// Kernel and cgroup protect themselves.
    Linux,
}

/// Opens the source of a mount, with all that is mounted below it. A missing
/// source is created as a directory; links on the host are followed.
///
/// `user` is the pod's user namespace, under whose ids the files of a mount with an id
/// map are shown.
pub fn detached(mount: &Mount, guest: Guest, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    if let Some(volume) = &mount.image {
        return volume::of_image(volume, user);
    }
    check(mount)?;
    let source = source(&mount.host_path)?;
    let what = || format!("open mount source {}", source.display());
    let clone = rustix::mount::open_tree(
        CWD,
        &source,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .context(what)?;
    if guest == Guest::Wasm {
        refuse_kernel_file_system(clone.as_fd(), &mount.host_path)?;
    }
    if mount.propagation != Propagation::Private {
        check_propagation(&source, mount.propagation)?;
    }
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        // The clone of a shared mount is its peer already.
        Propagation::Bidirectional => 0,
    };
    if propagation != 0 {
        let attributes = sys::MountAttributes {
            propagation,
            recursive: true,
            ..Default::default()
        };
        sys::mount_setattr(clone.as_fd(), c"", &attributes)
            .context(|| format!("set propagation of mount source {}", source.display()))?;
    }
    if mount.readonly {
        template::set_readonly(clone.as_fd(), mount.recursive_read_only)?;
    }
    if mount.id_map.is_some()
        && let Some(user) = user
    {
        userns::lend(clone.as_fd(), user, true).context(|| {
            format!(
                "show {} at {} under the ids of the pod's user namespace (all file systems of a volume must know idmapped mounts)",
                mount.host_path.display(),
                mount.container_path
            )
        })?;
    }
    Ok(clone)
}

/// The source of a mount for runc, which binds it by itself: made when missing,
/// resolved, and able to propagate as asked.
pub fn bind_source(mount: &Mount) -> Result<PathBuf> {
    check(mount)?;
    let source = source(&mount.host_path)?;
    if mount.propagation != Propagation::Private {
        check_propagation(&source, mount.propagation)?;
    }
    Ok(source)
}

/// What can be refused without a look at the node.
fn check(mount: &Mount) -> Result<()> {
    let refuse = |text: &str| {
        Err(Error::Invalid(format!(
            "mount of {} at {}: {text}",
            mount.host_path.display(),
            mount.container_path
        )))
    };
    if !mount.host_path.is_absolute() {
        return refuse("the host path is not absolute");
    }
    if mount.recursive_read_only {
        if !mount.readonly {
            return refuse("recursive_read_only needs readonly");
        }
        if mount.propagation != Propagation::Private {
            return refuse("recursive_read_only needs private propagation");
        }
    }
    Ok(())
}

/// Absolute, links resolved, existing.
fn source(host_path: &Path) -> Result<PathBuf> {
    let resolve = || host_path.canonicalize();
    match resolve() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(host_path)
            .and_then(|()| resolve())
            .context(|| format!("create mount source {}", host_path.display())),
        other => other.context(|| format!("find mount source {}", host_path.display())),
    }
}

fn refuse_kernel_file_system(mount: BorrowedFd<'_>, host_path: &Path) -> Result<()> {
    const SYSFS_MAGIC: i64 = 0x6265_6572;
    for (magic, name) in [
        (rustix::fs::PROC_SUPER_MAGIC, "procfs"),
        (SYSFS_MAGIC, "sysfs"),
    ] {
        if template::is_on(mount, magic)? {
            return Err(Error::Invalid(format!(
                "{} is {name}, which a Wasm container cannot have: guests could rewrite their engine through it",
                host_path.display()
            )));
        }
    }
    Ok(())
}

fn check_propagation(source: &Path, wanted: Propagation) -> Result<()> {
    let statx = rustix::fs::statx(CWD, source, AtFlags::empty(), StatxFlags::MNT_ID)
        .context(|| format!("find the mount of {}", source.display()))?;
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read_to_string(TABLE).context(|| format!("read {TABLE}"))?;
    let (shared, slave) = propagation_of(&table, statx.stx_mnt_id).ok_or_else(|| {
        Error::node(
            format!("find the mount of {} in {TABLE}", source.display()),
            io::Error::from(io::ErrorKind::NotFound),
        )
    })?;
    let refuse = |wanted: &str, needed: &str| {
        Err(Error::Invalid(format!(
            "{wanted} mount propagation of {} needs a {needed} mount on the host: \
             make it one with `mount --make-rshared`",
            source.display()
        )))
    };
    match wanted {
        Propagation::Bidirectional if !shared => refuse("bidirectional", "shared"),
        Propagation::HostToContainer if !shared && !slave => {
            refuse("host-to-container", "shared or slave")
        }
        _ => Ok(()),
    }
}

/// Whether the mount of this id is shared, and whether it is a slave.
fn propagation_of(mountinfo: &str, id: u64) -> Option<(bool, bool)> {
    let fields = mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next()?.parse() == Ok(id)).then_some(fields)
    })?;
    // Optional fields stand between the mount options and a single dash.
    let optional: Vec<&str> = fields.skip(5).take_while(|field| *field != "-").collect();
    let has = |kind: &str| optional.iter().any(|field| field.starts_with(kind));
    Some((has("shared:"), has("master:")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use rustix::mount::{MountPropagationFlags, MoveMountFlags};
    use rustix::thread::UnshareFlags;

    use super::super::on_fresh_thread;
    use super::*;

    fn mount(host_path: &Path) -> Mount {
        Mount {
            container_path: "/x".into(),
            host_path: host_path.to_owned(),
            ..Default::default()
        }
    }

    fn create(directory: &OwnedFd, name: &str) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::RUSR).map(drop)
    }

    #[test]
    fn propagation_is_read_from_the_table() {
        let table = "21 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     22 21 0:5 / /a rw shared:7 - tmpfs x rw\n\
                     23 21 0:6 / /b rw master:7 - tmpfs x rw\n\
                     24 21 0:7 / /c rw shared:9 master:7 - tmpfs x rw\n";
        for (id, expected) in [
            (21, Some((false, false))),
            (22, Some((true, false))),
            (23, Some((false, true))),
            (24, Some((true, true))),
            (2, None),
        ] {
            assert_eq!(propagation_of(table, id), expected, "{id}");
        }
    }

    #[test]
    fn sources_are_created_resolved_and_protected() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("made/for/it");
        let writable = detached(&mount(&missing), Guest::Wasm, None).unwrap();
        assert!(missing.is_dir());
        create(&writable, "file").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("made/for", &link).unwrap();
        let readonly = Mount {
            readonly: true,
            ..mount(&link)
        };
        let readonly = detached(&readonly, Guest::Wasm, None).unwrap();
        assert_eq!(create(&readonly, "file"), Err(Errno::ROFS));
        let file = rustix::fs::openat(&readonly, "it/file", OFlags::PATH, Mode::empty());
        assert!(file.is_ok(), "{file:?}");
        let single = detached(&mount(&missing.join("file")), Guest::Linux, None).unwrap();
        assert!(fs::File::from(single).metadata().unwrap().is_file());
    }

    #[test]
    fn nonsense_and_danger_are_refused() {
        let with = |change: fn(&mut Mount)| {
            let mut mount = mount(Path::new("/tmp"));
            change(&mut mount);
            mount
        };
        for (bad, guest) in [
            (with(|m| m.host_path = "relative".into()), Guest::Linux),
            (with(|m| m.recursive_read_only = true), Guest::Linux),
            (
                with(|m| {
                    (m.readonly, m.recursive_read_only) = (true, true);
                    m.propagation = Propagation::HostToContainer;
                }),
                Guest::Linux,
            ),
            (with(|m| m.host_path = "/proc".into()), Guest::Wasm),
            (with(|m| m.host_path = "/proc/self/mem".into()), Guest::Wasm),
            (with(|m| m.host_path = "/sys/kernel".into()), Guest::Wasm),
        ] {
            let refused = detached(&bad, guest, None);
            assert!(
                matches!(refused, Err(Error::Invalid(_))),
                "{bad:?}: {refused:?}"
            );
        }
        detached(&with(|m| m.host_path = "/proc".into()), Guest::Linux, None).unwrap();
    }

    /// Mounts of a namespace of the thread's own, all of one propagation.
    fn private_world(directory: &Path, propagation: MountPropagationFlags) {
        sys::unshare(UnshareFlags::FS | UnshareFlags::NEWNS).unwrap();
        let all = MountPropagationFlags::REC;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | all).unwrap();
        rustix::mount::mount_bind(directory, directory).unwrap();
        rustix::mount::mount_change(directory, propagation | all).unwrap();
    }

    fn mount_tmpfs(at: &Path, file: &str) {
        let memory = template::tmpfs(&[]).unwrap();
        rustix::mount::move_mount(
            &memory,
            "",
            CWD,
            at,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        fs::write(at.join(file), "").unwrap();
    }

    #[test]
    fn mounts_propagate_as_asked_or_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (
            directory.path().join("source"),
            directory.path().join("target"),
        );
        for path in [&source.join("below"), &source.join("inside"), &target] {
            fs::create_dir_all(path).unwrap();
        }
        let wanted = |propagation| Mount {
            propagation,
            ..mount(&source)
        };
        on_fresh_thread(|| {
            private_world(&source, MountPropagationFlags::PRIVATE);
            for propagation in [Propagation::HostToContainer, Propagation::Bidirectional] {
                let refused = detached(&wanted(propagation), Guest::Linux, None);
                assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
            }
            Ok(())
        })
        .unwrap();
        // (asked, host mounts are seen, mounts of the container are seen on the host)
        for (propagation, down, up) in [
            (Propagation::Private, false, false),
            (Propagation::HostToContainer, true, false),
            (Propagation::Bidirectional, true, true),
        ] {
            on_fresh_thread(|| {
                private_world(&source, MountPropagationFlags::SHARED);
                let mount = detached(&wanted(propagation), Guest::Linux, None)?;
                rustix::mount::move_mount(
                    &mount,
                    "",
                    CWD,
                    &target,
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )
                .unwrap();
                mount_tmpfs(&source.join("below"), "host");
                assert_eq!(
                    target.join("below/host").exists(),
                    down,
                    "{propagation:?} down"
                );
                mount_tmpfs(&target.join("inside"), "guest");
                assert_eq!(
                    source.join("inside/guest").exists(),
                    up,
                    "{propagation:?} up"
                );
                Ok(())
            })
            .unwrap();
        }
    }

    #[test]
    fn read_only_reaches_below_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        on_fresh_thread(|| {
            private_world(directory.path(), MountPropagationFlags::PRIVATE);
            mount_tmpfs(&directory.path().join("below"), "file");
            for recursive in [false, true] {
                let mount = Mount {
                    readonly: true,
                    recursive_read_only: recursive,
                    ..mount(directory.path())
                };
                let mount = detached(&mount, Guest::Linux, None)?;
                assert_eq!(create(&mount, "new"), Err(Errno::ROFS));
                let below = create(&mount, "below/new");
                assert_eq!(below.is_err(), recursive, "{below:?}");
            }
            Ok(())
        })
        .unwrap();
    }
}
