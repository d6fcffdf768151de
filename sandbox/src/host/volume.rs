//! Images as volumes: their layers as one detached mount, read-only, of all or a part.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use criw_engines::in_root::open_in_root;
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::rootfs::Owner;
use super::{Context, on_fresh_thread, rootfs, sys};
use crate::error::{Error, Result};
use crate::model::ImageVolume;

/// What the kubelet knows these failures by.
const SENTINEL: &str = "ImageVolumeMountFailed";

/// The mount of an image, under the ids of a user namespace if there is one. Neither
/// set-user-id nor device files of it have any effect.
///
/// # Errors
/// The texts begin with the word that the kubelet knows.
pub fn of_image(volume: &ImageVolume, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let failed = |error: Error| {
        Error::node(
            format!("{SENTINEL}: mount image {:?} as a volume", volume.image),
            error,
        )
    };
    let owner = user.map_or(Owner::Node, Owner::Namespace);
    let whole = rootfs::overlay_of(&volume.lowers, None, owner, None).map_err(failed)?;
    let mount = match volume.sub_path.as_str() {
        "" => whole,
        sub_path => part(&whole, sub_path).map_err(|error| match error {
            Part::Missing => Error::Invalid(format!(
                "{SENTINEL}: image {:?} has no {sub_path:?}, which is asked for as sub path",
                volume.image
            )),
            Part::Other(error) => failed(error),
        })?,
    };
    let attributes = sys::MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        ..Default::default()
    };
    sys::mount_setattr(mount.as_fd(), c"", &attributes)
        .context(|| "make an image volume read-only")
        .map_err(failed)?;
    Ok(mount)
}

enum Part {
    Missing,
    Other(Error),
}

/// A directory or file of a detached mount as a mount of its own. Kernels before 6.15 clone
/// only from what is mounted somewhere: a mount namespace that ends with its thread. Links
/// of the image lead nowhere else.
fn part(whole: &OwnedFd, path: &str) -> std::result::Result<OwnedFd, Part> {
    use rustix::io::Errno;
    let found = match open_in_root(whole.as_fd(), Path::new(path)) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Part::Missing),
        Err(error) => {
            let error = std::io::Error::from(error);
            return Err(Part::Other(Error::node(format!("look up {path:?}"), error)));
        }
    };
    on_fresh_thread(|| {
        sys::unshare(UnshareFlags::FS | UnshareFlags::NEWNS)
            .context(|| "unshare a mount namespace for an image volume")?;
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", all)
            .context(|| "make the mounts of a new namespace private")?;
        // Covered in this thread's namespace only: every machine has it.
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(whole, "", CWD, "/proc", flags)
            .context(|| "attach an image volume")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        rustix::mount::open_tree(&found, "", flags).context(|| format!("clone {path:?}"))
    })
    .map_err(Part::Other)
}

/// Puts the files of an artifact into a directory, as further names of the stored ones
/// where the file system can. They are world-readable, in a place that only root reaches.
pub fn lay_out(files: &[(String, PathBuf)], directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(directory).context(|| format!("create {}", directory.display()))?;
    for (name, source) in files {
        let target = directory.join(name);
        let what = || {
            format!(
                "{SENTINEL}: put {} at {}",
                source.display(),
                target.display()
            )
        };
        std::fs::hard_link(source, &target)
            .or_else(|_| std::fs::copy(source, &target).map(drop))
            .context(what)?;
        let mode = std::fs::metadata(&target)
            .context(what)?
            .permissions()
            .mode();
        // Blobs are root's alone, as is the directory they are in.
        if mode & 0o004 == 0 {
            let readable = std::fs::Permissions::from_mode(mode | 0o444);
            std::fs::set_permissions(&target, readable).context(what)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    use super::super::userns;
    use super::*;

    fn image(directory: &Path) -> ImageVolume {
        let lowers = ["lower", "upper"].map(|name| directory.join(name));
        for (n, lower) in lowers.iter().enumerate() {
            fs::create_dir_all(lower.join("share/doc")).unwrap();
            fs::write(lower.join("share/doc/file"), format!("{n}")).unwrap();
            fs::write(lower.join(format!("only{n}")), "").unwrap();
        }
        std::os::unix::fs::symlink("/share", lowers[1].join("link")).unwrap();
        std::os::unix::fs::symlink("../../..", lowers[1].join("up")).unwrap();
        ImageVolume {
            image: "r/data:1".into(),
            lowers: lowers.into(),
            ..Default::default()
        }
    }

    fn open(mount: &OwnedFd, name: &str, flags: OFlags) -> rustix::io::Result<String> {
        let file = rustix::fs::openat(mount, name, flags | OFlags::CLOEXEC, Mode::RUSR)?;
        Ok(std::io::read_to_string(fs::File::from(file)).unwrap_or_default())
    }

    #[test]
    fn all_of_an_image_or_a_part_is_seen_and_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut volume = image(directory.path());
        let read = |volume: &ImageVolume, name: &str| {
            let mount = of_image(volume, None).unwrap();
            let refused = open(&mount, "new", OFlags::WRONLY | OFlags::CREATE);
            assert!(
                matches!(refused, Err(Errno::ROFS | Errno::NOTDIR)),
                "{refused:?}"
            );
            open(&mount, name, OFlags::RDONLY)
        };
        assert_eq!(read(&volume, "share/doc/file").unwrap(), "1");
        for sub_path in ["share/doc", "/share/doc/", "link/doc", "up/share/doc"] {
            volume.sub_path = sub_path.into();
            assert_eq!(read(&volume, "file").unwrap(), "1", "{sub_path}");
            assert!(read(&volume, "only0").is_err(), "{sub_path}");
        }
        volume.sub_path = "share/doc/file".into();
        let file = of_image(&volume, None).unwrap();
        assert!(fs::File::from(file).metadata().unwrap().is_file());
        for missing in ["nothing", "share/doc/file/x"] {
            volume.sub_path = missing.into();
            let error = of_image(&volume, None).unwrap_err().to_string();
            assert!(
                error.starts_with("ImageVolumeMountFailed: image \"r/data:1\" has no"),
                "{error}"
            );
        }
        volume.lowers.truncate(1);
        volume.sub_path = "share".into();
        assert_eq!(read(&volume, "doc/file").unwrap(), "0");
        volume.lowers = vec!["/no/such/layer".into()];
        let error = of_image(&volume, None).unwrap_err().to_string();
        assert!(
            error.starts_with("ImageVolumeMountFailed: mount image"),
            "{error}"
        );
    }

    #[test]
    fn files_belong_to_the_users_of_the_pod() {
        let directory = tempfile::tempdir().unwrap();
        let mut volume = image(directory.path());
        let namespace = userns::tests::namespace(100_000).unwrap();
        for sub_path in ["", "share/doc"] {
            volume.sub_path = sub_path.into();
            let mount = of_image(&volume, Some(namespace.as_fd())).unwrap();
            assert_eq!(
                rustix::fs::fstat(&mount).unwrap().st_uid,
                100_000,
                "{sub_path}"
            );
        }
    }

    #[test]
    fn an_artifact_is_a_directory_of_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("blob");
        fs::write(&source, "\0asm").unwrap();
        let place = directory.path().join("place");
        lay_out(&[("module.wasm".into(), source)], &place).unwrap();
        assert_eq!(fs::read(place.join("module.wasm")).unwrap(), b"\0asm");
        let missing = [("x".into(), directory.path().join("missing"))];
        let error = lay_out(&missing, &place).unwrap_err().to_string();
        assert!(error.starts_with("ImageVolumeMountFailed: put"), "{error}");
    }
}
