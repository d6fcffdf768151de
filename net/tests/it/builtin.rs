//! The built-in network between real namespaces.

use std::net::Ipv4Addr;
use std::time::Instant;

use criw_net::{BuiltinConfig, Mode, NetError, Network, interface_counters};

use crate::host::{Host, Pod, ask, eventually, looks_again_like, on_own_host, run, serve};

fn network(host: &Host) -> Network {
    let config = BuiltinConfig {
        subnet: None,
        lease_dir: host.path("leases"),
        table: "criw-test".into(),
    };
    Network::new(Mode::Builtin(config), host.path("state")).unwrap()
}

#[test]
fn pods_reach_each_other_and_the_host() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        network.status().await.unwrap();
        let (one, two) = (Pod::new(&host, 1), Pod::new(&host, 2));
        let (first, second) = (
            one.attach(&network).await.unwrap(),
            two.attach(&network).await.unwrap(),
        );
        assert_eq!(
            (first.ips()[0].to_string(), second.ips()[0].to_string()),
            ("10.88.0.2".into(), "10.88.0.3".into())
        );
        one.serve(80);
        two.serve(80);
        assert_eq!(
            ask(first.ips()[0], 80).await.unwrap(),
            "10.88.0.1",
            "host to pod"
        );
        assert_eq!(
            one.ask(second.ips()[0], 80).await.unwrap(),
            "10.88.0.2",
            "pod to pod keeps its address"
        );
        assert_eq!(two.ask(first.ips()[0], 80).await.unwrap(), "10.88.0.3");
        let gateway = Ipv4Addr::new(10, 88, 0, 1);
        serve(std::net::TcpListener::bind((gateway, 7000)).unwrap());
        assert_eq!(
            one.ask(gateway.into(), 7000).await.unwrap(),
            "10.88.0.2",
            "pod to host"
        );
        assert_eq!(
            one.ask(Ipv4Addr::LOCALHOST.into(), 80).await.unwrap(),
            "127.0.0.1",
            "lo is up"
        );
        let counters = interface_counters(one.netns()).unwrap();
        let eth0 = counters.iter().find(|c| c.name == "eth0").unwrap();
        assert!(
            eth0.rx_bytes > 0 && eth0.tx_bytes > 0 && eth0.rx_packets > 0,
            "{eth0:?}"
        );
        assert!(
            counters.iter().any(|c| c.name == "lo" && c.rx_bytes > 0),
            "{counters:?}"
        );
    });
}

#[test]
fn a_pod_reaches_the_outside_as_the_host() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        // Another machine: a namespace behind a link that knows nothing of pods.
        let outside = Pod::new(&host, 99);
        run(
            "ip",
            &[
                "link",
                "add",
                "uplink",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                outside.network.netns_path.to_str().unwrap(),
            ],
        );
        run("ip", &["addr", "add", "192.0.2.1/24", "dev", "uplink"]);
        run("ip", &["link", "set", "uplink", "up"]);
        outside.inside(|| {
            run("ip", &["addr", "add", "192.0.2.2/24", "dev", "eth0"]);
            run("ip", &["link", "set", "eth0", "up"]);
        });
        outside.serve(80);
        let pod = Pod::new(&host, 1).with_port(8080, 80);
        let attached = pod.attach(&network).await.unwrap();
        pod.serve(80);
        assert_eq!(
            pod.ask(Ipv4Addr::new(192, 0, 2, 2).into(), 80)
                .await
                .unwrap(),
            "192.0.2.1",
            "masqueraded"
        );
        assert_eq!(
            outside
                .ask(Ipv4Addr::new(192, 0, 2, 1).into(), 8080)
                .await
                .unwrap(),
            "192.0.2.2",
            "host port from outside"
        );
        network.detach(&attached, true).await.unwrap();
        assert!(
            outside
                .ask(Ipv4Addr::new(192, 0, 2, 1).into(), 8080)
                .await
                .is_err()
        );
    });
}

