//! Pods of both kinds, and how they are reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use criw_tests::kubelet::NODE_IP;
use criw_tests::{http, wait};

use crate::checks::{Check, beside};
use crate::node::{Node, PATIENCE, bare_id};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "network::a_wasm_pod_is_ready_and_answers_on_its_address_and_host_port",
        &["wasm"],
        wasm,
    ),
    beside(
        "network::a_linux_pod_is_ready_and_answers_on_its_address",
        &["linux"],
        linux,
    ),
    beside(
        "network::wasm_and_linux_containers_share_a_pod",
        &["mixed"],
        mixed,
    ),
    beside(
        "network::a_pod_on_the_nodes_network_answers_on_the_nodes_addresses",
        &["node-network"],
        node_network,
    ),
    beside(
        "network::a_pod_knows_its_images_and_ids",
        &["mixed"],
        identities,
    ),
];

/// Asks until there is an answer: being ready and being asked are two connections.
pub(crate) fn get(node: &Node, ip: IpAddr, port: u16) -> Result<String> {
    let address = SocketAddr::from((ip, port));
    node.machine.world.enter(|| {
        wait::until(&format!("http://{address}"), PATIENCE, || {
            http::get(address, "/").ok()
        })
    })
}

fn wasm(node: &Node) -> Result<()> {
    node.ready("wasm", "server", true)?;
    let ip = node.address("wasm")?;
    ensure!(ip.to_string().starts_with("10.87."), "{ip}");
    for (ip, port) in [(ip, 8080), (NODE_IP, 18080)] {
        let answer = get(node, ip, port)?;
        ensure!(answer.contains("hello from a wasm server"), "{answer}");
    }
    // The probes that made it ready were real requests.
    node.logged("wasm", "server", "served GET /ready HTTP/1.1")?;
    node.phase("wasm", "Running")
}

fn linux(node: &Node) -> Result<()> {
    node.ready("linux", "httpd", true)?;
    let ip = node.address("linux")?;
    let answer = node
        .machine
        .world
        .enter(|| http::get((ip, 9090).into(), "/index.html"))?;
    ensure!(answer == "hello from linux\n", "{answer}");
    node.phase("linux", "Running")
}

fn mixed(node: &Node) -> Result<()> {
    // Its readiness probe is a Linux client of the Wasm server.
    node.ready("mixed", "linux", true)?;
    node.ready("mixed", "wasm", true)?;
    let ended = node.ended("mixed", "linux-client")?;
    ensure!(ended.code == 0, "{ended:?}");
    node.logged("mixed", "linux-client", "hello from a wasm server")?;
    // It may have asked before the Linux server listened, and is then tried again.
    let ended = node.ended("mixed", "wasm-client")?;
    ensure!(ended.code == 0, "{ended:?}");
    node.logged("mixed", "wasm-client", "hello from linux")?;
    Ok(())
}

fn node_network(node: &Node) -> Result<()> {
    node.ready("node-network", "wasm", true)?;
    // A kubelet without an API server says no address of such a pod.
    for ip in [NODE_IP, IpAddr::V4(Ipv4Addr::LOCALHOST)] {
        let answer = get(node, ip, 18081)?;
        ensure!(answer.contains("hello from a wasm server"), "{answer}");
    }
    // One PID namespace for both: the init is the first process, the shell is not.
    let processes = node.logged("node-network", "linux", "PID")?;
    ensure!(processes.contains("criw-init"), "{processes}");
    Ok(())
}

fn identities(node: &Node) -> Result<()> {
    for (name, image) in [("wasm", "guests:1"), ("linux", "busybox:1")] {
        node.ready("mixed", name, true)?;
        let status = node.container("mixed", name)?;
        let reference = node.machine.registry.reference(image);
        ensure!(status["image"] == *reference, "{status}");
        let id = status["imageID"].as_str().context("no imageID")?;
        let repository = reference.trim_end_matches(":1");
        ensure!(id.starts_with(&format!("{repository}@sha256:")), "{status}");
        // The same container as the daemon knows by that id.
        let known = node.machine.status(&bare_id(&status)?)?;
        ensure!(
            known.metadata.as_ref().is_some_and(|it| it.name == name),
            "{known:?}"
        );
    }
    Ok(())
}
