//! What a plugin is told: CNI_ARGS, capability arguments, its configuration.

use serde_json::{Map, Value, json};

use super::quantity::bandwidth;
use super::version::Version;
use crate::pod::PodNetwork;

/// CNI_ARGS as Kubernetes plugins expect them. Values come from the API and
/// must not be able to add arguments of their own.
pub(crate) fn args(pod: &PodNetwork) -> Result<Vec<(String, String)>, String> {
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.id),
        ("K8S_POD_UID", &pod.uid),
    ];
    for (key, value) in args {
        if value.contains([';', '=', '\0', '\n']) {
            return Err(format!(
                "{key} is {value:?}: ';', '=' and control characters cannot be handed to cni plugins"
            ));
        }
    }
    Ok(args
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec())
}

/// Everything that plugins may declare a capability for.
pub(crate) fn capabilities(pod: &PodNetwork) -> Result<Map<String, Value>, String> {
    let mut all = Map::new();
    let ports: Vec<Value> = pod
        .mapped_ports()
        .iter()
        .map(|p| {
            json!({
                "hostPort": p.host_port,
                "containerPort": p.container_port,
                "protocol": p.protocol.as_str(),
                "hostIP": p.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    let mut limits = Map::new();
    for (annotation, rate, burst) in [
        (
            "kubernetes.io/ingress-bandwidth",
            "ingressRate",
            "ingressBurst",
        ),
        (
            "kubernetes.io/egress-bandwidth",
            "egressRate",
            "egressBurst",
        ),
    ] {
        if let Some(text) = pod.annotations.get(annotation) {
            let bits = bandwidth(text).map_err(|why| format!("annotation {annotation}: {why}"))?;
            limits.insert(rate.into(), bits.into());
            // What other runtimes pass: the bucket never limits, the rate does.
            limits.insert(burst.into(), u32::MAX.into());
        }
    }
    if !limits.is_empty() {
        all.insert("bandwidth".into(), limits.into());
    }
    if pod.dns != crate::pod::Dns::default() {
        all.insert(
            "dns".into(),
            json!({"servers": pod.dns.servers, "searches": pod.dns.searches, "options": pod.dns.options}),
        );
    }
    if !pod.annotations.is_empty() {
        all.insert(
            "io.kubernetes.cri.pod-annotations".into(),
            json!(pod.annotations),
        );
    }
    if !pod.cgroup_path.is_empty() {
        all.insert("cgroupPath".into(), pod.cgroup_path.clone().into());
    }
    Ok(all)
}

/// The configuration that one plugin reads on its standard input.
pub(crate) fn configuration(
    plugin: &Map<String, Value>,
    network: &str,
    version: &str,
    offered: &Map<String, Value>,
    prev_result: Option<&Value>,
) -> Map<String, Value> {
    let mut conf = plugin.clone();
    conf.insert("name".into(), network.into());
    conf.insert("cniVersion".into(), version.into());
    conf.remove("cniVersions");
    let declared = plugin.get("capabilities").and_then(Value::as_object);
    let granted: Map<String, Value> = offered
        .iter()
        .filter(|(name, _)| declared.is_some_and(|d| d.get(*name) == Some(&Value::Bool(true))))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !granted.is_empty() {
        conf.insert("runtimeConfig".into(), granted.into());
    }
    if let Some(result) = prev_result {
        conf.insert("prevResult".into(), result.clone());
    }
    conf
}

/// Whether DEL and CHECK get the result of ADD.
pub(crate) fn del_has_result(version: Version) -> bool {
    version >= Version::CHECK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{PortMapping, Protocol};

    fn pod() -> PodNetwork {
        PodNetwork {
            id: "ab".repeat(32),
            name: "p".into(),
            namespace: "ns".into(),
            uid: "u".into(),
            cgroup_path: "/kubepods/pod1".into(),
            ports: vec![
                PortMapping {
                    protocol: Protocol::Tcp,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: "127.0.0.1".parse().ok(),
                },
                PortMapping {
                    protocol: Protocol::Udp,
                    container_port: 53,
                    host_port: 0,
                    host_ip: None,
                },
            ],
            annotations: [(
                "kubernetes.io/ingress-bandwidth".to_owned(),
                "10M".to_owned(),
            )]
            .into(),
            ..PodNetwork::default()
        }
    }

    #[test]
    fn only_declared_capabilities_are_passed() {
        let offered = capabilities(&pod()).unwrap();
        let all = [
            "bandwidth",
            "cgroupPath",
            "io.kubernetes.cri.pod-annotations",
            "portMappings",
        ];
        assert_eq!(offered.keys().collect::<Vec<_>>(), all);
        for (declared, want) in [
            (json!({}), None),
            (json!({"portMappings": false, "dns": true}), None),
            (
                json!({"portMappings": true}),
                Some(
                    json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}]}),
                ),
            ),
            (
                json!({"bandwidth": true}),
                Some(json!({"bandwidth": {"ingressRate": 10_000_000, "ingressBurst": u32::MAX}})),
            ),
            (
                json!({"cgroupPath": true}),
                Some(json!({"cgroupPath": "/kubepods/pod1"})),
            ),
        ] {
            let Value::Object(plugin) = json!({"type": "x", "capabilities": declared}) else {
                unreachable!()
            };
            let conf = configuration(&plugin, "net", "1.0.0", &offered, None);
            assert_eq!(conf.get("runtimeConfig"), want.as_ref(), "{declared}");
            assert_eq!(
                (conf["name"].as_str(), conf["cniVersion"].as_str()),
                (Some("net"), Some("1.0.0"))
            );
            assert!(!conf.contains_key("prevResult"));
        }
    }

    #[test]
    fn hostile_names_cannot_add_arguments() {
        let mut pod = pod();
        assert_eq!(args(&pod).unwrap()[2], ("K8S_POD_NAME".into(), "p".into()));
        for name in ["p;K8S_POD_NAME=q", "a=b", "a\nb"] {
            pod.name = name.into();
            assert!(args(&pod).unwrap_err().contains("K8S_POD_NAME"), "{name}");
        }
    }

    #[test]
    fn bad_bandwidth_is_refused() {
        let mut pod = pod();
        pod.annotations
            .insert("kubernetes.io/egress-bandwidth".into(), "fast".into());
        assert!(capabilities(&pod).unwrap_err().contains("egress-bandwidth"));
    }
}
