//! What the daemon tells Prometheus.

use criw_tests::config::METRICS;
use criw_tests::machine::Machine;
use criw_tests::{http, images, plan, wait};

/// The page, line by line.
fn scrape(machine: &Machine) -> Vec<String> {
    let answer = machine
        .world
        .enter(|| http::request(METRICS.parse().unwrap(), "GET", "/metrics", &[], b""))
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let kind = answer.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    answer.text().lines().map(str::to_owned).collect()
}

/// The number behind a name with its labels; 0 when it is not there yet.
fn value(lines: &[String], name: &str) -> f64 {
    let number = lines.iter().find_map(|line| {
        let (found, number) = line.rsplit_once(' ')?;
        (found == name).then(|| number.parse().unwrap())
    });
    number.unwrap_or(0.0)
}

#[test]
fn calls_ends_and_the_state_of_the_node_are_told() {
    let machine = Machine::new().unwrap();
    let hello = machine
        .provide("hello:1", &images::wasm("hello").unwrap())
        .unwrap();
    let trap = machine
        .provide("trap:1", &images::wasm("trap").unwrap())
        .unwrap();
    let missing = machine.registry.reference("missing:1");
    machine.pull(&missing).unwrap_err();
    let pod = machine.pod("metrics").unwrap();
    for (name, image) in [("hello", &hello), ("trap", &trap)] {
        let id = machine.run(&pod, plan::container(name, image)).unwrap();
        machine.ended(&id).unwrap();
    }
    let exits = |reason: &str| {
        format!("criw_container_exits_total{{engine=\"wasmtime\",reason=\"{reason}\"}}")
    };
    // The news of an end is counted by another task than the one that wrote it down.
    let lines = wait::until("both ends to be counted", wait::PATIENCE, || {
        let lines = scrape(&machine);
        (value(&lines, &exits("Completed")) + value(&lines, &exits("Trap")) == 2.0).then_some(lines)
    })
    .unwrap();
    for (name, expected) in [
        (exits("Trap").as_str(), 1.0),
        ("criw_pods{state=\"ready\"}", 1.0),
        ("criw_pods{state=\"notready\"}", 0.0),
        ("criw_containers{engine=\"wasmtime\",state=\"exited\"}", 2.0),
        ("criw_images", 2.0),
        ("criw_image_pulls_total{result=\"success\"}", 2.0),
        ("criw_image_pulls_total{result=\"failure\"}", 1.0),
        ("criw_wasm_compilations_total{result=\"success\"}", 2.0),
        (
            "criw_cri_requests_total{method=\"StartContainer\",code=\"Ok\"}",
            2.0,
        ),
        (
            "criw_cri_request_duration_seconds_count{method=\"RunPodSandbox\"}",
            1.0,
        ),
    ] {
        assert_eq!(
            value(&lines, name),
            expected,
            "{name}\n{}",
            lines.join("\n")
        );
    }
    for name in [
        "criw_image_store_bytes",
        "criw_wasm_compile_seconds_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(value(&lines, name) > 0.0, "{name}");
    }
    machine.remove_pod(&pod.id).unwrap();
    let lines = scrape(&machine);
    assert_eq!(value(&lines, "criw_pods{state=\"ready\"}"), 0.0);
    // What ended is counted, though it is gone.
    assert_eq!(value(&lines, &exits("Trap")), 1.0);
}

#[test]
fn other_pages_and_methods_are_refused() {
    let machine = Machine::new().unwrap();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/metrics/..", 404),
        ("POST", "/metrics", 405),
    ] {
        let answer = machine
            .world
            .enter(|| http::request(METRICS.parse().unwrap(), method, path, &[], b""))
            .unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
}
