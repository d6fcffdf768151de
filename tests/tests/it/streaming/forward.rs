//! Port forwarding.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use criw_proto::v1::PortForwardRequest;
use criw_tests::machine::{Machine, Pod};
use criw_tests::noise::noise;
use criw_tests::spdy::Spdy;
use criw_tests::{crictl, plan, wait};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{TRANSPORTS, idle, text};
use crate::engine::Engine;

/// A running `crictl port-forward`, and the local port.
pub(super) struct Forward {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    port: u16,
}

impl Forward {
    pub(super) fn start(machine: &Machine, pod: &str, transport: &str, port: u16) -> Self {
        let port = format!(":{port}");
        let args = ["port-forward", "-r", transport, pod, &port];
        let mut child = crictl::command(machine, &args)
            .unwrap()
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let port = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("crictl said {line:?}"));
        Self {
            child,
            _stdout: stdout,
            port,
        }
    }

    /// Its local end.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    fn connect(&self, machine: &Machine) -> TcpStream {
        let address = self.address();
        let stream = machine
            .world
            .enter(|| Ok(TcpStream::connect(address)?))
            .unwrap();
        stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        stream.set_write_timeout(Some(wait::PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends, ends its side, and reads to the end.
fn echo(mut stream: TcpStream, bytes: Vec<u8>) -> Vec<u8> {
    let mut back = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    back.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    got
}

/// Sends back what it is sent, on port 9000 of a pod's localhost. busybox' servers have
/// a backlog of two.
pub(super) struct Echo {
    pub(super) pod: Pod,
    pub(super) container: String,
    listener: TcpListener,
}

impl Echo {
    pub(super) fn start(machine: &Machine) -> Self {
        let (pod, container) = idle(machine, Engine::Linux);
        let netns =
            File::open(format!("/proc/{}/ns/net", machine.pid(&container).unwrap())).unwrap();
        let inside = std::thread::spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind((Ipv4Addr::LOCALHOST, 9000)).unwrap()
        });
        let listener = inside.join().unwrap();
        let accepting = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                std::thread::spawn(move || {
                    let mut back = stream.try_clone()?;
                    std::io::copy(&mut stream, &mut back)?;
                    back.shutdown(Shutdown::Write)
                });
            }
        });
        Self {
            pod,
            container,
            listener,
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Wakes the thread that accepts, with an error.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

/// Opens the two streams of a forwarded connection: error, data.
pub(super) fn raw_forward(client: &mut Spdy, port: &str, id: &str) -> (u32, u32) {
    let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", id)];
    let error = client.open(&headers("error")).unwrap();
    (error, client.open(&headers("data")).unwrap())
}

pub(super) fn forward_url(machine: &Machine, pod: &str, port: &[i32]) -> String {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.into(),
        port: port.to_vec(),
    };
    machine.client.port_forward(request).unwrap().url
}

#[test]
fn ports_of_a_linux_pod_are_forwarded() {
    let machine = Machine::new().unwrap();
    let echoes = Echo::start(&machine);
    for transport in TRANSPORTS {
        let forward = Forward::start(&machine, &echoes.pod.id, transport, 9000);
        let input = noise(24 << 20);
        assert!(echo(forward.connect(&machine), input.clone()) == input);
        // Many at once, each with bytes of its own.
        let done = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 0..40_usize {
                let (machine, forward, done) = (&machine, &forward, &done);
                scope.spawn(move || {
                    let input = noise(10_000 + 997 * n);
                    assert!(echo(forward.connect(machine), input.clone()) == input);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(done.into_inner(), 40);
    }
}

#[test]
fn ports_of_a_wasm_pod_are_forwarded() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let mut config = machine.pod_config("server");
    config
        .annotations
        .insert("criw.dev/listen".into(), "0.0.0.0:8080".into());
    let pod = machine.run_pod(config, "wasmtime").unwrap();
    let id = machine
        .run(&pod, plan::command("server", &image, &["/bin/server"]))
        .unwrap();
    machine.logged(&id, "listening").unwrap();
    for transport in TRANSPORTS {
        let forward = Forward::start(&machine, &pod.id[..13], transport, 8080);
        let mut stream = forward.connect(&machine);
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("hello from a wasm server"), "{answer}");
    }
}

#[test]
fn a_port_that_nobody_listens_on_is_told_and_hurts_no_other() {
    let machine = Machine::new().unwrap();
    let echoes = Echo::start(&machine);
    let url = forward_url(&machine, &echoes.pod.id, &[]);
    let mut client = machine
        .world
        .enter(|| Spdy::connect(&url, "portforward.k8s.io"))
        .unwrap();
    let (error, data) = raw_forward(&mut client, "9001", "0");
    let said = text(&client.all(error).unwrap());
    assert!(said.contains("9001") && said.contains("refused"), "{said}");
    client.all(data).unwrap();
    assert!(client.reset.contains(&data));
    // Neither do streams that make no sense.
    for headers in [
        &[("streamtype", "data"), ("port", "0"), ("requestid", "1")][..],
        &[
            ("streamtype", "stdin"),
            ("port", "9000"),
            ("requestid", "1"),
        ],
        &[],
    ] {
        assert!(client.open(headers).is_err());
    }
    // A stalled one next to a busy one.
    let (_, stalled) = raw_forward(&mut client, "9000", "2");
    client.send(stalled, b"never read back").unwrap();
    let (_, busy) = raw_forward(&mut client, "9000", "3");
    client.send(busy, b"hello").unwrap();
    client.end(busy).unwrap();
    assert_eq!(client.all(busy).unwrap(), b"hello");
}
