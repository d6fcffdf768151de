//! How guests end: by themselves, by traps, limits and signals, or before they begin.

use std::time::{Duration, Instant};

use criw_engines::protocol::{ExitReason, ExitRecord, Phase, Reply, Request};
use criw_engines::spec::{StopMode, WasmSection};

use crate::container::{Container, Plan, compile, skip};
use crate::guests::{hello, module, spin};

fn ended(container: &mut Container) -> ExitRecord {
    let (code, record) = container.wait();
    let record = record.expect("no exit record");
    assert_eq!(code, record.code & 0xff, "{record:?}");
    record
}

#[test]
fn a_guest_prints_and_ends() {
    if skip("a_guest_prints_and_ends") {
        return;
    }
    let mut container = Container::run(&hello(), Plan::default());
    let record = ended(&mut container);
    assert_eq!((record.code, record.reason), (0, ExitReason::Completed));
    assert_eq!(record.message, "");
    let lines = container.lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0], ("stdout".into(), "F".into(), "hello".into()));
    assert_eq!(container.stderr(), "");
}

#[test]
fn every_exit_code_is_kept() {
    if skip("every_exit_code_is_kept") {
        return;
    }
    for code in [0, 1, 42, 126, 143, 255] {
        let start = format!("(call $exit (i32.const {code}))");
        let mut container = Container::run(&module("", &start), Plan::default());
        let record = ended(&mut container);
        let reason = if code == 0 {
            ExitReason::Completed
        } else {
            ExitReason::Error
        };
        assert_eq!((record.code, record.reason), (code, reason));
    }
}

#[test]
fn traps_tell_where() {
    if skip("traps_tell_where") {
        return;
    }
    let deep = r#"(module
        (func $innermost unreachable)
        (func $middle (call $innermost))
        (func (export "_start") (call $middle)))"#;
    let overflow = r#"(module
        (func $again (export "_start") (call $again)))"#;
    for (wat, texts) in [
        (deep, ["unreachable", "innermost"]),
        (overflow, ["stack", "again"]),
    ] {
        let mut container = Container::run(wat, Plan::default());
        let record = ended(&mut container);
        assert_eq!((record.code, record.reason), (134, ExitReason::Trap));
        for text in texts {
            assert!(record.message.contains(text), "{}", record.message);
            assert!(container.log().contains(text), "{}", container.log());
        }
        assert!(container.lines().iter().all(|line| line.0 == "stderr"));
    }
}

#[test]
fn what_cannot_start_says_why() {
    if skip("what_cannot_start_says_why") {
        return;
    }
    let unknown = r#"(module
        (import "env" "dance" (func)) (import "host" "sing" (func (param i32)))
        (func (export "_start")))"#;
    let start_traps = r#"(module (func $s unreachable) (start $s) (func (export "_start")))"#;
    let no_start = r#"(module (func (export "run")))"#;
    let by_name = |export: &str| WasmSection {
        export: Some(export.to_owned()),
        ..WasmSection::default()
    };
    let refused = WasmSection {
        start_error: Some("the compiler said no".to_owned()),
        ..WasmSection::default()
    };
    let bad_address = WasmSection {
        listen: vec!["localhost:80".to_owned()],
        ..WasmSection::default()
    };
    for (wat, wasm, texts) in [
        (
            unknown,
            WasmSection::default(),
            ["env::dance", "host::sing"],
        ),
        (
            start_traps,
            WasmSection::default(),
            ["unreachable", "instantiate"],
        ),
        (no_start, WasmSection::default(), ["_start", "\"run\""]),
        (no_start, by_name("walk"), ["\"walk\"", "\"run\""]),
        ("(module)", refused, ["the compiler said no", "compiler"]),
        (&hello(), bad_address, ["localhost:80", "ip:port"]),
    ] {
        let plan = Plan {
            wasm,
            ..Plan::default()
        };
        let code = compile(wat.as_bytes()).unwrap();
        let mut container = Container::create(&code, plan).unwrap();
        let Reply::StartFailed { message } = container.call(&Request::Start) else {
            panic!("{wat} started");
        };
        let record = ended(&mut container);
        assert_eq!((record.code, record.reason), (128, ExitReason::StartError));
        assert_eq!(record.message, message);
        for text in texts {
            assert!(message.contains(text), "{message}");
        }
    }
    let plan = Plan {
        wasm: by_name("run"),
        ..Plan::default()
    };
    let mut good = Container::run(no_start, plan);
    assert_eq!(ended(&mut good).code, 0);
}

#[test]
fn code_that_is_no_code_is_a_start_error() {
    if skip("code_that_is_no_code_is_a_start_error") {
        return;
    }
    let mut code = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut code, b"\0asm\x01\0\0\0").unwrap();
    let mut container = Container::create(&code, Plan::default()).unwrap();
    let reply = container.call(&Request::Start);
    assert!(matches!(reply, Reply::StartFailed { .. }), "{reply:?}");
    assert_eq!(ended(&mut container).reason, ExitReason::StartError);
}

