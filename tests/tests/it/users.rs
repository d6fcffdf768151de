//! Pods with a user namespace of their own (`hostUsers: false`): whom their users are on
//! the node, what they can reach, and what is refused.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use criw_proto::v1::*;
use criw_tests::config::Network;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, leak, plan, reboot};

use crate::engine::{BOTH, Engine};
use crate::network::server;

/// Of the node: what the pod's root is there.
const ROOT: u32 = 300_000;

fn map() -> Vec<IdMapping> {
    vec![IdMapping {
        host_id: ROOT,
        container_id: 0,
        length: 65536,
    }]
}

/// Options as a kubelet sends them.
pub(crate) fn options(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        pid: pid as i32,
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod as i32,
            uids: map(),
            gids: map(),
        }),
        ..Default::default()
    }
}

/// A pod with such options.
pub(crate) fn with(machine: &Machine, name: &str, options: NamespaceOption) -> PodSandboxConfig {
    let mut config = machine.pod_config(name);
    let linux = config.linux.as_mut().unwrap();
    linux.security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    });
    config
}

fn pod(machine: &Machine, name: &str) -> Pod {
    let config = with(machine, name, options(NamespaceMode::Container));
    machine.run_pod(config, "").unwrap()
}

/// A volume whose files belong to the same users inside and outside.
fn lent(host: &Path, inside: &str) -> Mount {
    Mount {
        uid_mappings: map(),
        gid_mappings: map(),
        ..plan::mount(host, inside, false)
    }
}

fn as_user(user: i64) -> Option<LinuxContainerConfig> {
    Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: user }),
            namespace_options: Some(options(NamespaceMode::Container)),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn owner(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().uid()
}

/// The four numbers of a line such as `Uid:` in the status of a process, or the words of a file.
fn of_process(pid: i32, file: &str, line: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let found = text.lines().find_map(|text| text.strip_prefix(line));
    let words = found.unwrap_or_else(|| panic!("no {line:?} in {text}"));
    words.split_whitespace().map(str::to_owned).collect()
}

/// The directory of a container's writable layer.
fn upper(machine: &Machine, id: &str) -> PathBuf {
    machine.world.path(format!("root/containers/{id}/upper"))
}

