//! Requests, tokens and frames that are refused.

use std::io::Write;

use criw_proto::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use criw_tests::machine::Machine;
use criw_tests::plan;
use criw_tests::spdy::{self, Spdy};
use tonic::Code;

use super::forward::{Echo, forward_url, raw_forward};
use super::{idle, request};
use crate::engine::Engine;

#[test]
fn requests_that_make_no_sense_are_refused_with_their_codes() {
    let machine = Machine::new().unwrap();
    let (pod, id) = idle(&machine, Engine::Linux);
    let image = Engine::Linux.provide(&machine);
    let ended = machine
        .run(&pod, plan::command("true", &image, &["true"]))
        .unwrap();
    machine.ended(&ended).unwrap();
    let exec = |change: &dyn Fn(&mut ExecRequest)| {
        let mut request = request(&id, &["true"]);
        change(&mut request);
        machine.client.exec(request).map(drop)
    };
    let attach = |request: AttachRequest| machine.client.attach(request).map(drop);
    let forward = |pod: &str, port: &[i32]| {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.into(),
            port: port.to_vec(),
        };
        machine.client.port_forward(request).map(drop)
    };
    for (answer, code) in [
        (exec(&|r| r.container_id.clear()), Code::InvalidArgument),
        (exec(&|r| r.cmd.clear()), Code::InvalidArgument),
        (exec(&|r| r.stdout = false), Code::InvalidArgument),
        (
            exec(&|r| (r.tty, r.stderr) = (true, true)),
            Code::InvalidArgument,
        ),
        (exec(&|r| r.container_id = "beef".into()), Code::NotFound),
        (
            exec(&|r| r.container_id = ended.clone()),
            Code::FailedPrecondition,
        ),
        (attach(AttachRequest::default()), Code::InvalidArgument),
        (
            attach(AttachRequest {
                container_id: id.clone(),
                ..Default::default()
            }),
            Code::InvalidArgument,
        ),
        (
            attach(AttachRequest {
                container_id: ended.clone(),
                stdout: true,
                ..Default::default()
            }),
            Code::FailedPrecondition,
        ),
        (forward("", &[]), Code::InvalidArgument),
        (forward("beef", &[]), Code::NotFound),
        (forward(&pod.id, &[0]), Code::InvalidArgument),
        (forward(&pod.id, &[65536]), Code::InvalidArgument),
    ] {
        assert_eq!(answer.unwrap_err().code(), code);
    }
    machine.stop_pod(&pod.id).unwrap();
    let answer = forward(&pod.id, &[]).unwrap_err();
    assert_eq!(answer.code(), Code::FailedPrecondition);
}

/// The first line of the answer to an upgrade.
fn answer(machine: &Machine, url: &str, headers: &[(&str, &str)]) -> String {
    let (_, head) = machine.world.enter(|| spdy::upgrade(url, headers)).unwrap();
    head.lines().next().unwrap_or_default().to_owned()
}

const SPDY: [(&str, &str); 2] = [("connection", "upgrade"), ("upgrade", "spdy/3.1")];

#[test]
fn tokens_work_once_and_are_bounded() {
    let machine = Machine::new().unwrap();
    let (pod, id) = idle(&machine, Engine::Linux);
    let url = machine.client.exec(request(&id, &["true"])).unwrap().url;
    let (base, token) = url.rsplit_once('/').unwrap();
    for wrong in [
        url.replace("/exec/", "/attach/"),
        format!("{base}/{}", "A".repeat(token.len())),
        format!("{base}/"),
        base.to_owned(),
    ] {
        let said = answer(&machine, &wrong, &SPDY);
        assert!(said.contains("404"), "{wrong}: {said}");
    }
    // Asked for with another purpose, it is used up.
    assert!(answer(&machine, &url, &SPDY).contains("404"));
    let url = machine.client.exec(request(&id, &["true"])).unwrap().url;
    assert!(answer(&machine, &url, &SPDY).contains("101"));
    assert!(answer(&machine, &url, &SPDY).contains("404"));
    for (headers, code) in [
        (&[][..], "400"),
        (&[("connection", "upgrade"), ("upgrade", "h2c")], "400"),
        (
            &[SPDY[0], SPDY[1], ("x-stream-protocol-version", "v9")],
            "403",
        ),
        (&[SPDY[0], ("upgrade", "websocket")], "426"),
    ] {
        let url = machine.client.exec(request(&id, &["true"])).unwrap().url;
        let said = answer(&machine, &url, headers);
        assert!(said.contains(code), "{headers:?}: {said}");
    }
    let full = (0..1001)
        .map(|_| {
            machine.client.port_forward(PortForwardRequest {
                pod_sandbox_id: pod.id.clone(),
                port: Vec::new(),
            })
        })
        .find_map(Result::err)
        .expect("1001 pending tokens are too many");
    assert_eq!(full.code(), Code::ResourceExhausted);
    let answer = machine.client.exec(request(&id, &["true"])).unwrap_err();
    assert_eq!(answer.code(), Code::ResourceExhausted);
}

#[test]
fn malformed_frames_end_their_connection_only() {
    let machine = Machine::new().unwrap();
    let echoes = Echo::start(&machine);
    machine.exec(&echoes.container, &["true"], 10).unwrap();
    let before = machine.snapshot().unwrap();
    let connect = || {
        let url = forward_url(&machine, &echoes.pod.id, &[]);
        machine
            .world
            .enter(|| Spdy::connect(&url, "portforward.k8s.io"))
            .unwrap()
    };
    let mut good = connect();
    let (_, data) = raw_forward(&mut good, "9000", "0");
    for bytes in [
        // Another version, an oversized control frame, data for nobody, a short frame, rubbish.
        &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0, 0, 0, 0, 1, 7],
        &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0],
        &[0xff; 64],
    ] {
        let mut client = connect();
        client.socket.write_all(bytes).unwrap();
        assert!(client.closed().unwrap(), "{bytes:?}");
    }
    // A bomb: some kB that inflate to many MB; an even and a repeated stream number.
    let mut bomb = connect();
    bomb.send_open(&vec![0; 8 << 20]).unwrap();
    assert!(bomb.closed().unwrap());
    let mut twice = connect();
    twice
        .open(&[("streamtype", "error"), ("port", "9000")])
        .unwrap();
    twice.control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(twice.closed().unwrap());
    // Half a frame, and silence.
    let mut half = connect();
    half.socket.write_all(&[0x80, 3, 0]).unwrap();
    good.send(data, b"still here").unwrap();
    good.end(data).unwrap();
    assert_eq!(good.all(data).unwrap(), b"still here");
    drop((good, half));
    machine.assert_nothing_left(&before).unwrap();
}
