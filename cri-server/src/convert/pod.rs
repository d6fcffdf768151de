//! A pod sandbox, as asked.

use std::path::PathBuf;

use criw_proto::v1 as cri;
use criw_sandbox::ContainerId;
use criw_sandbox::model::{
    Dns, IdMap, IdRange, NamespaceModes, PidMode, PodSpec, PortMapping, Scope,
};

use super::resources::resources;
use super::security;
use crate::error::{Invalid, invalid};

/// Converts and refuses what cannot be done.
pub fn pod(config: &cri::PodSandboxConfig, handler: &str) -> Result<PodSpec, Invalid> {
    let Some(metadata) = &config.metadata else {
        return invalid("the pod sandbox has no metadata");
    };
    for (what, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return invalid(format!("metadata.{what} of the pod sandbox is empty"));
        }
    }
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = pod_namespaces(security.namespace_options.as_ref())?;
    let user_namespace = user_namespace(
        security
            .namespace_options
            .as_ref()
            .and_then(|options| options.userns_options.as_ref()),
    )?;
    if user_namespace.is_some() {
        own_with_users(&namespaces)?;
    }
    if config.hostname.is_empty() && namespaces.network == Scope::Pod {
        // crictl's shortest examples leave it out; a pod is then named like itself.
        tracing::debug!(pod = %metadata.name, "no hostname given, the pod's name is used");
    }
    let hostname = match (&namespaces.network, config.hostname.as_str()) {
        (Scope::Pod, "") => host_name_of(&metadata.name).to_owned(),
        (_, hostname) => hostname.to_owned(),
    };
    if !is_hostname(&hostname) {
        return invalid(format!("{hostname:?} is no host name"));
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return invalid(format!(
            "log_directory {:?} is not an absolute path",
            config.log_directory
        ));
    }
    Ok(PodSpec {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
        hostname,
        log_directory: (!config.log_directory.is_empty())
            .then(|| PathBuf::from(&config.log_directory)),
        dns: config.dns_config.as_ref().map(|dns| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        ports: config
            .port_mappings
            .iter()
            .map(port)
            .collect::<Result<_, _>>()?,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        handler: handler.to_owned(),
        cgroup_parent: (!linux.cgroup_parent.is_empty()).then_some(linux.cgroup_parent),
        sysctls: linux.sysctls.into_iter().collect(),
        namespaces,
        user_namespace,
        privileged: security.privileged,
        selinux: security::selinux(security.selinux_options.as_ref())?,
        resources: linux.resources.as_ref().map(resources).transpose()?,
        overhead: linux.overhead.as_ref().map(resources).transpose()?,
    })
}

/// A pod's name is often longer than a host name may be; it is cut as the kubelet cuts it.
fn host_name_of(pod: &str) -> &str {
    const LONGEST: usize = 63;
    let end = (0..=LONGEST.min(pod.len()))
        .rev()
        .find(|n| pod.is_char_boundary(*n))
        .unwrap_or(0);
    pod[..end].trim_end_matches(['-', '.'])
}

/// At most 64 bytes for the kernel; no byte that could break a line of /etc/hosts.
fn is_hostname(name: &str) -> bool {
    name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

fn port(asked: &cri::PortMapping) -> Result<PortMapping, Invalid> {
    let protocol = match cri::Protocol::try_from(asked.protocol) {
        Ok(cri::Protocol::Tcp) => "tcp",
        Ok(cri::Protocol::Udp) => "udp",
        Ok(cri::Protocol::Sctp) => "sctp",
        Err(_) => {
            return invalid(format!(
                "protocol {} is no value of the enum",
                asked.protocol
            ));
        }
    };
    let number = |what: &str, value: i32| match u16::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => invalid(format!("{what} {value} is no port")),
    };
    if !asked.host_ip.is_empty() && asked.host_ip.parse::<std::net::IpAddr>().is_err() {
        return invalid(format!("host_ip {:?} is no address", asked.host_ip));
    }
    Ok(PortMapping {
        protocol: protocol.to_owned(),
        container_port: number("container_port", asked.container_port)?,
        host_port: number("host_port", asked.host_port)?,
        host_ip: asked.host_ip.clone(),
    })
}

