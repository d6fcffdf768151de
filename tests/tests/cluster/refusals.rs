//! What cannot run, and what the user reads then: `kubectl describe`.

use anyhow::{Result, ensure};

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, container};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "refusals::a_wrong_pull_secret_is_told",
        &["refused"],
        wrong_secret,
    ),
    beside(
        "refusals::an_image_that_does_not_exist_is_told",
        &["refused"],
        |cluster| {
            let said = [
                "ImagePullBackOff",
                "has no",
                "nowhere:1",
                "manifest unknown",
            ];
            cluster.described("no-image", &said).map(drop)
        },
    ),
    beside(
        "refusals::a_component_of_an_unknown_world_is_told",
        &["refused"],
        unknown_world,
    ),
    beside(
        "refusals::a_module_that_is_not_there_is_told",
        &["refused"],
        |cluster| {
            let said = ["CreateContainerError", "/bin/missing"];
            cluster.described("linux-on-wasm", &said).map(drop)
        },
    ),
];

/// The sibling of something that cannot run has run all the time.
fn sibling(cluster: &Cluster, pod: &str) -> Result<()> {
    cluster.pod_until(pod, "to have a running sibling", |pod| {
        let status = container(pod, "sibling").ok()?;
        (!status["state"]["running"].is_null() && status["restartCount"] == 0).then_some(())
    })
}

fn wrong_secret(cluster: &Cluster) -> Result<()> {
    for pod in ["wrong-secret", "no-secret"] {
        let said = cluster.described(pod, &["ImagePullBackOff", "Failed to pull image"])?;
        ensure!(
            said.contains("401") || said.contains("nauthorized"),
            "{said}"
        );
        ensure!(
            !said.contains("hunter2") && !said.contains("wrong\""),
            "{said}"
        );
    }
    sibling(cluster, "wrong-secret")?;
    // The right one works, and does not open the door to the others.
    cluster.ready("right-secret")?;
    for pod in ["wrong-secret", "no-secret"] {
        let status = container(&cluster.pod(pod)?, "main")?;
        ensure!(status["state"]["running"].is_null(), "{status}");
    }
    Ok(())
}

fn unknown_world(cluster: &Cluster) -> Result<()> {
    let said = ["StartError", "none of our worlds", "128"];
    cluster.described("unknown-world", &said)?;
    sibling(cluster, "unknown-world")
}
