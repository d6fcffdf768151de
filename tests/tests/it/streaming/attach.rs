//! Attach.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use criw_proto::v1::{AttachRequest, ContainerConfig, ContainerState};
use criw_tests::machine::Machine;
use criw_tests::spdy::Spdy;
use criw_tests::{crictl, plan, wait};

use super::{TRANSPORTS, text};
use crate::engine::Engine;

#[test]
fn several_clients_are_attached_and_the_first_that_leaves_ends_the_input() {
    let machine = Machine::new().unwrap();
    for (engine, argv) in [
        (
            Engine::Linux,
            &["sh", "-c", "echo before; cat; echo after"][..],
        ),
        (Engine::Wasm, &["/bin/cat"]),
    ] {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        let config = ContainerConfig {
            stdin: true,
            stdin_once: true,
            ..plan::command("shell", &image, argv)
        };
        let id = machine.run(&pod, config).unwrap();
        if engine == Engine::Linux {
            machine.logged(&id, "before").unwrap();
        }
        let (mut writer, streams) = raw_attach(&machine, &id, true);
        let mut clients = vec![];
        if engine == Engine::Linux {
            // One that only reads; it is there once it sees what the other typed.
            let (reader, read) = raw_attach(&machine, &id, false);
            wait::until("the second client", wait::PATIENCE, || {
                writer.send(streams[1], b"tick\n").unwrap();
                assert!(writer.step().unwrap());
                reader.has_more().unwrap().then_some(())
            })
            .unwrap();
            clients.push((reader, read[1], read[0]));
        }
        writer.send(streams[1], b"hello\n").unwrap();
        writer.end(streams[1]).unwrap();
        clients.push((writer, streams[2], streams[0]));
        for (mut client, out, error) in clients {
            let seen = text(&client.all(out).unwrap());
            let after = match engine {
                Engine::Linux => "tick\nhello\nafter\n",
                Engine::Wasm => "hello\n",
            };
            assert!(seen.ends_with(after), "{engine:?}: {seen}");
            assert!(!seen.contains("before"), "{engine:?}: {seen}");
            let status = text(&client.all(error).unwrap());
            assert!(status.contains("Success"), "{status}");
        }
        assert_eq!(machine.ended(&id).unwrap().exit_code, 0);
        machine.remove_pod(&pod.id).unwrap();
    }
}

/// Opens an attach as a raw client: error, stdin if asked for, stdout.
fn raw_attach(machine: &Machine, id: &str, stdin: bool) -> (Spdy, Vec<u32>) {
    let request = AttachRequest {
        container_id: id.into(),
        stdin,
        stdout: true,
        ..Default::default()
    };
    let url = machine.client.attach(request).unwrap().url;
    let mut client = machine
        .world
        .enter(|| Spdy::connect(&url, "v4.channel.k8s.io"))
        .unwrap();
    let kinds: &[&str] = if stdin {
        &["error", "stdin", "stdout"]
    } else {
        &["error", "stdout"]
    };
    let streams = kinds
        .iter()
        .map(|kind| client.open(&[("streamtype", kind)]).unwrap())
        .collect();
    (client, streams)
}

#[test]
fn crictl_attaches_over_both_transports_and_leaves_the_container_alone() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("attach").unwrap();
    let config = ContainerConfig {
        stdin: true,
        ..plan::command("shell", &image, &["sh"])
    };
    let id = machine.run(&pod, config).unwrap();
    for transport in TRANSPORTS.iter().chain(&["spdy"]) {
        let args = ["attach", "-i", "-r", transport, &id];
        let mut child = crictl::command(&machine, &args)
            .unwrap()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // Asked until it is heard: what is typed before crictl is attached waits.
        stdin.write_all(b"echo over $0\n").unwrap();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "over sh\n", "{transport}");
        child.kill().unwrap();
        child.wait().unwrap();
        // The input stays open: the shell lives, also for a new daemon.
        let status = machine.status(&id).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        machine.daemon.kill().unwrap();
        machine.restart(&[]).unwrap();
    }
}

#[test]
fn a_terminal_is_attached_and_resized() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("terminal").unwrap();
    let config = ContainerConfig {
        stdin: true,
        tty: true,
        ..plan::command("shell", &image, &["sh"])
    };
    let id = machine.run(&pod, config).unwrap();
    let request = AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        tty: true,
        ..Default::default()
    };
    let url = machine.client.attach(request).unwrap().url;
    let mut client = machine
        .world
        .enter(|| Spdy::connect(&url, "v4.channel.k8s.io"))
        .unwrap();
    let mut open = |kind| client.open(&[("streamtype", kind)]).unwrap();
    let (error, stdin) = (open("error"), open("stdin"));
    let (stdout, resize) = (open("stdout"), open("resize"));
    client.send(resize, br#"{"Width":99,"Height":33}"#).unwrap();
    let mut seen = String::new();
    // The size is set a moment after it was sent.
    while !seen.contains("33 99") {
        client.send(stdin, b"/bin/busybox stty size\r").unwrap();
        while !seen.contains("size\r\n") && !seen.contains("33 99") {
            assert!(client.step().unwrap(), "{seen:?}");
            seen = text(client.data.get(&stdout).map_or(&[][..], |all| all));
        }
        assert!(client.step().unwrap(), "{seen:?}");
        seen = text(client.data.get(&stdout).map_or(&[][..], |all| all));
    }
    client.send(stdin, b"exit\r").unwrap();
    assert!(text(&client.all(error).unwrap()).contains("Success"));
    let log = text_of_log(&machine, &id);
    assert!(log.contains("33 99"), "{log}");
}

fn text_of_log(machine: &Machine, id: &str) -> String {
    let status = machine.ended(id).unwrap();
    criw_tests::machine::text(&machine.log(&status).unwrap())
}

#[test]
fn an_attached_client_that_is_too_slow_is_left_and_told() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("slow").unwrap();
    let script = "read go; dd if=/dev/zero bs=1M count=64 2>/dev/null; echo done; read stay";
    let config = ContainerConfig {
        stdin: true,
        ..plan::command("chatty", &image, &["sh", "-c", script])
    };
    let id = machine.run(&pod, config).unwrap();
    let (mut slow, streams) = raw_attach(&machine, &id, false);
    let (mut other, typed) = raw_attach(&machine, &id, true);
    other.send(typed[1], b"go\n").unwrap();
    // The container does not wait for the one that reads nothing.
    machine.logged(&id, "done").unwrap();
    let status = text(&slow.all(streams[0]).unwrap());
    assert!(status.contains("fell behind"), "{status}");
}

#[test]
fn components_know_their_terminals() {
    let machine = Machine::new().unwrap();
    let image = criw_tests::images::wasm("files.component").unwrap();
    let image = machine.provide("files:1", &image).unwrap();
    let pod = machine.pod("terminals").unwrap();
    for (name, tty, stdin, said) in [
        ("terminal", true, true, "in out err"),
        ("pipe", false, true, "- - -"),
        ("plain", false, false, "- - -"),
    ] {
        let config = ContainerConfig {
            tty,
            stdin,
            args: vec!["terminals".into()],
            ..plan::container(name, &image)
        };
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0, "{name}: {log}");
        assert_eq!(log.trim_end(), said, "{name}");
    }
}