/// No options at all mean POD for everything: the zero value.
fn pod_namespaces(options: Option<&cri::NamespaceOption>) -> Result<NamespaceModes, Invalid> {
    let options = options.cloned().unwrap_or_default();
    Ok(NamespaceModes {
        network: scope("network", options.network)?,
        ipc: scope("ipc", options.ipc)?,
        pid: match mode("pid", options.pid)? {
            cri::NamespaceMode::Pod => PidMode::Pod,
            cri::NamespaceMode::Container => PidMode::Container,
            cri::NamespaceMode::Node => PidMode::Node,
            cri::NamespaceMode::Target => {
                return invalid("a pod's pid namespace cannot be that of a target container");
            }
        },
    })
}

/// The user namespace of a pod or container; `None` is the node's.
pub fn user_namespace(asked: Option<&cri::UserNamespace>) -> Result<Option<IdMap>, Invalid> {
    // The zero value of the message says POD without meaning it.
    let Some(asked) = asked.filter(|asked| **asked != cri::UserNamespace::default()) else {
        return Ok(None);
    };
    match mode("user", asked.mode)? {
        cri::NamespaceMode::Node => Ok(None),
        cri::NamespaceMode::Pod => id_map("the user namespace", &asked.uids, &asked.gids).map(Some),
        other => invalid(format!(
            "user namespace mode {} is not possible, only POD and NODE",
            other.as_str_name()
        )),
    }
}

/// The maps of a user namespace or of a volume in one: one range each, from id 0 on.
pub fn id_map(
    what: &str,
    uids: &[cri::IdMapping],
    gids: &[cri::IdMapping],
) -> Result<IdMap, Invalid> {
    let range = |kind: &str, asked: &[cri::IdMapping]| {
        let [asked] = asked else {
            return invalid(format!(
                "{what} has {} {kind} mappings; exactly one is possible",
                asked.len()
            ));
        };
        if asked.container_id != 0 {
            return invalid(format!(
                "{what} does not map the {kind} 0 of the container (its mapping begins at {})",
                asked.container_id
            ));
        }
        let end = asked.host_id.checked_add(asked.length);
        if asked.length == 0 || end.is_none() {
            return invalid(format!(
                "{what} maps {} {kind}s from {} of the node on, which are not ids",
                asked.length, asked.host_id
            ));
        }
        Ok(IdRange {
            host: asked.host_id,
            length: asked.length,
        })
    };
    Ok(IdMap {
        uids: range("user id", uids)?,
        gids: range("group id", gids)?,
    })
}

/// For status.
pub fn id_mapping(range: IdRange) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping {
        host_id: range.host,
        container_id: 0,
        length: range.length,
    }]
}

/// Namespaces of the node do not belong to the users of a pod's: they could not even
/// mount a sysfs or procfs there.
fn own_with_users(modes: &NamespaceModes) -> Result<(), Invalid> {
    for (what, of_node) in [
        ("network", modes.network == Scope::Node),
        ("ipc", modes.ipc == Scope::Node),
        ("pid", modes.pid == PidMode::Node),
    ] {
        if of_node {
            return invalid(format!(
                "a pod with a user namespace of its own (hostUsers: false) cannot use the node's {what} namespace"
            ));
        }
    }
    Ok(())
}

fn mode(what: &str, value: i32) -> Result<cri::NamespaceMode, Invalid> {
    cri::NamespaceMode::try_from(value).map_err(|_| {
        Invalid(format!(
            "{what} namespace mode {value} is no value of the enum"
        ))
    })
}

fn scope(what: &str, value: i32) -> Result<Scope, Invalid> {
    match mode(what, value)? {
        cri::NamespaceMode::Pod => Ok(Scope::Pod),
        cri::NamespaceMode::Node => Ok(Scope::Node),
        other => invalid(format!(
            "{what} namespace mode {} is not possible, only POD and NODE",
            other.as_str_name()
        )),
    }
}

/// Whose process ids a container sees, before a target's id is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerPid {
    /// Decided.
    Decided(PidMode),
    /// Those of the container with this id or prefix.
    Target(String),
}

/// A container's pid namespace: its own options, else its pod's. POD in a pod that
/// shares none means what the pod itself has.
pub fn container_pid(
    options: Option<&cri::NamespaceOption>,
    pod: &PidMode,
) -> Result<ContainerPid, Invalid> {
    let Some(options) = options else {
        return Ok(ContainerPid::Decided(pod.clone()));
    };
    Ok(match mode("pid", options.pid)? {
        cri::NamespaceMode::Pod => ContainerPid::Decided(pod.clone()),
        cri::NamespaceMode::Container => ContainerPid::Decided(PidMode::Container),
        cri::NamespaceMode::Node => ContainerPid::Decided(PidMode::Node),
        cri::NamespaceMode::Target if options.target_id.is_empty() => {
            return invalid("pid namespace mode TARGET needs a target_id");
        }
        cri::NamespaceMode::Target => ContainerPid::Target(options.target_id.clone()),
    })
}

