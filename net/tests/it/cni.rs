//! CNI networks with the real reference plugins; scripts stand in for plugins
//! only where one must fail, hang, or speak a version that Debian's do not.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criw_net::{Attachment, CniConfig, Kind, Mode, NetError, Network, PluginFailure};
use serde_json::{Value, json};

use crate::host::{Host, Pod, ask, eventually, looks_again_like, on_own_host, run, script};

const PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// False, and said aloud, where the reference plugins are not installed.
fn plugins_are_here() -> bool {
    let here = ["bridge", "host-local", "portmap"]
        .iter()
        .all(|p| PLUGIN_DIRS.iter().any(|d| Path::new(d).join(p).is_file()));
    if !here {
        println!(
            "SKIPPED: no bridge, host-local and portmap in {PLUGIN_DIRS:?}; install containernetworking-plugins"
        );
    }
    here
}

fn bridge(host: &Host) -> Value {
    json!({
        "type": "bridge", "bridge": "criwbr0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": host.path("ipam"),
            "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.100"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

fn write_conflist(host: &Host, version: &str, plugins: &[Value]) {
    std::fs::create_dir_all(host.path("net.d")).unwrap();
    let list = json!({"cniVersion": version, "name": "test", "plugins": plugins});
    std::fs::write(host.path("net.d/10-test.conflist"), list.to_string()).unwrap();
}

fn network(host: &Host) -> Network {
    let mut bin_dirs: Vec<PathBuf> = vec![host.path("bin")];
    bin_dirs.extend(PLUGIN_DIRS.map(PathBuf::from));
    std::fs::create_dir_all(host.path("bin")).unwrap();
    let config = CniConfig {
        conf_dir: host.path("net.d"),
        bin_dirs,
        plugin_timeout: Duration::from_secs(20),
    };
    Network::new(Mode::Cni(config), host.path("state")).unwrap()
}

#[test]
fn real_plugins_connect_and_leave_nothing() {
    if !plugins_are_here() {
        return;
    }
    on_own_host(async |host: Host| {
        let network = network(&host);
        let none = network.status().await.unwrap_err();
        assert_eq!(none.reason, "NetworkPluginNotReady", "{none}");
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            write_conflist(&host, version, &[bridge(&host), portmap()]);
            network.status().await.unwrap();
            // The bridge and portmap's top chains stay after the first pod.
            let mut warm = Pod::new(&host, 1).with_port(12001, 80);
            let attached = warm.attach(&network).await.unwrap();
            network.detach(&attached, true).await.unwrap();
            warm.drop_netns();
            let before = host.snapshot();

            let mut pod = Pod::new(&host, 2).with_port(12000, 80);
            let attached = pod.attach(&network).await.unwrap();
            pod.serve(80);
            let ip = attached.ips()[0];
            assert!(ip.to_string().starts_with("10.99.0."), "{ip}");
            assert_eq!(ask(ip, 80).await.unwrap(), "10.99.0.1", "{version}: pod ip");
            assert_eq!(
                ask(Ipv4Addr::LOCALHOST, 12000).await.unwrap(),
                "10.99.0.1",
                "{version}: host port"
            );
            assert_eq!(
                pod.ask(Ipv4Addr::LOCALHOST.into(), 80).await.unwrap(),
                "127.0.0.1",
                "{version}: lo"
            );
            network.detach(&attached, true).await.unwrap();
            assert!(ask(Ipv4Addr::LOCALHOST, 12000).await.is_err());
            network.detach(&attached, true).await.unwrap();
            pod.drop_netns();
            network.detach(&attached, false).await.unwrap();
            looks_again_like(&host, &before).await;
        }
    });
}

#[test]
fn a_record_is_enough_after_a_reboot_and_another_configuration() {
    if !plugins_are_here() {
        return;
    }
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[bridge(&host), portmap()]);
        let text = {
            let network = network(&host);
            let mut pod = Pod::new(&host, 1).with_port(12000, 80);
            let attached = pod.attach(&network).await.unwrap();
            assert!(host.path("ipam/test/10.99.0.100").exists());
            assert!(host.snapshot().contains("dport 12000"));
            pod.drop_netns();
            serde_json::to_string(&attached).unwrap()
        };
        std::fs::remove_dir_all(host.path("net.d")).unwrap();
        let attached: Attachment = serde_json::from_str(&text).unwrap();
        network(&host).detach(&attached, true).await.unwrap();
        // The bridge plugin's masquerade rule stays without a namespace (its
        // 1.1.1 stops after the lease); a real reboot takes it.
        assert!(!host.path("ipam/test/10.99.0.100").exists());
        assert!(
            !host.snapshot().contains("dport 12000"),
            "{}",
            host.snapshot()
        );
    });
}

