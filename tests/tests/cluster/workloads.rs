//! What controllers make of pods: Deployments, Jobs, StatefulSets, DaemonSets.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use criw_tests::http;
use serde_json::Value;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, address, container, name};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "workloads::a_wasm_deployment_is_scaled_up_and_down",
        &["scaled"],
        scaled,
    ),
    beside(
        "workloads::a_wasm_deployment_is_updated_without_a_failed_request",
        &["web"],
        |cluster| {
            updated(
                cluster,
                "web",
                "10.96.0.80:80",
                "/env",
                "VERSION=one",
                "VERSION=two",
            )
        },
    ),
    beside(
        "workloads::a_linux_deployment_is_updated_without_a_failed_request",
        &["linux-web"],
        |cluster| {
            updated(
                cluster,
                "linux-web",
                "10.96.0.83:80",
                "/",
                "linux one on linux-web-",
                "linux two on linux-web-",
            )
        },
    ),
    beside("workloads::a_wasm_job_completes", &["jobs"], job),
    beside(
        "workloads::a_failing_wasm_job_is_tried_again_and_given_up",
        &["jobs"],
        failing_job,
    ),
    beside(
        "workloads::a_jobs_failure_policy_sees_the_code_of_a_trap",
        &["jobs"],
        policy,
    ),
    beside(
        "workloads::pods_of_a_stateful_set_keep_their_names",
        &["ordered"],
        stateful,
    ),
    beside(
        "workloads::a_daemon_set_runs_on_the_node",
        &["ordered"],
        |cluster| cluster.ready_pods("everywhere", 1).map(drop),
    ),
];

/// Who answers at a Service, by the name of the pod, until so many have.
fn answering(cluster: &Cluster, service: &str, count: usize) -> Result<BTreeSet<String>> {
    let address = service.parse()?;
    let mut names = BTreeSet::new();
    cluster.until(&format!("{count} pods to answer at {service}"), || {
        let answer = cluster
            .machine
            .world
            .enter(|| http::get(address, "/env"))
            .ok()?;
        let pod = answer.lines().find_map(|line| line.strip_prefix("POD="))?;
        names.insert(pod.to_owned());
        (names.len() == count).then_some(())
    })?;
    Ok(names)
}

fn scaled(cluster: &Cluster) -> Result<()> {
    let service = "10.96.0.82:80";
    let first = name(&cluster.ready_pods("scaled", 1)?[0]);
    cluster.kubectl(&["scale", "deployment", "scaled", "--replicas=3"])?;
    let pods = cluster.ready_pods("scaled", 3)?;
    for pod in &pods {
        let answer = cluster.http(&address(pod, 8080)?, "/env")?;
        ensure!(answer.contains(&format!("POD={}", name(pod))), "{answer}");
    }
    let names: BTreeSet<String> = pods.iter().map(name).collect();
    ensure!(
        answering(cluster, service, 3)? == names && names.contains(&first),
        "{names:?}"
    );
    cluster.kubectl(&["scale", "deployment", "scaled", "--replicas=1"])?;
    let last = name(&cluster.ready_pods("scaled", 1)?[0]);
    // kube-proxy hears of it a moment later; then nobody else is asked any more.
    let address = service.parse()?;
    let mut alone = 0;
    cluster.until("only one pod to answer", || {
        let answer = cluster
            .machine
            .world
            .enter(|| http::get(address, "/env"))
            .unwrap_or_default();
        alone = if answer.contains(&format!("POD={last}\n")) {
            alone + 1
        } else {
            0
        };
        (alone == 10).then_some(())
    })
}

