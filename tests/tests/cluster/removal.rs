//! The node is drained and used again; then everything is deleted, and nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use criw_proto::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest};
use criw_tests::kubelet::{self, NODE};
use criw_tests::{leak, wait};
use serde_json::Value;

use crate::checks::{Check, alone};
use crate::cluster::Cluster;

pub(crate) const LAST: &[Check] = &[
    alone(
        "removal::the_node_is_drained_and_used_again",
        &["web", "linux-web", "ordered"],
        drained,
    ),
    alone("removal::all_objects_are_deleted", &[], deleted),
    alone("removal::nothing_is_left_on_the_machine", &[], nothing_left),
];

/// The kubelet collects dead containers and pods once a minute.
const COLLECTED: Duration = Duration::from_secs(100);

fn drained(cluster: &mut Cluster) -> Result<()> {
    cluster.ready_pods("web", 2)?;
    cluster.kubectl(&[
        "drain",
        NODE,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=110s",
    ])?;
    // What controllers made anew waits for a node.
    let list = cluster.get("/api/v1/namespaces/default/pods")?;
    let here: Vec<&Value> = list["items"]
        .as_array()
        .context("a list without items")?
        .iter()
        .filter(|pod| !pod["spec"]["nodeName"].is_null())
        .filter(|pod| pod["metadata"]["labels"]["app"] != "everywhere")
        .map(|pod| &pod["metadata"]["name"])
        .collect();
    ensure!(here.is_empty(), "{here:?}");
    cluster.kubectl(&["uncordon", NODE])?;
    cluster.ready_pods("web", 2)?;
    cluster.ready_pods("linux-web", 2)?;
    cluster.ready_pods("ordered", 2)?;
    Ok(())
}

fn deleted(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&[
        "delete",
        "deployments,statefulsets,daemonsets,jobs,pods,configmaps,secrets",
        "--all",
        "--wait=false",
    ])?;
    cluster.until("the API server to have no pods", || {
        let list = cluster.get("/api/v1/pods").ok()?;
        list["items"].as_array()?.is_empty().then_some(())
    })?;
    wait::until("the runtime to have no pods", COLLECTED, || {
        let pods = cluster.machine.pods().ok()?;
        let containers = cluster.machine.containers().ok()?;
        (pods.is_empty() && containers.is_empty()).then_some(())
    })
    .with_context(|| format!("{:?}", cluster.machine.pods()))?;
    for dir in [
        kubelet::root(&cluster.machine.world).join("pods"),
        cluster.machine.world.path("pods"),
    ] {
        cluster.until(&format!("{} to be empty", dir.display()), || {
            std::fs::read_dir(&dir)
                .is_ok_and(|mut entries| entries.next().is_none())
                .then_some(())
        })?;
    }
    Ok(())
}

fn nothing_left(cluster: &mut Cluster) -> Result<()> {
    let world = &cluster.machine.world;
    cluster.plane.check(world)?;
    let mounts = kubelet::mounts_left(world)?;
    ensure!(mounts.is_empty(), "{mounts:?}");
    if let Some(mut kubelet) = cluster.kubelet.take() {
        kubelet.terminate()?;
    }
    cluster.plane.terminate(world)?;
    // The kubelet's own groups; they must be empty, or they cannot be removed.
    for root in leak::cgroup::roots() {
        for name in ["kubepods/burstable", "kubepods/besteffort", "kubepods"] {
            let group = root.join(&world.name).join(name);
            if group.exists() {
                std::fs::remove_dir(&group)
                    .with_context(|| format!("remove {}", group.display()))?;
            }
        }
    }
    let client = &cluster.machine.client;
    for image in client.list_images(ListImagesRequest::default())?.images {
        client.remove_image(RemoveImageRequest {
            image: Some(ImageSpec {
                image: image.id,
                ..Default::default()
            }),
        })?;
    }
    cluster.machine.assert_nothing_left(&cluster.before)
}
