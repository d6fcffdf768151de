//! Bounds that a container asks for: deadlines and fuel, and what is counted of them.

use std::time::{Duration, Instant};

use criw_engines::protocol::{ExitReason, Reply, Request, WasmFacts};
use criw_engines::spec::{HttpSection, WasmSection};

use crate::container::{Container, DEADLINE, Plan, compile, compile_metered, skip};
use crate::guests::{component, hello, spin};
use crate::http::{ask, limits, read, serve, serve_with};

fn plan(wasm: WasmSection) -> Plan {
    Plan {
        wasm,
        ..Plan::default()
    }
}

pub(crate) fn facts(container: &Container) -> WasmFacts {
    match container.call(&Request::State) {
        Reply::State {
            wasm: Some(facts), ..
        } => facts,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deadline_ends_whatever_the_guest_does() {
    if skip("a_deadline_ends_whatever_the_guest_does") {
        return;
    }
    let sleeps = r#"(module
        (import "wasi_snapshot_preview1" "poll_oneoff"
            (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "\01")
        (func (export "_start")
            (i64.store (i32.const 24) (i64.const 3600000000000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;
    for wat in [&*spin(), sleeps] {
        let begin = Instant::now();
        let wasm = WasmSection {
            deadline_ms: Some(300),
            ..WasmSection::default()
        };
        let mut container = Container::run(wat, plan(wasm));
        let (code, record) = container.wait();
        let record = record.unwrap();
        assert_eq!(
            (code, record.code, record.reason),
            (124, 124, ExitReason::DeadlineExceeded)
        );
        assert!(record.message.contains("300ms"), "{record:?}");
        assert!(container.log().contains("deadline exceeded"));
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(300) && took < DEADLINE);
    }
    // Time before "go" does not count, and one that is quicker knows nothing of it.
    let wasm = WasmSection {
        deadline_ms: Some(20_000),
        ..WasmSection::default()
    };
    let mut container = Container::run(&hello(), plan(wasm));
    assert_eq!(container.wait().0, 0);
}

#[test]
fn fuel_ends_a_guest_that_computes_and_no_other() {
    if skip("fuel_ends_a_guest_that_computes_and_no_other") {
        return;
    }
    let metered = |fuel| {
        plan(WasmSection {
            fuel: Some(fuel),
            ..WasmSection::default()
        })
    };
    for (wat, fuel, expected) in [
        (&*spin(), 50_000_000, (124, ExitReason::DeadlineExceeded)),
        (&*hello(), 1, (124, ExitReason::DeadlineExceeded)),
        (&*hello(), 1_000_000, (0, ExitReason::Completed)),
    ] {
        let code = compile_metered(wat.as_bytes()).unwrap();
        let mut container = Container::create(&code, metered(fuel)).unwrap();
        assert_eq!(container.call(&Request::Start), Reply::Started);
        let (code, record) = container.wait();
        let record = record.unwrap();
        assert_eq!((code, record.reason), expected, "{record:?}");
        assert_eq!(record.message.contains("out of fuel"), code == 124);
        assert_eq!(container.log().contains("criw.dev/fuel"), code == 124);
    }
    let code = compile_metered(&component("net")).unwrap();
    let mut container = Container::create(&code, metered(10)).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    assert_eq!(container.wait().0, 124);
    // Code that does not count is never taken for code that does.
    let code = compile(hello().as_bytes()).unwrap();
    let container = Container::create(&code, metered(1)).unwrap();
    let Reply::StartFailed { message } = container.call(&Request::Start) else {
        panic!("it started");
    };
    assert!(message.contains("fuel"), "{message}");
}

#[test]
fn a_request_has_a_deadline_and_fuel_of_its_own() {
    if skip("a_request_has_a_deadline_and_fuel_of_its_own") {
        return;
    }
    let served = serve(HttpSection {
        request_deadline_ms: Some(700),
        ..limits(20_000)
    });
    let mut sibling = served.connect();
    for (path, status, whole) in [
        ("/wait/5000", 504, true),
        ("/spin", 504, true),
        // It moves all the time, but takes too long.
        ("/drip/300", 200, false),
        ("/", 200, true),
    ] {
        ask(&mut sibling, "/wait/100", "");
        let response = served.get(path);
        assert_eq!(
            (response.status, response.whole),
            (status, whole),
            "{path} {response:?}"
        );
        assert_eq!(read(&mut sibling).status, 200, "beside {path}");
    }
    assert!(served.container.log().contains("it took longer than 700ms"));
    let counted = facts(&served.container).requests;
    let count = |end: &str| counted.get(end).copied().unwrap_or(0);
    assert_eq!(
        (count("answered"), count("timeout"), count("broken_off")),
        (6, 2, 1),
        "{counted:?}"
    );

    let served = serve_with(limits(20_000), |plan| plan.wasm.fuel = Some(20_000_000));
    for (path, status) in [("/spin", 500), ("/", 200), ("/trap", 500), ("/env", 200)] {
        assert_eq!(served.get(path).status, status, "{path}");
    }
    assert!(served.container.log().contains("out of fuel"));
    // The instances of requests that were answered are gone soon after.
    let end = Instant::now() + DEADLINE;
    let counted = loop {
        let counted = facts(&served.container);
        if counted.instances == 0 || Instant::now() > end {
            break counted;
        }
    };
    assert_eq!((counted.instances, counted.memory_bytes), (0, 0));
    let expected = [("answered", 2), ("failed", 1), ("fuel", 1)];
    let expected = expected.map(|(end, count)| (end.to_owned(), count));
    assert_eq!(counted.requests, expected.into());
    assert_eq!(counted.traps, [("unreachable".to_owned(), 1)].into());
}
