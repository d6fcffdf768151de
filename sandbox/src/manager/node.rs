//! The daemon's hold on its node: cgroup hierarchies, namespace pins, mount template,
//! AppArmor profiles.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::Config;
use crate::error::Result;
use crate::host::apparmor::Profiles;
use crate::host::cgroup::Cgroups;
use crate::host::pins::PinRoom;
use crate::host::template::mount_template;

/// Opened once per daemon.
pub(crate) struct Host {
    pub(crate) cgroups: Cgroups,
    pub(crate) pins: PinRoom,
    /// Small mount namespace that Wasm shims start their own from.
    pub(crate) template: OwnedFd,
    pub(crate) apparmor: Profiles,
}

impl Host {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let holder = config.libexec.join("criw-init");
        Ok(Self {
            cgroups: Cgroups::detect(Path::new("/sys/fs/cgroup"), &holder)?,
            pins: PinRoom::open(&config.state)?,
            template: mount_template()?,
            apparmor: Profiles::of_node(config.apparmor_parser.clone()),
        })
    }
}
