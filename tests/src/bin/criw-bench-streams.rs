//! `make bench-streams`: what a byte costs on its way into and out of a container, and how
//! long an exec takes to answer. So many megabytes go through exec's standard input and output
//! and through a forwarded port, each way, and are compared with what was sent; then
//! `ExecSync` and a streaming exec are asked for one word. With `--containerd` the same on
//! containerd with the same runc, by the same client over SPDY. The runtimes take turns.
//!
//! CPU time is that of the daemon and of all in the cgroups of its pods: shims, runc, and the
//! command that reads or writes (`cat`, `dd`). The other end of a forwarded port is a thread of this program
//! in the pod's network, so there it is the runtime's alone.
//!
//! usage: criw-bench-streams [--n 30] [--megabytes 200] [--containerd DIRECTORY]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use criw_proto::v1::*;
use criw_tests::bench::{self, CpuCount, CpuShares, Runtime, milliseconds, percentile};
use criw_tests::config::Network;
use criw_tests::containerd::Containerd;
use criw_tests::machine::Machine;
use criw_tests::noise::noise;
use criw_tests::spdy::Spdy;
use criw_tests::{images, plan, wait};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const USAGE: &str = "usage: criw-bench-streams [--n 30] [--megabytes 200] [--containerd DIRECTORY]";

/// Where the pod's end of a forwarded port listens, in the pod.
const PORT: u16 = 9000;

struct Options {
    rounds: usize,
    megabytes: usize,
    containerd: Option<PathBuf>,
}

fn main() -> ExitCode {
    bench::main("criw-bench-streams", || {
        let mut given = bench::Options::read(USAGE)?;
        let options = Options {
            rounds: given.rounds("--n", 30)?,
            megabytes: given.number("--megabytes", 200)?,
            containerd: given.path("--containerd")?,
        };
        given.end()?;
        run(&options)
    })
}

fn run(options: &Options) -> Result<()> {
    let shares = CpuShares::take();
    let bytes = noise(options.megabytes * 1_000_000);
    let shared = Shared::new(&bytes)?;
    let mut runtimes = vec![(
        "criw".to_owned(),
        Runtime::Criw(Box::new(Machine::with(Network::Cni, &[])?)),
    )];
    if let Some(programs) = &options.containerd {
        let containerd = Containerd::start(programs)?;
        let name = format!("containerd {}", containerd.version()?);
        runtimes.push((name, Runtime::Containerd(Box::new(containerd))));
    }
    let mut targets = Vec::new();
    for (name, runtime) in &runtimes {
        if shares.is_some() {
            bench::same_weight(runtime.world())?;
        }
        targets.push(Target::linux(name, runtime, &shared)?);
        if let Runtime::Criw(_) = runtime {
            targets.push(Target::wasm(name, runtime, &shared)?);
        }
    }
    println!(
        "criw-bench-streams: n = {}, {} MB each, own cpu cgroup: {}",
        options.rounds,
        options.megabytes,
        if shares.is_some() { "yes" } else { "no" }
    );
    let mut rows: Vec<Row> = Vec::new();
    let mut failed: Vec<(Way, &str)> = Vec::new();
    // The first round warms caches and is not shown.
    for round in 0..=options.rounds {
        for way in WAYS {
            for target in &targets {
                // A peer that fails once is told and left out of that row; ours may not.
                if failed.iter().any(|known| *known == (way, &*target.name)) {
                    continue;
                }
                match target.measure(way, &bytes, &shared) {
                    Ok((time, cpu)) if round > 0 => {
                        Row::add(&mut rows, way, &target.name, time, cpu);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let text = format!("{}: {}: {error:#}", target.name, way.name());
                        ensure!(matches!(target.runtime, Runtime::Containerd(_)), text);
                        println!("{text}");
                        failed.push((way, &target.name));
                    }
                }
            }
        }
    }
    print(&rows, options.megabytes);
    for target in &targets {
        target.runtime.remove_pod(&target.pod)?;
    }
    Ok(())
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ExecIn,
    ExecOut,
    ForwardIn,
    ForwardOut,
    ExecSync,
    ExecWord,
}

