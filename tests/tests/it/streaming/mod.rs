//! Exec, attach and port-forward through the real crictl, with both of its transports,
//! and through a raw client where crictl is too polite.

mod attach;
mod exec;
mod forward;
mod refused;
mod tls;

use std::io::Write;
use std::process::{Output, Stdio};

use criw_proto::v1::ExecRequest;
use criw_tests::crictl;
use criw_tests::machine::{Machine, Pod};

use crate::engine::Engine;

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// A running idle container.
fn idle(machine: &Machine, engine: Engine) -> (Pod, String) {
    let image = engine.provide(machine);
    let pod = machine.pod(engine.handler()).unwrap();
    let id = machine.run(&pod, engine.idle("idle", &image)).unwrap();
    machine.logged(&id, "ready").unwrap();
    (pod, id)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// crictl with something on its standard input.
pub(crate) fn piped(machine: &Machine, args: &[&str], input: &[u8]) -> Output {
    let mut child = crictl::command(machine, args)
        .unwrap()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that does not read all of it is no mistake.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub(crate) fn request(id: &str, argv: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        cmd: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        stdout: true,
        ..Default::default()
    }
}
