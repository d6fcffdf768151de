//! From create to exit: output, codes, signals, what outlives the first process.

use criw_engines::protocol::{Phase, Reply, Request};
use serde_json::json;

use crate::fixture::{bundle, log_lines, processes, wait_until};

#[test]
fn output_is_logged_and_codes_are_kept() {
    for (script, code, reason, lines) in [
        (
            "echo hello; echo oh >&2; printf half",
            0,
            "Completed",
            &["stdout F hello", "stderr F oh", "stdout P half"][..],
        ),
        ("exit 3", 3, "Error", &[]),
        ("cat; echo read", 0, "Completed", &["stdout F read"]),
    ] {
        let Some(bundle) = bundle(&["sh", "-c", script]) else {
            return;
        };
        let (shim, reply) = bundle.create();
        let Reply::Created { pid: Some(pid) } = reply else {
            panic!("{reply:?}");
        };
        let state = |phase| Reply::State {
            phase,
            pid: Some(pid),
            dropped_log_lines: 0,
            revision: criw_engines::protocol::REVISION,
            wasm: None,
        };
        assert_eq!(shim.call(&Request::State), state(Phase::Created));
        assert!(shim.lines().is_empty());
        assert_eq!(shim.call(&Request::Start), Reply::Started);
        assert_eq!(shim.ended(), (code, reason.to_owned(), String::new()));
        let mut found = shim.lines();
        let mut expected: Vec<_> = lines.iter().map(ToString::to_string).collect();
        // Two pipes have no common order.
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{script}");
        bundle.assert_clean();
    }
}

#[test]
fn signals_become_codes() {
    for (script, own_pids, signal, code) in [
        (
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done",
            true,
            libc::SIGTERM,
            9,
        ),
        ("echo up; exec sleep 1000", false, libc::SIGTERM, 143),
        ("echo up; exec sleep 1000", true, libc::SIGKILL, 137),
        ("echo up; exec sleep 1000", false, 37, 128 + 37),
    ] {
        let Some(mut bundle) = bundle(&["sh", "-c", script]) else {
            return;
        };
        if !own_pids {
            bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
            bundle.config["hostname"] = json!("");
        }
        let shim = bundle.run();
        assert_eq!(shim.phase(), Phase::Running);
        wait_until("the container is up", || !shim.lines().is_empty());
        shim.signal(signal);
        assert_eq!(shim.ended().0, code, "{script} {signal}");
        bundle.assert_clean();
    }
}

#[test]
fn a_container_can_be_killed_before_it_was_started() {
    let Some(bundle) = bundle(&["echo", "never"]) else {
        return;
    };
    let (shim, reply) = bundle.create();
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    assert!(shim.lines().is_empty());
    bundle.assert_clean();
}

#[test]
fn what_outlives_the_first_process_dies_with_a_shared_pid_namespace() {
    let Some(mut bundle) = bundle(&["sh", "-c", "sleep 1000 & echo up"]) else {
        return;
    };
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
    bundle.config["hostname"] = json!("");
    let shim = bundle.run();
    assert_eq!(shim.ended().0, 0);
    assert_eq!(shim.lines(), ["stdout F up"]);
    bundle.assert_clean();
}

#[test]
fn a_stranger_that_holds_the_output_does_not_hold_the_exit() {
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done";
    let Some(bundle) = bundle(&["sh", "-c", script]) else {
        return;
    };
    let shim = bundle.run();
    wait_until("the container is up", || !shim.lines().is_empty());
    let Reply::State { pid: Some(pid), .. } = shim.call(&Request::State) else {
        panic!("no pid");
    };
    // A process outside the container has its pipe open for longer than it lives.
    let held = std::fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/fd/1"))
        .unwrap();
    shim.signal(libc::SIGTERM);
    assert_eq!(shim.ended().0, 9);
    drop(held);
    assert_eq!(shim.lines(), ["stdout F up"]);
    bundle.assert_clean();
}

#[test]
fn a_terminal_is_one_stream() {
    let Some(mut bundle) = bundle(&["sh", "-c", "tty; echo oh >&2"]) else {
        return;
    };
    bundle.config["process"]["terminal"] = json!(true);
    let shim = bundle.run();
    assert_eq!(shim.ended().0, 0);
    assert_eq!(shim.lines(), ["stdout F /dev/pts/0", "stdout F oh"]);
    bundle.assert_clean();
}

#[test]
fn a_reopened_log_takes_the_rest() {
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.001; done";
    let Some(bundle) = bundle(&["sh", "-c", script]) else {
        return;
    };
    let shim = bundle.run();
    wait_until("the log grows", || shim.lines().len() > 3);
    let new = bundle.path("new.log");
    assert_eq!(shim.reopen(&new), Reply::Done);
    let before = shim.lines();
    wait_until("the new log grows", || log_lines(&new).len() > 3);
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    assert_eq!(shim.lines(), before);
    let all: Vec<_> = before.into_iter().chain(log_lines(&new)).collect();
    for (n, line) in all.iter().enumerate() {
        assert_eq!(line, &format!("stdout F {n}"));
    }
    assert!(processes(&bundle.id).is_empty());
    bundle.assert_clean();
}
