//! What the kubelet asks a runtime only behind feature gates: events in place of polling,
//! lists as streams, statistics.

use anyhow::{Context, Result, ensure};
use criw_tests::config::METRICS;
use criw_tests::{http, wait};

use crate::checks::{Check, alone};
use crate::lasting::{STEADY, all_ready, remember, unchanged};
use crate::node::{Node, PATIENCE, STATISTICS};
use crate::statistics;

pub(crate) const CHECKS: &[Check] = &[alone(
    "gates::a_kubelet_that_listens_to_events_and_reads_streams_works_as_without",
    STEADY,
    all_gates,
)];

const GATES: [&str; 3] = ["EventedPLEG", "CRIListStreaming", STATISTICS];

/// What it then calls.
const CALLED: [&str; 3] = [
    "GetContainerEvents",
    "StreamContainers",
    "StreamPodSandboxes",
];

fn all_gates(node: &mut Node) -> Result<()> {
    all_ready(node)?;
    let memory = remember(node)?;
    node.restart_kubelet(&GATES)?;
    all_ready(node)?;
    unchanged(node, &memory)?;

    node.lay_down("late")?;
    let ended = node.ended("late", "wasm")?;
    ensure!((ended.code, &*ended.reason) == (7, "Error"), "{ended:?}");
    let ended = node.ended("late", "linux")?;
    ensure!(
        (ended.code, &*ended.reason) == (0, "Completed"),
        "{ended:?}"
    );
    node.take_away("late")?;

    statistics::complete_with_the_runtimes(node)?;
    called(node)?;
    let metrics = node.get("/metrics")?;
    let connected = "kubelet_evented_pleg_connection_success_count ";
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix(connected));
    ensure!(
        count.is_some_and(|count| count != "0"),
        "{connected}{count:?}"
    );
    node.restart_kubelet(&[])?;
    all_ready(node)?;
    unchanged(node, &memory)
}

/// Waits until the daemon has counted all of these calls.
fn called(node: &Node) -> Result<()> {
    let address = METRICS.parse()?;
    let world = &node.machine.world;
    let mut last = String::new();
    wait::until("the streams to be counted", PATIENCE, || {
        last = world.enter(|| http::get(address, "/metrics")).ok()?;
        let counted = |method: &&str| {
            let name = format!("criw_cri_requests_total{{method=\"{method}\",code=\"Ok\"}}");
            last.contains(&name)
        };
        CALLED.iter().all(counted).then_some(())
    })
    .with_context(|| last)
}
