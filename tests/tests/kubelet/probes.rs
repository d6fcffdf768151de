//! Probes of every kind, those that change their mind, those that fail, those that hang;
//! and hooks, which are execs too.

use anyhow::{Context, Result, ensure};
use criw_tests::{leak, wait};

use crate::checks::{Check, beside};
use crate::node::{Node, PATIENCE, bare_id};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "probes::a_grpc_probe_follows_what_a_wasm_server_says",
        &["probes"],
        |node| follows(node, "wasm", "down", false),
    ),
    beside(
        "probes::an_exec_probe_in_a_wasm_container_follows_a_file",
        &["probes"],
        |node| follows(node, "wasm-exec", "wasm-ready", true),
    ),
    beside(
        "probes::an_exec_probe_in_a_linux_container_follows_a_file",
        &["probes"],
        |node| follows(node, "linux", "linux-ready", true),
    ),
    beside(
        "probes::a_failing_tcp_probe_restarts_a_wasm_container",
        &["failing-probes"],
        |node| restarts(node, "wasm-tcp", 143),
    ),
    beside(
        "probes::a_failing_exec_probe_restarts_a_wasm_container",
        &["failing-probes"],
        |node| restarts(node, "wasm-exec", 143),
    ),
    // httpd as process 1 does not hear the stop signal.
    beside(
        "probes::a_failing_http_probe_restarts_a_linux_container",
        &["failing-probes"],
        |node| restarts(node, "linux-http", 137),
    ),
    beside(
        "probes::a_failing_exec_probe_restarts_a_linux_container",
        &["failing-probes"],
        |node| restarts(node, "linux-exec", 143),
    ),
    beside(
        "probes::an_exec_probe_that_hangs_in_a_wasm_container_ends_with_its_time",
        &["slow-probes"],
        |node| hangs(node, "wasm", 1),
    ),
    beside(
        "probes::an_exec_probe_that_hangs_in_a_linux_container_ends_with_its_time",
        &["slow-probes"],
        // The shell, its sleep, and the shim.
        |node| hangs(node, "linux", 3),
    ),
    beside(
        "probes::an_https_probe_reaches_a_component_with_a_certificate",
        &["https"],
        https,
    ),
    beside(
        "probes::hooks_run_in_wasm_and_linux_containers",
        &["hooks"],
        hooks,
    ),
];

/// Ready while the file is there, or while it is not; there and back.
fn follows(node: &Node, container: &str, file: &str, ready_with_file: bool) -> Result<()> {
    let file = node.empty_dir("probes", "shared")?.join(file);
    for _ in 0..2 {
        node.ready("probes", container, !ready_with_file)?;
        std::fs::write(&file, "")?;
        node.ready("probes", container, ready_with_file)?;
        std::fs::remove_file(&file)?;
    }
    node.ready("probes", container, !ready_with_file)?;
    let status = node.container("probes", container)?;
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}

fn restarts(node: &Node, container: &str, code: i64) -> Result<()> {
    let last = node.restarted("failing-probes", container, 2)?;
    ensure!((last.code, &*last.reason) == (code, "Error"), "{last:?}");
    Ok(())
}

/// `own`: how many processes the container has by itself.
fn hangs(node: &Node, container: &str, own: usize) -> Result<()> {
    // The kubelet's own count of probes by what came of them.
    let failed = format!("container=\"{container}\"");
    wait::until("two probes to have failed", PATIENCE, || {
        let metrics = node.get("/metrics/probes").ok()?;
        let count = metrics
            .lines()
            .filter(|line| line.starts_with("prober_probe_total{") && line.contains(&failed))
            .filter(|line| line.contains("pod=\"slow-probes-") && line.contains("\"failed\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .next()?;
        (count >= 2).then_some(())
    })?;
    let status = node.container("slow-probes", container)?;
    ensure!(
        status["restartCount"] == 0 && status["ready"] == false,
        "{status}"
    );
    ensure!(!status["state"]["running"].is_null(), "{status}");
    // Between two probes only the container's own processes are there: none stays behind.
    let id = bare_id(&status)?;
    let mut last = 0;
    wait::until("a moment between two probes", PATIENCE, || {
        last = processes(node, &id);
        (last == own).then_some(())
    })
    .with_context(|| format!("{last} processes, not {own}"))
}

fn https(node: &Node) -> Result<()> {
    node.ready("https", "web", true)?;
    node.ready("https", "mistaken", false)?;
    for container in ["web", "mistaken"] {
        let status = node.container("https", container)?;
        ensure!(status["restartCount"] == 0, "{status}");
    }
    Ok(())
}

/// Processes in the cgroup of a container, and below.
fn processes(node: &Node, id: &str) -> usize {
    let mut pids: Vec<i32> = leak::cgroup::directories(&node.machine.world.name)
        .iter()
        .filter(|group| group.to_string_lossy().contains(id))
        .flat_map(|group| leak::cgroup::members(group))
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.len()
}

fn hooks(node: &Node) -> Result<()> {
    for container in ["wasm", "linux"] {
        node.ready("hooks", container, true)?;
    }
    // A container counts as running only after its hook, so the files are there.
    let read = |name: &str| {
        std::fs::read_to_string(node.machine.world.path("host").join(name)).context(name.to_owned())
    };
    ensure!(read("wasm-hook")? == "written by wasm\n");
    ensure!(read("linux-started")? == "started\n");
    Ok(())
}
