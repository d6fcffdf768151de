//! `make bench-kubelet`: how long a pod takes under a real kubelet, from its manifest to
//! `Ready` and from the manifest's end to the pod's, on criw and, with `--containerd`, on
//! containerd with the same runc, CNI plugins and conflist. Each runtime has a kubelet and
//! a world of its own; one pod lives at a time, and the kinds take turns.
//!
//! The kubelet looks at its containers once a second, which is most of what is measured.
//! So its own figures stand beside: the time that it waited for the runtime.
//!
//! usage: criw-bench-kubelet [--n 30] [--containerd DIRECTORY]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use criw_tests::bench::{self, CpuShares, Runtime, milliseconds};
use criw_tests::config::Network;
use criw_tests::containerd::Containerd;
use criw_tests::kubelet::{self, Kubelet};
use criw_tests::machine::Machine;
use criw_tests::{images, wait};
use serde_json::{Value, json};

const USAGE: &str = "usage: criw-bench-kubelet [--n 30] [--containerd DIRECTORY]";

/// With all that a kubelet does before it starts a pod.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a start waits for, by the kubelet's names.
const START: [&str; 3] = ["run_podsandbox", "create_container", "start_container"];

struct Options {
    rounds: usize,
    containerd: Option<PathBuf>,
}

fn main() -> ExitCode {
    bench::main("criw-bench-kubelet", || {
        let mut given = bench::Options::read(USAGE)?;
        let options = Options {
            rounds: given.rounds("--n", 30)?,
            containerd: given.path("--containerd")?,
        };
        given.end()?;
        run(&options)
    })
}