/// Changes an environment variable of a Deployment, under requests to its Service.
fn updated(
    cluster: &Cluster,
    deployment: &str,
    service: &str,
    target: &str,
    old: &str,
    new: &str,
) -> Result<()> {
    cluster.ready_pods(deployment, 2)?;
    let before = cluster.http(service, target)?;
    ensure!(before.contains(old), "{before}");
    let done = AtomicBool::new(false);
    let asked = AtomicU32::new(0);
    let address = service.parse()?;
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let answer = cluster
                    .machine
                    .world
                    .enter(|| http::get(address, target))
                    .with_context(|| format!("request {number}"))?;
                ensure!(answer.contains(old) || answer.contains(new), "{answer}");
            }
            Ok(())
        });
        let rolled = roll(cluster, deployment).and_then(|()| {
            let answer = cluster.http(service, target)?;
            ensure!(answer.contains(new), "{answer}");
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let result = asking.join();
        rolled?;
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let asked = asked.load(Ordering::Relaxed);
    ensure!(asked > 20, "only {asked} requests");
    Ok(())
}

fn roll(cluster: &Cluster, deployment: &str) -> Result<()> {
    let object = format!("deployment/{deployment}");
    cluster.kubectl(&["set", "env", &object, "VERSION=two"])?;
    cluster.kubectl(&["rollout", "status", &object, "--timeout=110s"])?;
    // Old pods are still on their way out.
    cluster.ready_pods(deployment, 2).map(drop)
}

/// Waits until a job has come to that end; its object.
fn ended(cluster: &Cluster, job: &str, condition: &str) -> Result<Value> {
    let path = format!("/apis/batch/v1/namespaces/default/jobs/{job}");
    let mut last = Value::Null;
    cluster
        .until(&format!("{job} to be {condition}"), || {
            last = cluster.get(&path).ok()?;
            last["status"]["conditions"]
                .as_array()?
                .iter()
                .any(|it| it["type"] == condition && it["status"] == "True")
                .then(|| last.clone())
        })
        .with_context(|| last["status"].to_string())
}

fn job(cluster: &Cluster) -> Result<()> {
    let job = ended(cluster, "does", "Complete")?;
    ensure!(job["status"]["succeeded"] == 3, "{}", job["status"]);
    let log = cluster.kubectl(&["logs", "job/does"])?;
    ensure!(log.contains("hello from wasm"), "{log}");
    Ok(())
}

fn failing_job(cluster: &Cluster) -> Result<()> {
    let job = ended(cluster, "fails", "Failed")?;
    ensure!(job["status"]["failed"] == 2, "{}", job["status"]);
    let said = cluster.kubectl(&["describe", "job", "fails"])?;
    ensure!(said.contains("BackoffLimitExceeded"), "{said}");
    for pod in cluster.pods("fails")? {
        let ended = &container(&pod, "main")?["state"]["terminated"];
        ensure!(
            ended["exitCode"] == 7 && ended["reason"] == "Error",
            "{ended}"
        );
    }
    Ok(())
}

fn policy(cluster: &Cluster) -> Result<()> {
    let job = ended(cluster, "gives-up", "Failed")?;
    ensure!(job["status"]["failed"] == 1, "{}", job["status"]);
    let said = job["status"]["conditions"].to_string();
    ensure!(
        said.contains("PodFailurePolicy") && said.contains("134"),
        "{said}"
    );
    Ok(())
}

fn stateful(cluster: &Cluster) -> Result<()> {
    let mut addresses = Vec::new();
    for (number, pod) in ["ordered-0", "ordered-1"].into_iter().enumerate() {
        let pod = cluster.ready(pod)?;
        let at = address(&pod, 8080)?;
        let hostname = cluster.http(&at, "/file/etc/hostname")?;
        ensure!(hostname.trim() == format!("ordered-{number}"), "{hostname}");
        addresses.push(at);
    }
    let old = cluster.pod("ordered-0")?["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", "ordered-0", "--wait=false"])?;
    cluster.pod_until("ordered-0", "to be another", |pod| {
        (pod["metadata"]["uid"] != old).then_some(())
    })?;
    let pod = cluster.ready("ordered-0")?;
    let hostname = cluster.http(&address(&pod, 8080)?, "/file/etc/hostname")?;
    ensure!(hostname.trim() == "ordered-0", "{hostname}");
    Ok(())
}
