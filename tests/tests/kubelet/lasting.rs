//! The kubelet or the daemon ends in the middle; containers run on, and nothing counts as
//! restarted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use criw_tests::wait;
use serde_json::Value;

use crate::checks::{Check, alone};
use crate::network::get;
use crate::node::{Node, PATIENCE, bare_id};
use crate::statistics;

pub(crate) const CHECKS: &[Check] = &[
    alone(
        "lasting::containers_survive_a_restart_of_the_kubelet",
        STEADY,
        kubelet_restarts,
    ),
    alone(
        "statistics::a_kubelet_that_asks_cadvisor_lacks_only_network_and_processes",
        &["wasm", "linux"],
        |node| {
            if node.kubelet_asks_the_runtime() {
                node.restart_kubelet(&[])?;
            }
            statistics::complete_without_the_runtimes(node)
        },
    ),
    alone(
        "lasting::containers_survive_a_sigkill_of_the_daemon",
        STEADY,
        |node| daemon_restarts(node, |node| node.machine.daemon.kill()),
    ),
    alone(
        "lasting::containers_survive_a_sigterm_of_the_daemon",
        STEADY,
        |node| {
            daemon_restarts(node, |node| {
                let status = node.machine.daemon.terminate()?;
                ensure!(status.success(), "{status}");
                Ok(())
            })
        },
    ),
    alone(
        "lasting::an_exit_while_the_daemon_is_down_is_told",
        &["waits"],
        exit_while_down,
    ),
];

/// Pods that run for ever.
pub(crate) const STEADY: &[&str] = &["wasm", "linux", "mixed", "probes", "limits", "node-network"];

/// What may not change: id, count of restarts, time of the start, process.
pub(crate) type Memory = BTreeMap<String, (String, Value, Value, i32)>;

pub(crate) fn remember(node: &Node) -> Result<Memory> {
    let mut memory = Memory::new();
    for pod in STEADY {
        let statuses = node.pod(pod)?["status"]["containerStatuses"].clone();
        for status in statuses.as_array().context("no containers")? {
            if status["state"]["running"].is_null() {
                continue;
            }
            let id = bare_id(status)?;
            let pid = node.machine.pid(&id)?;
            let name = format!("{pod}/{}", status["name"].as_str().unwrap_or_default());
            let started = status["state"]["running"]["startedAt"].clone();
            memory.insert(name, (id, status["restartCount"].clone(), started, pid));
        }
    }
    ensure!(memory.len() >= 9, "only {memory:?} run");
    Ok(memory)
}

pub(crate) fn all_ready(node: &Node) -> Result<()> {
    for (pod, container) in [
        ("wasm", "server"),
        ("linux", "httpd"),
        ("mixed", "linux"),
        ("mixed", "wasm"),
        ("probes", "wasm"),
        ("limits", "wasm"),
        ("limits", "linux"),
        ("node-network", "wasm"),
    ] {
        node.ready(pod, container, true)?;
    }
    Ok(())
}

pub(crate) fn unchanged(node: &Node, memory: &Memory) -> Result<()> {
    let now = remember(node)?;
    ensure!(now == *memory, "{memory:#?} became {now:#?}");
    Ok(())
}

fn kubelet_restarts(node: &mut Node) -> Result<()> {
    all_ready(node)?;
    let memory = remember(node)?;
    let ip = node.address("wasm")?;
    if let Some(mut kubelet) = node.kubelet.take() {
        kubelet.terminate()?;
    }
    let answer = get(node, ip, 8080)?;
    ensure!(answer.contains("hello from a wasm server"), "{answer}");
    node.start_kubelet(&[])?;
    all_ready(node)?;
    probed(node)?;
    unchanged(node, &memory)
}

/// Waits until an exec probe, which goes through kubelet and daemon, has succeeded twice
/// more: by then the kubelet has listed everything anew, and acted on it.
fn probed(node: &Node) -> Result<()> {
    let count = || {
        let metrics = node.get("/metrics/probes").ok()?;
        metrics
            .lines()
            .filter(|line| line.starts_with("prober_probe_total{"))
            .filter(|line| line.contains("container=\"httpd\"") && line.contains("\"successful\""))
            .filter(|line| line.contains("probe_type=\"Liveness\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .next()
    };
    let begin = wait::until("a first exec probe", PATIENCE, count)?;
    wait::until("two more exec probes", PATIENCE, || {
        (count()? >= begin + 2).then_some(())
    })
}

fn daemon_restarts(node: &mut Node, end: impl Fn(&mut Node) -> Result<()>) -> Result<()> {
    all_ready(node)?;
    let memory = remember(node)?;
    let ip = node.address("wasm")?;
    end(node)?;
    let answer = get(node, ip, 8080)?;
    ensure!(answer.contains("hello from a wasm server"), "{answer}");
    // The kubelet is told nothing: its calls fail for a while.
    wait::until("the kubelet to notice", PATIENCE, || {
        let log = std::fs::read_to_string(node.machine.world.path("kubelet.log")).ok()?;
        log.rsplit('\n')
            .take(200)
            .any(|line| line.contains("connection refused") || line.contains("no such file"))
            .then_some(())
    })?;
    node.machine.restart(&[])?;
    probed(node)?;
    all_ready(node)?;
    unchanged(node, &memory)
}

fn exit_while_down(node: &mut Node) -> Result<()> {
    node.ready("waits", "linux", true)?;
    let id = bare_id(&node.container("waits", "linux")?)?;
    let pid = node.machine.pid(&id)?;
    node.machine.daemon.kill()?;
    std::fs::write(node.machine.world.path("host/go"), "")?;
    wait::until("the container to end", PATIENCE, || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })?;
    node.machine.restart(&[])?;
    let ended = node.ended("waits", "linux")?;
    ensure!((ended.code, &*ended.reason) == (7, "Error"), "{ended:?}");
    let status = node.container("waits", "linux")?;
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}
