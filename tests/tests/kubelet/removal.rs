//! Pods whose manifests are taken away: the grace, and that nothing is left.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use criw_proto::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest};
use criw_tests::{kubelet, leak, wait};

use crate::checks::{Check, alone, beside};
use crate::node::{Node, PATIENCE, bare_id};

pub(crate) const CHECKS: &[Check] = &[beside(
    "removal::a_grace_that_runs_out_ends_in_sigkill",
    &["deaf"],
    deaf,
)];

/// After all others.
pub(crate) const LAST: &[Check] = &[
    alone(
        "removal::all_pods_go_with_their_manifests",
        &["hooks"],
        everything,
    ),
    alone("removal::nothing_is_left_on_the_machine", &[], nothing_left),
];

/// The kubelet collects dead containers and pods once a minute.
const COLLECTED: Duration = Duration::from_secs(100);

fn deaf(node: &Node) -> Result<()> {
    for container in ["linux", "wasm"] {
        node.ready("deaf", container, true)?;
    }
    node.logged("deaf", "linux", "ready")?;
    node.logged("deaf", "wasm", "spinning")?;
    let directory = node.directory("deaf")?;
    let linux = bare_id(&node.container("deaf", "linux")?)?;
    let wasm = bare_id(&node.container("deaf", "wasm")?)?;
    node.take_away("deaf")?;
    // The kubelet's one dead container is kept for a minute and still tells its end.
    for (id, code) in [(linux, 137), (wasm, 143)] {
        let status = node.machine.ended(&id)?;
        ensure!(
            (status.exit_code, &*status.reason) == (code, "Error"),
            "{status:?}"
        );
    }
    wait::until("the kubelet to forget the pod", PATIENCE, || {
        (node.pod("deaf").is_err() && !directory.exists()).then_some(())
    })
}

fn everything(node: &mut Node) -> Result<()> {
    for name in node.laid_down()? {
        node.take_away(&name)?;
    }
    wait::until("the kubelet to have no pods", PATIENCE, || {
        node.pods().ok()?.is_empty().then_some(())
    })
    .with_context(|| format!("{:?}", node.pods()))?;
    // It forgets a pod before it has ended it.
    let stopped = node.machine.world.path("host/linux-stopped");
    wait::until("what the preStop hook writes", PATIENCE, || {
        stopped.exists().then_some(())
    })?;
    wait::until("the runtime to have no pods", COLLECTED, || {
        let pods = node.machine.pods().ok()?;
        let containers = node.machine.containers().ok()?;
        (pods.is_empty() && containers.is_empty()).then_some(())
    })
    .with_context(|| format!("{:?}", node.machine.pods()))?;
    let empty =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    for dir in [
        kubelet::root(&node.machine.world).join("pods"),
        node.machine.world.path("pods"),
    ] {
        wait::until(&format!("{} to be empty", dir.display()), PATIENCE, || {
            empty(&dir).then_some(())
        })?;
    }
    Ok(())
}

fn nothing_left(node: &mut Node) -> Result<()> {
    let world = &node.machine.world;
    let mounts = kubelet::mounts_left(world)?;
    ensure!(mounts.is_empty(), "{mounts:?}");
    if let Some(mut kubelet) = node.kubelet.take() {
        kubelet.terminate()?;
    }
    // What the kubelet keeps for itself is three groups in each hierarchy, and they must
    // be empty, or they cannot be removed.
    let own = ["kubepods/burstable", "kubepods/besteffort", "kubepods"];
    for root in leak::cgroup::roots() {
        for name in own {
            let group = root.join(&world.name).join(name);
            if group.exists() {
                std::fs::remove_dir(&group)
                    .with_context(|| format!("remove {}", group.display()))?;
            }
        }
    }
    let client = &node.machine.client;
    for image in client.list_images(ListImagesRequest::default())?.images {
        client.remove_image(RemoveImageRequest {
            image: Some(ImageSpec {
                image: image.id,
                ..Default::default()
            }),
        })?;
    }
    node.machine.assert_nothing_left(&node.before)
}
