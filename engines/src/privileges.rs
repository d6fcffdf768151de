//! Gives up what the process does not need: rlimits, capabilities, user, groups.
//!
//! All of it belongs to the calling thread, so it runs while there is only one.

use std::collections::HashSet;
use std::io;

use oci_spec::runtime::{Capability, PosixRlimitType, Process};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Capability numbers of the kernel, by the names of the OCI runtime config.
const CAPABILITIES: [(Capability, u64); 41] = [
    (Capability::Chown, 0),
    (Capability::DacOverride, 1),
    (Capability::DacReadSearch, 2),
    (Capability::Fowner, 3),
    (Capability::Fsetid, 4),
    (Capability::Kill, 5),
    (Capability::Setgid, 6),
    (Capability::Setuid, 7),
    (Capability::Setpcap, 8),
    (Capability::LinuxImmutable, 9),
    (Capability::NetBindService, 10),
    (Capability::NetBroadcast, 11),
    (Capability::NetAdmin, 12),
    (Capability::NetRaw, 13),
    (Capability::IpcLock, 14),
    (Capability::IpcOwner, 15),
    (Capability::SysModule, 16),
    (Capability::SysRawio, 17),
    (Capability::SysChroot, 18),
    (Capability::SysPtrace, 19),
    (Capability::SysPacct, 20),
    (Capability::SysAdmin, 21),
    (Capability::SysBoot, 22),
    (Capability::SysNice, 23),
    (Capability::SysResource, 24),
    (Capability::SysTime, 25),
    (Capability::SysTtyConfig, 26),
    (Capability::Mknod, 27),
    (Capability::Lease, 28),
    (Capability::AuditWrite, 29),
    (Capability::AuditControl, 30),
    (Capability::Setfcap, 31),
    (Capability::MacOverride, 32),
    (Capability::MacAdmin, 33),
    (Capability::Syslog, 34),
    (Capability::WakeAlarm, 35),
    (Capability::BlockSuspend, 36),
    (Capability::AuditRead, 37),
    (Capability::Perfmon, 38),
    (Capability::Bpf, 39),
    (Capability::CheckpointRestore, 40),
];

/// The sets of a process as bits; what is not named is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

fn bits(set: Option<&HashSet<Capability>>) -> u64 {
    let Some(set) = set else { return 0 };
    CAPABILITIES
        .iter()
        .filter(|(capability, _)| set.contains(capability))
        .fold(0, |bits, (_, number)| bits | 1 << number)
}

fn sets(process: &Process) -> Sets {
    let Some(named) = process.capabilities() else {
        return Sets::default();
    };
    Sets {
        bounding: bits(named.bounding().as_ref()),
        effective: bits(named.effective().as_ref()),
        permitted: bits(named.permitted().as_ref()),
        inheritable: bits(named.inheritable().as_ref()),
        ambient: bits(named.ambient().as_ref()),
    }
}

/// Sets the rlimits. A hard limit above ours is cut to ours when we may not raise
/// it (a daemon without CAP_SYS_RESOURCE). The address space is not limited: Wasm
/// engines reserve far more than they use.
pub(crate) fn limit_resources(process: &Process) -> io::Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let Some(resource) = resource(limit.typ()) else {
            continue;
        };
        let wanted = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit {
            current: wanted(limit.soft()),
            maximum: wanted(limit.hard()),
        };
        match rustix::process::setrlimit(resource, new) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                let ceiling = rustix::process::getrlimit(resource).maximum;
                let cut = |value: Option<u64>| match (value, ceiling) {
                    (Some(value), Some(ceiling)) => Some(value.min(ceiling)),
                    (value, ceiling) => value.or(ceiling),
                };
                let cut = Rlimit {
                    current: cut(new.current),
                    maximum: cut(new.maximum),
                };
                rustix::process::setrlimit(resource, cut)
                    .map_err(|error| named(error.into(), &format!("{resource:?}")))?;
            }
            Err(error) => return Err(named(error.into(), &format!("{resource:?}"))),
        }
    }
    Ok(())
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => return None,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}

/// Becomes the process's user with its groups and capabilities. The order is the
/// kernel's: the bounding set needs CAP_SETPCAP, groups need CAP_SETGID, a change
/// of user away from 0 clears the sets unless they are kept, and the ambient set
/// follows permitted and inheritable.
pub(crate) fn become_user(process: &Process) -> io::Result<()> {
    let user = process.user();
    let sets = sets(process);
    for (_, number) in CAPABILITIES {
        if sets.bounding & (1 << number) == 0 {
            match rustix::thread::remove_capability_from_bounding_set(
                CapabilitySet::from_bits_retain(1 << number),
            ) {
                // An older kernel does not know the newest ones.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(named(error.into(), "drop bounding capability")),
            }
        }
    }
    rustix::thread::set_keep_capabilities(sets.permitted != 0)?;
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    rustix::thread::set_thread_groups(&groups)
        .map_err(|error| named(error.into(), "set supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|error| named(error.into(), &format!("become group {}", user.gid())))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|error| named(error.into(), &format!("become user {}", user.uid())))?;
    let set = CapabilitySet::from_bits_retain;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: set(sets.effective),
            permitted: set(sets.permitted),
            inheritable: set(sets.inheritable),
        },
    )
    .map_err(|error| named(error.into(), "set capabilities"))?;
    for (_, number) in CAPABILITIES {
        if sets.ambient & (1 << number) != 0 {
            let capability = set(1 << number);
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .map_err(|error| named(error.into(), "set ambient capability"))?;
        }
    }
    rustix::thread::set_keep_capabilities(false)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(
        user.umask().unwrap_or(0o022),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        for (n, (_, number)) in CAPABILITIES.iter().enumerate() {
            assert_eq!(n as u64, *number);
        }
        let json = r#"{"user":{"uid":1,"gid":2},"args":["x"],"cwd":"/","capabilities":
            {"bounding":["CAP_CHOWN","CAP_NET_BIND_SERVICE"],"effective":["CAP_CHECKPOINT_RESTORE"]}}"#;
        let process: Process = serde_json::from_str(json).unwrap();
        assert_eq!(
            sets(&process),
            Sets {
                bounding: 1 | 1 << 10,
                effective: 1 << 40,
                ..Sets::default()
            }
        );
        let plain = r#"{"user":{"uid":1,"gid":2},"args":["x"],"cwd":"/"}"#;
        let process: Process = serde_json::from_str(plain).unwrap();
        assert_eq!(sets(&process), Sets::default());
    }
}
