//! What is set inside a pod's fresh namespaces: host name and namespaced sysctls.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use rustix::thread::LinkNameSpaceType;

use super::pins::PodNamespaces;
use super::{Context, on_fresh_thread};
use crate::error::{Error, Result};
use crate::model::Map;

/// Lets programs that are not root listen below 1024: the port belongs to the pod alone.
const UNPRIVILEGED_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");

/// The namespace that a sysctl lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Net,
    Ipc,
}

/// Sets host name and sysctls in the namespaces that are the pod's own. With
/// `unprivileged_ports` ports below 1024 need no capability, unless the pod says otherwise.
///
/// # Errors
/// `Invalid` for a sysctl that no namespace of the pod holds: it would change the node.
pub fn apply(
    namespaces: &PodNamespaces,
    hostname: &str,
    sysctls: &Map,
    unprivileged_ports: bool,
) -> Result<()> {
    let mut settings = Vec::new();
    if unprivileged_ports && namespaces.net.is_some() {
        settings.push((UNPRIVILEGED_PORTS.0, UNPRIVILEGED_PORTS.1));
    }
    for (key, value) in sysctls {
        check(key, namespaces)?;
        settings.push((key, value));
    }
    if settings.is_empty() && (namespaces.uts.is_none() || hostname.is_empty()) {
        return Ok(());
    }
    on_fresh_thread(|| {
        for (namespace, kind, name) in [
            (&namespaces.net, LinkNameSpaceType::Network, "network"),
            (
                &namespaces.ipc,
                LinkNameSpaceType::InterProcessCommunication,
                "ipc",
            ),
            (
                &namespaces.uts,
                LinkNameSpaceType::HostNameAndNISDomainName,
                "uts",
            ),
        ] {
            if let Some(namespace) = namespace {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
                    .context(|| format!("enter the pod's {name} namespace"))?;
            }
        }
        if namespaces.uts.is_some() && !hostname.is_empty() {
            rustix::system::sethostname(hostname.as_bytes())
                .context(|| format!("set host name {hostname:?}"))?;
        }
        for (key, value) in settings {
            std::fs::write(path(key), value)
                .context(|| format!("set sysctl {key} to {value:?}"))?;
        }
        Ok(())
    })
}

fn check(key: &str, namespaces: &PodNamespaces) -> Result<()> {
    let refuse = |why: &str| Err(Error::Invalid(format!("sysctl {key}: {why}")));
    if key
        .split(['.', '/'])
        .any(|part| part.is_empty() || part == "..")
    {
        return refuse("is not a sysctl name");
    }
    match home(key) {
        None => refuse("belongs to no namespace, setting it would change the node"),
        Some(Home::Net) if namespaces.net.is_none() => {
            refuse("belongs to the network namespace, and the pod uses the node's")
        }
        Some(Home::Ipc) if namespaces.ipc.is_none() => {
            refuse("belongs to the ipc namespace, and the pod uses the node's")
        }
        Some(_) => Ok(()),
    }
}

fn home(key: &str) -> Option<Home> {
    let key = key.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if key.starts_with("net.") {
        Some(Home::Net)
    } else if key == "kernel.sem" || ipc.iter().any(|prefix| key.starts_with(prefix)) {
        Some(Home::Ipc)
    } else {
        None
    }
}

/// Keys come with dots; an interface name with a dot in it comes with slashes.
fn path(key: &str) -> PathBuf {
    let relative = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    PathBuf::from("/proc/sys").join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_are_taken() {
        for (key, expected) in [
            ("net.ipv4.tcp_syncookies", Some(Home::Net)),
            ("net/ipv4/conf/eth0.1/forwarding", Some(Home::Net)),
            ("kernel.shm_rmid_forced", Some(Home::Ipc)),
            ("kernel.msgmax", Some(Home::Ipc)),
            ("kernel.sem", Some(Home::Ipc)),
            ("fs.mqueue.msg_max", Some(Home::Ipc)),
            ("kernel.panic", None),
            ("vm.swappiness", None),
            ("kernel.semaphore", None),
        ] {
            assert_eq!(home(key), expected, "{key}");
        }
        let none = PodNamespaces::default();
        for key in [
            "net.ipv4.ip_forward",
            "kernel.panic",
            "net..x",
            "net.ipv4/../../x",
        ] {
            assert!(matches!(check(key, &none), Err(Error::Invalid(_))), "{key}");
        }
    }

    #[test]
    fn they_act_inside_and_leave_the_node_alone() {
        let before =
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
        let host_before = rustix::system::uname().nodename().to_owned();
        let namespaces = on_fresh_thread(|| {
            let flags = rustix::thread::UnshareFlags::NEWNET
                | rustix::thread::UnshareFlags::NEWUTS
                | rustix::thread::UnshareFlags::NEWIPC;
            super::super::sys::unshare(flags).context(|| "unshare")?;
            let open = |name: &str| {
                std::fs::File::open(format!("/proc/thread-self/ns/{name}"))
                    .map(Into::into)
                    .context(|| "open")
            };
            Ok(PodNamespaces {
                net: Some(open("net")?),
                ipc: Some(open("ipc")?),
                uts: Some(open("uts")?),
            })
        })
        .unwrap();
        let sysctls = Map::from([("kernel.msgmax".to_owned(), "4096".to_owned())]);
        apply(&namespaces, "pod-name", &sysctls, true).unwrap();
        let inside = on_fresh_thread(|| {
            for (ns, kind) in [
                (&namespaces.net, LinkNameSpaceType::Network),
                (&namespaces.uts, LinkNameSpaceType::HostNameAndNISDomainName),
                (
                    &namespaces.ipc,
                    LinkNameSpaceType::InterProcessCommunication,
                ),
            ] {
                rustix::thread::move_into_link_name_space(ns.as_ref().unwrap().as_fd(), Some(kind))
                    .unwrap();
            }
            let read = |p: &str| std::fs::read_to_string(p).unwrap().trim().to_owned();
            Ok((
                rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
                read("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
                read("/proc/sys/kernel/msgmax"),
            ))
        })
        .unwrap();
        assert_eq!(
            inside,
            ("pod-name".to_owned(), "0".to_owned(), "4096".to_owned())
        );
        assert_eq!(
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(),
            before
        );
        assert_eq!(rustix::system::uname().nodename(), host_before.as_c_str());
    }
}
