//! `make bench`: what the main steps cost, measured by a CRI client of its own on a
//! daemon of its own, in a private world. A table for people, JSON for machines.
//!
//! usage: criw-bench [--n 40] [--pods 500] [--json FILE]
//!
//! Each round is one pod's life, Wasm and runc in turn; then pods are piled up and the
//! same rounds are measured again on top of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use criw_proto::v1::*;
use criw_tests::bench::{self, CpuShares, milliseconds, percentile};
use criw_tests::config::{METRICS, Network};
use criw_tests::machine::Machine;
use criw_tests::world::World;
use criw_tests::{http, images, plan, wait};
use serde_json::{Value, json};

struct Options {
    rounds: usize,
    pods: usize,
    json: Option<PathBuf>,
}

const USAGE: &str = "usage: criw-bench [--n 40] [--pods 500] [--json FILE]";

fn main() -> ExitCode {
    bench::main("criw-bench", || {
        let mut given = bench::Options::read(USAGE)?;
        let options = Options {
            rounds: given.rounds("--n", 40)?,
            pods: given.number("--pods", 500)?,
            json: given.path("--json")?,
        };
        given.end()?;
        run(&options)
    })
}

fn run(options: &Options) -> Result<()> {
    let shares = CpuShares::take();
    let machine = Machine::inside(like_a_nodes(World::new()?)?, Network::Builtin, &[])?;
    if shares.is_some() {
        bench::same_weight(&machine.world)?;
    }
    let guests = [
        Guest {
            name: "wasm",
            image: machine.provide("hello:1", &images::wasm("hello")?)?,
            argv: &["/hello.wasm"],
        },
        Guest {
            name: "runc",
            image: machine.provide("busybox:1", &images::busybox()?)?,
            argv: &["echo", "hello from linux"],
        },
    ];
    let idle = machine.provide("idle:1", &images::wasm("idle")?)?;
    let mut report = Report::default();
    println!(
        "criw-bench: built-in network, n = {}, {} pods, own cpu cgroup: {}",
        options.rounds,
        options.pods,
        if shares.is_some() { "yes" } else { "no" }
    );
    for guest in &guests {
        // Caches of the machine and the daemon are warm in both tables.
        one_life(&machine, guest, 0, &mut Steps::default())?;
    }
    report.memory("daemon RSS, no pod", resident(machine.daemon.pid())?);
    rounds(&machine, &guests, options.rounds, "first", &mut report)?;
    reads(&machine, options.rounds, "first", &mut report)?;

    let before = available()?;
    let pids = pile_up(&machine, &idle, options.pods)?;
    settle_memory()?;
    let after = available()?;
    let count = u64::try_from(pids.len().max(1))?;
    let (pss, tables) = private_memory(&pids)?;
    report.memory("one idle Wasm container, PSS", pss / count);
    report.memory("one idle Wasm container, page tables", tables / count);
    report.memory(
        "one idle Wasm pod, MemAvailable",
        before.saturating_sub(after) / count,
    );
    report.memory("daemon RSS, all pods", resident(machine.daemon.pid())?);
    rounds(&machine, &guests, options.rounds, "on top", &mut report)?;
    reads(&machine, options.rounds, "on top", &mut report)?;
    machine.remove_all_pods()?;
    report.ratios();
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, report.json(options, shares.is_some()).to_string())
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// What lasts for one boot lies in memory, as `/run` of a node does.
fn like_a_nodes(world: World) -> Result<World> {
    let state = world.subdir("run")?.to_string_lossy().into_owned();
    world.run("mount", &["-t", "tmpfs", "criw-bench", &state])?;
    Ok(world)
}

struct Guest {
    name: &'static str,
    image: String,
    argv: &'static [&'static str],
}

/// As a kubelet asks for it by default: each container with process ids of its own.
fn pod_config(machine: &Machine, name: &str) -> PodSandboxConfig {
    let mut config = machine.pod_config(name);
    if let Some(linux) = &mut config.linux {
        linux.security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    config
}

/// Durations of one life, by step.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let value = step().context(name)?;
        self.0.push((name, begin.elapsed()));
        Ok(value)
    }
}

