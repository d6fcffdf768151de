//! Services, through the real kube-proxy with nftables.

use anyhow::{Result, ensure};
use criw_tests::http;

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, container, of_node};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "services::a_cluster_ip_answers_on_the_node",
        &["web"],
        |cluster| {
            let address = format!("{}:80", cluster.cluster_ip("web")?);
            hello(&cluster.http(&address, "/")?)
        },
    ),
    beside(
        "services::a_node_port_answers_on_the_nodes_address",
        &["web"],
        |cluster| hello(&cluster.http(&of_node(30080), "/")?),
    ),
    beside(
        "services::a_cluster_ip_answers_a_linux_pod",
        &["web", "clients"],
        |cluster| {
            for name in ["service", "variable"] {
                cluster.logged("linux-client", name, HELLO)?;
            }
            Ok(())
        },
    ),
    beside(
        "services::a_cluster_ip_answers_a_wasm_pod",
        &["web", "clients"],
        |cluster| {
            cluster.phase("wasm-client", "Succeeded")?;
            hello(&cluster.logged("wasm-client", "service", "status 200")?)
        },
    ),
    beside(
        "services::a_pod_behind_a_service_reaches_its_own_service",
        &["web", "scaled"],
        chain,
    ),
    beside(
        "services::a_service_without_pods_refuses_at_once",
        &["web", "clients"],
        nobody,
    ),
    beside(
        "services::the_api_server_answers_a_pod_at_its_service",
        &["clients"],
        |cluster| {
            cluster.logged("linux-client", "api", "connected")?;
            Ok(())
        },
    ),
];

/// What the component answers.
const HELLO: &str = "hello from a component";

fn hello(answer: &str) -> Result<()> {
    ensure!(answer.contains(HELLO), "{answer}");
    Ok(())
}

/// A request to a Service that its only pod makes itself: there and back by one link.
fn chain(cluster: &Cluster) -> Result<()> {
    for to in ["10.96.0.80:80", "10.96.0.82:80"] {
        let mut last = String::new();
        cluster.until(&format!("an answer by way of {to}"), || {
            let target = format!("/fetch/http/{to}/");
            last = cluster.http("10.96.0.82:80", &target).ok()?;
            last.contains("status 200\nhello from a component")
                .then_some(())
        })?;
    }
    Ok(())
}

fn nobody(cluster: &Cluster) -> Result<()> {
    let address = "10.96.0.81:80".parse()?;
    let mut last = String::new();
    cluster.until("a refusal", || {
        last = match cluster.machine.world.enter(|| http::get(address, "/")) {
            Ok(answer) => answer,
            Err(error) => format!("{error:#}"),
        };
        last.contains("refused").then_some(())
    })?;
    cluster.logged("linux-client", "nobody", "refused")?;
    let pod = cluster.pod_until("linux-client", "to have ended", |pod| {
        let status = container(pod, "nobody").ok()?;
        (!status["state"]["terminated"].is_null()).then(|| status.clone())
    })?;
    ensure!(pod["state"]["terminated"]["exitCode"] == 0, "{pod}");
    Ok(())
}
