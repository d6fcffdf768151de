//! One more process in a running container.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use criw_engines::protocol::{FdRole, Reply, Request};
use serde_json::json;

use crate::fixture::{Bundle, Shim, bundle, pipe, processes, text, wait_until};

const FOR_EVER: &[&str] = &["sh", "-c", "echo up; exec sleep 1000"];

fn running() -> Option<(Bundle, Shim)> {
    let bundle = bundle(FOR_EVER)?;
    let shim = bundle.run();
    Some((bundle, shim))
}

fn end(bundle: &Bundle, shim: &Shim) {
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    bundle.assert_clean();
}

#[test]
fn streams_and_codes() {
    let Some((bundle, shim)) = running() else {
        return;
    };
    let (stdout, stdout_writer) = pipe();
    let (stderr, stderr_writer) = pipe();
    let (stdin_reader, stdin) = pipe();
    let streams = [
        (FdRole::Stdin, OwnedFd::from(stdin_reader)),
        (FdRole::Stdout, stdout_writer),
        (FdRole::Stderr, stderr_writer),
    ];
    let exec = bundle.exec(&["sh", "-c", "cat; echo oh >&2; exit 5"], &streams);
    drop(streams);
    assert_eq!(exec.call(&Request::Start), Reply::Started);
    File::from(stdin).write_all(b"typed").unwrap();
    assert_eq!(text(stdout), "typed");
    assert_eq!(text(stderr), "oh\n");
    assert_eq!(exec.ended(), (5, "Error".into(), String::new()));
    // Without streams, many at once.
    let all: Vec<_> = (0..4)
        .map(|code| bundle.exec(&["sh", "-c", &format!("exit {code}")], &[]))
        .collect();
    for exec in &all {
        assert_eq!(exec.call(&Request::Start), Reply::Started);
    }
    for (code, exec) in (0..).zip(&all) {
        assert_eq!(exec.ended().0, code);
    }
    end(&bundle, &shim);
}

#[test]
fn a_missing_command_is_a_start_error_in_the_words_of_runc() {
    let Some((bundle, shim)) = running() else {
        return;
    };
    let exec = bundle.exec(&["nope"], &[]);
    let reply = exec.call(&Request::Start);
    let Reply::StartFailed { message } = reply else {
        panic!("{reply:?}");
    };
    assert!(
        message.contains(r#"exec: "nope": executable file not found"#),
        "{message}"
    );
    assert_eq!(exec.ended(), (128, "StartError".into(), message));
    end(&bundle, &shim);
}

#[test]
fn an_exec_in_a_container_that_ended_is_a_start_error() {
    let Some((bundle, shim)) = running() else {
        return;
    };
    let exec = bundle.exec(&["ls"], &[]);
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    let reply = exec.call(&Request::Start);
    assert!(matches!(reply, Reply::StartFailed { .. }), "{reply:?}");
    assert_eq!(exec.ended().0, 128);
    bundle.assert_clean();
}

#[test]
fn a_killed_exec_takes_its_children_along() {
    for own_pids in [true, false] {
        let Some(mut bundle) = bundle(FOR_EVER) else {
            return;
        };
        if !own_pids {
            bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}]);
            bundle.config["hostname"] = json!("");
        }
        let shim = bundle.run();
        wait_until("the container is up", || !shim.lines().is_empty());
        // Not all processes: runc's own come and go.
        let sleeping = || {
            let pids = processes(&bundle.id).into_iter();
            let commands = pids.filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
            commands.filter(|line| line == b"sleep\x001000\0").count()
        };
        wait_until("the container sleeps", || sleeping() == 1);
        let (stdout, writer) = pipe();
        let script = "echo up; (sleep 1000 & sleep 1000; :) & sleep 1000 & wait";
        let streams = [(FdRole::Stdout, writer)];
        let exec = bundle.exec(&["sh", "-c", script], &streams);
        drop(streams);
        assert_eq!(exec.call(&Request::Start), Reply::Started);
        wait_until("all are there", || sleeping() == 4);
        exec.signal(libc::SIGKILL);
        assert_eq!(exec.ended().0, 137);
        wait_until("all are gone", || sleeping() == 1);
        assert_eq!(text(stdout), "up\n");
        end(&bundle, &shim);
    }
}

#[test]
fn background_children_do_not_hold_the_exit() {
    let Some((bundle, shim)) = running() else {
        return;
    };
    let (_stdout, writer) = pipe();
    let exec = bundle.exec(
        &["sh", "-c", "sleep 1000 & exit 4"],
        &[(FdRole::Stdout, writer)],
    );
    assert_eq!(exec.call(&Request::Start), Reply::Started);
    assert_eq!(exec.ended().0, 4);
    end(&bundle, &shim);
}

#[test]
fn an_exec_can_be_killed_before_it_was_started() {
    let Some((bundle, shim)) = running() else {
        return;
    };
    let exec = bundle.exec(&["ls"], &[]);
    exec.signal(libc::SIGKILL);
    assert_eq!(exec.ended().0, 137);
    end(&bundle, &shim);
}

#[test]
fn a_terminal_connects_both_ways() {
    let Some((mut bundle, shim)) = running() else {
        return;
    };
    bundle.config["process"]["terminal"] = json!(true);
    let (stdout, writer) = pipe();
    let (stdin_reader, stdin) = pipe();
    let streams = [
        (FdRole::Stdin, OwnedFd::from(stdin_reader)),
        (FdRole::Stdout, writer),
    ];
    let exec = bundle.exec(&["sh", "-c", "tty; read a; echo got $a; exit 6"], &streams);
    drop(streams);
    assert_eq!(exec.call(&Request::Start), Reply::Started);
    File::from(stdin).write_all(b"word\n").unwrap();
    assert_eq!(exec.ended().0, 6);
    let text = text(stdout);
    // The terminal's own echo of the word may come before the name.
    let lines: Vec<_> = text.split("\r\n").collect();
    assert!(
        lines.iter().any(|line| line.contains("/dev/pts/")),
        "{text:?}"
    );
    assert!(
        lines.contains(&"word") && text.ends_with("got word\r\n"),
        "{text:?}"
    );
    end(&bundle, &shim);
}
