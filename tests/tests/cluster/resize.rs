//! Pods that are changed while they run: more or less CPU and memory, one more container.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use criw_tests::leak;
use serde_json::json;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, container};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "resize::cpu_and_memory_change_in_place",
        &["resized"],
        |cluster| {
            cluster.ready("resized")?;
            for name in ["linux", "wasm"] {
                resize(cluster, name).with_context(|| name.to_owned())?;
            }
            Ok(())
        },
    ),
    beside(
        "resize::a_linux_debug_container_joins_a_wasm_pod",
        &["ordered"],
        debug,
    ),
];

fn value(groups: &[PathBuf], names: [&str; 2]) -> Option<String> {
    groups
        .iter()
        .flat_map(|group| names.map(|name| group.join(name)))
        .find_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
}

/// Up and down again; limit of memory in MiB, of CPU in thousandths.
fn resize(cluster: &Cluster, name: &str) -> Result<()> {
    let before = container(&cluster.pod("resized")?, name)?;
    let id = before["containerID"].as_str().context("no id")?.to_owned();
    let bare = id.strip_prefix("criw://").context("whose id")?.to_owned();
    for (memory, cpu) in [(96_u64, 400), (48, 150)] {
        let patch = json!({"spec": {"containers": [{"name": name, "resources": {
            "limits": {"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")},
        }}]}});
        let text = patch.to_string();
        cluster.kubectl(&[
            "patch",
            "pod",
            "resized",
            "--subresource=resize",
            "--patch",
            &text,
        ])?;
        cluster.pod_until("resized", "to have been resized", |pod| {
            let status = container(pod, name).ok()?;
            let limits = &status["resources"]["limits"];
            (limits["cpu"] == format!("{cpu}m") && limits["memory"] == format!("{memory}Mi"))
                .then_some(())
        })?;
        let groups: Vec<PathBuf> = leak::cgroup::directories(&cluster.machine.world.name)
            .into_iter()
            .filter(|group| group.ends_with(&bare))
            .collect();
        let limit = value(&groups, ["memory.limit_in_bytes", "memory.max"]);
        ensure!(limit == Some((memory << 20).to_string()), "{limit:?}");
        let quota = value(&groups, ["cpu.cfs_quota_us", "cpu.max"]);
        let wanted = (cpu * 100).to_string();
        ensure!(
            quota.as_ref().and_then(|text| text.split(' ').next()) == Some(&wanted),
            "{quota:?}"
        );
    }
    let after = container(&cluster.pod("resized")?, name)?;
    ensure!(
        after["containerID"] == *id && after["restartCount"] == 0,
        "{after}"
    );
    Ok(())
}

fn debug(cluster: &Cluster) -> Result<()> {
    cluster.ready("ordered-1")?;
    let image = format!(
        "--image={}",
        cluster.machine.registry.reference("busybox:1")
    );
    cluster.kubectl(&[
        "debug",
        "ordered-1",
        "-c",
        "debugger",
        &image,
        "--",
        "wget",
        "-q",
        "-O",
        "-",
        "http://127.0.0.1:8080/",
    ])?;
    cluster.logged("ordered-1", "debugger", "hello from a component")?;
    let pod = cluster.ready("ordered-1")?;
    let status = container(&pod, "server")?;
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}