const WAYS: [Way; 6] = [
    Way::ExecIn,
    Way::ExecOut,
    Way::ForwardIn,
    Way::ForwardOut,
    Way::ExecSync,
    Way::ExecWord,
];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::ExecIn => "exec, standard input",
            Self::ExecOut => "exec, standard output",
            Self::ForwardIn => "port-forward, to the pod",
            Self::ForwardOut => "port-forward, from the pod",
            Self::ExecSync => "ExecSync, to its reply",
            Self::ExecWord => "exec, to the first byte",
        }
    }

    fn carries_much(self) -> bool {
        !matches!(self, Self::ExecSync | Self::ExecWord)
    }
}

/// A directory in memory that every container has at `/shared`; dropped, it goes.
struct Shared(PathBuf);

impl Shared {
    fn new(bytes: &[u8]) -> Result<Self> {
        let directory = PathBuf::from(format!("/dev/shm/criw-bench-{}", std::process::id()));
        std::fs::create_dir(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let shared = Self(directory);
        std::fs::write(shared.0.join("out"), bytes)?;
        Ok(shared)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

/// A container of a runtime.
struct Target<'a> {
    name: String,
    runtime: &'a Runtime,
    pod: String,
    container: String,
    /// A command that writes its standard input to `/shared/in`.
    sink: &'static [&'static str],
    cpu: CpuCount,
}

impl<'a> Target<'a> {
    fn linux(name: &str, runtime: &'a Runtime, shared: &Shared) -> Result<Self> {
        let image = runtime.provide("busybox:1", &images::busybox()?)?;
        let argv = ["sleep", "86400"];
        let container = plan::command("c", &image, &argv);
        // The shell stays, with its standard output open: as soon as a command closes that,
        // containerd 2.4 takes its input away too (its issue 13934), and bytes are lost.
        let sink = &["sh", "-c", "cat > /shared/in; true"];
        Self::of(format!("{name}, Linux"), runtime, container, sink, shared)
    }

    fn wasm(name: &str, runtime: &'a Runtime, shared: &Shared) -> Result<Self> {
        let image = runtime.provide("idle:1", &images::wasm("idle")?)?;
        let container = plan::container("c", &image);
        // Without a shell: there a command of a shell is a process of its own.
        let sink = &["dd", "of=/shared/in", "bs=64k"];
        Self::of(format!("{name}, Wasm"), runtime, container, sink, shared)
    }

    fn of(
        name: String,
        runtime: &'a Runtime,
        mut container: ContainerConfig,
        sink: &'static [&'static str],
        shared: &Shared,
    ) -> Result<Self> {
        container
            .mounts
            .push(plan::mount(&shared.0, "/shared", false));
        // First: shims of containerd are born in its daemon's group.
        let cpu = runtime.count_cpu()?;
        let pod = runtime.run_pod(&name.replace([',', ' '], "-").to_lowercase())?;
        let container = runtime.run(&pod, container)?;
        Ok(Self {
            name,
            runtime,
            pod: pod.0,
            container,
            sink,
            cpu,
        })
    }

    fn measure(&self, way: Way, bytes: &[u8], shared: &Shared) -> Result<(Duration, Duration)> {
        let before = self.cpu.used()?;
        let time = match way {
            Way::ExecIn => self.exec_in(bytes, shared)?,
            Way::ExecOut => self.exec_out(bytes)?,
            Way::ForwardIn => self.forward(bytes, true)?,
            Way::ForwardOut => self.forward(bytes, false)?,
            Way::ExecSync => self.exec_sync()?,
            Way::ExecWord => self.exec_word()?,
        };
        Ok((time, self.cpu.used()?.saturating_sub(before)))
    }

