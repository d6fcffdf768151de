//! Commands that a Wasm image lacks: the toolbox answers, and its shell starts others.

mod bounds;
mod exec;
mod main_program;
mod network;
mod pipelines;
mod terminal;

use criw_proto::v1::ExecSyncResponse;
use criw_tests::machine::{Machine, Pod};

use crate::engine::Engine;

/// A running idle Wasm container, whose image has some modules in /bin.
fn idle(machine: &Machine) -> (Pod, String) {
    let image = Engine::Wasm.provide(machine);
    let pod = machine.pod("toolbox").unwrap();
    let config = Engine::Wasm.idle("idle", &image);
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    // Compiled once, before anything is compared.
    assert_eq!(
        run(machine, &id, &["true"]),
        (0, String::new(), String::new())
    );
    (pod, id)
}

/// Code, output and errors of a command.
fn run(machine: &Machine, id: &str, argv: &[&str]) -> (i32, String, String) {
    let ExecSyncResponse {
        stdout,
        stderr,
        exit_code,
    } = machine.exec(id, argv, 60).unwrap();
    (exit_code, text(&stdout), text(&stderr))
}

/// The same of a script.
fn sh(machine: &Machine, id: &str, script: &str) -> (i32, String, String) {
    run(machine, id, &["sh", "-c", script])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `ps` shows of a container, one process a line.
fn processes(machine: &Machine, id: &str) -> String {
    let (code, out, err) = run(machine, id, &["ps"]);
    assert_eq!(code, 0, "{err}");
    out
}