/// For status: the options as they were asked.
pub fn namespace_options(modes: &NamespaceModes, users: Option<IdMap>) -> cri::NamespaceOption {
    let scope = |scope: Scope| match scope {
        Scope::Pod => cri::NamespaceMode::Pod,
        Scope::Node => cri::NamespaceMode::Node,
    } as i32;
    let target = |id: &ContainerId| id.as_str().to_owned();
    let (pid, target_id) = match &modes.pid {
        PidMode::Container => (cri::NamespaceMode::Container, String::new()),
        PidMode::Pod => (cri::NamespaceMode::Pod, String::new()),
        PidMode::Node => (cri::NamespaceMode::Node, String::new()),
        PidMode::Target(id) => (cri::NamespaceMode::Target, target(id)),
    };
    cri::NamespaceOption {
        network: scope(modes.network),
        ipc: scope(modes.ipc),
        pid: pid as i32,
        target_id,
        userns_options: Some(match users {
            // What the kubelet sends for every other pod.
            None => cri::UserNamespace {
                mode: cri::NamespaceMode::Node as i32,
                ..cri::UserNamespace::default()
            },
            Some(ids) => cri::UserNamespace {
                mode: cri::NamespaceMode::Pod as i32,
                uids: id_mapping(ids.uids),
                gids: id_mapping(ids.gids),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..cri::PodSandboxConfig::default()
        }
    }

    fn with_options(options: cri::NamespaceOption) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..config()
        }
    }

    #[test]
    fn the_shortest_request_means_pod_namespaces_everywhere() {
        let spec = pod(&config(), "wasm").unwrap();
        assert_eq!((spec.name.as_str(), spec.hostname.as_str()), ("web", "web"));
        assert_eq!((spec.attempt, spec.handler.as_str()), (2, "wasm"));
        assert_eq!(spec.namespaces.pid, PidMode::Pod);
        assert_eq!(spec.namespaces.network, Scope::Pod);
        assert_eq!(
            (spec.dns, spec.cgroup_parent, spec.log_directory),
            (None, None, None)
        );
    }

    #[test]
    fn a_name_too_long_for_a_host_is_cut() {
        let named = |name: &str| {
            let mut config = config();
            config.metadata.as_mut().unwrap().name = name.into();
            config
        };
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(9));
        assert_eq!(pod(&named(&long), "").unwrap().hostname, "a".repeat(62));
        assert!(pod(&named("no spaces"), "").is_err());
        // What was asked for in so many words is not changed.
        let mut asked = named("web");
        asked.hostname = long;
        assert!(pod(&asked, "").is_err());
    }

    #[test]
    fn a_kubelets_request_is_kept_whole() {
        let mut asked = with_options(cri::NamespaceOption {
            network: 2,
            ipc: 2,
            pid: 1,
            userns_options: Some(cri::UserNamespace {
                mode: 2,
                ..Default::default()
            }),
            ..Default::default()
        });
        asked.dns_config = Some(cri::DnsConfig::default());
        asked.log_directory = "/var/log/pods/x".into();
        asked.labels.insert("a".into(), "b".into());
        asked.port_mappings = vec![cri::PortMapping {
            protocol: 1,
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        }];
        if let Some(linux) = &mut asked.linux {
            linux.cgroup_parent = "/kubepods/podu1".into();
            linux
                .sysctls
                .insert("net.core.somaxconn".into(), "9".into());
        }
        let spec = pod(&asked, "").unwrap();
        assert_eq!(spec.hostname, "");
        assert_eq!(spec.dns, Some(Dns::default()));
        assert_eq!(spec.cgroup_parent.as_deref(), Some("/kubepods/podu1"));
        assert_eq!(spec.ports[0].protocol, "udp");
        assert_eq!(spec.labels["a"], "b");
        let options = namespace_options(&spec.namespaces, spec.user_namespace);
        assert_eq!((options.network, options.ipc, options.pid), (2, 2, 1));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let no_metadata = cri::PodSandboxConfig {
            metadata: None,
            ..config()
        };
        let port = |port: cri::PortMapping| cri::PodSandboxConfig {
            port_mappings: vec![port],
            ..config()
        };
        for (asked, word) in [
            (no_metadata, "metadata"),
            (
                with_options(cri::NamespaceOption {
                    network: 1,
                    ..Default::default()
                }),
                "network",
            ),
            (
                with_options(cri::NamespaceOption {
                    ipc: 9,
                    ..Default::default()
                }),
                "ipc",
            ),
            (
                with_options(cri::NamespaceOption {
                    pid: 3,
                    ..Default::default()
                }),
                "target",
            ),
            (
                port(cri::PortMapping {
                    host_port: 70000,
                    ..Default::default()
                }),
                "70000",
            ),
            (
                port(cri::PortMapping {
                    protocol: 9,
                    ..Default::default()
                }),
                "protocol",
            ),
            (
                port(cri::PortMapping {
                    host_ip: "x".into(),
                    ..Default::default()
                }),
                "host_ip",
            ),
            (
                cri::PodSandboxConfig {
                    hostname: "a\nb".into(),
                    ..config()
                },
                "host name",
            ),
            (
                cri::PodSandboxConfig {
                    log_directory: "logs".into(),
                    ..config()
                },
                "log_directory",
            ),
        ] {
            let error = pod(&asked, "").unwrap_err();
            assert!(error.0.contains(word), "{error}");
        }
    }

    #[test]
    fn user_namespaces_of_pods() {
        let map = |container_id, host_id, length| cri::IdMapping {
            host_id,
            container_id,
            length,
        };
        let users = |mode, uids: &[cri::IdMapping], gids: &[cri::IdMapping]| {
            Some(cri::UserNamespace {
                mode,
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            })
        };
        let good = [map(0, 100_000, 65536)];
        let two = [map(0, 100_000, 1000), map(1000, 5, 1)];
        let request = |change: fn(&mut cri::NamespaceOption), users| {
            let mut options = cri::NamespaceOption {
                pid: 1,
                userns_options: users,
                ..Default::default()
            };
            change(&mut options);
            pod(&with_options(options), "")
        };
        let node = request(|_| {}, users(2, &[], &[])).unwrap();
        assert_eq!(node.user_namespace, None);
        let asked = users(0, &good, &[map(0, 7, 70_000)]);
        let spec = request(|_| {}, asked.clone()).unwrap();
        assert_eq!(spec.user_namespace.unwrap().uids.host, 100_000);
        let options = namespace_options(&spec.namespaces, spec.user_namespace);
        assert_eq!(options.userns_options, asked);
        type Change = fn(&mut cri::NamespaceOption);
        let same: Change = |_| {};
        for (change, users, word) in [
            (same, users(1, &good, &good), "CONTAINER"),
            (same, users(3, &good, &good), "TARGET"),
            (same, users(9, &good, &good), "no value"),
            (same, users(0, &two, &good), "2 user id mappings"),
            (same, users(0, &good, &[]), "0 group id mappings"),
            (same, users(0, &[map(1, 5, 9)], &good), "user id 0"),
            (same, users(0, &[map(0, 5, 0)], &good), "not ids"),
            (same, users(0, &good, &[map(0, u32::MAX, 2)]), "not ids"),
            (|o| o.network = 2, users(0, &good, &good), "node's network"),
            (|o| o.ipc = 2, users(0, &good, &good), "node's ipc"),
            (|o| o.pid = 2, users(0, &good, &good), "node's pid"),
        ] {
            let error = request(change, users).unwrap_err();
            assert!(error.0.contains(word), "{error}");
        }
    }

    #[test]
    fn container_pid_namespaces() {
        use ContainerPid::Decided;
        let options = |pid, target: &str| {
            Some(cri::NamespaceOption {
                pid,
                target_id: target.into(),
                ..Default::default()
            })
        };
        for (asked, pod, expected) in [
            (None, PidMode::Pod, Some(Decided(PidMode::Pod))),
            (options(0, ""), PidMode::Node, Some(Decided(PidMode::Node))),
            (
                options(1, ""),
                PidMode::Pod,
                Some(Decided(PidMode::Container)),
            ),
            (options(2, ""), PidMode::Pod, Some(Decided(PidMode::Node))),
            (
                options(3, "abc"),
                PidMode::Pod,
                Some(ContainerPid::Target("abc".into())),
            ),
            (options(3, ""), PidMode::Pod, None),
            (options(4, ""), PidMode::Pod, None),
        ] {
            assert_eq!(
                container_pid(asked.as_ref(), &pod).ok(),
                expected,
                "{asked:?}"
            );
        }
    }
}