    /// Asks for an exec and opens its streams as kubectl does: error, stdin when it is wanted,
    /// stdout and stderr.
    fn exec(&self, argv: &[&str], stdin: bool) -> Result<(Spdy, u32, u32, Option<u32>)> {
        let url = self
            .runtime
            .client()
            .exec(ExecRequest {
                container_id: self.container.clone(),
                cmd: argv.iter().map(|word| (*word).to_owned()).collect(),
                stdin,
                stdout: true,
                stderr: true,
                ..Default::default()
            })?
            .url;
        let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io")?;
        let error = spdy.open(&[("streamtype", "error")])?;
        let input = match stdin {
            true => Some(spdy.open(&[("streamtype", "stdin")])?),
            false => None,
        };
        let output = spdy.open(&[("streamtype", "stdout")])?;
        spdy.open(&[("streamtype", "stderr")])?;
        Ok((spdy, error, output, input))
    }

    fn exec_in(&self, bytes: &[u8], shared: &Shared) -> Result<Duration> {
        let file = shared.0.join("in");
        let time = self.runtime.world().enter(|| {
            let begin = Instant::now();
            let (mut spdy, error, _, input) = self.exec(self.sink, true)?;
            let input = input.context("no stdin was opened")?;
            spdy.send_all(input, bytes)?;
            spdy.end(input)?;
            succeeded(&mut spdy, error)?;
            Ok(begin.elapsed())
        })?;
        let arrived = std::fs::read(&file)?;
        same(&arrived, bytes)?;
        // Each run makes it anew, or the second would find its pages there already.
        std::fs::remove_file(file)?;
        Ok(time)
    }

    fn exec_out(&self, bytes: &[u8]) -> Result<Duration> {
        self.runtime.world().enter(|| {
            let mut arrived = Vec::with_capacity(bytes.len());
            let begin = Instant::now();
            let command = ["dd", "if=/shared/out", "bs=64k"];
            let (mut spdy, error, output, _) = self.exec(&command, false)?;
            spdy.all_into(output, &mut arrived)?;
            let time = begin.elapsed();
            succeeded(&mut spdy, error)?;
            same(&arrived, bytes)?;
            Ok(time)
        })
    }

    /// One connection through a forwarded port, from the request to the last byte.
    fn forward(&self, bytes: &[u8], to_the_pod: bool) -> Result<Duration> {
        let netns = format!("/proc/{}/ns/net", self.runtime.pid_of(&self.container)?);
        let netns = File::open(&netns).with_context(|| format!("open {netns}"))?;
        let (listening, wait) = mpsc::channel();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
                listening.send(())?;
                let mut coming = [PollFd::new(&listener, PollFlags::IN)];
                let limit = Timespec::try_from(wait::PATIENCE)?;
                ensure!(
                    rustix::event::poll(&mut coming, Some(&limit))? == 1,
                    "nobody connects"
                );
                let (mut socket, _) = listener.accept()?;
                if !to_the_pod {
                    socket.write_all(bytes)?;
                    return Ok((Vec::new(), Instant::now()));
                }
                let mut arrived = Vec::with_capacity(bytes.len());
                socket.read_to_end(&mut arrived)?;
                anyhow::Ok((arrived, Instant::now()))
            });
            // It fails when the server has failed, which says why.
            let client = wait
                .recv()
                .context("the server in the pod does not listen")
                .and_then(|()| {
                    self.runtime
                        .world()
                        .enter(|| self.client(bytes, to_the_pod))
                });
            let server = match server.join() {
                Ok(server) => server.context("the server in the pod")?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            let (begin, mut arrived, mut end) = client?;
            if to_the_pod {
                (arrived, end) = server;
            }
            same(&arrived, bytes)?;
            Ok(end.duration_since(begin))
        })
    }

    fn client(&self, bytes: &[u8], to_the_pod: bool) -> Result<(Instant, Vec<u8>, Instant)> {
        let mut arrived = Vec::with_capacity(if to_the_pod { 0 } else { bytes.len() });
        let begin = Instant::now();
        let url = self
            .runtime
            .client()
            .port_forward(PortForwardRequest {
                pod_sandbox_id: self.pod.clone(),
                ..Default::default()
            })?
            .url;
        let mut spdy = Spdy::connect(&url, "portforward.k8s.io")?;
        let port = PORT.to_string();
        let one = |kind| [("streamtype", kind), ("port", &*port), ("requestid", "0")];
        let error = spdy.open(&one("error"))?;
        spdy.end(error)?;
        let data = spdy.open(&one("data"))?;
        if to_the_pod {
            spdy.send_all(data, bytes)?;
            spdy.end(data)?;
        }
        spdy.all_into(data, &mut arrived)?;
        let end = Instant::now();
        let said = spdy.all(error)?;
        ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
        Ok((begin, arrived, end))
    }

    fn exec_sync(&self) -> Result<Duration> {
        let begin = Instant::now();
        let done = self.runtime.client().exec_sync(ExecSyncRequest {
            container_id: self.container.clone(),
            cmd: vec!["echo".into(), "hello".into()],
            timeout: 30,
        })?;
        let time = begin.elapsed();
        ensure!(done.exit_code == 0 && done.stdout == b"hello\n", "{done:?}");
        Ok(time)
    }

    fn exec_word(&self) -> Result<Duration> {
        self.runtime.world().enter(|| {
            let begin = Instant::now();
            let (mut spdy, error, output, _) = self.exec(&["echo", "hello"], false)?;
            while spdy.data.get(&output).is_none_or(Vec::is_empty) {
                ensure!(spdy.step()?, "the server closed");
            }
            let time = begin.elapsed();
            let said = spdy.all(output)?;
            ensure!(said == b"hello\n", "{:?}", String::from_utf8_lossy(&said));
            succeeded(&mut spdy, error)?;
            Ok(time)
        })
    }
}