#[test]
fn host_ports_answer_on_every_way() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let (server, client) = (Pod::new(&host, 1).with_port(12000, 80), Pod::new(&host, 2));
        let attached = server.attach(&network).await.unwrap();
        client.attach(&network).await.unwrap();
        server.serve(80);
        let gateway = Ipv4Addr::new(10, 88, 0, 1);
        assert_eq!(
            ask(Ipv4Addr::LOCALHOST, 12000).await.unwrap(),
            "10.88.0.1",
            "127.0.0.1 on the host"
        );
        assert_eq!(
            ask(gateway, 12000).await.unwrap(),
            "10.88.0.1",
            "an address of the host"
        );
        assert_eq!(
            client.ask(gateway.into(), 12000).await.unwrap(),
            "10.88.0.3",
            "another pod"
        );
        assert_eq!(
            server.ask(gateway.into(), 12000).await.unwrap(),
            "10.88.0.1",
            "the pod itself"
        );

        let taken = Pod::new(&host, 3).with_port(12000, 81);
        let before = host.snapshot();
        let error = taken.attach(&network).await.unwrap_err();
        assert!(
            matches!(
                error,
                NetError::HostPortTaken {
                    host_port: 12000,
                    protocol: "tcp"
                }
            ),
            "{error}"
        );
        assert_eq!(host.snapshot(), before, "a refused pod leaves nothing");

        network.detach(&attached, true).await.unwrap();
        let again = taken.attach(&network).await.unwrap();
        // Repeating the first pod's detach must not touch the port's new owner.
        network.detach(&attached, true).await.unwrap();
        taken.serve(81);
        assert_eq!(ask(Ipv4Addr::LOCALHOST, 12000).await.unwrap(), "10.88.0.1");
        network.detach(&again, true).await.unwrap();
        assert!(ask(Ipv4Addr::LOCALHOST, 12000).await.is_err());
    });
}

#[test]
fn a_removed_table_is_made_anew() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let one = Pod::new(&host, 1);
        one.attach(&network).await.unwrap();
        run("nft", &["flush", "ruleset"]);
        let two = Pod::new(&host, 2).with_port(8080, 80);
        two.attach(&network).await.unwrap();
        two.serve(80);
        assert_eq!(ask(Ipv4Addr::LOCALHOST, 8080).await.unwrap(), "10.88.0.1");
    });
}

#[test]
fn detach_leaves_nothing_and_may_be_repeated() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        // The table and ip_forward stay with the daemon: make them first.
        let mut warm = Pod::new(&host, 1);
        let attached = warm.attach(&network).await.unwrap();
        network.detach(&attached, true).await.unwrap();
        warm.drop_netns();
        eventually("the host end goes with the namespace", || {
            !run("ip", &["-o", "link"]).contains("criw")
        })
        .await;
        let before = host.snapshot();
        for round in 0..2 {
            let mut pod = Pod::new(&host, 2).with_port(8080, 80);
            let attached = pod.attach(&network).await.unwrap();
            assert_ne!(host.snapshot(), before);
            let text = serde_json::to_string(&attached).unwrap();
            assert_eq!(
                serde_json::from_str::<criw_net::Attachment>(&text).unwrap(),
                attached
            );
            let reboot = round == 1;
            if reboot {
                pod.drop_netns();
            }
            network.detach(&attached, !reboot).await.unwrap();
            network.detach(&attached, false).await.unwrap();
            pod.drop_netns();
            looks_again_like(&host, &before).await;
        }
        network.remove_all().await.unwrap();
        network.remove_all().await.unwrap();
        assert!(!host.snapshot().contains("criw"), "{}", host.snapshot());
    });
}

