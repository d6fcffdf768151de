//! Kernel settings and the host name of a pod, written inside its namespaces.
//!
//! Only settings that the kernel keeps per namespace are accepted: anything else
//! would change the node for everybody.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::process::Uid;
use rustix::thread::LinkNameSpaceType;

use super::pins::PodNamespaces;
use super::{Context, on_fresh_thread};
use crate::error::{Error, Result};
use crate::model::Map;

/// Ports below 1024 for everybody.
const LOW_PORTS: &str = "net.ipv4.ip_unprivileged_port_start";

/// Sets the host name (unless empty), the settings of the pod, and by default
/// that guests without privileges may bind ports below 1024. `root` is the node's id of
/// the user who is root in the pod.
pub fn apply(
    namespaces: &PodNamespaces,
    hostname: &str,
    sysctls: &Map,
    low_ports: bool,
    root: u32,
) -> Result<()> {
    let mut writes = Vec::new();
    if low_ports && namespaces.net.is_some() && !sysctls.contains_key(LOW_PORTS) {
        writes.push((LOW_PORTS, path(LOW_PORTS, namespaces)?, "0"));
    }
    for (key, value) in sysctls {
        writes.push((key, path(key, namespaces)?, value));
    }
    let names_host = namespaces.uts.is_some() && !hostname.is_empty();
    if writes.is_empty() && !names_host {
        return Ok(());
    }
    on_fresh_thread(|| {
        for (namespace, kind) in [
            (&namespaces.net, LinkNameSpaceType::Network),
            (
                &namespaces.ipc,
                LinkNameSpaceType::InterProcessCommunication,
            ),
            (&namespaces.uts, LinkNameSpaceType::HostNameAndNISDomainName),
        ] {
            if let Some(namespace) = namespace {
                use std::os::fd::AsFd as _;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
                    .context(|| "enter a namespace of the pod")?;
            }
        }
        if names_host {
            rustix::system::sethostname(hostname.as_bytes())
                .context(|| format!("set the host name {hostname}"))?;
        }
        for (key, path, value) in &writes {
            put(key, path, value, root)?;
        }
        Ok(())
    })
}

fn put(key: &str, path: &Path, value: &str, root: u32) -> Result<()> {
    use std::io::Write as _;
    let write = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(value.as_bytes()))
    };
    let mut written = write();
    let denied = |error: &io::Error| error.kind() == ErrorKind::PermissionDenied;
    if root != 0 && written.as_ref().is_err_and(denied) {
        // Settings of an IPC namespace belong to the root of its user namespace and, since
        // Linux 5.19, to nobody else. Those of a network namespace to the node's root too.
        let seen = |effective| {
            let (own, effective) = (Uid::ROOT, Uid::from_raw(effective));
            rustix::thread::set_thread_res_uid(own, effective, own)
                .context(|| format!("become the root of the pod to set sysctl {key}"))
        };
        seen(root)?;
        written = write();
        seen(0)?;
    }
    written.map_err(|error| refused(key, value, error))
}

fn refused(key: &str, value: &str, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::IsADirectory => Error::Invalid(format!(
            "sysctl {key}: the kernel has no such setting in the namespaces of a pod"
        )),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::Invalid(format!(
            "sysctl {key}: the kernel keeps it for the whole node, a pod cannot set it"
        )),
        ErrorKind::InvalidInput => Error::Invalid(format!(
            "sysctl {key}: the kernel refuses the value {value:?}"
        )),
        _ => Error::node(format!("set sysctl {key} to {value:?}"), error),
    }
}

/// The file of a setting that belongs to a namespace which the pod has of its own.
fn path(key: &str, namespaces: &PodNamespaces) -> Result<PathBuf> {
    let refuse = |why: &str| Err(Error::Invalid(format!("sysctl {key}: {why}")));
    let Some(kind) = Kind::of(key) else {
        return refuse(
            "not a setting of pods: only net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem are",
        );
    };
    let own = match kind {
        Kind::Net => namespaces.net.is_some(),
        Kind::Ipc => namespaces.ipc.is_some(),
    };
    if !own {
        return refuse("the pod uses the node's namespace, whose settings it cannot change");
    }
    let mut path = PathBuf::from("/proc/sys");
    // As sysctl(8) has it: the first separator is the separator, and the other
    // one stands for a dot in a name (interface eth0.5).
    let separator = key.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    for part in key.split(separator) {
        let part = part.replace('/', ".");
        if part.is_empty() || part == "." || part == ".." || part.contains('\0') {
            return refuse("its name has an empty part");
        }
        path.push(part);
    }
    Ok(path)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Net,
    Ipc,
}

