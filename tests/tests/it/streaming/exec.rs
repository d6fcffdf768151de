//! Exec.

use criw_proto::v1::ExecRequest;
use criw_tests::machine::Machine;
use criw_tests::noise::noise;
use criw_tests::spdy::Spdy;
use criw_tests::{crictl, wait};

use super::{TRANSPORTS, idle, piped, request, text};
use crate::engine::{BOTH, Engine};

#[test]
fn crictl_runs_commands() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let (pod, id) = idle(&machine, engine);
        machine.exec(&id, &["/bin/cat"], 10).unwrap();
        let before = machine.snapshot().unwrap();
        for transport in TRANSPORTS {
            let exec = ["exec", "-r", transport];
            let run = |args: &[&str]| {
                let args = [&exec[..], &[&id], args].concat();
                crictl::run(&machine, &args).unwrap()
            };
            let done = run(&["/bin/cat", "/etc/motd"]);
            assert!(done.status.success(), "{engine:?} {transport} {done:?}");
            assert_eq!(text(&done.stdout), "a file of the image\n");
            assert_eq!(text(&done.stderr), "");
            let failed = run(&["/bin/cat", "/no/such/file"]);
            assert_eq!(failed.status.code(), Some(1), "{failed:?}");
            assert!(text(&failed.stderr).contains("/no/such/file"), "{failed:?}");
            assert!(text(&failed.stderr).contains("exit code 1"), "{failed:?}");
            let missing = run(&["/bin/no-such-program"]);
            assert!(!missing.status.success());
            assert!(
                text(&missing.stderr).contains("no-such-program"),
                "{missing:?}"
            );
            // Its end is seen by the command, and its output ends with the command.
            let input = noise(3 << 20);
            let args = ["exec", "-i", "-r", transport, &id, "/bin/cat"];
            let copied = piped(&machine, &args, &input);
            assert!(copied.status.success(), "{}", text(&copied.stderr));
            assert!(copied.stdout == input, "{} bytes", copied.stdout.len());
        }
        machine.assert_nothing_left(&before).unwrap();
        machine.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn exit_codes_and_both_outputs_come_from_linux_commands() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine, Engine::Linux);
    for transport in TRANSPORTS {
        let script = "echo out; echo err >&2; exit 3";
        let args = ["exec", "-r", transport, &id, "sh", "-c", script];
        let done = crictl::run(&machine, &args).unwrap();
        // crictl itself ends with 1.
        assert!(!done.status.success());
        assert_eq!(text(&done.stdout), "out\n");
        let said = text(&done.stderr);
        assert!(
            said.contains("err\n") && said.contains("exit code 3"),
            "{said}"
        );
        // What it started holds the pipes for a long time; nobody waits.
        let args = [
            "exec",
            "-r",
            transport,
            &id,
            "sh",
            "-c",
            "sleep 300 & echo done",
        ];
        let begin = std::time::Instant::now();
        let done = crictl::ok(&machine, &args).unwrap();
        assert_eq!(done, "done");
        assert!(begin.elapsed() < wait::PATIENCE);
    }
}

/// Opens an exec as a raw client; the error stream comes first.
fn raw_exec(machine: &Machine, request: ExecRequest, protocol: &str) -> (Spdy, Vec<u32>) {
    let kinds: Vec<&str> = [
        ("error", true),
        ("stdin", request.stdin),
        ("stdout", request.stdout),
        ("stderr", request.stderr),
        ("resize", request.tty),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    let url = machine.client.exec(request).unwrap().url;
    let mut client = machine
        .world
        .enter(|| Spdy::connect(&url, protocol))
        .unwrap();
    let streams = kinds
        .iter()
        .map(|kind| client.open(&[("streamtype", kind)]).unwrap())
        .collect();
    (client, streams)
}

#[test]
fn old_protocols_tell_errors_as_text() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine, Engine::Linux);
    for (protocol, good, bad) in [
        ("channel.k8s.io", "", "command terminated with exit code 7"),
        (
            "v2.channel.k8s.io",
            "",
            "command terminated with exit code 7",
        ),
        (
            "v3.channel.k8s.io",
            "",
            "command terminated with exit code 7",
        ),
        (
            "v4.channel.k8s.io",
            r#"{"metadata":{},"status":"Success"}"#,
            r#""message":"7""#,
        ),
    ] {
        for (code, expected) in [("0", good), ("7", bad)] {
            let script = format!("echo hello; exit {code}");
            let exec = request(&id, &["sh", "-c", &script]);
            let (mut client, streams) = raw_exec(&machine, exec, protocol);
            assert_eq!(text(&client.all(streams[1]).unwrap()), "hello\n");
            let status = text(&client.all(streams[0]).unwrap());
            assert!(status.contains(expected), "{protocol} {status}");
            assert_eq!(
                status.is_empty(),
                expected.is_empty(),
                "{protocol} {status}"
            );
            assert!(client.closed().unwrap());
        }
    }
}

