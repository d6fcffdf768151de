//! What the node's security module, AppArmor or SELinux, puts around a Wasm shim.

use oci_spec::runtime::Process;

use crate::apparmor::Profile;
use crate::selinux::Label;

/// Made ready while there is a procfs, entered last.
#[derive(Debug)]
pub(crate) struct Confinement {
    apparmor: Option<Profile>,
    selinux: Option<Label>,
}

impl Confinement {
    /// Of the spec; the error names what is missing.
    pub(crate) fn of(process: &Process) -> Result<Self, String> {
        Ok(Self {
            apparmor: Profile::of(process)?,
            selinux: Label::of(process)?,
        })
    }

    /// For the calling thread, the only one, and all that it starts.
    pub(crate) fn enter(self) -> Result<(), String> {
        self.apparmor.map_or(Ok(()), Profile::enter)?;
        self.selinux.map_or(Ok(()), Label::enter)
    }
}
