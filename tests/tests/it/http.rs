//! Components that serve HTTP, through the CRI.

use std::net::SocketAddr;

use criw_proto::v1::*;
use criw_tests::http::Answer;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, images, plan};

fn provide(machine: &Machine) -> String {
    let image = images::wasm("proxy.component").unwrap();
    machine.provide("proxy:1", &image).unwrap()
}

/// One request, once: whoever is Running listens.
fn get(machine: &Machine, address: SocketAddr, path: &str) -> Answer {
    machine
        .world
        .enter(|| http::request(address, "GET", path, &[], b""))
        .unwrap()
}

fn address(machine: &Machine, pod: &Pod, port: u16) -> SocketAddr {
    (machine.pod_ip(&pod.id).unwrap(), port).into()
}

#[test]
fn a_component_serves_from_start_to_drain() {
    let machine = Machine::new().unwrap();
    let image = provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("proxy").unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    std::fs::write(volume.join("note"), "from a volume\n").unwrap();
    let mut config = plan::container("proxy", &image);
    config.args = vec!["one".into(), "two words".into()];
    config.envs = vec![
        plan::env("COLOUR", "blue"),
        plan::env("WASMTIME_HTTP_PROXY_SOCKET_ADDR", "0.0.0.0:80"),
    ];
    config.mounts = vec![plan::mount(&volume, "/data", true)];
    let id = machine.run(&pod, config).unwrap();
    let at = address(&machine, &pod, 80);
    let hello = get(&machine, at, "/");
    assert_eq!(
        (hello.status, hello.header("x-guest")),
        (200, Some("proxy"))
    );
    for (path, part) in [
        ("/env", "COLOUR=blue"),
        ("/args", "two words"),
        ("/file/data/note", "from a volume"),
        ("/log", "logged"),
    ] {
        let answer = get(&machine, at, path);
        assert!(answer.text().contains(part), "{path}: {answer:?}");
    }
    assert!(!get(&machine, at, "/env").text().contains("WASMTIME"));
    machine.logged(&id, "said on stdout").unwrap();
    machine.logged(&id, "said on stderr").unwrap();

    // A request that traps costs that request.
    assert_eq!(get(&machine, at, "/trap").status, 500);
    machine.logged(&id, "wasm backtrace").unwrap();
    assert_eq!(get(&machine, at, "/").status, 200);
    let status = machine.status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);

    // The port is taken.
    let mut second = plan::container("second", &image);
    second.envs = vec![plan::env("SPIN_HTTP_LISTEN_ADDR", "0.0.0.0:80")];
    let second = machine.create(&pod, second).unwrap();
    let error = machine.start(&second).unwrap_err();
    assert!(error.message().contains("0.0.0.0:80"), "{error:?}");
    assert!(error.message().contains("in use"), "{error:?}");
    let status = machine.status(&second).unwrap();
    assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));

    // What is inside when the stop signal comes is finished.
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(&machine, at, "/wait/1500"));
        machine.logged(&id, "waiting").unwrap();
        machine.stop(&id, 20).unwrap();
        slow.join().unwrap()
    });
    assert_eq!((slow.status, slow.text().contains("waited")), (200, true));
    let stopped = machine.status(&id).unwrap();
    assert_eq!((stopped.exit_code, &*stopped.reason), (0, "Completed"));
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn bounds_come_from_annotations() {
    let machine = Machine::new().unwrap();
    let image = provide(&machine);
    let pod = machine.pod("bounds").unwrap();
    let mut config = plan::container("proxy", &image);
    let annotate = |config: &mut ContainerConfig, key: &str, value: &str| {
        config
            .annotations
            .insert(format!("criw.dev/{key}"), value.to_owned());
    };
    annotate(&mut config, "http-request-timeout", "soon");
    let error = machine.create(&pod, config.clone()).unwrap_err();
    assert!(
        error.to_string().contains("http-request-timeout"),
        "{error:?}"
    );
    annotate(&mut config, "http-request-timeout", "500ms");
    annotate(&mut config, "http-max-body", "10");
    let id = machine.run(&pod, config).unwrap();
    let at = address(&machine, &pod, 8080);
    assert_eq!(get(&machine, at, "/spin").status, 504);
    let large = machine
        .world
        .enter(|| http::request(at, "POST", "/echo", &[], b"more than ten bytes"))
        .unwrap();
    assert_eq!(large.status, 413);
    machine.logged(&id, "nothing moved for 500ms").unwrap();
    machine.remove_pod(&pod.id).unwrap();
}

#[test]
fn a_flood_of_bad_requests_harms_neither_daemon_nor_siblings() {
    let machine = Machine::new().unwrap();
    let image = provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("flood").unwrap();
    let mut config = plan::container("proxy", &image);
    for (key, value) in [
        ("http-request-timeout", "1s"),
        ("http-max-requests", "4"),
        ("http-max-connections", "16"),
    ] {
        let key = format!("criw.dev/{key}");
        config.annotations.insert(key, value.to_owned());
    }
    config.linux = plan::memory(64 << 20);
    let id = machine.run(&pod, config).unwrap();
    let mut sibling = plan::container("sibling", &image);
    sibling.envs = vec![plan::env("WASMTIME_HTTP_PROXY_SOCKET_ADDR", "0.0.0.0:81")];
    let sibling = machine.run(&pod, sibling).unwrap();
    let (at, beside) = (address(&machine, &pod, 8080), address(&machine, &pod, 81));
    let paths = ["/", "/trap", "/spin", "/hog", "/silent", "/late-trap"];
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|client| {
                let machine = &machine;
                scope.spawn(move || {
                    let path = paths[client % paths.len()];
                    for _ in 0..10 {
                        // Refused or broken off is an answer too.
                        let _ = machine
                            .world
                            .enter(|| http::request(at, "GET", path, &[], b""));
                    }
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            machine.client.version(VersionRequest::default()).unwrap();
            assert_eq!(get(&machine, beside, "/").status, 200);
        }
    });
    machine.logged(&id, "wasm backtrace").unwrap();
    criw_tests::wait::until("the flood to be over", criw_tests::wait::PATIENCE, || {
        (get(&machine, at, "/").status == 200).then_some(())
    })
    .unwrap();
    for id in [&id, &sibling] {
        let status = machine.status(id).unwrap();
        assert_eq!(
            status.state(),
            ContainerState::ContainerRunning,
            "{status:?}"
        );
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}
