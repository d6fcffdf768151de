//! The state of the node when it is asked: pods, containers, images, compiled code.

use std::collections::BTreeMap;
use std::sync::Arc;

use criw_image_service::Work;
use criw_sandbox::container_state::ContainerState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::daemon::Daemon;

/// Reads the rooms of a daemon; all of it is in memory.
pub(super) struct Node(pub(super) Arc<Daemon>);

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let daemon = &self.0;
        let ready = [("state", "ready"), ("state", "notready")];
        let pods = daemon.sandboxes.pods();
        let count = |ready| pods.iter().filter(|pod| pod.ready == ready).count() as u64;
        let mut family = gauge(&mut encoder, "criw_pods", "Pod sandboxes by state")?;
        for (label, number) in ready.into_iter().zip([count(true), count(false)]) {
            ConstGauge::new(number).encode(family.encode_family(&[label])?)?;
        }

        let mut containers = BTreeMap::<(String, &str), u64>::new();
        for container in daemon.sandboxes.containers() {
            let engine = container.spec.engine.name().to_owned();
            *containers
                .entry((engine, state(&container.state)))
                .or_default() += 1;
        }
        let mut family = gauge(
            &mut encoder,
            "criw_containers",
            "Containers by engine and state",
        )?;
        for ((engine, state), number) in containers {
            let labels = [("engine", engine.as_str()), ("state", state)];
            ConstGauge::new(number).encode(family.encode_family(&labels)?)?;
        }

        let usage = daemon.images.usage();
        for (name, help, number) in [
            (
                "criw_images",
                "Images in the store",
                daemon.images.list(None).len() as u64,
            ),
            (
                "criw_image_store_bytes",
                "Bytes of blobs, unpacked layers and compiled code in the store",
                usage.used_bytes,
            ),
            (
                "criw_image_store_inodes",
                "Files of the store",
                usage.inodes_used,
            ),
        ] {
            ConstGauge::new(number).encode(gauge(&mut encoder, name, help)?)?;
        }
        work(
            &mut encoder,
            ("criw_image_pulls", "Pulls from registries by result"),
            (
                "criw_image_pull_seconds",
                "How long all pulls together took, those that failed too",
            ),
            daemon.images.pulls(),
        )?;
        work(
            &mut encoder,
            (
                "criw_wasm_compilations",
                "Runs of the Wasm compiler by result; what the cache answers is none",
            ),
            (
                "criw_wasm_compile_seconds",
                "How long all runs of the compiler together took",
            ),
            daemon.images.compilations(),
        )?;
        let hits = encoder.encode_descriptor(
            "criw_wasm_code_cache_hits",
            "How often compiled code was there when it was needed",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(daemon.images.code_cache_hits()).encode(hits)
    }
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &'a str,
) -> Result<MetricEncoder<'a>, std::fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// A counter by result, and one of seconds.
fn work(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    (time_name, time_help): (&str, &str),
    work: Work,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (result, number) in [("success", work.succeeded), ("failure", work.failed)] {
        let labels = [("result", result)];
        ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
    }
    let time = encoder.encode_descriptor(time_name, time_help, None, MetricType::Counter)?;
    ConstCounter::new(work.time.as_secs_f64()).encode(time)
}

fn state(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Creating | ContainerState::Created { .. } => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited { .. } => "exited",
    }
}
