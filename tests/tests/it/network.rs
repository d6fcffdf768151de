//! Pod addresses, localhost between containers, host ports, both network modes.

use std::net::{IpAddr, SocketAddr};

use criw_proto::v1::*;
use criw_tests::config::{self, Network};
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, images, plan, wait};

use crate::engine::Engine;

/// A Wasm web server that listens on a port of the pod.
pub(crate) fn server(image: &str, port: u16) -> ContainerConfig {
    let mut config = plan::command("server", image, &["/bin/server"]);
    config
        .annotations
        .insert("criw.dev/listen".into(), format!("0.0.0.0:{port}"));
    config
}

/// Asks until the server answers: listening and answering are not the same moment.
fn get(machine: &Machine, address: SocketAddr) -> String {
    machine
        .world
        .enter(|| {
            wait::until(&format!("http://{address}"), wait::PATIENCE, || {
                http::get(address, "/").ok()
            })
        })
        .unwrap()
}

fn run_server(machine: &Machine, pod: &Pod, image: &str) -> String {
    let id = machine.run(pod, server(image, 8080)).unwrap();
    machine.logged(&id, "listening").unwrap();
    id
}

fn reached_on_its_address(network: Network, inside: &str) {
    let machine = Machine::with(network, &[]).unwrap();
    let image = Engine::Wasm.provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("web").unwrap();
    let ip = machine.pod_ip(&pod.id).unwrap();
    assert!(ip.to_string().starts_with(inside), "{ip}");
    let id = run_server(&machine, &pod, &image);
    let answer = get(&machine, (ip, 8080).into());
    assert!(answer.contains("hello from a wasm server"), "{answer}");
    machine.logged(&id, "served GET / HTTP/1.1").unwrap();
    // Its listener is closed at the stop signal, and it ends by itself or at once.
    machine.stop(&id, 20).unwrap();
    assert_eq!(
        machine.status(&id).unwrap().state(),
        ContainerState::ContainerExited
    );
    machine.stop_pod(&pod.id).unwrap();
    let network = machine.pod_status(&pod.id).unwrap().network;
    assert!(network.is_none_or(|network| network.ip.is_empty()));
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_wasm_server_is_reached_on_the_built_in_network() {
    reached_on_its_address(Network::Builtin, "10.87.");
}

#[test]
fn a_wasm_server_is_reached_on_a_network_of_real_plugins() {
    reached_on_its_address(Network::Cni, "10.88.0.");
}

#[test]
fn a_component_that_listens_by_itself_is_reached_on_a_low_port() {
    let machine = Machine::new().unwrap();
    let image = images::wasm("httpd.component").unwrap();
    let image = machine.provide("httpd:1", &image).unwrap();
    let pod = machine.pod("web").unwrap();
    let ip = machine.pod_ip(&pod.id).unwrap();
    let mut config = plan::container("httpd", &image);
    config.args = vec!["80".into()];
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "httpd: listening on port 80").unwrap();
    for _ in 0..3 {
        assert_eq!(get(&machine, (ip, 80).into()), "hello\n");
    }
    machine.stop(&id, 20).unwrap();
    assert_eq!(machine.status(&id).unwrap().exit_code, 143);
}

