//! Where output goes: whole log lines, over reopen, and the streams of an exec.

use std::io::Read;
use std::os::fd::AsFd;

use criw_engines::protocol::{FdRole, Phase, Reply, Request};

use crate::container::{Container, DEADLINE, Plan, compile, skip};
use crate::guests::{module, spin};

#[test]
fn reopen_under_load_loses_nothing() {
    if skip("reopen_under_load_loses_nothing") {
        return;
    }
    const LINES: usize = 50_000;
    // Counts in seven decimal digits, one line each.
    let counter = module(
        "0000000\\n",
        &format!(
            "(local $n i32) (local $at i32)
             (loop $line
               (call $print (i32.const 1024) (i32.const 8))
               (local.set $at (i32.const 1030))
               (block $carried (loop $carry
                 (i32.store8 (local.get $at)
                   (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
                 (br_if $carried (i32.ne (i32.load8_u (local.get $at)) (i32.const 58)))
                 (i32.store8 (local.get $at) (i32.const 48))
                 (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                 (br $carry)))
               (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if $line (i32.lt_u (local.get $n) (i32.const {LINES}))))
             (loop $forever (br $forever))"
        ),
    );
    let mut container = Container::run(&counter, Plan::default());
    let path = container.directory.path().join("log");
    let mut rotations = 0;
    let last = format!("{:07}\n", LINES - 1);
    let mut all = String::new();
    while !all.ends_with(&last) && !container.log().ends_with(&last) {
        let old = container.directory.path().join("old");
        std::fs::rename(&path, &old).unwrap();
        let new = container.open_log();
        let request = Request::ReopenLog {
            fds: vec![FdRole::Log],
        };
        let reply = container.socket.call(&request, &[new.as_fd()], DEADLINE);
        assert_eq!(reply.unwrap(), Reply::Done);
        all.push_str(&std::fs::read_to_string(&old).unwrap());
        rotations += 1;
    }
    container.stop();
    container.wait();
    all.push_str(&container.log());
    assert!(rotations > 1, "the guest was too quick to be rotated");
    let numbers: Vec<usize> = all
        .lines()
        .map(|line| line.rsplit_once(" F ").unwrap().1.parse().unwrap())
        .collect();
    assert!(numbers == (0..LINES).collect::<Vec<_>>());
}

#[test]
fn half_a_line_is_written_at_the_end() {
    if skip("half_a_line_is_written_at_the_end") {
        return;
    }
    let half = module("abc", "(call $print (i32.const 1024) (i32.const 3))");
    let mut container = Container::run(&half, Plan::default());
    container.wait();
    let lines = container.lines();
    assert_eq!(lines, [("stdout".into(), "P".into(), "abc".into())]);
    // Also when the guest is stopped in the middle.
    let spin = module(
        "abc\\nde",
        "(call $print (i32.const 1024) (i32.const 6)) (loop $l (br $l))",
    );
    let mut container = Container::run(&spin, Plan::default());
    container.await_log("abc");
    container.stop();
    container.wait();
    let texts: Vec<_> = container
        .lines()
        .into_iter()
        .map(|(_, tag, text)| format!("{tag} {text}"))
        .collect();
    assert_eq!(texts, ["F abc", "P de"]);
}

#[test]
fn an_exec_runs_in_the_container_with_its_own_streams() {
    if skip("an_exec_runs_in_the_container_with_its_own_streams") {
        return;
    }
    let mut container = Container::run(&spin(), Plan::default());
    // Copies standard input to standard output, then the file "greeting" of the root.
    let cat = module(
        "greeting",
        "(i32.store (i32.const 16) (i32.const 2048))
         (i32.store (i32.const 20) (i32.const 4096))
         (drop (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
         (call $print (i32.const 2048) (i32.load (i32.const 24)))
         (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 8)
            (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)))
         (drop (call $fd_read (i32.load (i32.const 32)) (i32.const 16) (i32.const 1) (i32.const 24)))
         (call $print (i32.const 2048) (i32.load (i32.const 24)))
         (call $exit (i32.const 3))",
    );
    let (stdin, mut writer) = std::io::pipe().unwrap();
    let (mut reader, stdout) = std::io::pipe().unwrap();
    let plan = Plan {
        exec: Some((
            container.mounts(),
            vec![
                (FdRole::Stdin, stdin.into()),
                (FdRole::Stdout, stdout.into()),
            ],
        )),
        ..Plan::default()
    };
    let mut exec = Container::create(&compile(cat.as_bytes()).unwrap(), plan).unwrap();
    assert_eq!(exec.call(&Request::Start), Reply::Started);
    std::io::Write::write_all(&mut writer, b"typed\n").unwrap();
    let (code, _) = exec.wait();
    assert_eq!(code, 3);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "typed\nhello from the root\n");
    // The container did not notice.
    let state = container.call(&Request::State);
    assert!(matches!(
        state,
        Reply::State {
            phase: Phase::Running,
            ..
        }
    ));
    container.stop();
    assert_eq!(container.wait().0, 143);
}
