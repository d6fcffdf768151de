//! The daemon's hold on its node: cgroup hierarchies, namespace pins, mount template.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::Result;
use crate::host::cgroup::Cgroups;
use crate::host::pins::PinRoom;
use crate::host::template::mount_template;

/// Opened once per daemon.
pub(crate) struct Host {
    pub(crate) cgroups: Cgroups,
    pub(crate) pins: PinRoom,
    /// Small mount namespace that Wasm shims start their own from.
    pub(crate) template: OwnedFd,
}

impl Host {
    pub(crate) fn open(state: &Path, libexec: &Path) -> Result<Self> {
        Ok(Self {
            cgroups: Cgroups::detect(Path::new("/sys/fs/cgroup"), &libexec.join("criw-init"))?,
            pins: PinRoom::open(state)?,
            template: mount_template()?,
        })
    }
}
