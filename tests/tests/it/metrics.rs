//! Metrics of the CRI by cAdvisor's names, and pressure in the statistics.

use std::collections::BTreeMap;

use criw_proto::v1::*;
use criw_tests::machine::Machine;
use criw_tests::{plan, wait};

use crate::engine::{BOTH, Engine};

/// Lines as a kubelet makes them: by name, the labels and the value.
type Lines = Vec<(String, BTreeMap<String, String>, u64)>;

fn lines(machine: &Machine, metrics: &[Metric]) -> Lines {
    let request = ListMetricDescriptorsRequest::default();
    let descriptors = machine.client.list_metric_descriptors(request).unwrap();
    let keys: BTreeMap<_, _> = descriptors
        .descriptors
        .into_iter()
        .map(|it| (it.name, it.label_keys))
        .collect();
    let line = |metric: &Metric| {
        let keys = keys[&metric.name].clone();
        assert_eq!(keys.len(), metric.label_values.len(), "{metric:?}");
        assert_eq!(metric.timestamp, 0, "{metric:?}");
        let labels = keys.into_iter().zip(metric.label_values.clone()).collect();
        (metric.name.clone(), labels, metric.value.unwrap().value)
    };
    metrics.iter().map(line).collect()
}

fn value(lines: &Lines, name: &str, label: (&str, &str)) -> u64 {
    let fits = |line: &&(String, BTreeMap<String, String>, u64)| {
        line.0 == name && line.1.get(label.0).is_some_and(|value| value == label.1)
    };
    let found = lines.iter().find(fits);
    found
        .unwrap_or_else(|| panic!("no {name} with {label:?} in {lines:?}"))
        .2
}

fn all(machine: &Machine) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest::default();
    machine
        .client
        .list_pod_sandbox_metrics(request)
        .unwrap()
        .pod_metrics
}

#[test]
fn a_container_of_each_kind_has_cadvisors_metrics() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    assert_eq!(all(&machine), []);
    let pod = machine.pod("counted").unwrap();
    let mut ids = Vec::new();
    for (engine, image) in BOTH.iter().zip(&images) {
        let mut config = engine.idle(engine.handler(), image);
        config.linux = plan::memory(64 << 20);
        let id = machine.run(&pod, config).unwrap();
        machine.logged(&id, "ready").unwrap();
        ids.push(id);
    }
    let metrics = all(&machine);
    assert_eq!(metrics.len(), 1);
    let of_pod = lines(&machine, &metrics[0].metrics);
    let name = "container_network_receive_packets_total";
    value(&of_pod, name, ("interface", "eth0"));
    assert!(
        of_pod
            .iter()
            .all(|line| line.1["pod"] == "counted" && line.1["container"].is_empty())
    );
    for (engine, id) in BOTH.iter().zip(&ids) {
        let own = metrics[0]
            .container_metrics
            .iter()
            .find(|it| it.container_id == *id);
        let own = lines(&machine, &own.unwrap().metrics);
        let labels = ("container", engine.handler());
        assert_eq!(
            value(&own, "container_spec_memory_limit_bytes", labels),
            64 << 20
        );
        assert!(
            value(&own, "container_memory_usage_bytes", labels) > 0,
            "{engine:?}"
        );
        assert!(value(&own, "container_memory_working_set_bytes", ("name", id)) > 0);
        assert!(value(&own, "container_processes", labels) > 0, "{engine:?}");
        assert!(
            value(&own, "container_file_descriptors", labels) > 0,
            "{engine:?}"
        );
        assert!(value(&own, "container_start_time_seconds", ("pod", "counted")) > 1_600_000_000);
        let faults = "container_memory_failures_total";
        assert!(
            value(&own, faults, ("failure_type", "pgfault")) > 0,
            "{engine:?}"
        );
        for (_, labels, _) in &own {
            assert_eq!(labels["namespace"], "tests");
            assert!(labels["image"].contains(engine.name()), "{labels:?}");
            assert!(
                labels["id"].starts_with('/') && labels["id"].ends_with(id.as_str()),
                "{labels:?}"
            );
        }
    }
    machine.stop(&ids[1], 10).unwrap();
    let left = all(&machine);
    let left: Vec<_> = left[0]
        .container_metrics
        .iter()
        .map(|it| &it.container_id)
        .collect();
    assert_eq!(left, [&ids[0]]);
    machine.remove_pod(&pod.id).unwrap();
    assert_eq!(all(&machine), []);
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn what_a_container_does_is_counted() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("busy").unwrap();
    let script =
        "dd if=/dev/zero of=/data/file bs=1M count=3 2> /dev/null; echo ready; while :; do :; done";
    let config = plan::command("busy", &image, &["sh", "-c", script]);
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    wait::until("a second of CPU time", wait::PATIENCE, || {
        let metrics = all(&machine);
        let own = lines(&machine, &metrics[0].container_metrics[0].metrics);
        let label = ("container", "busy");
        let used = value(&own, "container_cpu_usage_seconds_total", label) >= 1
            && value(&own, "container_fs_usage_bytes", label) >= 3 << 20;
        used.then_some(())
    })
    .unwrap();
    // The v2 tree counts pressure where the kernel does.
    let request = ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = machine
        .client
        .container_stats(request)
        .unwrap()
        .stats
        .unwrap();
    let counts = std::path::Path::new("/proc/pressure/cpu").exists();
    assert_eq!(stats.cpu.unwrap().psi.is_some(), counts);
    assert_eq!(stats.io.is_some(), counts);
    machine.remove_pod(&pod.id).unwrap();
}