#[test]
fn gc_removes_strays_and_restores_the_living() {
    on_own_host(async |host: Host| {
        let (stays, lost) = (
            Pod::new(&host, 1).with_port(8080, 80),
            Pod::new(&host, 2).with_port(8081, 80),
        );
        let (kept, link) = {
            let network = network(&host);
            let kept = stays.attach(&network).await.unwrap();
            let lost = lost.attach(&network).await.unwrap();
            let criw_net::Kind::Builtin(record) = &lost.kind else {
                panic!("{lost:?}")
            };
            (kept, record.host_interface.clone())
        };
        // Another process of the daemon, which lost one record.
        run("nft", &["flush", "ruleset"]);
        let network = network(&host);
        network.gc(&[&kept]).await.unwrap();
        let now = host.snapshot();
        assert!(!now.contains(&link) && !now.contains("10.88.0.3"), "{now}");
        stays.serve(80);
        assert_eq!(ask(Ipv4Addr::LOCALHOST, 8080).await.unwrap(), "10.88.0.1");
        let next = Pod::new(&host, 3).attach(&network).await.unwrap();
        assert_eq!(
            next.ips()[0].to_string(),
            "10.88.0.4",
            "round robin goes on"
        );
    });
}

#[test]
fn the_pod_cidr_of_the_node_is_used_next() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let one = Pod::new(&host, 1);
        one.attach(&network).await.unwrap();
        network
            .set_pod_cidr(&["10.244.3.0/24".into(), "fd00::/64".into()])
            .unwrap();
        let two = Pod::new(&host, 2);
        let second = two.attach(&network).await.unwrap();
        assert_eq!(second.ips()[0].to_string(), "10.244.3.2");
        one.serve(80);
        assert_eq!(
            two.ask(Ipv4Addr::new(10, 88, 0, 2).into(), 80)
                .await
                .unwrap(),
            "10.244.3.2"
        );
        let error = network.set_pod_cidr(&["nonsense".into()]).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    });
}

#[test]
fn a_second_attach_is_refused_and_harms_nothing() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let pod = Pod::new(&host, 1);
        let attached = pod.attach(&network).await.unwrap();
        let error = pod.attach(&network).await.unwrap_err();
        assert!(error.to_string().contains("attached already"), "{error}");
        pod.serve(80);
        assert_eq!(ask(attached.ips()[0], 80).await.unwrap(), "10.88.0.1");
    });
}

#[test]
fn gc_restores_thousands_of_ports_at_once() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let mut pod = Pod::new(&host, 1);
        let attached = pod.attach(&network).await.unwrap();
        pod.serve(80);
        let mut record = attached.clone();
        for port in 10_000..14_000 {
            pod = pod.with_port(port, 80);
        }
        let criw_net::Kind::Builtin(builtin) = &mut record.kind else {
            panic!("{record:?}")
        };
        builtin.ports = pod.network.ports.clone();
        network.gc(&[&record]).await.unwrap();
        let elements = run("nft", &["list", "map", "ip", "criw-test", "ports"]);
        assert!(
            elements.contains("10000") && elements.contains("13999"),
            "{elements}"
        );
    });
}

/// A figure, not a promise: printed with `--nocapture`.
#[test]
fn two_hundred_pods() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let pods: Vec<Pod> = (1..=200).map(|n| Pod::new(&host, n)).collect();
        let mut attach = Vec::new();
        let mut attached = Vec::new();
        for pod in &pods {
            let start = Instant::now();
            attached.push(pod.attach(&network).await.unwrap());
            attach.push(start.elapsed());
        }
        pods[199].serve(80);
        assert_eq!(
            pods[0].ask(attached[199].ips()[0], 80).await.unwrap(),
            "10.88.0.2"
        );
        let mut detach = Vec::new();
        for attachment in &attached {
            let start = Instant::now();
            network.detach(attachment, true).await.unwrap();
            detach.push(start.elapsed());
        }
        for (what, mut times) in [
            ("attach, first 100", attach[..100].to_vec()),
            ("attach, last 100", attach[100..].to_vec()),
            ("detach", detach),
        ] {
            times.sort();
            println!(
                "built-in {what}: p50 {:?} p99 {:?} max {:?}",
                times[times.len() / 2],
                times[times.len() * 99 / 100],
                times[times.len() - 1]
            );
        }
    });
}