#[test]
fn a_terminal_has_a_size_and_one_output() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine, Engine::Linux);
    let script = "echo begun >&2; read line; echo $TERM $line; /bin/busybox stty size; exit 5";
    let exec = ExecRequest {
        stdin: true,
        tty: true,
        ..request(&id, &["sh", "-c", script])
    };
    let (mut client, streams) = raw_exec(&machine, exec, "v4.channel.k8s.io");
    let [error, stdin, stdout, resize] = streams[..] else {
        panic!("{streams:?}");
    };
    client
        .send(
            resize,
            br#"{"Width":80,"Height":24}{"Width":132,"Height":50}"#,
        )
        .unwrap();
    client.send(stdin, b"typed\r").unwrap();
    let out = text(&client.all(stdout).unwrap());
    // The line comes back as the terminal's echo, in whatever order.
    assert!(
        out.contains("begun\r\n") && out.contains("xterm typed\r\n"),
        "{out:?}"
    );
    assert!(out.contains("50 132"), "{out:?}");
    let status = text(&client.all(error).unwrap());
    assert!(status.contains(r#""message":"5""#), "{status}");
}

#[test]
fn a_client_that_leaves_takes_its_command_along() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine, Engine::Linux);
    machine.exec(&id, &["true"], 10).unwrap();
    let before = machine.snapshot().unwrap();
    // One that reads nothing of an endless output, one that is silent, and one whose
    // command does not read its input.
    for (argv, shown, input) in [
        (&["yes", "endless"][..], "yes endless", 0),
        (&["sh", "-c", "sleep 1000 & sleep 2000"], "sleep 1000", 0),
        (&["sleep", "3000"], "sleep 3000", 1200 << 10),
    ] {
        let exec = ExecRequest {
            stdin: input > 0,
            ..request(&id, argv)
        };
        let (mut client, streams) = raw_exec(&machine, exec, "v4.channel.k8s.io");
        let found = || {
            let listed = machine.exec(&id, &["ps"], 10).unwrap();
            text(&listed.stdout).contains(shown)
        };
        wait::until("the command to run", wait::PATIENCE, || {
            found().then_some(())
        })
        .unwrap();
        if input > 0 {
            client
                .socket
                .set_write_timeout(Some(std::time::Duration::from_millis(500)))
                .unwrap();
            // Until nothing goes any more.
            let _ = client.send(streams[1], &vec![0; input]);
        }
        // Meanwhile the daemon has time for others.
        machine.exec(&id, &["true"], 10).unwrap();
        drop(client);
        machine.assert_nothing_left(&before).unwrap();
        assert!(!found(), "{argv:?}");
    }
}

#[test]
fn sessions_end_with_the_daemon_and_their_commands_too() {
    let mut machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine, Engine::Linux);
    let exec = request(&id, &["sleep", "4000"]);
    let (mut client, streams) = raw_exec(&machine, exec, "v4.channel.k8s.io");
    assert!(machine.daemon.terminate().unwrap().success());
    let said = text(&client.all(streams[0]).unwrap());
    assert!(said.contains("criw ends or restarts"), "{said}");
    machine.restart(&[]).unwrap();
    wait::until("the command to be gone", wait::PATIENCE, || {
        let listed = machine.exec(&id, &["ps"], 10).ok()?;
        (!text(&listed.stdout).contains("sleep 4000")).then_some(())
    })
    .unwrap();
}