#[test]
fn root_of_the_pod_is_nobody_on_the_node() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    for (engine, image) in BOTH.iter().zip(&images) {
        let pod = pod(&machine, engine.handler());
        let status = machine.pod_status(&pod.id).unwrap();
        let said = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        let asked = options(NamespaceMode::Container);
        assert_eq!(said.userns_options, asked.userns_options);
        let id = machine.run(&pod, engine.idle("idle", image)).unwrap();
        machine.logged(&id, "ready").unwrap();
        let pid = machine.pid(&id).unwrap();
        let root = ROOT.to_string();
        assert_eq!(of_process(pid, "status", "Uid:"), [&*root; 4], "{engine:?}");
        assert_eq!(of_process(pid, "status", "Gid:"), [&*root; 4], "{engine:?}");
        let ids = of_process(pid, "uid_map", "");
        assert_eq!(ids, ["0", &*root, "65536"], "{engine:?}");
        let link = |kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_ne!(link("user"), own, "{engine:?}");
        // What an exec starts is the same user, and sees the image as its own.
        let motd = machine.exec(&id, &["/bin/cat", "/etc/motd"], 10).unwrap();
        assert_eq!(motd.stdout, b"a file of the image\n", "{engine:?} {motd:?}");
        let mut hello = engine.hello("hello", image);
        hello.envs = vec![plan::env("WRITE", "/data/mine")];
        let hello = machine.run(&pod, hello).unwrap();
        let ended = machine.ended(&hello).unwrap();
        assert_eq!(ended.exit_code, 0, "{:?}", machine.log(&ended));
        assert_eq!(owner(&upper(&machine, &hello).join("data/mine")), ROOT);
        machine.stop(&id, 10).unwrap();
        assert_eq!(machine.status(&id).unwrap().exit_code, 143, "{engine:?}");
        machine.remove_pod(&pod.id).unwrap();
    }
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_volume_has_the_same_owners_inside_and_outside() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let volume = machine.world.subdir(engine.handler()).unwrap();
        std::fs::write(volume.join("in"), "from the host\n").unwrap();
        std::os::unix::fs::chown(&volume, Some(1000), Some(1000)).unwrap();
        // Root of a Wasm container has no power over files of others.
        std::fs::create_dir(volume.join("of-root")).unwrap();
        let single = machine.world.path(format!("{}-file", engine.handler()));
        std::fs::write(&single, "a single file\n").unwrap();
        let pod = pod(&machine, engine.handler());
        let run = |name: &str, user, mount: Mount, read: &str, write: &str| {
            let mut config = engine.hello(name, &image);
            config.mounts = vec![mount, lent(&single, "/single")];
            config.linux = as_user(user);
            config.envs = vec![plan::env("READ", read), plan::env("WRITE", write)];
            let asked = config.mounts.clone();
            let (status, log) = machine.outcome(&pod, config).unwrap();
            assert_eq!(status.mounts, asked);
            (status.exit_code, log)
        };
        let (code, log) = run("user", 1000, lent(&volume, "/v"), "/v/in", "/v/out");
        assert_eq!(code, 0, "{engine:?} {log}");
        assert!(log.contains("from the host\n"), "{log}");
        assert_eq!(owner(&volume.join("out")), 1000, "{engine:?}");
        let (code, log) = run("root", 0, lent(&volume, "/v"), "/single", "/v/of-root/out");
        assert_eq!(code, 0, "{engine:?} {log}");
        assert!(log.contains("a single file\n"), "{log}");
        assert_eq!(owner(&volume.join("of-root/out")), 0, "{engine:?}");
        // A mount of the node keeps what the node forbids on it, also for runc 1.1.
        let memory = machine
            .world
            .subdir(&format!("{}-tmpfs", engine.handler()))
            .unwrap();
        let script = format!(
            "mount -t tmpfs -o nosuid,nodev,noexec none {0} && echo memory > {0}/in",
            memory.display()
        );
        machine.world.run("sh", &["-c", &script]).unwrap();
        let sealed = Mount {
            readonly: true,
            ..lent(&memory, "/v")
        };
        let (code, log) = run("sealed", 0, sealed, "/v/in", "/data/x");
        assert_eq!(code, 0, "{engine:?} {log}");
        assert!(log.contains("memory\n"), "{log}");
        // Without a map the container's users have nothing to do with the volume's.
        let plain = plan::mount(&volume, "/v", false);
        let (code, log) = run("plain", 0, plain, "/v/in", "/v/plain");
        assert_eq!(code, 4, "{engine:?} {log}");
        assert!(!volume.join("plain").exists());
        machine.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn a_linux_container_finds_what_it_expects() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let mut config = with(&machine, "linux", options(NamespaceMode::Container));
    config.linux.as_mut().unwrap().sysctls = [
        ("kernel.shmmni".to_owned(), "77".to_owned()),
        ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
    ]
    .into();
    let pod = machine.run_pod(config, "").unwrap();
    let script = "id -u; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward; \
        echo shared > /dev/shm/x && cat /dev/shm/x; cat /etc/hostname; cat /etc/resolv.conf > /dev/null && echo dns; \
        echo added >> /etc/hosts && echo hosts; echo through > /dev/stdout; ls /sys/class/net; \
        mount -t tmpfs none /tmp 2> /dev/null || echo no mount; ls -n /etc/motd; ls /dev/mqueue > /dev/null && echo mqueue";
    let (status, log) = machine
        .outcome(&pod, plan::command("all", &image, &["sh", "-c", script]))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    let (head, tail) = log.split_at(log.find("-rw").unwrap_or(log.len()));
    let expected = "0\n77\n1\nshared\nlinux\ndns\nhosts\nthrough\neth0\nlo\nno mount\n";
    assert_eq!(head, expected);
    let words: Vec<_> = tail.split_whitespace().collect();
    assert_eq!(
        (words[2], words[3], words.last()),
        ("0", "0", Some(&"mqueue"))
    );
    // An exec opens its output by name too.
    let id = machine
        .run(&pod, Engine::Linux.idle("idle", &image))
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    let out = machine
        .exec(&id, &["sh", "-c", "echo by name > /dev/stdout; id -u"], 10)
        .unwrap();
    assert_eq!(out.stdout, b"by name\n0\n", "{out:?}");
    // Shared memory is the pod's.
    let out = machine.exec(&id, &["cat", "/dev/shm/x"], 10).unwrap();
    assert_eq!(out.stdout, b"shared\n", "{out:?}");
    let mut privileged = plan::command(
        "privileged",
        &image,
        &["sh", "-c", "mount -t tmpfs none /tmp && id -u"],
    );
    privileged.linux = as_user(0);
    let context = privileged
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    context.capabilities = Some(Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    let (status, log) = machine.outcome(&pod, privileged).unwrap();
    assert_eq!((status.exit_code, &*log), (0, "0\n"), "{log}");
}