#[test]
fn pods_are_attached_concurrently() {
    if !plugins_are_here() {
        return;
    }
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[bridge(&host)]);
        let network = network(&host);
        let pods: Vec<Pod> = (1..=4).map(|n| Pod::new(&host, n)).collect();
        let (a, b, c, d) = tokio::join!(
            pods[0].attach(&network),
            pods[1].attach(&network),
            pods[2].attach(&network),
            pods[3].attach(&network)
        );
        let [first, others @ ..] = [a, b, c, d].map(Result::unwrap);
        let mut ips: Vec<_> = others.iter().chain([&first]).map(|a| a.ips()[0]).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 4);
        pods[0].serve(80);
        let plan = network.plan(&pods[0].network).unwrap();
        assert!(
            network.check(&plan).await.is_err(),
            "a record without a result fails the check"
        );
        network.check(&first).await.unwrap();
        assert!(
            pods[3]
                .ask(first.ips()[0], 80)
                .await
                .unwrap()
                .starts_with("10.99.0.")
        );
    });
}

#[test]
fn a_missing_plugin_is_named() {
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[json!({"type": "no-such-plugin"})]);
        let network = network(&host);
        let not_ready = network.status().await.unwrap_err();
        assert_eq!(not_ready.reason, "CNIPluginMissing");
        let pod = Pod::new(&host, 1);
        let error = network.plan(&pod.network).unwrap_err().to_string();
        for part in [
            "no-such-plugin",
            "10-test.conflist",
            &host.path("bin").display().to_string(),
            "/usr/lib/cni",
        ] {
            assert!(
                error.contains(part) && not_ready.message.contains(part),
                "{part} in {error}"
            );
        }
        // Live: once it is installed, the node is ready.
        script(&host.path("bin/no-such-plugin"), "exit 0");
        network.status().await.unwrap();
    });
}

#[test]
fn a_failing_plugin_undoes_those_before_it() {
    if !plugins_are_here() {
        return;
    }
    on_own_host(async |host: Host| {
        write_conflist(
            &host,
            "1.0.0",
            &[
                bridge(&host),
                json!({"type": "broken"}),
                json!({"type": "never"}),
            ],
        );
        let network = network(&host);
        let log = host.path("log");
        let fail = r#"[ $CNI_COMMAND = ADD ] || exit 0; echo careful >&2; echo '{"cniVersion":"1.0.0","code":103,"msg":"no tunnel","details":"peer is down"}'; exit 1"#;
        script(
            &host.path("bin/broken"),
            &format!("echo broken $CNI_COMMAND >> {}\n{fail}", log.display()),
        );
        script(
            &host.path("bin/never"),
            &format!("echo never $CNI_COMMAND >> {}", log.display()),
        );
        let pod = Pod::new(&host, 1);
        let mut attachment = network.plan(&pod.network).unwrap();
        let error = network
            .attach(&mut attachment, pod.netns())
            .await
            .unwrap_err();
        let text = error.to_string();
        for part in [
            "\"broken\"",
            "10-test.conflist",
            "ADD",
            "no tunnel (code 103): peer is down",
            "it printed: careful",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            "broken ADD\nbroken DEL\n"
        );
        assert!(attachment.ips().is_empty());
        let now = host.snapshot();
        assert!(
            !now.contains("10.99.0.100") && !now.contains("veth"),
            "{now}"
        );
        assert!(!pod.inside(|| run("ip", &["-o", "link"])).contains("eth0"));
    });
}

