//! ConfigMaps, Secrets, tokens and the downward API, as environment and as files.

use anyhow::{Context, Result, ensure};
use criw_tests::kubelet::CLUSTER_DNS;
use serde_json::Value;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, address, container};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "configuration::maps_and_secrets_are_the_environment_of_a_wasm_guest",
        &["configured"],
        |cluster| {
            for said in [
                "arg[1]=blue",
                "env COLOUR=blue",
                "env PASSWORD=hunter2",
                "env MAP_colour=blue",
                "env SECRET_password=hunter2",
                "env NODE=node",
                "env ACCOUNT=default",
            ] {
                done(cluster, "wasm-env", said)?;
            }
            Ok(())
        },
    ),
    beside(
        "configuration::maps_and_secrets_are_files_of_a_wasm_guest",
        &["configured"],
        |cluster| {
            done(cluster, "wasm-map", "from a map\nblue")?;
            done(cluster, "wasm-secret", "from a secret\nhunter2")?;
            done(
                cluster,
                "wasm-sub-path",
                "from a map\na file of the image\n",
            )
        },
    ),
    beside(
        "configuration::a_wasm_guest_cannot_write_to_a_map",
        &["configured"],
        |cluster| {
            let ended = ended(cluster, "wasm-read-only")?;
            ensure!(ended["exitCode"] == 4, "{ended}");
            Ok(())
        },
    ),
    beside(
        "configuration::all_sources_are_projected_into_one_volume",
        &["configured"],
        |cluster| {
            let said = format!("from a map\nfrom a secret\nshape=\"round\"{}", 64 << 20);
            done(cluster, "wasm-projected", &said)
        },
    ),
    beside(
        "configuration::a_linux_container_is_given_the_same",
        &["configured"],
        |cluster| {
            for said in [
                "env blue hunter2",
                "from a map\nfrom a secret\nfrom a map\nshape=\"round\"default\n",
                "-r--------",
                "written by wasm\n",
            ] {
                done(cluster, "linux", said)?;
            }
            Ok(())
        },
    ),
    beside(
        "configuration::the_api_server_knows_the_token_of_a_wasm_guest",
        &["configured"],
        token,
    ),
    beside(
        "configuration::a_wasm_guest_sees_the_clusters_name_server",
        &["live"],
        |cluster| {
            let pod = cluster.ready("live")?;
            let text = cluster.http(&address(&pod, 8080)?, "/file/etc/resolv.conf")?;
            for line in [
                &format!("nameserver {CLUSTER_DNS}"),
                "search default.svc.cluster.local svc.cluster.local cluster.local",
                "options ndots:5",
            ] {
                ensure!(text.contains(line), "{text}");
            }
            Ok(())
        },
    ),
    beside(
        "configuration::a_running_wasm_guest_reads_a_changed_map",
        &["live"],
        live,
    ),
    beside(
        "configuration::a_pod_waits_for_what_is_missing_and_says_so",
        &["waiting"],
        waiting,
    ),
];

fn ended(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster.pod_until("configured", &format!("to have ended {name}"), |pod| {
        let status = container(pod, name).ok()?;
        let ended = &status["state"]["terminated"];
        (!ended.is_null()).then(|| ended.clone())
    })
}

fn done(cluster: &Cluster, name: &str, said: &str) -> Result<()> {
    let ended = ended(cluster, name)?;
    let log = cluster.logged("configured", name, said)?;
    ensure!(ended["exitCode"] == 0, "{ended} {log}");
    Ok(())
}

fn token(cluster: &Cluster) -> Result<()> {
    done(cluster, "wasm-token", ".")?;
    let token = cluster.logged("configured", "wasm-token", ".")?;
    let token = token.lines().next().context("no token")?;
    let said = cluster.kubectl(&[
        "--kubeconfig=/dev/null",
        &format!("--token={token}"),
        &format!(
            "--server=https://{}",
            crate::cluster::of_node(crate::control_plane::API_PORT)
        ),
        &format!(
            "--certificate-authority={}",
            cluster.machine.world.path("api/apiserver.crt").display()
        ),
        "auth",
        "whoami",
    ])?;
    for word in ["system:serviceaccount:default:default", "configured"] {
        ensure!(said.contains(word), "{said}");
    }
    Ok(())
}

fn live(cluster: &Cluster) -> Result<()> {
    let pod = cluster.ready("live")?;
    let at = address(&pod, 8080)?;
    let greeting = || cluster.http(&at, "/file/config/greeting");
    let before = greeting()?;
    ensure!(before == "good morning\n", "{before}");
    cluster.apply_changed("live", "good morning", "good evening")?;
    cluster.until("the changed greeting", || {
        (greeting().ok()? == "good evening\n").then_some(())
    })?;
    let status = container(&cluster.pod("live")?, "server")?;
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}

fn waiting(cluster: &Cluster) -> Result<()> {
    cluster.described(
        "waits-for-map",
        &[
            "CreateContainerConfigError",
            "configmap \"later\" not found",
        ],
    )?;
    cluster.described(
        "waits-for-secret",
        &["FailedMount", "secret \"later\" not found"],
    )?;
    cluster.apply("later")?;
    for pod in ["waits-for-map", "waits-for-secret"] {
        cluster.phase(pod, "Succeeded")?;
        cluster.logged(pod, "main", "late, but there")?;
    }
    Ok(())
}
