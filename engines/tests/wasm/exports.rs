//! `path#export`: another entry of a component than its main.

use criw_engines::protocol::{Reply, Request};
use criw_engines::spec::WasmSection;

use crate::container::{Container, Plan, compile, skip};
use crate::guests::component;

fn start(guest: &str, export: &str, words: &[&str]) -> (Container, Reply) {
    let plan = Plan {
        wasm: WasmSection {
            export: Some(export.to_owned()),
            ..WasmSection::default()
        },
        args: words.iter().map(ToString::to_string).collect(),
        ..Plan::default()
    };
    let code = compile(&component(guest)).unwrap();
    let container = Container::create(&code, plan).unwrap();
    let reply = container.call(&Request::Start);
    (container, reply)
}

#[test]
fn a_component_is_entered_by_the_export_that_is_named() {
    if skip("a_component_is_entered_by_the_export_that_is_named") {
        return;
    }
    for (guest, export, words, code, logged) in [
        ("jobs", "seed", &["jobs"][..], 0, "stdout F seeding"),
        ("jobs", "admin#cleanup", &["jobs"], 0, "stdout F cleaning"),
        ("jobs", "migrate", &["jobs"], 0, "stdout F migrating"),
        (
            "jobs",
            "migrate",
            &["jobs", "x"],
            1,
            "stderr F the database is not there",
        ),
        // The main by its name, with its version and without.
        ("net", "wasi:cli/run", &["net"], 0, ""),
        ("net", "wasi:cli/run@0.2.0", &["net", "?"], 1, ""),
        (
            "async",
            "wasi:cli/run",
            &["async", "say/x"],
            0,
            "stdout F x",
        ),
    ] {
        let (mut container, reply) = start(guest, export, words);
        assert_eq!(reply, Reply::Started, "{export}");
        let (ended, record) = container.wait();
        let log = container.log();
        assert_eq!(ended, code, "{export}: {record:?} {log}");
        assert!(log.contains(logged), "{export}: {log}");
    }
}

#[test]
fn what_is_no_entry_is_told_what_there_is() {
    if skip("what_is_no_entry_is_told_what_there_is") {
        return;
    }
    for (export, part) in [
        ("none", "it exports migrate, seed, add, admin#cleanup"),
        ("admin", "one that is inside of it is \"admin#NAME\""),
        ("admin#none", "has no export \"admin#none\""),
        ("add", "has 1 parameters"),
        ("", "has no export"),
    ] {
        let (mut container, reply) = start("jobs", export, &["jobs"]);
        let Reply::StartFailed { message } = reply else {
            panic!("{export} started");
        };
        assert!(message.contains(part), "{export}: {message}");
        assert_eq!(container.wait().0, 128);
    }
    // Without a name there is nothing to run.
    let code = compile(&component("jobs")).unwrap();
    let container = Container::create(&code, Plan::default()).unwrap();
    let Reply::StartFailed { message } = container.call(&Request::Start) else {
        panic!("it started");
    };
    assert!(message.contains("none of our worlds"), "{message}");
}
