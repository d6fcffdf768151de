//! How containers end, what the kubelet makes of it, and what it does then.

use anyhow::{Context, Result, ensure};
use criw_tests::wait;

use crate::checks::{Check, beside};
use crate::network::get;
use crate::node::{Node, PATIENCE};

pub(crate) const CHECKS: &[Check] = &[
    beside("exits::a_wasm_command_completes", &["exits"], |node| {
        ends(node, "wasm-zero", 0, "Completed", "")
    }),
    beside("exits::proc_exit_is_the_exit_code", &["exits"], |node| {
        ends(node, "wasm-seven", 7, "Error", "")
    }),
    beside(
        "exits::a_trap_is_134_with_its_backtrace",
        &["exits"],
        |node| ends(node, "wasm-trap", 134, "Trap", "hit_unreachable"),
    ),
    beside(
        "exits::a_wasm_guest_over_its_memory_is_oom_killed",
        &["exits"],
        |node| ends(node, "wasm-memory", 137, "OOMKilled", "memory"),
    ),
    beside(
        "exits::a_module_that_does_not_link_is_a_start_error",
        &["exits"],
        |node| ends(node, "wasm-import", 128, "StartError", "import"),
    ),
    beside("exits::a_linux_command_completes", &["exits"], |node| {
        ends(node, "linux-zero", 0, "Completed", "")
    }),
    beside("exits::a_linux_exit_code_is_kept", &["exits"], |node| {
        ends(node, "linux-seven", 7, "Error", "")
    }),
    beside(
        "exits::a_linux_program_over_its_memory_is_oom_killed",
        &["exits"],
        |node| ends(node, "linux-memory", 137, "OOMKilled", ""),
    ),
    beside(
        "exits::a_crashing_wasm_container_is_restarted",
        &["crashes"],
        |node| crashes(node, "wasm", 134, "Trap"),
    ),
    beside(
        "exits::a_crashing_linux_container_is_restarted",
        &["crashes"],
        |node| crashes(node, "linux", 3, "Error"),
    ),
    beside(
        "exits::only_failures_are_tried_again",
        &["on-failure"],
        on_failure,
    ),
    beside(
        "exits::init_containers_of_both_kinds_run_in_order",
        &["init"],
        init,
    ),
    beside(
        "exits::a_failing_init_container_stops_the_pod",
        &["init-fails"],
        init_fails,
    ),
    beside(
        "exits::a_wasm_sidecar_serves_a_job_and_ends_after_it",
        &["sidecar"],
        sidecar,
    ),
    beside(
        "exits::termination_messages_are_read_where_they_should_be",
        &["messages"],
        messages,
    ),
    beside("exits::what_cannot_run_says_why", &["refused"], refused),
    beside(
        "exits::an_edited_manifest_replaces_the_pod",
        &["changes"],
        changes,
    ),
];

fn ends(node: &Node, container: &str, code: i64, reason: &str, message: &str) -> Result<()> {
    let ended = node.ended("exits", container)?;
    ensure!(
        (ended.code, &*ended.reason) == (code, reason) && ended.message.contains(message),
        "{ended:?}"
    );
    node.phase("exits", "Failed")?;
    let status = node.container("exits", container)?;
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}

fn crashes(node: &Node, container: &str, code: i64, reason: &str) -> Result<()> {
    let last = node.restarted("crashes", container, 2)?;
    ensure!((last.code, &*last.reason) == (code, reason), "{last:?}");
    let why = node.refused("crashes", container, "CrashLoopBackOff")?;
    ensure!(why.contains("back-off"), "{why}");
    Ok(())
}

fn on_failure(node: &Node) -> Result<()> {
    node.phase("on-failure", "Succeeded")?;
    for (container, restarts) in [("wasm", 0), ("linux", 1)] {
        let status = node.container("on-failure", container)?;
        ensure!(status["restartCount"] == restarts, "{status}");
    }
    let last = node.restarted("on-failure", "linux", 1)?;
    ensure!((last.code, &*last.reason) == (5, "Error"), "{last:?}");
    Ok(())
}