#[test]
fn an_undo_that_fails_is_told_too() {
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[json!({"type": "broken"})]);
        let network = network(&host);
        script(
            &host.path("bin/broken"),
            "echo $CNI_COMMAND went wrong >&2; exit 3",
        );
        let error = Pod::new(&host, 1).attach(&network).await.unwrap_err();
        assert!(matches!(error, NetError::Undo { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("ADD went wrong")
                && text.contains("DEL went wrong")
                && text.contains("exit code 3"),
            "{text}"
        );
    });
}

#[test]
fn a_hanging_plugin_is_killed_with_its_children() {
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[json!({"type": "hangs"})]);
        std::fs::create_dir_all(host.path("bin")).unwrap();
        let pids = host.path("pids");
        script(
            &host.path("bin/hangs"),
            &format!(
                "[ $CNI_COMMAND = ADD ] || exit 0\nsleep 600 &\necho $! $$ > {}\necho waiting >&2\nwait",
                pids.display()
            ),
        );
        let config = CniConfig {
            conf_dir: host.path("net.d"),
            bin_dirs: vec![host.path("bin")],
            plugin_timeout: Duration::from_secs(1),
        };
        let network = Network::new(Mode::Cni(config), host.path("state")).unwrap();
        let start = Instant::now();
        let error = Pod::new(&host, 1).attach(&network).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(
            error
                .to_string()
                .contains("still running after 1 s and was killed; it printed: waiting"),
            "{error}"
        );
        let NetError::Plugin(plugin) = error else {
            panic!("{error}")
        };
        assert!(matches!(
            plugin.what,
            PluginFailure::TimedOut { seconds: 1, .. }
        ));
        all_end(&pids).await;

        // An abandoned call leaves no process either.
        std::fs::remove_file(&pids).unwrap();
        let pod = Pod::new(&host, 2);
        let mut attachment = network.plan(&pod.network).unwrap();
        {
            let attach = network.attach(&mut attachment, pod.netns());
            tokio::pin!(attach);
            let started = eventually("the plugin starts", || {
                std::fs::read_to_string(&pids).is_ok_and(|t| t.ends_with('\n'))
            });
            tokio::select! {
                result = &mut attach => panic!("ended before it was abandoned: {result:?}"),
                () = started => {}
            }
        }
        all_end(&pids).await;
    });
}

async fn all_end(pids: &Path) {
    let text = std::fs::read_to_string(pids).unwrap();
    for pid in text.split_whitespace() {
        let stat = format!("/proc/{pid}/stat");
        // A zombie has ended; who reaps it is another matter.
        eventually(&format!("process {pid} ends"), || {
            std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "))
        })
        .await;
    }
}