fn one_life(machine: &Machine, guest: &Guest, round: usize, steps: &mut Steps) -> Result<()> {
    let config = pod_config(machine, &format!("{}-{round}", guest.name));
    let pod = steps.time("RunPodSandbox", || Ok(machine.run_pod(config, "")?))?;
    let container = plan::command("c", &guest.image, guest.argv);
    let id = steps.time("CreateContainer", || Ok(machine.create(&pod, container)?))?;
    let log = Path::new(&pod.config.log_directory).join("c.log");
    let begin = Instant::now();
    machine.start(&id).context("StartContainer")?;
    steps.0.push(("StartContainer, reply", begin.elapsed()));
    first_byte(&log)?;
    steps
        .0
        .push(("StartContainer to first byte in the log", begin.elapsed()));
    machine.ended(&id)?;
    steps.time("StopPodSandbox + RemovePodSandbox", || {
        Ok(machine.remove_pod(&pod.id)?)
    })?;
    Ok(())
}

/// Looks at the file without a pause: a millisecond is what is measured.
fn first_byte(log: &Path) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < wait::PATIENCE {
        if std::fs::metadata(log).is_ok_and(|log| log.len() > 0) {
            return Ok(());
        }
    }
    bail!("no byte came into {}", log.display())
}

fn rounds(
    machine: &Machine,
    guests: &[Guest],
    rounds: usize,
    when: &'static str,
    report: &mut Report,
) -> Result<()> {
    for round in 0..rounds {
        for guest in guests {
            let mut steps = Steps::default();
            one_life(machine, guest, round, &mut steps)?;
            for (step, time) in steps.0 {
                report.add(format!("{} {step}", guest.name), when, time);
            }
        }
    }
    Ok(())
}

fn reads(machine: &Machine, rounds: usize, when: &'static str, report: &mut Report) -> Result<()> {
    // One after the other: what an answer leaves to tidy up is not the next one's time.
    let mut time = |step: &str, read: &dyn Fn() -> Result<Duration>| -> Result<()> {
        for _ in 0..rounds {
            report.add(step.into(), when, read()?);
        }
        Ok(())
    };
    let client = &machine.client;
    time("Status", &|| {
        timed(|| client.status(StatusRequest::default()))
    })?;
    time("ListContainers", &|| timed(|| machine.containers()))?;
    time("ListContainerStats", &|| {
        timed(|| client.list_container_stats(Default::default()))
    })?;
    time("ListPodSandboxStats", &|| {
        timed(|| client.list_pod_sandbox_stats(Default::default()))
    })?;
    time("ListPodSandboxMetrics", &|| {
        timed(|| client.list_pod_sandbox_metrics(Default::default()))
    })?;
    time("scrape of /metrics", &|| scrape(machine))
}

fn timed<T, E: Into<anyhow::Error>>(
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<Duration> {
    let begin = Instant::now();
    call().map_err(Into::into)?;
    Ok(begin.elapsed())
}

/// How long Prometheus waits for the daemon's own page.
fn scrape(machine: &Machine) -> Result<Duration> {
    let address = METRICS.parse()?;
    machine.world.enter(|| {
        let begin = Instant::now();
        let answer = http::request(address, "GET", "/metrics", &[], b"")?;
        if answer.status != 200 {
            bail!("the scrape was answered with {}", answer.status);
        }
        Ok(begin.elapsed())
    })
}

/// What grows with the number of pods, because it tells of each.
const LISTS: [&str; 5] = [
    "ListContainers",
    "ListContainerStats",
    "ListPodSandboxStats",
    "ListPodSandboxMetrics",
    "scrape of /metrics",
];

/// Starts idle Wasm pods; the host pids of their containers.
fn pile_up(machine: &Machine, image: &str, pods: usize) -> Result<Vec<i32>> {
    let begin = Instant::now();
    let mut ids = Vec::new();
    for number in 0..pods {
        let pod = machine.run_pod(pod_config(machine, &format!("idle-{number}")), "")?;
        ids.push(machine.run(&pod, plan::container("idle", image))?);
    }
    let rate = f64::from(u32::try_from(pods)?) / begin.elapsed().as_secs_f64();
    println!("piled up {pods} idle Wasm pods at {rate:.0} a second, one client");
    for id in &ids {
        machine.logged(id, "ready")?;
    }
    ids.iter().map(|id| machine.pid(id)).collect()
}

/// Waits until the kernel's count of free memory has come to rest.
fn settle_memory() -> Result<()> {
    let mut last = available()?;
    let mut quiet = 0;
    wait::until("memory to come to rest", wait::PATIENCE, || {
        let now = available().ok()?;
        quiet = if now.abs_diff(last) < 1 << 20 {
            quiet + 1
        } else {
            0
        };
        last = now;
        (quiet >= 50).then_some(())
    })
}

/// Bytes of a `Name: 123 kB` line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn read_field(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    field(&text, name).with_context(|| format!("no {name} in {path}"))
}

