//! Numbers of pods and containers, and the messages that carry them.

use std::collections::HashMap;

use criw_net::InterfaceCounters;
use criw_proto::v1 as cri;
use criw_sandbox::detail::{Pressure, Pressures, Wait};
use criw_sandbox::host::cgroup::CgroupUsage;
use criw_sandbox::stats::{ContainerStats, PodStats};
use criw_sandbox::{ContainerView, PodView, SandboxId};
use tonic::Status;

use crate::convert::status::{Filter, container_metadata, labels_map, pod_metadata};
use crate::daemon::Daemon;
use crate::error;

/// The interface whose numbers are a pod's own.
const DEFAULT_INTERFACE: &str = "eth0";

/// One container; an error when it does not run. Blocks, as all of these do.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn container(
    daemon: &Daemon,
    container: &ContainerView,
) -> Result<cri::ContainerStats, Status> {
    let stats = daemon
        .sandboxes
        .container_stats(&container.id)
        .map_err(|e| error::sandbox(&e))?;
    Ok(container_message(
        container,
        &stats,
        &daemon.config.root.to_string_lossy(),
    ))
}

/// The running containers that fit; one that ended meanwhile is left out.
pub fn containers(daemon: &Daemon, filter: &Filter) -> Vec<cri::ContainerStats> {
    let views = daemon.sandboxes.containers();
    let fit = |view: &&ContainerView| view.state.is_running() && filter.fits_container(view);
    all_of(daemon, views.iter().filter(fit))
}

fn all_of<'a>(
    daemon: &Daemon,
    views: impl Iterator<Item = &'a ContainerView>,
) -> Vec<cri::ContainerStats> {
    views
        .filter_map(|view| match container(daemon, view) {
            Ok(stats) => Some(stats),
            Err(status) => {
                tracing::debug!(container = %view.id, error = %status.message(), "no stats");
                None
            }
        })
        .collect()
}

/// The running containers of each pod.
pub fn running_by_pod(daemon: &Daemon) -> HashMap<SandboxId, Vec<ContainerView>> {
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for view in daemon.sandboxes.containers() {
        if view.state.is_running() {
            all.entry(view.sandbox.clone()).or_default().push(view);
        }
    }
    all
}

/// One pod with its running containers.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn pod(daemon: &Daemon, pod: &PodView) -> Result<cri::PodSandboxStats, Status> {
    let running = running_by_pod(daemon).remove(&pod.id).unwrap_or_default();
    with_containers(daemon, pod, &running)
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn with_containers(
    daemon: &Daemon,
    pod: &PodView,
    running: &[ContainerView],
) -> Result<cri::PodSandboxStats, Status> {
    let stats = daemon
        .sandboxes
        .pod_stats(&pod.id)
        .map_err(|e| error::sandbox(&e))?;
    Ok(pod_message(pod, &stats, all_of(daemon, running.iter())))
}

/// The ready pods that fit; one that ended meanwhile is left out.
pub fn pods(daemon: &Daemon, filter: &Filter) -> Vec<cri::PodSandboxStats> {
    let mut all = Vec::new();
    let mut running = running_by_pod(daemon);
    for view in daemon.sandboxes.pods() {
        if view.ready && filter.fits_pod(&view) {
            let running = running.remove(&view.id).unwrap_or_default();
            match with_containers(daemon, &view, &running) {
                Ok(stats) => all.push(stats),
                Err(status) => {
                    tracing::debug!(pod = %view.id, error = %status.message(), "no stats");
                }
            }
        }
    }
    all
}

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<cri::PsiStats> {
    let data = |wait: Wait| {
        Some(cri::PsiData {
            total: wait.total,
            avg10: wait.avg10,
            avg60: wait.avg60,
            avg300: wait.avg300,
        })
    };
    pressure.map(|pressure| cri::PsiStats {
        full: data(pressure.full),
        some: data(pressure.some),
    })
}

fn io(timestamp: i64, pressures: &Pressures) -> Option<cri::IoUsage> {
    psi(pressures.io).map(|psi| cri::IoUsage {
        timestamp,
        psi: Some(psi),
    })
}

fn cpu(
    timestamp: i64,
    usage: &CgroupUsage,
    rate: Option<u64>,
    pressure: Option<Pressure>,
) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(usage.cpu_usage_ns),
        usage_nano_cores: rate.and_then(number),
        psi: psi(pressure),
    }
}

fn memory(
    timestamp: i64,
    usage: &CgroupUsage,
    available: Option<u64>,
    pressure: Option<Pressure>,
) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: number(usage.memory_working_set),
        available_bytes: available.and_then(number),
        usage_bytes: number(usage.memory_usage),
        rss_bytes: number(usage.memory_rss),
        page_faults: number(usage.page_faults),
        major_page_faults: number(usage.major_page_faults),
        psi: psi(pressure),
    }
}