#[test]
fn containers_that_share_process_ids() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    let config = with(&machine, "shared", options(NamespaceMode::Pod));
    let pod = machine.run_pod(config, "").unwrap();
    let mut ids = Vec::new();
    for (engine, image) in BOTH.iter().zip(&images) {
        let id = machine
            .run(&pod, engine.idle(engine.handler(), image))
            .unwrap();
        machine.logged(&id, "ready").unwrap();
        ids.push(id);
    }
    let seen = machine.exec(&ids[1], &["ps"], 10).unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    for name in ["criw-init", "criw-shim-wasmt", "sleep 3600"] {
        assert!(seen.contains(name), "{name}: {seen}");
    }
    let mut debug = plan::command("debug", &images[1], &["true"]);
    debug.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: NamespaceMode::Target as i32,
                target_id: ids[1].clone(),
                ..options(NamespaceMode::Target)
            }),
            ..Default::default()
        }),
        ..Default::default()
    });
    let (status, log) = machine.outcome(&pod, debug).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

fn serves(network: Network) {
    let machine = Machine::with(network, &[]).unwrap();
    let image = Engine::Wasm.provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = pod(&machine, "web");
    // A port for root only, which root of the pod is not.
    let id = machine.run(&pod, server(&image, 80)).unwrap();
    machine.logged(&id, "listening").unwrap();
    let address = (machine.pod_ip(&pod.id).unwrap(), 80).into();
    let answer = machine.world.enter(|| http::get(address, "/")).unwrap();
    assert!(answer.contains("request 1"), "{answer}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn the_built_in_network_reaches_it() {
    serves(Network::Builtin);
}

#[test]
fn real_plugins_reach_it() {
    serves(Network::Cni);
}

#[test]
fn what_is_not_possible_is_refused() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let before = machine.baseline().unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    type Change = fn(&mut NamespaceOption);
    let users = |options: &mut NamespaceOption, change: fn(&mut UserNamespace)| {
        change(options.userns_options.as_mut().unwrap());
    };
    let bad: [(Change, &str); 5] = [
        (
            |o| o.network = NamespaceMode::Node as i32,
            "node's network namespace",
        ),
        (
            |o| o.ipc = NamespaceMode::Node as i32,
            "node's ipc namespace",
        ),
        (
            |o| o.pid = NamespaceMode::Node as i32,
            "node's pid namespace",
        ),
        (
            |o| o.userns_options.as_mut().unwrap().mode = NamespaceMode::Container as i32,
            "CONTAINER is not possible",
        ),
        (
            |o| o.userns_options.as_mut().unwrap().uids[0].container_id = 1,
            "does not map the user id 0",
        ),
    ];
    for (change, word) in bad {
        let mut options = options(NamespaceMode::Container);
        change(&mut options);
        let refused = machine
            .run_pod(with(&machine, "bad", options), "")
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(word), "{refused:?}");
    }
    let pod = pod(&machine, "good");
    let command = || plan::command("c", &image, &["true"]);
    let mut unmapped = command();
    unmapped.linux = as_user(70_000);
    let mut other = command();
    other.mounts = vec![lent(&volume, "/v")];
    other.mounts[0].uid_mappings[0].host_id += 1;
    let mut node = command();
    node.linux = as_user(0);
    let context = node
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    users(context.namespace_options.as_mut().unwrap(), |users| {
        *users = UserNamespace {
            mode: NamespaceMode::Node as i32,
            ..Default::default()
        };
    });
    let mut shared = command();
    shared.mounts = vec![plan::mount(&volume, "/v", false)];
    shared.mounts[0].propagation = MountPropagation::PropagationBidirectional as i32;
    // A file system that the kernel shows under no other ids.
    let mut proc = command();
    proc.mounts = vec![lent(Path::new("/proc"), "/v")];
    for (config, word) in [
        (unmapped, "user 70000 does not exist"),
        (other, "not those of the pod's user namespace"),
        (node, "not that of its pod"),
        (shared, "bidirectional propagation is not possible"),
        (proc, "must know idmapped mounts"),
    ] {
        let refused = machine.create(&pod, config).unwrap_err();
        assert!(refused.message().contains(word), "{refused:?}");
    }
    // The good twin.
    let (status, log) = machine.outcome(&pod, command()).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn every_handler_says_that_it_can() {
    let machine = Machine::new().unwrap();
    let status = machine.client.status(StatusRequest::default()).unwrap();
    assert!(!status.runtime_handlers.is_empty());
    for handler in status.runtime_handlers {
        assert!(
            handler.features.unwrap().user_namespaces,
            "{:?}",
            handler.name
        );
    }
}