#[test]
fn a_start_section_that_loops_is_started_and_stoppable() {
    if skip("a_start_section_that_loops_is_started_and_stoppable") {
        return;
    }
    let wat = r#"(module (func $s (loop $l (br $l))) (start $s) (func (export "_start")))"#;
    let code = compile(wat.as_bytes()).unwrap();
    let mut container = Container::create(&code, Plan::default()).unwrap();
    let begin = Instant::now();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    assert!(begin.elapsed() >= Duration::from_millis(900));
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(container.stop(), Reply::Done);
    assert_eq!(ended(&mut container).code, 143);
}

#[test]
fn a_spinning_guest_is_stopped_at_once() {
    if skip("a_spinning_guest_is_stopped_at_once") {
        return;
    }
    for (signal, stop, mode) in [
        (libc::SIGTERM, true, StopMode::Auto),
        (libc::SIGTERM, true, StopMode::Now),
        (libc::SIGINT, true, StopMode::Auto),
        (libc::SIGHUP, false, StopMode::Grace),
        (libc::SIGKILL, false, StopMode::Grace),
    ] {
        let plan = Plan {
            wasm: WasmSection {
                stop: mode,
                ..WasmSection::default()
            },
            ..Plan::default()
        };
        let mut container = Container::run(&spin(), plan);
        container.await_log("spinning");
        match container.call(&Request::State) {
            Reply::State {
                phase: Phase::Running,
                pid: None,
                dropped_log_lines: 0,
                revision: criw_engines::protocol::REVISION,
                wasm: Some(facts),
            } => {
                assert_eq!(facts.instances, 1);
                assert!(facts.memory_bytes >= 65_536, "{facts:?}");
            }
            other => panic!("{other:?}"),
        }
        // As by a daemon whose predecessor died before it noted the answer.
        assert_eq!(container.call(&Request::Start), Reply::Started);
        let begin = Instant::now();
        let request = Request::Signal {
            signal,
            stop,
            grace_ms: 30_000,
        };
        assert_eq!(container.call(&request), Reply::Done);
        let record = ended(&mut container);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(
            (record.code, record.reason),
            (128 + signal, ExitReason::Error)
        );
        let text = format!("signal {signal} (SIG");
        assert!(record.message.contains(&text), "{}", record.message);
    }
}

#[test]
fn signals_that_mean_nothing_change_nothing() {
    if skip("signals_that_mean_nothing_change_nothing") {
        return;
    }
    let plan = Plan {
        wasm: WasmSection {
            stop: StopMode::Grace,
            ..WasmSection::default()
        },
        ..Plan::default()
    };
    let container = Container::run(&spin(), plan);
    for (signal, stop, good) in [
        (libc::SIGTERM, true, true),
        (libc::SIGWINCH, false, true),
        (0, false, true),
        (-1, false, false),
        (65, true, false),
    ] {
        let reply = container.call(&Request::Signal {
            signal,
            stop,
            grace_ms: 0,
        });
        assert_eq!(reply == Reply::Done, good, "{signal} {reply:?}");
    }
    assert!(matches!(
        container.call(&Request::State),
        Reply::State {
            phase: Phase::Running,
            ..
        }
    ));
}

#[test]
fn memory_past_the_limit_ends_the_guest() {
    if skip("memory_past_the_limit_ends_the_guest") {
        return;
    }
    let hog = module(
        "",
        "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
         (call $exit (i32.const 7))",
    );
    let plan = |memory_grow_fails| Plan {
        wasm: WasmSection {
            memory_limit: Some(8 << 20),
            memory_grow_fails,
            ..WasmSection::default()
        },
        ..Plan::default()
    };
    let mut container = Container::run(&hog, plan(false));
    let record = ended(&mut container);
    assert_eq!((record.code, record.reason), (137, ExitReason::OOMKilled));
    assert!(
        record.message.contains("its limit is 8388608"),
        "{}",
        record.message
    );
    let mut container = Container::run(&hog, plan(true));
    let record = ended(&mut container);
    assert_eq!((record.code, record.reason), (7, ExitReason::Error));
}

#[test]
fn the_compiler_takes_only_wasm() {
    if skip("the_compiler_takes_only_wasm") {
        return;
    }
    for (module, code, text) in [
        (&b""[..], "Some(1)", "empty"),
        (
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            "Some(1)",
            "native code",
        ),
        (b"\0asm\x01\0\0\0\xff", "Some(1)", "offset"),
        (b"(module (func (result i32)))", "Some(1)", "expected"),
        (b"#!/bin/sh\n", "Some(1)", "not a WebAssembly module"),
    ] {
        let error = compile(module).unwrap_err();
        assert!(error.contains(code) && error.contains(text), "{error}");
        assert!(error.len() < 5000);
    }
    // Its own output is native code, too.
    let mut own = Vec::new();
    std::io::Read::read_to_end(&mut compile(b"(module)").unwrap(), &mut own).unwrap();
    let error = compile(&own).unwrap_err();
    assert!(error.contains("native code"), "{error}");
    // A command component needs more text than fits here; an empty one is compiled,
    // and refused at Start because it is no command.
    let code = compile(b"(component)").unwrap();
    let container = Container::create(&code, Plan::default()).unwrap();
    let Reply::StartFailed { message } = container.call(&Request::Start) else {
        panic!("an empty component started");
    };
    assert!(message.contains("wasi:cli/command"), "{message}");
}