fn available() -> Result<u64> {
    read_field("/proc/meminfo", "MemAvailable:")
}

fn resident(pid: u32) -> Result<u64> {
    read_field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Sums over processes: proportional set size and page tables.
fn private_memory(pids: &[i32]) -> Result<(u64, u64)> {
    let (mut pss, mut tables) = (0, 0);
    for pid in pids {
        pss += read_field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
        tables += read_field(&format!("/proc/{pid}/status"), "VmPTE:")?;
    }
    Ok((pss, tables))
}

/// All samples, by step and moment.
#[derive(Default)]
struct Report {
    times: Vec<(String, &'static str, Vec<Duration>)>,
    memory: Vec<(String, u64)>,
    ratios: Vec<(String, f64)>,
}

impl Report {
    fn add(&mut self, step: String, when: &'static str, time: Duration) {
        match self
            .times
            .iter_mut()
            .find(|(name, moment, _)| *name == step && *moment == when)
        {
            Some((_, _, samples)) => samples.push(time),
            None => self.times.push((step, when, vec![time])),
        }
    }

    fn memory(&mut self, what: &str, bytes: u64) {
        self.memory.push((what.into(), bytes));
    }

    /// How much slower each step is on top of all pods than at first, [`LISTS`] aside.
    fn ratios(&mut self) {
        let of = |moment: &str| {
            self.times
                .iter()
                .filter(move |(step, when, _)| *when == moment && !LISTS.contains(&step.as_str()))
                .map(|(step, _, samples)| (step.clone(), percentile(samples, 50).as_secs_f64()))
                .collect::<Vec<_>>()
        };
        let first = of("first");
        self.ratios = of("on top")
            .into_iter()
            .filter_map(|(step, late)| {
                let (_, early) = first.iter().find(|(name, _)| *name == step)?;
                Some((step, late / early))
            })
            .collect();
    }

    fn print(&self) {
        println!(
            "{:<52}{:>8}{:>10}{:>10}{:>5}",
            "step, ms", "", "p50", "p99", "n"
        );
        for (step, when, samples) in &self.times {
            println!(
                "{step:<52}{when:>8}{:>10.3}{:>10.3}{:>5}",
                milliseconds(samples, 50),
                milliseconds(samples, 99),
                samples.len()
            );
        }
        for (step, ratio) in &self.ratios {
            println!("{step:<52}{:>8}{ratio:>10.2}", "ratio");
        }
        for (what, bytes) in &self.memory {
            println!("{what:<52}{:>8}{:>10} kB", "", bytes / 1024);
        }
    }

    fn json(&self, options: &Options, own_cgroup: bool) -> Value {
        json!({
            "rounds": options.rounds,
            "pods": options.pods,
            "own_cpu_cgroup": own_cgroup,
            "times": self.times.iter().map(|(step, when, samples)| json!({
                "step": step,
                "when": when,
                "n": samples.len(),
                "p50_ms": milliseconds(samples, 50),
                "p99_ms": milliseconds(samples, 99),
            })).collect::<Vec<_>>(),
            "ratios": self.ratios.iter().map(|(step, ratio)| json!({"step": step, "ratio": ratio})).collect::<Vec<_>>(),
            "memory": self.memory.iter().map(|(what, bytes)| json!({"what": what, "bytes": bytes})).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lines_are_read() {
        assert_eq!(
            field("MemFree: 1 kB\nMemAvailable:  12 kB\n", "MemAvailable:"),
            Some(12 << 10)
        );
        assert_eq!(field("", "Pss:"), None);
    }
}