#[test]
fn a_plugin_gets_what_the_specification_says_and_no_more() {
    on_own_host(async |host: Host| {
        let out = host.path("out");
        std::fs::create_dir_all(&out).unwrap();
        let capable = json!({"type": "spy", "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true}});
        write_conflist(&host, "1.0.0", &[json!({"type": "spy"}), capable]);
        let network = network(&host);
        script(
            &host.path("bin/spy"),
            &format!(
                r#"n=$(ls {0} | wc -l)
conf=$(cat)
env | sort > {0}/$n-$CNI_COMMAND.env
echo "$conf" > {0}/$n-$CNI_COMMAND.conf
ls -l /proc/$$/fd > {0}/$n-$CNI_COMMAND.fds
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion":"0.2.0","ip4":{{"ip":"10.7.7.7/24"}}}}'
exit 0"#,
                out.display()
            ),
        );
        // A descriptor that was not opened close-on-exec.
        let stray = rustix::io::dup(std::fs::File::open("/").unwrap()).unwrap();
        let mut pod = Pod::new(&host, 1).with_port(8080, 80);
        pod.network.annotations.insert("a".into(), "b".into());
        let attached = pod.attach(&network).await.unwrap();
        drop(stray);
        assert_eq!(attached.ips()[0].to_string(), "10.7.7.7");
        let Kind::Cni(record) = &attached.kind else {
            panic!("{attached:?}")
        };
        let prev = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.7.7.7/24"}]});
        assert_eq!(record.prev_result, Some(prev.clone()));
        network.detach(&attached, true).await.unwrap();

        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let conf = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
        let env = read("0-ADD.env");
        let names: Vec<&str> = env
            .lines()
            .filter_map(|l| l.split_once('=').map(|(k, _)| k))
            .filter(|k| !["_", "OLDPWD", "PWD", "SHLVL"].contains(k))
            .collect();
        assert_eq!(
            names,
            [
                "CNI_ARGS",
                "CNI_COMMAND",
                "CNI_CONTAINERID",
                "CNI_IFNAME",
                "CNI_NETNS",
                "CNI_PATH",
                "PATH"
            ]
        );
        let args = format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-1;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-1\n",
            pod.network.id
        );
        assert!(env.contains(&args), "{env}");
        assert!(
            env.contains(&format!("CNI_NETNS={}\n", pod.network.netns_path.display())),
            "{env}"
        );
        // The shell keeps its script and its output; the stray one was "/".
        let fds = read("0-ADD.fds");
        let ours = |target: &str| {
            target.starts_with("pipe:") || Path::new(target).starts_with(host.path("."))
        };
        assert!(
            fds.lines()
                .filter_map(|l| l.split_once(" -> "))
                .all(|(_, target)| ours(target)),
            "{fds}"
        );
        let (first, second) = (conf("0-ADD.conf"), conf("3-ADD.conf"));
        assert_eq!(
            first,
            json!({"type": "spy", "name": "test", "cniVersion": "1.0.0"})
        );
        assert_eq!(second["prevResult"], prev);
        assert_eq!(
            second["runtimeConfig"]["portMappings"],
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}])
        );
        assert_eq!(
            second["runtimeConfig"]["io.kubernetes.cri.pod-annotations"],
            json!({"a": "b"})
        );
        let (last_first, then) = (conf("6-DEL.conf"), conf("9-DEL.conf"));
        assert!(
            last_first.get("runtimeConfig").is_some() && then.get("runtimeConfig").is_none(),
            "DEL goes in reverse"
        );
        assert_eq!(
            (&last_first["prevResult"], &then["prevResult"]),
            (&prev, &prev)
        );
    });
}

#[test]
fn status_and_gc_are_asked_of_networks_that_know_them() {
    on_own_host(async |host: Host| {
        let network = network(&host);
        let log = host.path("log");
        script(
            &host.path("bin/modern"),
            &format!(
                r#"conf=$(cat)
echo "$CNI_COMMAND $conf" >> {0}
if [ $CNI_COMMAND = STATUS ]; then echo '{{"code":50,"msg":"no route to the control plane"}}'; exit 1; fi"#,
                log.display()
            ),
        );
        write_conflist(&host, "1.0.0", &[json!({"type": "modern"})]);
        network.status().await.unwrap();
        network.gc(&[]).await.unwrap();
        assert!(!log.exists(), "version 1.0.0 knows neither");
        write_conflist(&host, "1.1.0", &[json!({"type": "modern"})]);
        let not_ready = network.status().await.unwrap_err();
        assert!(
            not_ready
                .message
                .contains("no route to the control plane (code 50)"),
            "{not_ready}"
        );
        let pod = Pod::new(&host, 1);
        let live = network.plan(&pod.network).unwrap();
        network.gc(&[&live]).await.unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let gc = text.lines().find_map(|l| l.strip_prefix("GC ")).unwrap();
        let conf: Value = serde_json::from_str(gc).unwrap();
        assert_eq!(
            conf["cni.dev/valid-attachments"],
            json!([{"containerID": pod.network.id, "ifname": "eth0"}])
        );
    });
}

#[test]
fn output_without_bound_is_refused() {
    on_own_host(async |host: Host| {
        write_conflist(&host, "1.0.0", &[json!({"type": "chatty"})]);
        let network = network(&host);
        script(
            &host.path("bin/chatty"),
            "[ $CNI_COMMAND = ADD ] && exec yes; exit 0",
        );
        let error = Pod::new(&host, 1).attach(&network).await.unwrap_err();
        assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    });
}
