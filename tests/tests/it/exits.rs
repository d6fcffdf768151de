//! Exit codes, reasons and messages: one table for every way to end.

use criw_proto::v1::*;
use criw_tests::machine::Machine;
use criw_tests::{images, plan};

use crate::engine::Engine;

/// A way to end and what it must look like.
struct Case {
    name: &'static str,
    argv: &'static [&'static str],
    memory: i64,
    code: i32,
    reason: &'static str,
    /// Each of these stands in ContainerStatus.message.
    message: &'static [&'static str],
}

const WASM: [Case; 6] = [
    Case {
        name: "zero",
        argv: &["/bin/hello"],
        memory: 0,
        code: 0,
        reason: "Completed",
        message: &[],
    },
    Case {
        name: "unreachable",
        argv: &["/bin/trap", "unreachable"],
        memory: 0,
        code: 134,
        reason: "Trap",
        // The module carries DWARF.
        message: &[
            "unreachable",
            "hit_unreachable",
            "outer_function",
            "guests/trap.c:16:",
        ],
    },
    Case {
        name: "divide",
        argv: &["/bin/trap", "divide"],
        memory: 0,
        code: 134,
        reason: "Trap",
        message: &["divide by zero", "divide_by_zero", "guests/trap.c:7:"],
    },
    Case {
        name: "hog",
        argv: &["/bin/hog"],
        memory: 32 << 20,
        code: 137,
        reason: "OOMKilled",
        message: &["memory"],
    },
    Case {
        name: "usage",
        argv: &["/bin/print"],
        memory: 0,
        code: 2,
        reason: "Error",
        message: &[],
    },
    Case {
        name: "quiet",
        argv: &["/bin/cat", "/no/such/file"],
        memory: 0,
        code: 1,
        reason: "Error",
        message: &[],
    },
];

const LINUX: [Case; 4] = [
    Case {
        name: "zero",
        argv: &["true"],
        memory: 0,
        code: 0,
        reason: "Completed",
        message: &[],
    },
    Case {
        name: "seven",
        argv: &["sh", "-c", "exit 7"],
        memory: 0,
        code: 7,
        reason: "Error",
        message: &[],
    },
    Case {
        name: "signal",
        argv: &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"],
        memory: 0,
        code: 137,
        reason: "Error",
        message: &[],
    },
    Case {
        name: "hog",
        argv: &["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"],
        memory: 32 << 20,
        code: 137,
        reason: "OOMKilled",
        message: &[],
    },
];

fn table(engine: Engine, cases: &[Case]) {
    let machine = Machine::new().unwrap();
    let image = engine.provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("exits").unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let mut config = plan::command(case.name, &image, case.argv);
        if case.memory > 0 {
            config.linux = plan::memory(case.memory);
        }
        let (status, log) = machine.outcome(&pod, config).unwrap();
        let fits = (status.exit_code, &*status.reason) == (case.code, case.reason)
            && case
                .message
                .iter()
                .all(|part| status.message.contains(part));
        if !fits {
            wrong.push(format!(
                "{}: code {} reason {:?} message {:?} log {log:?}",
                case.name, status.exit_code, status.reason, status.message
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn wasm_guests_end_as_the_table_says() {
    table(Engine::Wasm, &WASM);
}

#[test]
fn linux_programs_end_as_the_table_says() {
    table(Engine::Linux, &LINUX);
}

#[test]
fn the_smallest_module_ends_with_its_code() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("exit:1", &images::wasm("exit").unwrap())
        .unwrap();
    let pod = machine.pod("small").unwrap();
    let (status, _) = machine
        .outcome(&pod, plan::container("exit", &image))
        .unwrap();
    assert_eq!((status.exit_code, &*status.reason), (42, "Error"));
}

#[test]
fn a_trap_stands_in_the_log_too() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("trap").unwrap();
    let config = plan::command("trap", &image, &["/bin/trap"]);
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert!(log.contains("about to trap\n"), "{log}");
    assert!(log.contains("hit_unreachable"), "{log}\n{}", status.message);
}

#[test]
fn a_guest_that_spins_stops_at_once_and_is_not_waited_for() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("spin").unwrap();
    let id = machine
        .run(&pod, plan::command("spin", &image, &["/bin/spin"]))
        .unwrap();
    machine.logged(&id, "spinning").unwrap();
    let begin = std::time::Instant::now();
    machine.stop(&id, 30).unwrap();
    let status = machine.status(&id).unwrap();
    assert_eq!(status.exit_code, 143, "{status:?}");
    assert!(begin.elapsed().as_secs() < 10, "took {:?}", begin.elapsed());
}

#[test]
fn a_grace_that_runs_out_ends_in_sigkill() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("deaf").unwrap();
    let config = plan::command(
        "deaf",
        &image,
        &[
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 1; done",
        ],
    );
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    machine.stop(&id, 1).unwrap();
    let status = machine.status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137, "{status:?}");
}

#[test]
fn stop_before_start_changes_nothing() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("created").unwrap();
    let id = machine
        .create(&pod, Engine::Wasm.idle("created", &image))
        .unwrap();
    machine.stop(&id, 0).unwrap();
    assert_eq!(
        machine.status(&id).unwrap().state(),
        ContainerState::ContainerCreated
    );
    machine.start(&id).unwrap();
    machine.logged(&id, "ready").unwrap();
}

#[test]
fn a_killed_container_says_137() {
    let machine = Machine::new().unwrap();
    for engine in [Engine::Wasm, Engine::Linux] {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        let id = machine.run(&pod, engine.idle("idle", &image)).unwrap();
        machine.logged(&id, "ready").unwrap();
        let pid = rustix::process::Pid::from_raw(machine.pid(&id).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let status = machine.ended(&id).unwrap();
        assert_eq!(
            (status.exit_code, &*status.reason),
            (137, "Error"),
            "{engine:?} {status:?}"
        );
    }
}
