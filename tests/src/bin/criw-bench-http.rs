//! `make bench-http`: requests a second and latencies of a component that answers
//! "hello", with an instance for each request and with one for a thousand, beside a native
//! hyper server that answers the same. All run in the same pod's network on CPU 0 with one
//! thread; the clients are on the other CPUs. Rounds alternate, so that all see the same
//! machine. With `--wasmtime`, Wasmtime's own
//! `wasmtime serve` of that path runs the same component as a third.
//!
//! usage: criw-bench-http [--rounds 10] [--seconds 2] [--clients 8] [--wasmtime PROGRAM]

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use criw_proto::v1::*;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{bench, binaries, images, plan, wait};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::Pid;
use rustix::thread::CpuSet;

const FRESH_PORT: u16 = 8080;
const REUSED_PORT: u16 = 8081;
const NATIVE_PORT: u16 = 9000;
const WASMTIME_PORT: u16 = 9001;

const USAGE: &str =
    "usage: criw-bench-http [--rounds 10] [--seconds 2] [--clients 8] [--wasmtime PROGRAM]";

struct Options {
    rounds: usize,
    time: Duration,
    clients: usize,
    wasmtime: Option<PathBuf>,
}

fn main() -> ExitCode {
    bench::main("criw-bench-http", || {
        if std::env::args().nth(1).as_deref() == Some("native") {
            return native();
        }
        let mut given = bench::Options::read(USAGE)?;
        let options = Options {
            rounds: given.number("--rounds", 10)?,
            time: Duration::from_secs(given.number("--seconds", 2)? as u64),
            clients: given.number("--clients", 8)?,
            wasmtime: given.path("--wasmtime")?,
        };
        given.end()?;
        measure(&options)
    })
}

/// The peer: one thread, as plain as hyper's own example. Ends with its parent.
fn native() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let address: SocketAddr = ([0, 0, 0, 0], NATIVE_PORT).into();
        let listener = tokio::net::TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let service = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello\n"))))
                });
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

/// A server in the network namespace of the pod; killed when dropped.
struct Server(Child);

impl Server {
    /// `command` is a program with arguments; it shares CPU 0 with the others.
    fn start(machine: &Machine, shim: i32, command: &[&OsStr]) -> Result<Self> {
        let child = machine
            .world
            .command("nsenter")
            .arg(format!("--net=/proc/{shim}/ns/net"))
            .args(["taskset", "--cpu-list", "0"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the component on a port; its process, which is on CPU 0.
fn component(machine: &Machine, pod: &Pod, image: &str, port: u16, reuse: &str) -> Result<i32> {
    let mut config = plan::container(&format!("hello-{port}"), image);
    // One CPU is one thread.
    config.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            cpu_quota: 100_000,
            cpu_period: 100_000,
            ..Default::default()
        }),
        ..Default::default()
    });
    config.envs = vec![plan::env(
        "WASMTIME_HTTP_PROXY_SOCKET_ADDR",
        format!("[::]:{port}"),
    )];
    let annotation = ("criw.dev/http-reuse".to_owned(), reuse.to_owned());
    config.annotations.extend([annotation]);
    let id = machine.run(pod, config)?;
    let shim = machine.pid(&id)?;
    pin(shim, 0)?;
    Ok(shim)
}

