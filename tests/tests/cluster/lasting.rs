//! The daemon or the kubelet ends in the middle: pods run on and are served, and nothing
//! counts as restarted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use criw_tests::kubelet::mounts_left;
use criw_tests::reboot;
use serde_json::Value;

use crate::checks::{Check, alone};
use crate::cluster::{Cluster, container, is_ready, name};

pub(crate) const CHECKS: &[Check] = &[
    alone(
        "lasting::pods_are_served_while_the_daemon_is_killed",
        MANIFESTS,
        daemon,
    ),
    alone(
        "lasting::pods_are_served_while_the_kubelet_is_away",
        MANIFESTS,
        kubelet,
    ),
    alone("lasting::pods_are_back_after_a_reboot", MANIFESTS, rebooted),
];

const MANIFESTS: &[&str] = &["web", "linux-web", "scaled", "ordered", "resized"];

/// Pods that run for ever, by their label.
const STEADY: [&str; 5] = ["web", "linux-web", "scaled", "ordered", "everywhere"];

/// Id, count of restarts, time of the start and process of each container.
type Memory = BTreeMap<String, (String, Value, Value, i32)>;

fn remember(cluster: &Cluster) -> Result<Memory> {
    let mut memory = Memory::new();
    for app in STEADY {
        for pod in cluster.pods(app)? {
            ensure!(is_ready(&pod), "{} is not ready", name(&pod));
            for status in pod["status"]["containerStatuses"]
                .as_array()
                .context("no containers")?
            {
                let id = status["containerID"].as_str().unwrap_or_default();
                let bare = id.strip_prefix("criw://").context("whose id")?.to_owned();
                let pid = cluster.machine.pid(&bare)?;
                let key = format!("{}/{}", name(&pod), status["name"]);
                let started = status["state"]["running"]["startedAt"].clone();
                memory.insert(key, (bare, status["restartCount"].clone(), started, pid));
            }
        }
    }
    ensure!(memory.len() >= 7, "only {memory:?}");
    Ok(memory)
}

/// All is ready; a snapshot of it.
fn steady(cluster: &Cluster) -> Result<Memory> {
    let mut last = None;
    cluster
        .until("all pods to be ready", || match remember(cluster) {
            Ok(memory) => Some(memory),
            Err(error) => {
                last = Some(error);
                None
            }
        })
        .with_context(|| format!("{last:?}"))
}

fn served(cluster: &Cluster) -> Result<()> {
    let answer = cluster.http("10.96.0.80:80", "/")?;
    ensure!(answer.contains("hello from a component"), "{answer}");
    let answer = cluster.http("10.96.0.83:80", "/")?;
    ensure!(answer.contains("linux "), "{answer}");
    Ok(())
}

/// A Deployment can be scaled up and is as before afterwards: everybody works again.
fn works(cluster: &Cluster) -> Result<()> {
    cluster.ready_pods("scaled", 2)?;
    cluster.kubectl(&["scale", "deployment", "scaled", "--replicas=1"])?;
    cluster.ready_pods("scaled", 1).map(drop)
}

fn ask_for_one_more(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl(&["scale", "deployment", "scaled", "--replicas=2"])
        .map(drop)
}

fn unchanged(cluster: &Cluster, memory: &Memory) -> Result<()> {
    let mut now = steady(cluster)?;
    // Which of the two pods is given up is the controller's choice.
    let others = |memory: &mut Memory| memory.retain(|key, _| !key.starts_with("scaled-"));
    others(&mut now);
    let mut memory = memory.clone();
    others(&mut memory);
    ensure!(now == memory, "{memory:#?} became {now:#?}");
    Ok(())
}

fn daemon(cluster: &mut Cluster) -> Result<()> {
    let memory = steady(cluster)?;
    let log = cluster.machine.world.path("kubelet.log");
    let said = usize::try_from(std::fs::metadata(&log)?.len())?;
    cluster.machine.daemon.kill()?;
    ask_for_one_more(cluster)?;
    served(cluster)?;
    // What it said before does not count.
    cluster.until("the kubelet to miss the daemon", || {
        let log = std::fs::read(&log).ok()?;
        let text = String::from_utf8_lossy(log.get(said..)?).into_owned();
        text.contains("dial unix").then_some(())
    })?;
    cluster.machine.restart(reboot::FIRST)?;
    works(cluster)?;
    served(cluster)?;
    unchanged(cluster, &memory)
}

fn kubelet(cluster: &mut Cluster) -> Result<()> {
    let memory = steady(cluster)?;
    if let Some(mut kubelet) = cluster.kubelet.take() {
        kubelet.terminate()?;
    }
    ask_for_one_more(cluster)?;
    served(cluster)?;
    cluster.start_kubelet()?;
    works(cluster)?;
    served(cluster)?;
    unchanged(cluster, &memory)
}

/// The node loses its processes, mounts and namespaces; the control plane lives elsewhere.
fn rebooted(cluster: &mut Cluster) -> Result<()> {
    let before = steady(cluster)?;
    if let Some(mut kubelet) = cluster.kubelet.take() {
        kubelet.terminate()?;
    }
    cluster.machine.daemon.kill()?;
    let world = &cluster.machine.world;
    reboot::take_away(world)?;
    for mount in mounts_left(world)? {
        world.run("umount", &["-l", &mount])?;
    }
    cluster.machine.restart(reboot::SECOND)?;
    cluster.start_kubelet()?;
    let mut last = String::new();
    cluster
        .until("all containers to be restarted", || {
            let now = match remember(cluster) {
                Ok(now) => now,
                Err(error) => {
                    last = format!("{error:#}");
                    return None;
                }
            };
            last = format!("{now:?}");
            let restarted = |key: &String, (id, count, ..): &(String, Value, Value, i32)| {
                now.get(key).is_some_and(|(other, more, ..)| {
                    other != id && more.as_u64() == count.as_u64().map(|count| count + 1)
                })
            };
            before
                .iter()
                .all(|(key, container)| restarted(key, container))
                .then_some(())
        })
        .with_context(|| last.clone())?;
    // What was lost is told as lost.
    for pod in cluster.pods("web")? {
        let ended = &container(&pod, "server")?["lastState"]["terminated"];
        ensure!(
            ended["exitCode"] == 255 && ended["reason"] == "Unknown",
            "{ended}"
        );
    }
    served(cluster)
}
