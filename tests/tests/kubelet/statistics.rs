//! What the kubelet tells about use of resources, from what the runtime tells it.

use anyhow::{Context, Result, ensure};
use criw_tests::wait;
use serde_json::Value;

use crate::checks::{Check, beside};
use crate::node::{Node, PATIENCE};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "statistics::the_summary_of_a_wasm_pod_is_complete",
        &["wasm"],
        |node| {
            node.ready("wasm", "server", true)?;
            complete(node, "wasm", "server")
        },
    ),
    beside(
        "statistics::the_summary_of_a_linux_pod_is_complete",
        &["linux"],
        |node| {
            node.ready("linux", "httpd", true)?;
            complete(node, "linux", "httpd")
        },
    ),
    beside(
        "statistics::the_summary_of_the_node_has_its_images",
        &["linux"],
        of_the_node,
    ),
    beside(
        "statistics::resource_metrics_name_wasm_and_linux_containers",
        &["mixed"],
        metrics,
    ),
];

/// Numbers of a container that must be there.
const CONTAINER: [&str; 8] = [
    "/cpu/time",
    "/cpu/usageNanoCores",
    "/cpu/usageCoreNanoSeconds",
    "/memory/workingSetBytes",
    "/memory/usageBytes",
    "/memory/availableBytes",
    "/rootfs/usedBytes",
    "/logs/usedBytes",
];

/// Numbers of a pod that only the runtime can tell.
const OF_THE_RUNTIME: [&str; 5] = [
    "/cpu/usageNanoCores",
    "/network/name",
    "/network/rxBytes",
    "/network/txBytes",
    "/process_stats/process_count",
];

/// Numbers of a pod from wherever.
const POD: [&str; 4] = [
    "/cpu/usageCoreNanoSeconds",
    "/memory/workingSetBytes",
    "/ephemeral-storage/usedBytes",
    "/startTime",
];

fn summary(node: &Node) -> Result<Value> {
    Ok(serde_json::from_str(&node.get("/stats/summary")?)?)
}

fn named<'a>(list: &'a Value, key: &str, name: &str) -> Option<&'a Value> {
    list.as_array()?
        .iter()
        .find(|it| it.pointer(key).and_then(Value::as_str) == Some(name))
}

fn missing(value: &Value, wanted: &[&str]) -> Vec<String> {
    wanted
        .iter()
        .filter(|path| value.pointer(path).is_none_or(Value::is_null))
        .map(|path| (*path).to_owned())
        .collect()
}

/// What a pod's part of the summary lacks.
fn lacks(summary: &Value, pod: &str, container: &str, from_runtime: bool) -> Vec<String> {
    let Some(found) = named(&summary["pods"], "/podRef/name", &format!("{pod}-node")) else {
        return vec!["the pod".into()];
    };
    let mut lacking = missing(found, &POD);
    if from_runtime {
        lacking.extend(missing(found, &OF_THE_RUNTIME));
    }
    match named(&found["containers"], "/name", container) {
        Some(container) => lacking.extend(missing(container, &CONTAINER)),
        None => lacking.push("the container".into()),
    }
    match named(&found["volume"], "/name", "scratch") {
        Some(volume) => lacking.extend(missing(volume, &["/usedBytes", "/capacityBytes"])),
        None => lacking.push("the volume".into()),
    }
    lacking
}

fn until_complete(node: &Node, pod: &str, container: &str, from_runtime: bool) -> Result<Value> {
    let mut lacking = Vec::new();
    wait::until(&format!("the summary of {pod}"), PATIENCE, || {
        let now = summary(node)
            .map_err(|error| lacking = vec![format!("{error:#}")])
            .ok()?;
        lacking = lacks(&now, pod, container, from_runtime);
        lacking.is_empty().then_some(now)
    })
    .with_context(|| format!("it lacks {}", lacking.join(", ")))
}

/// Complete, and what is counted grows.
pub(crate) fn complete(node: &Node, pod: &str, container: &str) -> Result<()> {
    let first = until_complete(node, pod, container, true)?;
    let name = format!("{pod}-node");
    let at = |summary: &Value, path: &str| {
        named(&summary["pods"], "/podRef/name", &name)
            .and_then(|pod| pod.pointer(path))
            .and_then(Value::as_u64)
            .unwrap_or_default()
    };
    // Probes arrive every second: what is counted grows. A first look may come before any
    // page of the pod is counted.
    let last = wait::until("traffic, time and memory to be counted", PATIENCE, || {
        let now = summary(node).ok()?;
        let grown = [
            "/network/rxBytes",
            "/network/txBytes",
            "/cpu/usageCoreNanoSeconds",
        ]
        .iter()
        .all(|path| at(&now, path) > at(&first, path));
        (grown && at(&now, MEMORY) > 0).then_some(now)
    })?;
    let working_set = at(&last, MEMORY);
    ensure!((1 << 12..128 << 20).contains(&working_set), "{working_set}");
    Ok(())
}

const MEMORY: &str = "/memory/workingSetBytes";

/// Complete with all that only the runtime tells.
pub(crate) fn complete_with_the_runtimes(node: &Node) -> Result<()> {
    until_complete(node, "wasm", "server", true)?;
    until_complete(node, "linux", "httpd", true)?;
    Ok(())
}

/// The same from a kubelet that asks cAdvisor for all but containers: everything, less
/// what cAdvisor knows only of runtimes that it was written for.
pub(crate) fn complete_without_the_runtimes(node: &Node) -> Result<()> {
    until_complete(node, "wasm", "server", false)?;
    until_complete(node, "linux", "httpd", false)?;
    Ok(())
}

fn of_the_node(node: &Node) -> Result<()> {
    let wanted = [
        "/cpu/usageCoreNanoSeconds",
        "/memory/workingSetBytes",
        "/fs/capacityBytes",
        "/runtime/imageFs/usedBytes",
        "/runtime/imageFs/capacityBytes",
        "/runtime/imageFs/inodesUsed",
    ];
    node.ready("linux", "httpd", true)?;
    let mut last = Value::Null;
    wait::until("the node's summary", PATIENCE, || {
        last = summary(node).ok()?["node"].take();
        let images = last.pointer("/runtime/imageFs/usedBytes")?.as_u64()?;
        // The static busybox alone is that large.
        (missing(&last, &wanted).is_empty() && images > 1 << 20).then_some(())
    })
    .with_context(|| format!("{:?} of {last}", missing(&last, &wanted)))
}

fn metrics(node: &Node) -> Result<()> {
    let mut lacking = Vec::new();
    wait::until("the resource metrics", PATIENCE, || {
        let text = node.get("/metrics/resource").ok()?;
        lacking.clear();
        for name in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
        ] {
            for container in ["wasm", "linux"] {
                let wanted = format!(
                    "{name}{{container=\"{container}\",namespace=\"default\",pod=\"mixed-node\"}}"
                );
                if !text.contains(&wanted) {
                    lacking.push(wanted);
                }
            }
        }
        lacking.is_empty().then_some(())
    })
    .with_context(|| lacking.join(", "))
}
