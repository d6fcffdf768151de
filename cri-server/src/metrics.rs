//! Metrics of pods and containers by cAdvisor's names and labels, which dashboards expect:
//! a kubelet with `PodAndContainerStatsFromCRI` serves them at `/metrics/cadvisor`.
//!
//! Values are whole numbers, so times are whole seconds. A counter that the kernel does not
//! have is left out. CPUs, memory and disks are counted for a container, networks for its pod.

use criw_net::InterfaceCounters;
use criw_proto::v1 as cri;
use criw_sandbox::detail::{Detail, disk_name};
use criw_sandbox::model::Resources;
use criw_sandbox::stats::{ContainerStats, PodStats};
use criw_sandbox::{ContainerState, ContainerView, PodView};

use crate::daemon::Daemon;
use crate::error;
use crate::runtime::now;
use crate::stats::running_by_pod;

/// Labels of every metric.
const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

const NANOSECONDS: u64 = 1_000_000_000;

/// What a metric is.
struct Descriptor {
    name: &'static str,
    help: &'static str,
    /// Labels besides [`BASE`].
    labels: &'static [&'static str],
    kind: cri::MetricType,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Descriptor {
    Descriptor {
        name,
        help,
        labels,
        kind: cri::MetricType::Counter,
    }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Descriptor {
    Descriptor {
        name,
        help,
        labels,
        kind: cri::MetricType::Gauge,
    }
}

const DESCRIPTORS: &[Descriptor] = &[
    counter("container_cpu_usage_seconds_total", &["cpu"], "CPU time"),
    counter(
        "container_cpu_user_seconds_total",
        &[],
        "CPU time in programs",
    ),
    counter(
        "container_cpu_system_seconds_total",
        &[],
        "CPU time in the kernel",
    ),
    counter(
        "container_cpu_cfs_periods_total",
        &[],
        "periods of the CPU limit that have passed",
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        &[],
        "periods in which it had to wait",
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        &[],
        "time of waiting for the CPU limit",
    ),
    gauge(
        "container_memory_usage_bytes",
        &[],
        "memory charged, file pages included",
    ),
    gauge(
        "container_memory_working_set_bytes",
        &[],
        "memory without inactive file pages",
    ),
    gauge(
        "container_memory_max_usage_bytes",
        &[],
        "the most memory that was ever charged",
    ),
    gauge("container_memory_cache", &[], "bytes of file pages"),
    gauge("container_memory_rss", &[], "bytes of anonymous pages"),
    gauge("container_memory_swap", &[], "bytes swapped out"),
    gauge(
        "container_memory_mapped_file",
        &[],
        "bytes of mapped file pages",
    ),
    gauge("container_memory_kernel_usage", &[], "bytes of the kernel"),
    gauge(
        "container_memory_total_active_file_bytes",
        &[],
        "file pages in use lately",
    ),
    gauge(
        "container_memory_total_inactive_file_bytes",
        &[],
        "file pages that are the first to go",
    ),
    counter(
        "container_memory_failcnt",
        &[],
        "how often the limit was hit",
    ),
    counter(
        "container_memory_failures_total",
        &["failure_type", "scope"],
        "page faults",
    ),
    counter(
        "container_oom_events_total",
        &[],
        "processes ended for want of memory",
    ),
    counter("container_fs_reads_total", &["device"], "read requests"),
    counter("container_fs_writes_total", &["device"], "write requests"),
    counter("container_fs_reads_bytes_total", &["device"], "bytes read"),
    counter(
        "container_fs_writes_bytes_total",
        &["device"],
        "bytes written",
    ),
    counter(
        "container_blkio_device_usage_total",
        &["device", "major", "minor", "operation"],
        "bytes to and from a disk",
    ),
    gauge(
        "container_fs_usage_bytes",
        &["device"],
        "bytes of the writable layer",
    ),
    gauge(
        "container_fs_limit_bytes",
        &["device"],
        "size of the file system of the writable layer",
    ),
    gauge(
        "container_fs_inodes_total",
        &["device"],
        "inodes of the file system of the writable layer",
    ),
    gauge(
        "container_fs_inodes_free",
        &["device"],
        "inodes that are free there",
    ),
    gauge("container_processes", &[], "processes"),
    gauge("container_threads", &[], "threads"),
    gauge(
        "container_threads_max",
        &[],
        "how many threads it may have, 0 is any number",
    ),
    gauge(
        "container_file_descriptors",
        &[],
        "open files of all processes",
    ),
    gauge("container_sockets", &[], "open sockets of all processes"),
    gauge(
        "container_ulimits_soft",
        &["ulimit"],
        "soft limit of the first process",
    ),
    gauge(
        "container_start_time_seconds",
        &[],
        "when it was started, since 1970",
    ),
    gauge(
        "container_last_seen",
        &[],
        "when it was looked at, since 1970",
    ),
    gauge(
        "container_spec_cpu_period",
        &[],
        "period of the CPU limit, in microseconds",
    ),
    gauge(
        "container_spec_cpu_quota",
        &[],
        "CPU limit, in microseconds for a period",
    ),
    gauge("container_spec_cpu_shares", &[], "weight of its CPU time"),
    gauge(
        "container_spec_memory_limit_bytes",
        &[],
        "memory limit, 0 is none",
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        &[],
        "memory reservation, 0 is none",
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        &[],
        "limit of memory and swap, 0 is none",
    ),
    counter(
        "container_network_receive_bytes_total",
        &["interface"],
        "bytes received",
    ),
    counter(
        "container_network_receive_packets_total",
        &["interface"],
        "packets received",
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        &["interface"],
        "packets dropped while receiving",
    ),
    counter(
        "container_network_receive_errors_total",
        &["interface"],
        "errors while receiving",
    ),
    counter(
        "container_network_transmit_bytes_total",
        &["interface"],
        "bytes sent",
    ),
    counter(
        "container_network_transmit_packets_total",
        &["interface"],
        "packets sent",
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        &["interface"],
        "packets dropped while sending",
    ),
    counter(
        "container_network_transmit_errors_total",
        &["interface"],
        "errors while sending",
    ),
];

/// What every metric is and which labels it has.
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    let describe = |it: &Descriptor| cri::MetricDescriptor {
        name: it.name.to_owned(),
        help: it.help.to_owned(),
        label_keys: BASE
            .iter()
            .chain(it.labels)
            .map(|&key| key.to_owned())
            .collect(),
    };
    DESCRIPTORS.iter().map(describe).collect()
}