impl Kind {
    fn of(key: &str) -> Option<Self> {
        // Sizes and counts of System V objects; kernel.shm_rmid_forced is among them.
        const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        let key = key.replace('/', ".");
        if key.starts_with("net.") {
            Some(Self::Net)
        } else if IPC.iter().any(|prefix| key.starts_with(prefix)) {
            Some(Self::Ipc)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pins::{PinRoom, Want};
    use super::*;
    use crate::model::{IdMap, IdRange};

    #[test]
    fn only_settings_of_own_namespaces_have_a_path() {
        let file = || Some(std::fs::File::open("/dev/null").unwrap().into());
        let all = PodNamespaces {
            user: None,
            net: file(),
            ipc: file(),
            uts: None,
        };
        let none = PodNamespaces::default();
        for (key, expected) in [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            (
                "net.ipv4.conf.eth0/5.forwarding",
                Some("/proc/sys/net/ipv4/conf/eth0.5/forwarding"),
            ),
            (
                "net/ipv4/conf/eth0.5/forwarding",
                Some("/proc/sys/net/ipv4/conf/eth0.5/forwarding"),
            ),
            ("net/../kernel/core_pattern", None),
            (
                "kernel.shm_rmid_forced",
                Some("/proc/sys/kernel/shm_rmid_forced"),
            ),
            ("fs.mqueue.msg_max", Some("/proc/sys/fs/mqueue/msg_max")),
            ("kernel.core_pattern", None),
            ("vm.swappiness", None),
            ("net.//.//.kernel.core_pattern", None),
            ("net..x", None),
        ] {
            let found = path(key, &all).ok();
            assert_eq!(found.as_deref().and_then(|p| p.to_str()), expected, "{key}");
            assert!(matches!(path(key, &none), Err(Error::Invalid(_))), "{key}");
        }
    }

    #[test]
    fn a_real_pod_gets_its_settings_and_the_node_keeps_its_own() {
        let state = tempfile::tempdir().unwrap();
        let range = IdRange {
            host: 100_000,
            length: 65536,
        };
        let ids = IdMap {
            uids: range,
            gids: range,
        };
        let room = PinRoom::open(state.path()).unwrap();
        for (name, user) in [("plain", None), ("users", Some(ids))] {
            let want = Want {
                user,
                net: true,
                ipc: true,
                uts: true,
            };
            let root = user.map_or(0, |ids| ids.uids.host);
            gets_its_settings(&room.create(name, want).unwrap(), root);
        }
        room.destroy().unwrap();
    }

    fn gets_its_settings(pod: &PodNamespaces, root: u32) {
        let node = |key: &str| std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap();
        let before = (node("kernel/shmmni"), node("kernel/hostname"));
        let sysctls = |pairs: &[(&str, &str)]| -> Map {
            let own = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            own.collect()
        };
        let good = sysctls(&[("kernel.shmmni", "77"), ("net.ipv4.ip_forward", "1")]);
        apply(pod, "some-pod", &good, true, root).unwrap();
        let inside = on_fresh_thread(|| {
            use std::os::fd::AsFd as _;
            for namespace in [&pod.net, &pod.ipc, &pod.uts] {
                let namespace = namespace.as_ref().unwrap().as_fd();
                rustix::thread::move_into_link_name_space(namespace, None).unwrap();
            }
            Ok([
                "kernel/shmmni",
                "kernel/hostname",
                "net/ipv4/ip_forward",
                "net/ipv4/ip_unprivileged_port_start",
            ]
            .map(node))
        })
        .unwrap();
        assert_eq!(inside, ["77\n", "some-pod\n", "1\n", "0\n"]);
        assert_eq!((node("kernel/shmmni"), node("kernel/hostname")), before);
        for bad in [
            ("net.ipv4.no_such", "1"),
            ("kernel.shmmni", "many"),
            ("vm.swappiness", "1"),
        ] {
            let refused = apply(pod, "", &sysctls(&[bad]), true, root);
            assert!(
                matches!(refused, Err(Error::Invalid(_))),
                "{bad:?}: {refused:?}"
            );
        }
    }
}
