//! `/dev/shm` of a pod: one tmpfs for all its containers, pinned beside the pod's
//! namespaces, handed out as detached clones.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::pins::PinRoom;
use super::{Context, template};
use crate::error::{Error, Result};
use crate::model::IdMap;

/// Bytes that a pod may keep in shared memory, as other runtimes have it.
pub const SIZE: u64 = 64 * 1024 * 1024;

/// Makes the shared memory of a pod; [`PinRoom::remove`] drops it. Not twice for
/// one pod. It belongs to the root of the pod's user namespace, if that has one. `label` is
/// the SELinux label of what is in it.
pub fn create(room: &PinRoom, name: &str, ids: Option<IdMap>, label: Option<&str>) -> Result<()> {
    let root = ids.map_or((0, 0), |ids| (ids.uids.host, ids.gids.host));
    let pod = room.make_directory(name)?;
    match rustix::fs::mkdirat(&pod, "shm", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => {
            return Err(Error::node(
                format!("create /dev/shm of {name}"),
                std::io::Error::from(error),
            ));
        }
    }
    let (size, uid, gid) = (SIZE.to_string(), root.0.to_string(), root.1.to_string());
    let mut options = vec![
        ("size", size.as_str()),
        ("mode", "1777"),
        ("uid", &uid),
        ("gid", &gid),
    ];
    options.extend(label.map(|label| ("context", label)));
    let memory = template::tmpfs(&options)?;
    room.inside(|| {
        rustix::mount::move_mount(
            memory.as_fd(),
            "",
            pod.as_fd(),
            "shm",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .context(|| format!("mount /dev/shm of {name}"))
    })
}

/// One more detached mount of it, for one container.
pub fn open(room: &PinRoom, name: &str) -> Result<OwnedFd> {
    let pod = room.make_directory(name)?;
    // Only who is in the room may clone its mounts.
    room.inside(|| {
        rustix::mount::open_tree(
            pod.as_fd(),
            "shm",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
        )
        .context(|| format!("open /dev/shm of {name}"))
    })
}
