//! Status of the node, and the `info` maps that verbose requests get.

use std::collections::HashMap;

use criw_proto::v1 as cri;
use criw_sandbox::{ContainerView, PodView};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::daemon::Daemon;

/// Of a container's config.json shown by `crictl inspect`.
const MAX_SHOWN_SPEC: u64 = 4 << 20;

/// Conditions, handlers and features.
pub async fn status(daemon: &Daemon, verbose: bool) -> cri::StatusResponse {
    let condition = |kind: &str, problem: Option<(&str, String)>| cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status: problem.is_none(),
        reason: problem.as_ref().map(|p| p.0.to_owned()).unwrap_or_default(),
        message: problem.map(|p| p.1).unwrap_or_default(),
    };
    let network = daemon.sandboxes.network_status().await;
    let features = cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: daemon.host.recursive_read_only,
        user_namespaces: daemon.host.user_namespaces.is_ok(),
    };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", None),
                condition(
                    "NetworkReady",
                    network
                        .err()
                        .map(|problem| (problem.reason, problem.message)),
                ),
            ],
        }),
        info: if verbose {
            config(daemon)
        } else {
            HashMap::new()
        },
        runtime_handlers: daemon
            .usable_handlers
            .iter()
            .map(|name| cri::RuntimeHandler {
                name: name.clone(),
                features: Some(features),
            })
            .collect(),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
        }),
    }
}

/// `stateDir` is where tools look for the root file systems of containers.
fn config(daemon: &Daemon) -> HashMap<String, String> {
    let mut value = serde_json::to_value(&daemon.config).unwrap_or(Value::Null);
    if let Value::Object(map) = &mut value {
        map.insert("stateDir".to_owned(), json!(daemon.config.state));
        map.insert("rootDir".to_owned(), json!(daemon.config.root));
    }
    let security = json!({
        "apparmor": {
            "enabled": daemon.host.apparmor,
            "defaultProfile": criw_sandbox::host::apparmor::DEFAULT_PROFILE,
        },
        "selinux": {"enabled": daemon.host.selinux},
    });
    HashMap::from([
        ("config".to_owned(), value.to_string()),
        ("security".to_owned(), security.to_string()),
    ])
}

/// For `crictl inspectp`.
pub fn pod(pod: &PodView) -> HashMap<String, String> {
    let info = json!({
        "sandboxID": pod.id.as_str(),
        "runtimeHandler": pod.spec.handler,
        // 0 as of a container: none.
        "pid": pod.pid.unwrap_or(0),
        "netns": pod.netns,
        "hostname": pod.spec.hostname,
        "cgroupParent": pod.spec.cgroup_parent,
        "message": pod.message,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// For `crictl inspect`: the one status call that reads a file.
pub async fn container(container: &ContainerView) -> HashMap<String, String> {
    let info = json!({
        "sandboxID": container.sandbox.as_str(),
        "pid": container.pid.unwrap_or(0),
        "bundle": container.bundle,
        "engine": container.spec.engine,
        "runtimeSpec": runtime_spec(container).await,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

async fn runtime_spec(container: &ContainerView) -> Value {
    let path = container.bundle.join("config.json");
    let Ok(file) = tokio::fs::File::open(&path).await else {
        return Value::Null;
    };
    let mut bytes = Vec::new();
    match file.take(MAX_SHOWN_SPEC).read_to_end(&mut bytes).await {
        Ok(_) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        Err(_) => Value::Null,
    }
}