/// Bit for bit.
fn same(arrived: &[u8], sent: &[u8]) -> Result<()> {
    if arrived == sent {
        return Ok(());
    }
    let alike = arrived.iter().zip(sent).take_while(|(a, b)| a == b);
    bail!(
        "{} bytes arrived of {}, the first {} as they were sent",
        arrived.len(),
        sent.len(),
        alike.count()
    )
}

/// Waits for how an exec ended.
fn succeeded(spdy: &mut Spdy, error: u32) -> Result<()> {
    let status = spdy.all(error)?;
    let status: serde_json::Value = serde_json::from_slice(&status)
        .with_context(|| format!("status {:?}", String::from_utf8_lossy(&status)))?;
    if status["status"] != "Success" {
        bail!("the command ended with {status}");
    }
    Ok(())
}

/// All rounds of a way on a target.
struct Row {
    way: Way,
    target: String,
    times: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Row {
    fn add(rows: &mut Vec<Self>, way: Way, target: &str, time: Duration, cpu: Duration) {
        let known = |row: &&mut Self| row.way == way && row.target == target;
        match rows.iter_mut().find(known) {
            Some(row) => {
                row.times.push(time);
                row.cpu.push(cpu);
            }
            None => rows.push(Self {
                way,
                target: target.to_owned(),
                times: vec![time],
                cpu: vec![cpu],
            }),
        }
    }
}

fn print(rows: &[Row], megabytes: usize) {
    println!(
        "{:<28}{:<26}{:>20}{:>18}{:>10}{:>5}",
        "", "", "p50 / p99, ms", "CPU p50 / p99, ms", "MB/s", "n"
    );
    for row in rows {
        let both = |samples: &[Duration]| {
            let (half, most) = (milliseconds(samples, 50), milliseconds(samples, 99));
            format!("{half:.1} / {most:.1}")
        };
        let rate = match row.way.carries_much() {
            true => {
                let rate = megabytes as f64 / percentile(&row.times, 50).as_secs_f64();
                format!("{rate:.0}")
            }
            false => String::new(),
        };
        println!(
            "{:<28}{:<26}{:>20}{:>18}{rate:>10}{:>5}",
            row.way.name(),
            row.target,
            both(&row.times),
            both(&row.cpu),
            row.times.len()
        );
    }
}