/// `mountpoint` is a directory on the file system of the writable layers.
fn container_message(
    container: &ContainerView,
    stats: &ContainerStats,
    mountpoint: &str,
) -> cri::ContainerStats {
    let timestamp = stats.timestamp;
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(container_metadata(container)),
            labels: labels_map(&container.spec.labels),
            annotations: labels_map(&container.spec.annotations),
        }),
        cpu: Some(cpu(
            timestamp,
            &stats.cgroup,
            stats.cpu_rate,
            stats.pressures.cpu,
        )),
        memory: Some(memory(
            timestamp,
            &stats.cgroup,
            stats.memory_available(),
            stats.pressures.memory,
        )),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: mountpoint.to_owned(),
            }),
            used_bytes: number(stats.writable_layer.bytes),
            inodes_used: number(stats.writable_layer.inodes),
        }),
        swap: stats.cgroup.swap_usage.map(|swap| cri::SwapUsage {
            timestamp,
            swap_available_bytes: stats.swap_available().and_then(number),
            swap_usage_bytes: number(swap),
        }),
        io: io(timestamp, &stats.pressures),
    }
}

fn pod_message(
    pod: &PodView,
    stats: &PodStats,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let timestamp = stats.timestamp;
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: Some(pod_metadata(pod)),
            labels: labels_map(&pod.spec.labels),
            annotations: labels_map(&pod.spec.annotations),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cpu(
                timestamp,
                &stats.cgroup,
                stats.cpu_rate,
                stats.pressures.cpu,
            )),
            memory: Some(memory(
                timestamp,
                &stats.cgroup,
                stats.memory_available(),
                stats.pressures.memory,
            )),
            network: network(timestamp, &stats.network),
            process: Some(cri::ProcessUsage {
                timestamp,
                process_count: number(stats.cgroup.processes),
            }),
            containers,
            io: io(timestamp, &stats.pressures),
        }),
        windows: None,
    }
}

/// Only with the interface that is the pod's own: a kubelet takes it for granted in what
/// is there, and would panic. A pod on the node's network has none, and one that is being
/// torn down has none any more.
fn network(timestamp: i64, counters: &[InterfaceCounters]) -> Option<cri::NetworkUsage> {
    let own = counters
        .iter()
        .find(|counters| counters.name == DEFAULT_INTERFACE)?;
    Some(cri::NetworkUsage {
        timestamp,
        default_interface: Some(interface(own)),
        interfaces: counters
            .iter()
            .filter(|counters| counters.name != DEFAULT_INTERFACE && counters.name != "lo")
            .map(interface)
            .collect(),
    })
}

fn interface(counters: &InterfaceCounters) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: counters.name.clone(),
        rx_bytes: number(counters.rx_bytes),
        rx_errors: number(counters.rx_errors),
        tx_bytes: number(counters.tx_bytes),
        tx_errors: number(counters.tx_errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface_named(name: &str) -> InterfaceCounters {
        InterfaceCounters {
            name: name.to_owned(),
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        }
    }

    #[test]
    fn limits_that_are_not_there_are_not_reported() {
        for (limit, available) in [(None, None), (Some(100), Some(70)), (Some(10), Some(0))] {
            let usage = CgroupUsage {
                cpu_usage_ns: 9,
                memory_usage: 40,
                memory_working_set: 30,
                memory_limit: limit,
                ..CgroupUsage::default()
            };
            let stats = ContainerStats {
                timestamp: 5,
                cgroup: usage.clone(),
                cpu_rate: None,
                writable_layer: Default::default(),
                pressures: Default::default(),
            };
            let message = memory(5, &usage, stats.memory_available(), None);
            assert_eq!(message.available_bytes.map(|n| n.value), available);
            assert_eq!(message.working_set_bytes.map(|n| n.value), Some(30));
            assert_eq!(message.usage_bytes.map(|n| n.value), Some(40));
            let cpu = cpu(5, &usage, Some(3), None);
            assert_eq!(
                (cpu.timestamp, cpu.usage_core_nano_seconds.map(|n| n.value)),
                (5, Some(9))
            );
            assert_eq!(cpu.usage_nano_cores.map(|n| n.value), Some(3));
        }
    }

    #[test]
    fn network_usage_without_a_default_interface_made_a_kubelet_panic() {
        let named = |names: &[&str]| {
            let counters: Vec<_> = names.iter().map(|name| interface_named(name)).collect();
            network(5, &counters)
        };
        assert_eq!(named(&[]), None);
        assert_eq!(named(&["lo", "node0"]), None);
        let usage = named(&["lo", "eth0", "net1"]).unwrap();
        assert_eq!(usage.default_interface.unwrap().name, "eth0");
        let others: Vec<_> = usage.interfaces.iter().map(|it| &*it.name).collect();
        assert_eq!(others, ["net1"]);
    }

    #[test]
    fn traffic_keeps_its_direction() {
        let message = interface(&interface_named("eth0"));
        let value = |number: Option<cri::UInt64Value>| number.map(|n| n.value);
        assert_eq!(message.name, "eth0");
        assert_eq!(
            (value(message.rx_bytes), value(message.rx_errors)),
            (Some(1), Some(3))
        );
        assert_eq!(
            (value(message.tx_bytes), value(message.tx_errors)),
            (Some(5), Some(7))
        );
    }
}