fn init(node: &Node) -> Result<()> {
    for container in ["wasm-init", "linux-init"] {
        let ended = node.ended("init", container)?;
        ensure!(
            (ended.code, &*ended.reason) == (0, "Completed"),
            "{ended:?}"
        );
    }
    let made = "written by wasm\nand by linux\n";
    let answer = get(node, node.address("init")?, 8080)?;
    ensure!(answer.ends_with(made), "{answer}");
    node.logged("init", "linux", made)?;
    Ok(())
}

fn init_fails(node: &Node) -> Result<()> {
    node.phase("init-fails", "Failed")?;
    let ended = node.ended("init-fails", "fails")?;
    ensure!((ended.code, &*ended.reason) == (3, "Error"), "{ended:?}");
    for container in ["second", "main"] {
        let status = node.container("init-fails", container)?;
        ensure!(
            status["state"]["waiting"]["reason"] == "PodInitializing"
                && status["containerID"].is_null(),
            "{status}"
        );
    }
    Ok(())
}

fn sidecar(node: &Node) -> Result<()> {
    let ended = node.ended("sidecar", "job")?;
    ensure!(ended.code == 0, "{ended:?}");
    node.logged("sidecar", "job", "hello from a wasm server")?;
    // Stopped once the job is done: its listener is closed, and it returns.
    let ended = node.ended("sidecar", "side")?;
    ensure!(
        (ended.code, &*ended.reason) == (0, "Completed"),
        "{ended:?}"
    );
    node.phase("sidecar", "Succeeded")
}

fn messages(node: &Node) -> Result<()> {
    let backtrace = "divide_by_zero";
    for (container, code, message) in [
        ("wasm-file", 0, "written by wasm\n"),
        ("wasm-path", 4, "written by wasm\n"),
        ("wasm-none", 4, ""),
        ("linux-file", 0, "written by linux\n"),
        ("linux-log", 4, "first\nlast words\n"),
        ("linux-none", 4, ""),
    ] {
        let ended = node.ended("messages", container)?;
        ensure!(
            (ended.code, &*ended.message) == (code, message),
            "{container}: {ended:?}"
        );
    }
    let log = node.ended("messages", "wasm-log")?;
    ensure!(
        log.message.contains("hello from wasm") && log.message.contains("to stderr"),
        "{log:?}"
    );
    // The message says it, whatever the policy; the policy may say it again.
    let trap = node.ended("messages", "wasm-trap")?;
    ensure!(trap.message.contains(backtrace), "{trap:?}");
    Ok(())
}

fn refused(node: &Node) -> Result<()> {
    for (container, reasons, text) in [
        ("no-image", ["ErrImagePull", "ImagePullBackOff"], "nowhere"),
        (
            "no-registry",
            ["ErrImagePull", "ImagePullBackOff"],
            "127.0.0.1:1",
        ),
        ("never-pulled", ["ErrImageNeverPull"; 2], "nowhere"),
        ("root", ["CreateContainerConfigError"; 2], "root"),
        ("nothing-to-run", ["CreateContainerError"; 2], "no command"),
        ("no-module", ["CreateContainerError"; 2], "/bin/missing"),
        ("no-program", ["CreateContainerError"; 2], "/bin/missing"),
    ] {
        let message = node.container_until("refused", container, "says why", |status| {
            let waiting = &status["state"]["waiting"];
            let reason = waiting["reason"].as_str()?;
            reasons
                .contains(&reason)
                .then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
        })?;
        ensure!(message.contains(text), "{container}: {message}");
    }
    Ok(())
}

fn changes(node: &Node) -> Result<()> {
    node.ready("changes", "wasm", true)?;
    let old = node.pod("changes")?["metadata"]["uid"].clone();
    node.lay_down_changed("changes", "[before]", "[after]")?;
    wait::until("another pod in its place", PATIENCE, || {
        let pod = node.pod("changes").ok()?;
        (pod["metadata"]["uid"] != old).then_some(())
    })?;
    node.ready("changes", "wasm", true)?;
    let pod = node.pod("changes")?;
    let args = &pod["spec"]["containers"][0]["args"];
    ensure!(*args == serde_json::json!(["after"]), "{args}");
    let status = node.container("changes", "wasm")?;
    let started = status["state"]["running"]["startedAt"]
        .as_str()
        .context("no startedAt")?;
    ensure!(
        status["restartCount"] == 0 && !started.is_empty(),
        "{status}"
    );
    Ok(())
}