fn measure(options: &Options) -> Result<()> {
    let cpus = rustix::thread::sched_getaffinity(None)?.count();
    ensure!(
        cpus >= 2,
        "one CPU for the servers and one for the clients are needed"
    );
    let machine = Machine::new()?;
    let image = machine.provide("hello:1", &images::wasm("hello.component")?)?;
    let pod = machine.pod("bench")?;
    let shim = component(&machine, &pod, &image, FRESH_PORT, "1")?;
    component(&machine, &pod, &image, REUSED_PORT, "1000")?;
    let own = std::env::current_exe()?;
    let mut servers = vec![Server::start(
        &machine,
        shim,
        &[own.as_os_str(), OsStr::new("native")],
    )?];
    let mut asked = vec![
        ("component", FRESH_PORT),
        ("component, reuse", REUSED_PORT),
        ("native hyper", NATIVE_PORT),
    ];
    if let Some(wasmtime) = &options.wasmtime {
        let module = machine.world.path("hello.component.wasm");
        std::fs::write(&module, binaries::guest("hello.component")?)?;
        let listen = format!("0.0.0.0:{WASMTIME_PORT}");
        let words = ["serve", "-Scli", "--addr", &listen].map(OsStr::new);
        let command = [&[wasmtime.as_os_str()], &words[..], &[module.as_os_str()]].concat();
        servers.push(Server::start(&machine, shim, &command)?);
        asked.push(("wasmtime serve", WASMTIME_PORT));
    }
    let ip = machine.pod_ip(&pod.id)?;
    let run = |port| {
        let address = SocketAddr::from((ip, port));
        machine.world.enter(|| round(address, options))
    };
    for (_, port) in &asked {
        let address = SocketAddr::from((ip, *port));
        wait::until("the server to answer", wait::PATIENCE, || {
            machine
                .world
                .enter(|| ask(&mut connect(address)?).map(drop))
                .ok()
        })?;
        run(*port)?;
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); asked.len()];
    for _ in 0..options.rounds {
        for ((_, port), times) in asked.iter().zip(&mut times) {
            times.extend(run(*port)?);
        }
    }
    println!(
        "{} clients, {} rounds of {:?}, one server thread on CPU 0",
        options.clients, options.rounds, options.time
    );
    for ((name, _), times) in asked.iter().zip(&mut times) {
        report(name, times, options);
    }
    drop(servers);
    machine.remove_pod(&pod.id)?;
    Ok(())
}

fn report(what: &str, all: &mut [Duration], options: &Options) {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100];
    let seconds = options.time.as_secs_f64() * options.rounds as f64;
    println!(
        "{what:>16}: {:>7.0} requests/s, p50 {:?}, p99 {:?}, n = {}",
        all.len() as f64 / seconds,
        at(50),
        at(99),
        all.len()
    );
}

/// All threads of a process.
fn pin(pid: i32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = entry?.file_name().to_string_lossy().parse()?;
        rustix::thread::sched_setaffinity(Pid::from_raw(thread), &set)?;
    }
    Ok(())
}

/// Closed loop: each client asks again as soon as it is answered.
fn round(address: SocketAddr, options: &Options) -> Result<Vec<Duration>> {
    let clients: Vec<_> = (0..options.clients)
        .map(|_| {
            let time = options.time;
            std::thread::spawn(move || client(address, time))
        })
        .collect();
    let mut all = Vec::new();
    for client in clients {
        match client.join() {
            Ok(times) => all.extend(times?),
            Err(_) => bail!("a client panicked"),
        }
    }
    Ok(all)
}

fn connect(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn client(address: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    let cpus = rustix::thread::sched_getaffinity(None)?;
    let mut others = CpuSet::new();
    (1..CpuSet::MAX_CPU)
        .filter(|cpu| cpus.is_set(*cpu))
        .for_each(|cpu| others.set(cpu));
    rustix::thread::sched_setaffinity(None, &others)?;
    let mut stream = connect(address)?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        times.push(ask(&mut stream)?);
    }
    Ok(times)
}

/// One request and its whole answer.
fn ask(stream: &mut BufReader<TcpStream>) -> Result<Duration> {
    let begin = Instant::now();
    stream
        .get_mut()
        .write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n")?;
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            head if head.starts_with("HTTP/1.1 ") => ensure!(head.contains("200"), "{head}"),
            field => {
                if let Some(text) = field.strip_prefix("content-length: ") {
                    length = Some(text.parse::<usize>()?);
                }
            }
        }
    }
    // Without a length it is one chunk, "6\r\nhello\n\r\n0\r\n\r\n".
    let expected = length.unwrap_or(16);
    let mut body = vec![0; expected];
    stream.read_exact(&mut body)?;
    ensure!(
        body.windows(5).any(|part| part == b"hello"),
        "{body:?} is no hello"
    );
    Ok(begin.elapsed())
}