/// A pod with a container of each kind that runs.
fn populate(machine: &Machine) -> (Pod, Vec<String>) {
    let config = with(machine, "lasting", options(NamespaceMode::Pod));
    let pod = machine.run_pod(config, "").unwrap();
    let ids = BOTH.map(|engine| {
        let image = machine.registry.reference(engine.name());
        let id = machine
            .run(&pod, engine.idle(engine.handler(), &image))
            .unwrap();
        machine.logged(&id, "ready").unwrap();
        id
    });
    (pod, ids.to_vec())
}

#[test]
fn a_killed_daemon_forgets_no_user_namespace() {
    let mut machine = Machine::new().unwrap();
    for engine in BOTH {
        engine.provide(&machine);
    }
    let before = machine.baseline().unwrap();
    let (pod, ids) = populate(&machine);
    let look = |machine: &Machine| {
        let pids: Vec<_> = ids.iter().map(|id| machine.pid(id).unwrap()).collect();
        (machine.pod_status(&pod.id).unwrap(), pids)
    };
    let memory = look(&machine);
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    assert_eq!(look(&machine), memory);
    for id in &ids {
        let motd = machine.exec(id, &["/bin/cat", "/etc/motd"], 10).unwrap();
        assert_eq!(motd.exit_code, 0, "{motd:?}");
    }
    // New containers share the namespace of the old ones.
    for engine in BOTH {
        let image = machine.registry.reference(engine.name());
        let name = format!("{}-late", engine.handler());
        let id = machine.run(&pod, engine.idle(&name, &image)).unwrap();
        machine.logged(&id, "ready").unwrap();
        let of = |pid| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_eq!(of(machine.pid(&id).unwrap()), of(memory.1[0]));
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn after_a_reboot_the_pod_is_gone_and_its_name_free() {
    let mut machine = Machine::with(Network::Builtin, reboot::FIRST).unwrap();
    for engine in BOTH {
        engine.provide(&machine);
    }
    let (pod, ids) = populate(&machine);
    machine.daemon.kill().unwrap();
    reboot::take_away(&machine.world).unwrap();
    machine.restart(reboot::SECOND).unwrap();
    let status = machine.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    for id in &ids {
        let status = machine.status(id).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
    }
    machine.remove_pod(&pod.id).unwrap();
    let before = machine.baseline().unwrap();
    let (pod, _) = populate(&machine);
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_user_namespace_that_stays_is_seen_as_a_leak() {
    let machine = Machine::new().unwrap();
    let before = machine.baseline().unwrap();
    let pod = pod(&machine, "pinned");
    let left = machine.snapshot().unwrap().beyond(&before);
    let users = |line: &&String| line.starts_with("Namespace: user:[");
    assert_eq!(left.iter().filter(users).count(), 1, "{left:?}");
    let mounts = |line: &&String| line.starts_with("Mount: ") && line.contains("user:[");
    assert_eq!(left.iter().filter(mounts).count(), 1, "{left:?}");
    assert!(
        leak::settle(
            &machine.world,
            machine.daemon.pid(),
            &before,
            std::time::Duration::ZERO
        )
        .is_err()
    );
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}
