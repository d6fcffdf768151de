//! RuntimeClasses: those of the examples, scheduling, and names that nobody knows.

use anyhow::{Result, ensure};
use criw_tests::kubelet::NODE;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, container};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "classes::of_an_image_that_has_both_the_class_decides",
        &["classes"],
        class_decides,
    ),
    beside(
        "classes::a_class_with_scheduling_waits_for_a_node_of_its_own",
        &["classes"],
        scheduling,
    ),
    beside(
        "classes::an_unknown_class_is_refused_at_once",
        &[],
        unknown_class,
    ),
    beside(
        "classes::an_unknown_handler_is_told_in_the_pods_events",
        &["classes"],
        unknown_handler,
    ),
];

fn class_decides(cluster: &Cluster) -> Result<()> {
    for (pod, said) in [
        ("class-wasm", "hello from wasm"),
        ("class-runc", "hello from linux"),
    ] {
        cluster.phase(pod, "Succeeded")?;
        cluster.logged(pod, "main", said)?;
    }
    Ok(())
}

fn scheduling(cluster: &Cluster) -> Result<()> {
    let why = [
        "FailedScheduling",
        "didn't match Pod's node affinity/selector",
    ];
    cluster.described("class-here", &why)?;
    cluster.kubectl(&["label", "node", NODE, "criw.dev/runtime=true"])?;
    let pod = cluster.ready("class-here")?;
    ensure!(pod["spec"]["nodeName"] == NODE, "{}", pod["spec"]);
    ensure!(
        pod["spec"]["overhead"]["memory"] == "8Mi",
        "{}",
        pod["spec"]
    );
    // The overhead is room for the pod beyond its containers.
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let world = &cluster.machine.world.name;
    let limits: Vec<String> = criw_tests::leak::cgroup::directories(world)
        .into_iter()
        .filter(|group| group.ends_with(format!("pod{uid}")))
        .flat_map(|group| ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name)))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    let wanted = ((64_u64 + 8) << 20).to_string();
    ensure!(
        limits.iter().any(|limit| limit.trim() == wanted),
        "{limits:?}"
    );
    Ok(())
}

fn unknown_class(cluster: &Cluster) -> Result<()> {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "no-class"}, "spec": {
        "runtimeClassName": "no-such-class", "containers": [{"name": "main", "image": "x"}]}}"#;
    let said = cluster.kubectl_said(&["apply", "-f", "-"], pod)?;
    ensure!(
        said.code == Some(1)
            && said
                .err
                .contains("RuntimeClass \"no-such-class\" not found"),
        "{said:?}"
    );
    Ok(())
}

fn unknown_handler(cluster: &Cluster) -> Result<()> {
    let said = cluster.described(
        "class-unheard-of",
        &["FailedCreatePodSandBox", "\"unheard-of\""],
    )?;
    let line = said
        .lines()
        .find(|line| line.contains("FailedCreatePodSandBox"))
        .unwrap_or_default();
    // It names what would work.
    for handler in ["wasm", "wasmtime", "runc"] {
        ensure!(line.contains(handler), "{line}");
    }
    let pod = cluster.pod("class-unheard-of")?;
    let status = container(&pod, "main")?;
    ensure!(
        status["state"]["waiting"]["reason"] == "ContainerCreating",
        "{status}"
    );
    Ok(())
}