fn run(options: &Options) -> Result<()> {
    let shares = CpuShares::take();
    let mut nodes = vec![
        Node::criw("criw, bridge", Network::Cni)?,
        Node::criw("criw, built-in", Network::Builtin)?,
    ];
    if let Some(programs) = &options.containerd {
        nodes.push(Node::containerd(programs)?);
    }
    println!(
        "criw-bench-kubelet: n = {}, own cpu cgroup: {}",
        options.rounds,
        if shares.is_some() { "yes" } else { "no" }
    );
    if shares.is_some() {
        for node in &nodes {
            bench::same_weight(node.runtime.world())?;
        }
    }
    for node in &nodes {
        for kind in &node.kinds {
            // Caches are warm in what follows.
            life(node, kind, "warm")?;
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..options.rounds {
        for node in &nodes {
            for kind in &node.kinds {
                let times = life(node, kind, &round.to_string())?;
                let name = format!("{}: {}", node.name, kind.name);
                match rows.iter_mut().find(|row| row.name == name) {
                    Some(row) => row.times.push(times),
                    None => rows.push(Row {
                        name,
                        times: vec![times],
                    }),
                }
            }
        }
    }
    print(&rows);
    Ok(())
}

/// A kubelet on a runtime.
struct Node {
    name: String,
    kinds: Vec<Kind>,
    kubelet: Kubelet,
    /// After the kubelet, which lives in its world.
    runtime: Runtime,
}

/// What a pod of one container is made from.
struct Kind {
    name: &'static str,
    image: String,
    argv: &'static [&'static str],
}

/// Ends at once when it is told to, as the Wasm guest does.
const LINUX: &[&str] = &[
    "sh",
    "-c",
    "trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait $!; done",
];

impl Node {
    fn criw(name: &str, network: Network) -> Result<Self> {
        let machine = Machine::with(network, &[])?;
        let kinds = vec![
            Kind {
                name: "Wasm",
                image: machine.provide("idle:1", &images::wasm("idle")?)?,
                argv: &[],
            },
            Kind {
                name: "Linux",
                image: machine.provide("busybox:1", &images::busybox()?)?,
                argv: LINUX,
            },
        ];
        Self::with(name.to_owned(), kinds, Runtime::Criw(Box::new(machine)))
    }

    fn containerd(programs: &std::path::Path) -> Result<Self> {
        let containerd = Containerd::start(programs)?;
        let kinds = vec![Kind {
            name: "Linux",
            image: containerd.provide("busybox:1", &images::busybox()?)?,
            argv: LINUX,
        }];
        let name = format!("containerd {}, bridge", containerd.version()?);
        Self::with(name, kinds, Runtime::Containerd(Box::new(containerd)))
    }

    fn with(name: String, kinds: Vec<Kind>, runtime: Runtime) -> Result<Self> {
        kubelet::prepare(runtime.world())?;
        Ok(Self {
            name,
            kinds,
            kubelet: Kubelet::start(runtime.world(), &json!({}))?,
            runtime,
        })
    }

    fn pod(&self, name: &str) -> Result<Option<Value>> {
        let text = self.kubelet.get(self.runtime.world(), "/pods")?;
        let list: Value = serde_json::from_str(&text)?;
        let full = format!("{name}-{}", kubelet::NODE);
        let pods = list["items"].as_array();
        Ok(pods.and_then(|pods| {
            pods.iter()
                .find(|pod| pod["metadata"]["name"] == *full)
                .cloned()
        }))
    }

    /// How long the kubelet has waited for the runtime so far, to start pods.
    fn waited(&self) -> Result<Duration> {
        let text = self.kubelet.get(self.runtime.world(), "/metrics")?;
        let mut sum = Duration::ZERO;
        for operation in START {
            let name = format!(
                "kubelet_runtime_operations_duration_seconds_sum{{operation_type=\"{operation}\"}} "
            );
            if let Some(value) = text.lines().find_map(|line| line.strip_prefix(&name)) {
                sum += Duration::from_secs_f64(value.trim().parse()?);
            }
        }
        Ok(sum)
    }
}

/// One pod's life as its user sees it.
struct Times {
    ready: Duration,
    runtime: Duration,
    gone: Duration,
}

fn life(node: &Node, kind: &Kind, round: &str) -> Result<Times> {
    let world = node.runtime.world();
    let name = format!("{}-{round}", kind.name.to_lowercase());
    let mut container = json!({"name": "c", "image": kind.image});
    if !kind.argv.is_empty() {
        container["command"] = json!(kind.argv);
    }
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    });
    // Whole or not at all: the kubelet watches the directory.
    let unfinished = world.path("manifest.new");
    std::fs::write(&unfinished, manifest.to_string())?;
    let place = world.path("manifests").join(format!("{name}.json"));
    let waited = node.waited()?;
    let begin = Instant::now();
    std::fs::rename(unfinished, &place)?;
    wait::until(&format!("{name} to be ready"), PATIENCE, || {
        let pod = node.pod(&name).ok()??;
        let conditions = pod["status"]["conditions"].as_array()?;
        conditions
            .iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
            .then_some(())
    })
    .with_context(|| format!("{}: {:?}", node.name, node.pod(&name)))?;
    let ready = begin.elapsed();
    let runtime = node.waited()?.saturating_sub(waited);
    let begin = Instant::now();
    std::fs::remove_file(place)?;
    wait::until(&format!("{name} to be gone"), PATIENCE, || {
        node.pod(&name).ok()?.is_none().then_some(())
    })
    .with_context(|| node.name.clone())?;
    Ok(Times {
        ready,
        runtime,
        gone: begin.elapsed(),
    })
}

/// All lives of a kind on a node.
struct Row {
    name: String,
    times: Vec<Times>,
}

fn print(rows: &[Row]) {
    println!(
        "{:<36}{:>18}{:>18}{:>18}{:>5}",
        "ms, p50 / p99", "created to Ready", "thereof runtime", "removed to gone", "n"
    );
    for row in rows {
        let column = |of: fn(&Times) -> Duration| {
            let samples: Vec<Duration> = row.times.iter().map(of).collect();
            let at = |percent| milliseconds(&samples, percent);
            format!("{:.0} / {:.0}", at(50), at(99))
        };
        println!(
            "{:<36}{:>18}{:>18}{:>18}{:>5}",
            row.name,
            column(|times| times.ready),
            column(|times| times.runtime),
            column(|times| times.gone),
            row.times.len()
        );
    }
}