#[test]
fn wasm_and_linux_meet_on_localhost() {
    let machine = Machine::new().unwrap();
    let wasm = Engine::Wasm.provide(&machine);
    let linux = Engine::Linux.provide(&machine);
    let connect = images::wasm("connect").unwrap();
    let connect = machine.provide("connect:1", &connect).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("mixed").unwrap();
    run_server(&machine, &pod, &wasm);
    let ask = plan::command(
        "ask",
        &linux,
        &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"],
    );
    let (status, log) = machine.outcome(&pod, ask).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    assert!(log.contains("hello from a wasm server, request 1"), "{log}");

    // And the other way round: a preview 2 guest opens the connection.
    let argv = [
        "sh",
        "-c",
        "mkdir -p /www && echo hello from linux > /www/index.html && exec httpd -f -p 9090 -h /www",
    ];
    let id = machine
        .run(&pod, plan::command("httpd", &linux, &argv))
        .unwrap();
    let ip = machine.pod_ip(&pod.id).unwrap();
    let answer = machine
        .world
        .enter(|| {
            wait::until("the linux server", wait::PATIENCE, || {
                http::get((ip, 9090).into(), "/index.html").ok()
            })
        })
        .unwrap();
    assert_eq!(answer, "hello from linux\n");
    let ask = plan::container("connect", &connect);
    let (status, log) = machine.outcome(&pod, ask).unwrap();
    assert_eq!(status.exit_code, 0, "{status:?} {log}");
    assert!(log.ends_with("hello from linux\n"), "{log}");
    machine.remove(&id).unwrap();
    // Nobody listens any more: an error of the guest's, not of the engine's.
    let ask = plan::container("refused", &connect);
    let (status, log) = machine.outcome(&pod, ask).unwrap();
    assert_eq!((status.exit_code, &*status.reason), (1, "Error"), "{log}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

fn host_port(network: Network) {
    let machine = Machine::with(network, &[]).unwrap();
    let image = Engine::Wasm.provide(&machine);
    // The node's own address, as another machine would use it.
    machine
        .world
        .run(
            "ip",
            &[
                "link", "add", "node0", "type", "veth", "peer", "name", "node1",
            ],
        )
        .unwrap();
    machine
        .world
        .run("ip", &["addr", "add", "192.0.2.1/24", "dev", "node0"])
        .unwrap();
    machine
        .world
        .run("ip", &["link", "set", "node0", "up"])
        .unwrap();
    let mut config = machine.pod_config("ported");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 12_000,
        host_ip: String::new(),
    }];
    // The plugins make chains for the first host port and keep them.
    let first = machine.run_pod(config.clone(), "").unwrap();
    machine.remove_pod(&first.id).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.run_pod(config, "").unwrap();
    run_server(&machine, &pod, &image);
    for node in ["127.0.0.1", "192.0.2.1"] {
        let node: IpAddr = node.parse().unwrap();
        let answer = get(&machine, (node, 12_000).into());
        assert!(
            answer.contains("hello from a wasm server"),
            "{node}: {answer}"
        );
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_host_port_answers_on_the_built_in_network() {
    host_port(Network::Builtin);
}

#[test]
fn a_host_port_answers_on_a_network_of_real_plugins() {
    host_port(Network::Cni);
}

#[test]
fn pods_have_different_addresses_and_reach_each_other() {
    let machine = Machine::new().unwrap();
    let wasm = Engine::Wasm.provide(&machine);
    let linux = Engine::Linux.provide(&machine);
    let (web, asker) = (machine.pod("web").unwrap(), machine.pod("asker").unwrap());
    let ip = machine.pod_ip(&web.id).unwrap();
    assert_ne!(ip, machine.pod_ip(&asker.id).unwrap());
    run_server(&machine, &web, &wasm);
    let url = format!("http://{ip}:8080/");
    let ask = plan::command("ask", &linux, &["wget", "-q", "-O", "-", &url]);
    let (status, log) = machine.outcome(&asker, ask).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    assert!(log.contains("hello from a wasm server"), "{log}");
}

#[test]
fn a_pod_on_the_nodes_network_has_no_address_of_its_own() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let mut config = machine.pod_config("node");
    config.hostname.clear();
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let before = machine.baseline().unwrap();
    let pod = machine.run_pod(config, "").unwrap();
    assert!(machine.pod_ip(&pod.id).is_err());
    run_server(&machine, &pod, &image);
    let answer = get(&machine, ([127, 0, 0, 1], 8080).into());
    assert!(answer.contains("hello from a wasm server"), "{answer}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

fn network_ready(machine: &Machine) -> (bool, String) {
    let status = machine
        .client
        .status(StatusRequest { verbose: false })
        .unwrap()
        .status
        .unwrap();
    let condition = status
        .conditions
        .into_iter()
        .find(|condition| condition.r#type == "NetworkReady")
        .unwrap();
    (condition.status, condition.message)
}

#[test]
fn without_a_conflist_the_node_says_so_until_there_is_one() {
    let machine = Machine::with(Network::NoConflist, &[]).unwrap();
    let before = machine.snapshot().unwrap();
    let (ready, message) = network_ready(&machine);
    assert!(!ready);
    let dir = machine.world.path("cni").display().to_string();
    assert!(message.contains(&dir), "{message}");
    let refused = machine.pod("early").unwrap_err();
    assert!(refused.message().contains(&dir), "{refused:?}");
    machine.assert_nothing_left(&before).unwrap();
    // The good twin: the same daemon once the file is there, without a restart.
    config::conflist(&machine.world, "bridge").unwrap();
    wait::until("the network to be ready", wait::PATIENCE, || {
        network_ready(&machine).0.then_some(())
    })
    .unwrap();
    let pod = machine.pod("early").unwrap();
    machine.pod_ip(&pod.id).unwrap();
}

#[test]
fn a_missing_plugin_is_named() {
    let machine = Machine::with(Network::MissingPlugin, &[]).unwrap();
    let before = machine.snapshot().unwrap();
    let refused = machine.pod("lost").unwrap_err();
    assert!(refused.message().contains("no-such-plugin"), "{refused:?}");
    assert!(machine.pods().unwrap().is_empty());
    machine.assert_nothing_left(&before).unwrap();
    config::conflist(&machine.world, "bridge").unwrap();
    machine.pod("lost").unwrap();
}
