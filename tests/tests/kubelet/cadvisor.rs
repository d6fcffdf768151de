//! A kubelet with default gates, which takes the traffic of pods and the labels of
//! `/metrics/cadvisor` from its cAdvisor, and that what it knows from criw's second socket.

use anyhow::{Context, Result, ensure};
use criw_tests::{config, wait};

use crate::checks::{Check, alone};
use crate::lasting::{STEADY, all_ready, remember, unchanged};
use crate::node::{Node, PATIENCE, bare_id};
use crate::statistics;

pub(crate) const CHECKS: &[Check] = &[
    alone(
        "cadvisor::a_kubelet_with_default_gates_sees_traffic_and_processes_of_pods",
        STEADY,
        summary,
    ),
    alone(
        "cadvisor::its_metrics_name_pods_and_containers_of_both_kinds_once",
        &[],
        metrics,
    ),
    alone(
        "cadvisor::a_container_that_is_made_anew_is_seen_again",
        &[],
        restarted,
    ),
];

fn summary(node: &mut Node) -> Result<()> {
    all_ready(node)?;
    let memory = remember(node)?;
    let socket = node.machine.world.path("cadvisor.sock");
    let text = format!("[cadvisor]\nsocket = \"{}\"\n", socket.display());
    config::append(&node.machine.world, &text)?;
    node.machine.daemon.terminate()?;
    node.machine.restart(&[])?;
    node.restart_kubelet_beside(&socket)?;
    all_ready(node)?;
    unchanged(node, &memory)?;
    // Pods that were there before have no process that their traffic could be counted by.
    statistics::complete_without_the_runtimes(node)?;
    node.lay_down("watched")?;
    node.ready("watched", "server", true)?;
    node.ready("watched", "httpd", true)?;
    statistics::complete(node, "watched", "server")?;
    statistics::complete(node, "watched", "httpd")
}

/// A line of `/metrics/cadvisor`: its labels, and its value.
struct Line {
    labels: String,
    value: f64,
}

impl Line {
    fn has(&self, label: &str, value: &str) -> bool {
        // With a comma behind the last, each ends alike; a value may be empty.
        format!("{},", self.labels)
            .split("\",")
            .any(|it| it == format!("{label}=\"{value}"))
    }
}

fn lines(node: &Node, name: &str) -> Result<Vec<Line>> {
    let text = node.get("/metrics/cadvisor")?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).and_then(|it| it.strip_prefix('{')) else {
            continue;
        };
        let (labels, rest) = rest.rsplit_once("} ").context("a line without labels")?;
        let value = rest.split(' ').next().unwrap_or_default();
        lines.push(Line {
            labels: labels.to_owned(),
            value: value.parse()?,
        });
    }
    Ok(lines)
}

/// Each exactly once, with the id and the image that the runtime gave, and a value.
fn metrics(node: &mut Node) -> Result<()> {
    let mut lacking = String::new();
    wait::until("the metrics of the pod", PATIENCE, || {
        lacking = lacks(node).unwrap_or_else(|error| format!("{error:#}"));
        lacking.is_empty().then_some(())
    })
    .with_context(|| lacking.clone())
}

fn lacks(node: &Node) -> Result<String> {
    let of_the_pod =
        |line: &&Line| line.has("pod", "watched-node") && line.has("namespace", "default");
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_rss",
        "container_processes",
        "container_start_time_seconds",
        "container_spec_memory_limit_bytes",
    ] {
        let all = lines(node, name)?;
        for (container, image) in [("server", "guests:1"), ("httpd", "busybox:1")] {
            let id = bare_id(&node.container("watched", container)?)?;
            let fits = |line: &&Line| of_the_pod(line) && line.has("container", container);
            let found: Vec<&Line> = all.iter().filter(fits).collect();
            let [line] = found[..] else {
                return Ok(format!("{} lines {name} of {container}", found.len()));
            };
            if !line.has("name", &id) || !line.labels.contains(image) || line.value <= 0.0 {
                return Ok(format!(
                    "{name} of {container}: {} {}",
                    line.labels, line.value
                ));
            }
        }
    }
    for name in [
        "container_network_receive_bytes_total",
        "container_network_transmit_packets_total",
    ] {
        let all = lines(node, name)?;
        let fits = |line: &&Line| of_the_pod(line) && line.has("interface", "eth0");
        let found: Vec<&Line> = all.iter().filter(fits).collect();
        let [line] = found[..] else {
            return Ok(format!("{} lines {name}", found.len()));
        };
        if !line.has("container", "") || line.has("image", "") || line.value <= 0.0 {
            return Ok(format!("{name}: {} {}", line.labels, line.value));
        }
    }
    Ok(String::new())
}

/// The traffic is the pod's, whichever containers come and go.
fn restarted(node: &mut Node) -> Result<()> {
    let received = |node: &Node| {
        let all = lines(node, "container_network_receive_bytes_total").ok()?;
        let line = all.iter().find(|line| line.has("pod", "watched-node"))?;
        Some(line.value)
    };
    let before = received(node).context("no traffic of the pod")?;
    let id = bare_id(&node.container("watched", "server")?)?;
    node.machine.stop(&id, 0)?;
    node.restarted("watched", "server", 1)?;
    node.ready("watched", "server", true)?;
    let anew = bare_id(&node.container("watched", "server")?)?;
    ensure!(anew != id, "{id} was not made anew");
    metrics(node)?;
    wait::until("more traffic of the pod", PATIENCE, || {
        (received(node)? > before).then_some(())
    })
}