/// Metrics of one thing.
struct Metrics {
    /// Values of [`BASE`].
    base: [String; 6],
    all: Vec<cri::Metric>,
}

impl Metrics {
    /// `labels` are the values of those that the descriptor has besides.
    fn add(&mut self, name: &str, labels: &[&str], value: u64) {
        let descriptor = DESCRIPTORS.iter().find(|it| it.name == name);
        debug_assert!(
            descriptor.is_some_and(|it| it.labels.len() == labels.len()),
            "{name}"
        );
        let Some(descriptor) = descriptor else {
            return;
        };
        let labels = labels.iter().map(|&value| value.to_owned());
        self.all.push(cri::Metric {
            name: name.to_owned(),
            // Read just now.
            timestamp: 0,
            metric_type: descriptor.kind as i32,
            label_values: self.base.iter().cloned().chain(labels).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }
}

/// The ready pods with their running containers; what ended meanwhile is left out. Blocks.
pub fn pods(daemon: &Daemon) -> Vec<cri::PodSandboxMetrics> {
    let mut all = Vec::new();
    let mut running = running_by_pod(daemon);
    for pod in daemon.sandboxes.pods() {
        if !pod.ready {
            continue;
        }
        let network = match daemon.sandboxes.pod_stats(&pod.id) {
            Ok(stats) => of_network(&pod, &stats),
            Err(failure) => {
                tracing::debug!(pod = %pod.id, error = %error::chain(&failure), "no metrics");
                continue;
            }
        };
        let mut of_containers = Vec::new();
        for container in running.remove(&pod.id).unwrap_or_default() {
            match of_container(daemon, &pod, &container) {
                Ok(metrics) => of_containers.push(metrics),
                Err(failure) => {
                    tracing::debug!(container = %container.id, error = %error::chain(&failure), "no metrics");
                }
            }
        }
        all.push(cri::PodSandboxMetrics {
            pod_sandbox_id: pod.id.to_string(),
            metrics: network,
            container_metrics: of_containers,
        });
    }
    all
}

/// As cAdvisor has it: the pod's own line has no container and no image.
fn of_network(pod: &PodView, stats: &PodStats) -> Vec<cri::Metric> {
    let id = pod.spec.cgroup_parent.clone().unwrap_or_default();
    let mut metrics = Metrics {
        base: [
            String::new(),
            id,
            String::new(),
            pod.id.to_string(),
            pod.spec.namespace.clone(),
            pod.spec.name.clone(),
        ],
        all: Vec::new(),
    };
    let counted = |it: &&InterfaceCounters| it.name != "lo";
    for it in stats.network.iter().filter(counted) {
        for (what, received, sent) in [
            ("bytes", it.rx_bytes, it.tx_bytes),
            ("packets", it.rx_packets, it.tx_packets),
            ("packets_dropped", it.rx_dropped, it.tx_dropped),
            ("errors", it.rx_errors, it.tx_errors),
        ] {
            let name = |direction| format!("container_network_{direction}_{what}_total");
            metrics.add(&name("receive"), &[&it.name], received);
            metrics.add(&name("transmit"), &[&it.name], sent);
        }
    }
    metrics.all
}

fn of_container(
    daemon: &Daemon,
    pod: &PodView,
    container: &ContainerView,
) -> criw_sandbox::Result<cri::ContainerMetrics> {
    let stats = daemon.sandboxes.container_stats(&container.id)?;
    let (detail, oom_kills, group) = daemon.sandboxes.container_detail(&container.id)?;
    let mut metrics = Metrics {
        base: [
            container.spec.name.clone(),
            group,
            container.spec.image.image.clone(),
            container.id.to_string(),
            pod.spec.namespace.clone(),
            pod.spec.name.clone(),
        ],
        all: Vec::new(),
    };
    cpu(&mut metrics, &detail);
    memory(&mut metrics, &detail, &stats);
    metrics.add("container_oom_events_total", &[], oom_kills);
    disks(&mut metrics, &detail);
    layer(&mut metrics, &daemon.config.root, &stats);
    processes(&mut metrics, &detail);
    times(&mut metrics, &container.state);
    limits(&mut metrics, &container.resources);
    Ok(cri::ContainerMetrics {
        container_id: container.id.to_string(),
        metrics: metrics.all,
    })
}

fn cpu(metrics: &mut Metrics, detail: &Detail) {
    let seconds = |nanoseconds: u64| nanoseconds / NANOSECONDS;
    metrics.add(
        "container_cpu_usage_seconds_total",
        &["total"],
        seconds(detail.cpu_usage_ns),
    );
    metrics.add(
        "container_cpu_user_seconds_total",
        &[],
        seconds(detail.cpu_user_ns),
    );
    metrics.add(
        "container_cpu_system_seconds_total",
        &[],
        seconds(detail.cpu_system_ns),
    );
    metrics.add("container_cpu_cfs_periods_total", &[], detail.periods);
    metrics.add(
        "container_cpu_cfs_throttled_periods_total",
        &[],
        detail.throttled_periods,
    );
    metrics.add(
        "container_cpu_cfs_throttled_seconds_total",
        &[],
        seconds(detail.throttled_ns),
    );
}

fn memory(metrics: &mut Metrics, detail: &Detail, stats: &ContainerStats) {
    let memory = &detail.memory;
    for (name, value) in [
        ("usage_bytes", memory.usage),
        ("working_set_bytes", stats.cgroup.memory_working_set),
        ("max_usage_bytes", memory.max_usage),
        ("cache", memory.cache),
        ("rss", memory.rss),
        ("swap", memory.swap),
        ("mapped_file", memory.mapped_file),
        ("kernel_usage", memory.kernel),
        ("total_active_file_bytes", memory.active_file),
        ("total_inactive_file_bytes", memory.inactive_file),
        ("failcnt", memory.limit_hits),
    ] {
        metrics.add(&format!("container_memory_{name}"), &[], value);
    }
    for scope in ["container", "hierarchy"] {
        // A container's group has none below that would count for the hierarchy only.
        let name = "container_memory_failures_total";
        metrics.add(name, &["pgfault", scope], memory.faults);
        metrics.add(name, &["pgmajfault", scope], memory.major_faults);
    }
}

fn disks(metrics: &mut Metrics, detail: &Detail) {
    for disk in &detail.disks {
        let name = disk_name(disk.major, disk.minor);
        metrics.add("container_fs_reads_total", &[&name], disk.reads);
        metrics.add("container_fs_writes_total", &[&name], disk.writes);
        metrics.add("container_fs_reads_bytes_total", &[&name], disk.read_bytes);
        metrics.add(
            "container_fs_writes_bytes_total",
            &[&name],
            disk.written_bytes,
        );
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        for (operation, bytes) in [("Read", disk.read_bytes), ("Write", disk.written_bytes)] {
            let labels = [&*name, &*major, &*minor, operation];
            metrics.add("container_blkio_device_usage_total", &labels, bytes);
        }
    }
}

/// `root` is on the file system of the writable layers.
fn layer(metrics: &mut Metrics, root: &std::path::Path, stats: &ContainerStats) {
    let Ok((stat, size)) =
        rustix::fs::stat(root).and_then(|stat| Ok((stat, rustix::fs::statvfs(root)?)))
    else {
        return;
    };
    let device = disk_name(
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    for (name, value) in [
        ("container_fs_usage_bytes", stats.writable_layer.bytes),
        (
            "container_fs_limit_bytes",
            size.f_blocks.saturating_mul(size.f_frsize),
        ),
        ("container_fs_inodes_total", size.f_files),
        ("container_fs_inodes_free", size.f_ffree),
    ] {
        metrics.add(name, &[&device], value);
    }
}

fn processes(metrics: &mut Metrics, detail: &Detail) {
    let count = u64::try_from(detail.processes.len()).unwrap_or(u64::MAX);
    metrics.add("container_processes", &[], count);
    metrics.add("container_threads", &[], detail.threads);
    metrics.add(
        "container_threads_max",
        &[],
        detail.threads_max.unwrap_or(0),
    );
    metrics.add("container_file_descriptors", &[], detail.descriptors);
    metrics.add("container_sockets", &[], detail.sockets);
    if let Some(limit) = detail.open_files_soft {
        metrics.add("container_ulimits_soft", &["max_open_files"], limit);
    }
}

fn times(metrics: &mut Metrics, state: &ContainerState) {
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds).unwrap_or(0) / NANOSECONDS;
    if let ContainerState::Running { started_at, .. } = state {
        metrics.add("container_start_time_seconds", &[], seconds(*started_at));
    }
    metrics.add("container_last_seen", &[], seconds(now()));
}

fn limits(metrics: &mut Metrics, limits: &Resources) {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    if limits.cpu_quota > 0 {
        metrics.add("container_spec_cpu_quota", &[], number(limits.cpu_quota));
    }
    let reservation = limits
        .unified
        .get("memory.low")
        .and_then(|text| text.parse().ok());
    for (name, value) in [
        ("container_spec_cpu_period", number(limits.cpu_period)),
        ("container_spec_cpu_shares", number(limits.cpu_shares)),
        (
            "container_spec_memory_limit_bytes",
            number(limits.memory_limit),
        ),
        (
            "container_spec_memory_reservation_limit_bytes",
            reservation.unwrap_or(0),
        ),
        (
            "container_spec_memory_swap_limit_bytes",
            number(limits.memory_swap_limit),
        ),
    ] {
        metrics.add(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use criw_sandbox::detail::DiskUse;
    use criw_sandbox::stats::LayerUsage;

    use super::*;

    /// Everything that a container can have.
    fn whole() -> Vec<cri::Metric> {
        let mut metrics = Metrics {
            base: BASE.map(|key| format!("the {key}")),
            all: Vec::new(),
        };
        let detail = Detail {
            cpu_usage_ns: 2_900_000_000,
            disks: vec![DiskUse {
                major: 9999,
                minor: 7,
                written_bytes: 5,
                ..DiskUse::default()
            }],
            open_files_soft: Some(1024),
            ..Detail::default()
        };
        let stats = ContainerStats {
            timestamp: 1,
            cgroup: Default::default(),
            cpu_rate: None,
            writable_layer: LayerUsage {
                bytes: 3,
                inodes: 1,
            },
            pressures: Default::default(),
        };
        cpu(&mut metrics, &detail);
        memory(&mut metrics, &detail, &stats);
        metrics.add("container_oom_events_total", &[], 1);
        disks(&mut metrics, &detail);
        layer(&mut metrics, std::path::Path::new("/"), &stats);
        processes(&mut metrics, &detail);
        metrics.add("container_start_time_seconds", &[], 1);
        times(&mut metrics, &ContainerState::Creating);
        let asked = Resources {
            cpu_quota: 5,
            memory_limit: -1,
            ..Resources::default()
        };
        limits(&mut metrics, &asked);
        metrics.all
    }

    #[test]
    fn every_metric_has_a_descriptor_and_as_many_values_as_that_has_labels() {
        let described = descriptors();
        let names: BTreeSet<_> = described.iter().map(|it| &it.name).collect();
        assert_eq!(names.len(), described.len(), "a name stands twice");
        let mut seen = BTreeSet::new();
        let mut lines = BTreeSet::new();
        for metric in whole() {
            let of = described.iter().find(|it| it.name == metric.name).unwrap();
            assert_eq!(
                metric.label_values.len(),
                of.label_keys.len(),
                "{}",
                of.name
            );
            assert!(metric.value.is_some());
            // Prometheus refuses the whole answer for one line that is there twice.
            assert!(
                lines.insert((metric.name.clone(), metric.label_values.clone())),
                "{metric:?}"
            );
            seen.insert(metric.name);
        }
        let missing: Vec<_> = names
            .into_iter()
            .filter(|name| !seen.contains(*name) && !name.starts_with("container_network_"))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn values_are_those_that_were_read() {
        let all = whole();
        let value = |name: &str, label: &str| {
            let fits = |it: &&cri::Metric| {
                it.name == name && it.label_values[BASE.len()..].contains(&label.to_owned())
            };
            all.iter()
                .find(fits)
                .and_then(|it| it.value)
                .map(|it| it.value)
        };
        assert_eq!(value("container_cpu_usage_seconds_total", "total"), Some(2));
        assert_eq!(value("container_fs_writes_bytes_total", "9999:7"), Some(5));
        assert_eq!(
            value("container_blkio_device_usage_total", "Write"),
            Some(5)
        );
        assert_eq!(
            value("container_ulimits_soft", "max_open_files"),
            Some(1024)
        );
    }
}
