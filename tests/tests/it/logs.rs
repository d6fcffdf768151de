//! The CRI log: format, long lines, rotation, pressure.

use criw_proto::v1::*;
use criw_tests::machine::{Machine, parse_log, text};
use criw_tests::{plan, wait};

use crate::engine::{BOTH, Engine};

#[test]
fn long_output_without_a_newline_becomes_parts() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("long").unwrap();
    let config = plan::command("long", &image, &["/bin/print", "bytes", "100000"]);
    let id = machine.run(&pod, config).unwrap();
    let status = machine.ended(&id).unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    let lines = machine.log(&status).unwrap();
    assert!(lines.iter().all(|line| line.text.len() <= 16 * 1024));
    assert!(
        lines.iter().all(|line| !line.full),
        "no newline was written"
    );
    assert_eq!(text(&lines).len(), 100_000);
    let times: Vec<_> = lines.iter().map(|line| &line.time).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn every_line_arrives_in_order() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        let argv: &[&str] = match engine {
            Engine::Wasm => &["/bin/print", "lines", "20000"],
            Engine::Linux => &[
                "sh",
                "-c",
                "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
            ],
        };
        let (status, log) = machine
            .outcome(&pod, plan::command("lines", &image, argv))
            .unwrap();
        assert_eq!(status.exit_code, 0, "{engine:?} {status:?}");
        let mut expected = String::new();
        for line in 0..20_000 {
            expected.push_str(&format!("line {line}\n"));
        }
        assert!(
            log == expected,
            "{engine:?}: {} bytes of {}",
            log.len(),
            expected.len()
        );
    }
}

#[test]
fn a_gigabyte_without_a_newline_is_survived() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("gigabyte").unwrap();
    let mut config = plan::command("gigabyte", &image, &["/bin/print", "bytes", "1073741824"]);
    // The shim must not gather it: it has 64 MiB for everything.
    config.linux = plan::memory(64 << 20);
    let id = machine.run(&pod, config).unwrap();
    let status = machine
        .ended_within(&id, std::time::Duration::from_secs(120))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    let length = std::fs::metadata(&status.log_path).unwrap().len();
    assert!(length > 1 << 30, "the log has {length} bytes");
    // The good twin afterwards: the daemon is as alive as before.
    let (status, _) = machine
        .outcome(&pod, plan::command("twin", &image, &["/bin/hello"]))
        .unwrap();
    assert_eq!(status.exit_code, 0);
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("rotate").unwrap();
    let script = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.01; done";
    let id = machine
        .run(&pod, plan::command("tick", &image, &["sh", "-c", script]))
        .unwrap();
    machine.logged(&id, "tick 3").unwrap();
    let path = machine.status(&id).unwrap().log_path;
    let rotated = format!("{path}.1");
    std::fs::rename(&path, &rotated).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    machine.client.reopen_container_log(request).unwrap();
    let length = std::fs::metadata(&rotated).unwrap().len();
    assert!(
        std::fs::metadata(&path).is_ok(),
        "the new file must be there when the reply is"
    );
    wait::until("lines in the new file", wait::PATIENCE, || {
        (std::fs::metadata(&path).unwrap().len() > 100).then_some(())
    })
    .unwrap();
    assert_eq!(
        std::fs::metadata(&rotated).unwrap().len(),
        length,
        "the old file grew"
    );
    machine.stop(&id, 0).unwrap();
    // No tick is lost or doubled over both files.
    let whole =
        std::fs::read_to_string(&rotated).unwrap() + &std::fs::read_to_string(&path).unwrap();
    let seen = text(&parse_log(&whole).unwrap());
    for (number, line) in seen.lines().enumerate() {
        assert_eq!(line, format!("tick {number}"));
    }
    let request = ReopenContainerLogRequest { container_id: id };
    machine.client.reopen_container_log(request).unwrap_err();
}

#[test]
fn a_wasm_log_is_reopened_too() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("rotate").unwrap();
    let id = machine
        .run(&pod, Engine::Wasm.idle("idle", &image))
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    let path = machine.status(&id).unwrap().log_path;
    std::fs::rename(&path, format!("{path}.1")).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    machine.client.reopen_container_log(request).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
}

#[test]
fn a_guest_that_spins_delays_no_reopen() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("spin").unwrap();
    let id = machine
        .run(&pod, plan::command("spin", &image, &["/bin/spin"]))
        .unwrap();
    machine.logged(&id, "spinning").unwrap();
    let path = machine.status(&id).unwrap().log_path;
    std::fs::remove_file(&path).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    machine.client.reopen_container_log(request).unwrap();
    assert!(std::fs::metadata(&path).is_ok());
}
