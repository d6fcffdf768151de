//! The node as the cluster sees it.

use anyhow::{Context, Result, ensure};
use criw_tests::kubelet::NODE;
use serde_json::Value;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, name, node};

pub(crate) const CHECKS: &[Check] = &[
    beside("node::it_becomes_ready", &[], becomes_ready),
    beside("node::it_tells_its_handlers_and_its_runtime", &[], identity),
    beside(
        "node::its_statistics_are_what_kubectl_top_would_ask_for",
        &["web"],
        statistics,
    ),
];

fn becomes_ready(cluster: &Cluster) -> Result<()> {
    cluster.until("the node to be ready", || {
        node(cluster).ok()?["status"]["conditions"]
            .as_array()?
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            .then_some(())
    })?;
    let line = cluster.kubectl(&["get", "node", NODE, "--no-headers", "-o", "wide"])?;
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(
        words.get(1) == Some(&"Ready") && line.contains("criw://"),
        "{line}"
    );
    Ok(())
}

fn identity(cluster: &Cluster) -> Result<()> {
    let node = node(cluster)?;
    let info = &node["status"]["nodeInfo"];
    let runtime = info["containerRuntimeVersion"].as_str().unwrap_or_default();
    ensure!(runtime.starts_with("criw://"), "{info}");
    let handlers: Vec<&str> = node["status"]["runtimeHandlers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|handler| handler["name"].as_str().unwrap_or_default())
        .collect();
    for handler in ["", "wasm", "wasmtime", "crun-wasm", "runc"] {
        ensure!(handlers.contains(&handler), "{handlers:?}");
    }
    ensure!(node["spec"]["podCIDR"] != Value::Null, "{}", node["spec"]);
    Ok(())
}

/// A metrics server, which this cluster has not, would read `/metrics/resource`.
fn statistics(cluster: &Cluster) -> Result<()> {
    let said = cluster.kubectl_said(&["top", "pod"], "")?;
    ensure!(
        said.code == Some(1) && said.err.contains("Metrics API not available"),
        "{said:?}"
    );
    let pod = name(cluster.ready_pods("web", 2)?.first().context("no pod")?);
    let path = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
    cluster.until("the pod in the node's summary", || {
        let summary = cluster.get(&path).ok()?;
        let found = summary["pods"]
            .as_array()?
            .iter()
            .find(|it| it["podRef"]["name"] == *pod)?
            .clone();
        let used = |what: &str| found.pointer(what).and_then(Value::as_u64).unwrap_or(0);
        (used("/memory/workingSetBytes") > 0
            && used("/cpu/usageCoreNanoSeconds") > 0
            && used("/network/rxBytes") > 0)
            .then_some(())
    })?;
    let path = format!("/api/v1/nodes/{NODE}/proxy/metrics/resource");
    cluster.until("the container in the resource metrics", || {
        let (_, text) = cluster.plane.get(&cluster.machine.world, &path).ok()?;
        let wanted = format!("container=\"server\",namespace=\"default\",pod=\"{pod}\"");
        [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
        ]
        .iter()
        .all(|metric| {
            text.lines()
                .any(|line| line.starts_with(metric) && line.contains(&wanted))
        })
        .then_some(())
    })
}
