//! The descriptors of a Create request by role.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::protocol::FdRole;

/// All that came with Create; roles that may come once have one place.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// [`FdRole::Spec`].
    pub spec: Option<OwnedFd>,
    /// [`FdRole::Log`].
    pub log: Option<OwnedFd>,
    /// [`FdRole::ExitRecord`].
    pub exit_record: Option<OwnedFd>,
    /// [`FdRole::Rootfs`].
    pub rootfs: Option<OwnedFd>,
    /// [`FdRole::Mount`] by its number.
    pub mounts: BTreeMap<u32, OwnedFd>,
    /// [`FdRole::Code`].
    pub code: Option<OwnedFd>,
    /// [`FdRole::MountTemplate`].
    pub mount_template: Option<OwnedFd>,
    /// [`FdRole::ContainerMounts`].
    pub container_mounts: Option<OwnedFd>,
    /// [`FdRole::UserNamespace`].
    pub user_namespace: Option<OwnedFd>,
    /// [`FdRole::Stdin`].
    pub stdin: Option<OwnedFd>,
    /// [`FdRole::Stdout`].
    pub stdout: Option<OwnedFd>,
    /// [`FdRole::Stderr`].
    pub stderr: Option<OwnedFd>,
    /// [`FdRole::Spawner`].
    pub spawner: Option<OwnedFd>,
}

impl Descriptors {
    /// Sorts the descriptors of a message; a role given twice is an error.
    pub fn sort(roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<Self, String> {
        if roles.len() != fds.len() {
            return Err(format!(
                "{} descriptors for {} roles",
                fds.len(),
                roles.len()
            ));
        }
        let mut sorted = Self::default();
        for (role, fd) in roles.iter().zip(fds) {
            let before = match role {
                FdRole::Spec => sorted.spec.replace(fd),
                FdRole::Log => sorted.log.replace(fd),
                FdRole::ExitRecord => sorted.exit_record.replace(fd),
                FdRole::Rootfs => sorted.rootfs.replace(fd),
                FdRole::Mount(n) => sorted.mounts.insert(*n, fd),
                FdRole::Code => sorted.code.replace(fd),
                FdRole::MountTemplate => sorted.mount_template.replace(fd),
                FdRole::ContainerMounts => sorted.container_mounts.replace(fd),
                FdRole::UserNamespace => sorted.user_namespace.replace(fd),
                FdRole::Stdin => sorted.stdin.replace(fd),
                FdRole::Stdout => sorted.stdout.replace(fd),
                FdRole::Stderr => sorted.stderr.replace(fd),
                FdRole::Spawner => sorted.spawner.replace(fd),
            };
            if before.is_some() {
                return Err(format!("descriptor role {role:?} is given twice"));
            }
        }
        Ok(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_sorted_and_given_once() {
        let fds = |n: usize| -> Vec<OwnedFd> {
            (0..n)
                .map(|_| tempfile::tempfile().unwrap().into())
                .collect()
        };
        let roles = [FdRole::Mount(3), FdRole::Spec, FdRole::Mount(0)];
        let sorted = Descriptors::sort(&roles, fds(3)).unwrap();
        assert!(sorted.spec.is_some() && sorted.log.is_none());
        assert_eq!(sorted.mounts.keys().copied().collect::<Vec<_>>(), [0, 3]);
        let twice = [FdRole::Mount(3), FdRole::Mount(3)];
        assert!(Descriptors::sort(&twice, fds(2)).is_err());
        assert!(Descriptors::sort(&roles, fds(2)).is_err());
    }
}
