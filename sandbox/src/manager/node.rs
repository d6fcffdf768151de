//! The daemon's hold on its node: cgroup hierarchies, namespace pins, mount template,
//! AppArmor profiles, SELinux policy.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::Config;
use crate::error::Result;
use crate::host::apparmor::Profiles;
use crate::host::cgroup::Cgroups;
use crate::host::pins::PinRoom;
use crate::host::selinux::Policy;
use crate::host::template::mount_template;

/// Opened once per daemon.
pub(crate) struct Host {
    pub(crate) cgroups: Cgroups,
    pub(crate) pins: PinRoom,
    /// Small mount namespace that Wasm shims start their own from.
    pub(crate) template: OwnedFd,
    pub(crate) apparmor: Profiles,
    pub(crate) selinux: Policy,
}

impl Host {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let holder = config.libexec.join("criw-init");
        let selinux = Policy::of_node();
        Ok(Self {
            cgroups: Cgroups::detect(Path::new("/sys/fs/cgroup"), &holder)?,
            pins: PinRoom::open(&config.state)?,
            template: mount_template(selinux.shared_files().as_deref())?,
            apparmor: Profiles::of_node(config.apparmor_parser.clone()),
            selinux,
        })
    }
}
