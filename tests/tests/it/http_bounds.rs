//! Deadlines and fuel by annotations of the pod, and what is told of them at /metrics.

use std::net::SocketAddr;
use std::time::Duration;

use criw_proto::v1::*;
use criw_tests::config::METRICS;
use criw_tests::machine::Machine;
use criw_tests::{http, images, plan, wait};

fn annotated(name: &str, image: &str, wishes: &[(&str, &str)]) -> ContainerConfig {
    let mut config = plan::container(name, image);
    for (key, value) in wishes {
        let key = format!("criw.dev/{key}");
        config.annotations.insert(key, (*value).to_owned());
    }
    config
}

fn metrics(machine: &Machine) -> String {
    let answer = machine
        .world
        .enter(|| http::request(METRICS.parse().unwrap(), "GET", "/metrics", &[], b""))
        .unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

#[test]
fn commands_end_by_deadline_and_fuel() {
    let machine = Machine::new().unwrap();
    let spin = machine
        .provide("spin:1", &images::wasm("spin").unwrap())
        .unwrap();
    let hello = machine
        .provide("hello:1", &images::wasm("hello").unwrap())
        .unwrap();
    let pod = machine.pod("bounds").unwrap();
    for (name, image, wish, part) in [
        ("deadline", &spin, ("deadline", "400ms"), "400ms"),
        ("fuel", &spin, ("fuel", "100000000"), "out of fuel"),
        ("little", &hello, ("fuel", "10"), "out of fuel"),
    ] {
        let id = machine.run(&pod, annotated(name, image, &[wish])).unwrap();
        let ended = machine.ended(&id).unwrap();
        assert_eq!(
            (ended.exit_code, &*ended.reason),
            (124, "DeadlineExceeded"),
            "{name}: {ended:?}"
        );
        assert!(ended.message.contains(part), "{name}: {ended:?}");
        machine.logged(&id, part).unwrap();
    }
    // Who stays within both is not disturbed, and one image has both variants of its code.
    let both = [("deadline", "1h"), ("fuel", "100000000")];
    for (name, wishes) in [("bounded", &both[..]), ("free", &[])] {
        let id = machine.run(&pod, annotated(name, &hello, wishes)).unwrap();
        let ended = machine.ended(&id).unwrap();
        assert_eq!(
            (ended.exit_code, &*ended.reason),
            (0, "Completed"),
            "{ended:?}"
        );
    }
    for (key, value) in [
        ("deadline", "soon"),
        ("deadline", "0s"),
        ("deadline", "999999999999999h"),
        ("fuel", "0"),
        ("fuel", "lots"),
        ("fuel", "99999999999999999999999"),
        ("http-request-deadline", "-1s"),
    ] {
        let config = annotated("bad", &hello, &[(key, value)]);
        let error = machine.create(&pod, config).unwrap_err();
        assert!(
            error.message().contains(&format!("criw.dev/{key}")),
            "{error:?}"
        );
    }
    machine.remove_pod(&pod.id).unwrap();
}

#[test]
fn requests_have_bounds_of_their_own_and_are_counted() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("proxy:1", &images::wasm("proxy.component").unwrap())
        .unwrap();
    let idle = machine
        .provide("idle:1", &images::wasm("idle").unwrap())
        .unwrap();
    let pod = machine.pod("counted").unwrap();
    let wishes = [("http-request-deadline", "800ms"), ("fuel", "2000000000")];
    let id = machine
        .run(&pod, annotated("web", &image, &wishes))
        .unwrap();
    machine.run(&pod, plan::container("idle", &idle)).unwrap();
    let at: SocketAddr = (machine.pod_ip(&pod.id).unwrap(), 8080).into();
    let get = |path: &str| {
        let answer = machine
            .world
            .enter(|| http::request(at, "GET", path, &[], b""));
        answer.map(|answer| answer.status).unwrap_or(0)
    };
    for (path, status) in [("/", 200), ("/wait/60000", 504), ("/trap", 500), ("/", 200)] {
        assert_eq!(get(path), status, "{path}");
    }
    machine.logged(&id, "it took longer than 800ms").unwrap();
    let labels = |name: &str| format!("namespace=\"tests\",pod=\"counted\",container=\"{name}\"");
    let web = labels("web");
    let wanted = [
        format!("criw_wasm_requests_total{{{web},result=\"answered\"}} 2"),
        format!("criw_wasm_requests_total{{{web},result=\"failed\"}} 1"),
        format!("criw_wasm_requests_total{{{web},result=\"timeout\"}} 1"),
        format!("criw_wasm_traps_total{{{web},trap=\"unreachable\"}} 1"),
        format!("criw_wasm_instances{{{web}}} 0"),
        format!("criw_wasm_linear_memory_bytes{{{web}}} 0"),
        format!("criw_wasm_instances{{{}}} 1", labels("idle")),
        "criw_wasm_silent_shims 0".to_owned(),
    ];
    let mut page = String::new();
    let told = wait::until("all of it to be told", wait::PATIENCE, || {
        page = metrics(&machine);
        wanted
            .iter()
            .all(|line| page.lines().any(|found| found == line))
            .then_some(())
    });
    assert!(told.is_ok(), "{wanted:#?}\n{page}");
    let memory = format!("criw_wasm_linear_memory_bytes{{{}}} ", labels("idle"));
    let bytes = page
        .lines()
        .find_map(|line| line.strip_prefix(&memory))
        .unwrap();
    assert!(bytes.parse::<u64>().unwrap() >= 65_536, "{bytes}");
    // The second container of an image finds its code there.
    let hits = |page: &str| -> u64 {
        let name = "criw_wasm_code_cache_hits_total ";
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse().unwrap()
    };
    let earlier = hits(&page);
    let config = annotated("again", &idle, &[("deadline", "1s")]);
    machine.run(&pod, config).unwrap();
    assert_eq!(hits(&metrics(&machine)), earlier + 1);
    // What has ended is not on the page any more.
    machine.remove_pod(&pod.id).unwrap();
    wait::until("the page to forget", Duration::from_secs(10), || {
        (!metrics(&machine).contains("pod=\"counted\"")).then_some(())
    })
    .unwrap();
}
