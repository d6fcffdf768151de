//! The daemon ends in every way there is; pods, containers, logs, exit codes and
//! addresses are as before, and nothing was restarted.

use std::collections::BTreeMap;

use criw_proto::v1::*;
use criw_tests::config::Network;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, plan, reboot, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::engine::{BOTH, Engine};
use crate::network::server;

/// What must be the same before and after.
#[derive(Debug, PartialEq)]
struct Memory {
    pods: Vec<PodSandboxStatus>,
    containers: Vec<ContainerStatus>,
    pids: BTreeMap<String, i32>,
}

fn remember(machine: &Machine) -> Memory {
    let mut pods: Vec<_> = machine
        .pods()
        .unwrap()
        .iter()
        .map(|pod| machine.pod_status(&pod.id).unwrap())
        .collect();
    pods.sort_by(|one, other| one.id.cmp(&other.id));
    let mut containers: Vec<_> = machine
        .containers()
        .unwrap()
        .iter()
        .map(|container| machine.status(&container.id).unwrap())
        .collect();
    containers.sort_by(|one, other| one.id.cmp(&other.id));
    let pids = containers
        .iter()
        .filter(|container| container.state() == ContainerState::ContainerRunning)
        .map(|container| (container.id.clone(), machine.pid(&container.id).unwrap()))
        .collect();
    Memory {
        pods,
        containers,
        pids,
    }
}

/// A pod with a container in every state, of both kinds.
struct Scene {
    pod: Pod,
    running: Vec<String>,
    created: Vec<String>,
}

fn populate(machine: &Machine) -> Scene {
    let pod = machine.pod("lasting").unwrap();
    let (mut running, mut created) = (Vec::new(), Vec::new());
    for engine in BOTH {
        let image = engine.provide(machine);
        let name = engine.handler();
        let id = machine
            .run(&pod, engine.idle(&format!("{name}-runs"), &image))
            .unwrap();
        machine.logged(&id, "ready").unwrap();
        running.push(id);
        created.push(
            machine
                .create(&pod, engine.idle(&format!("{name}-waits"), &image))
                .unwrap(),
        );
        let mut ends = engine.hello(&format!("{name}-ended"), &image);
        ends.envs = vec![plan::env("EXIT_CODE", "7")];
        let (status, _) = machine.outcome(&pod, ends).unwrap();
        assert_eq!(status.exit_code, 7, "{status:?}");
    }
    Scene {
        pod,
        running,
        created,
    }
}

fn comes_back(end: impl Fn(&mut Machine)) {
    let mut machine = Machine::new().unwrap();
    for engine in BOTH {
        engine.provide(&machine);
    }
    let before = machine.baseline().unwrap();
    let scene = populate(&machine);
    let memory = remember(&machine);
    end(&mut machine);
    machine.restart(&[]).unwrap();
    assert_eq!(remember(&machine), memory);
    // The new daemon rules over them as the old one did.
    for id in &scene.running {
        let done = machine.exec(id, &["/bin/cat", "/etc/motd"], 10).unwrap();
        assert_eq!(done.exit_code, 0);
        machine.stop(id, 20).unwrap();
        assert_eq!(machine.status(id).unwrap().exit_code, 143);
    }
    for id in &scene.created {
        machine.start(id).unwrap();
        machine.logged(id, "ready").unwrap();
    }
    machine.remove_pod(&scene.pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn sigterm_leaves_the_workloads_running() {
    comes_back(|machine| {
        let status = machine.daemon.terminate().unwrap();
        assert!(status.success(), "{status}");
    });
}

#[test]
fn sigkill_forgets_nothing() {
    comes_back(|machine| machine.daemon.kill().unwrap());
}

#[test]
fn two_kills_in_a_row_forget_nothing() {
    comes_back(|machine| {
        machine.daemon.kill().unwrap();
        machine.restart(&[]).unwrap();
        machine.daemon.kill().unwrap();
    });
}

#[test]
fn a_server_answers_while_the_daemon_is_down() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("web").unwrap();
    let ip = machine.pod_ip(&pod.id).unwrap();
    let id = machine.run(&pod, server(&image, 8080)).unwrap();
    machine.logged(&id, "listening").unwrap();
    machine.daemon.kill().unwrap();
    let answer = machine
        .world
        .enter(|| http::get((ip, 8080).into(), "/"))
        .unwrap();
    assert!(answer.contains("request 1"), "{answer}");
    machine.restart(&[]).unwrap();
    assert_eq!(machine.pod_ip(&pod.id).unwrap(), ip);
    let answer = machine
        .world
        .enter(|| http::get((ip, 8080).into(), "/"))
        .unwrap();
    assert!(answer.contains("request 2"), "it was restarted: {answer}");
    machine.logged(&id, "served GET / HTTP/1.1").unwrap();
}

#[test]
fn an_exit_while_the_daemon_is_down_has_its_code() {
    let mut machine = Machine::new().unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    let mut ids = Vec::new();
    let pod = machine.pod("ends").unwrap();
    let image = Engine::Linux.provide(&machine);
    let script = "echo ready; while [ ! -e /volume/go ]; do sleep 0.01; done; echo bye; exit 7";
    let mut config = plan::command("linux", &image, &["sh", "-c", script]);
    config.mounts = vec![plan::mount(&volume, "/volume", false)];
    ids.push(machine.run(&pod, config).unwrap());
    machine.logged(&ids[0], "ready").unwrap();
    // A trap after the daemon has gone: the guest takes its memory slowly enough.
    let image = Engine::Wasm.provide(&machine);
    let id = machine.run(&pod, server(&image, 8080)).unwrap();
    machine.logged(&id, "listening").unwrap();
    let shim = Pid::from_raw(machine.pid(&id).unwrap()).unwrap();
    machine.daemon.kill().unwrap();
    std::fs::write(volume.join("go"), "").unwrap();
    let log = machine.world.path("logs").join("ends").join("linux.log");
    wait::until("the container to end", wait::PATIENCE, || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("bye")
            .then_some(())
    })
    .unwrap();
    kill_process(shim, Signal::KILL).unwrap();
    machine.restart(&[]).unwrap();
    let linux = machine.ended(&ids[0]).unwrap();
    assert_eq!((linux.exit_code, &*linux.reason), (7, "Error"), "{linux:?}");
    // A shim that was killed while nobody looked: its true code where the kernel keeps
    // it, else lost, but never a success and never running.
    let wasm = machine.ended(&id).unwrap();
    let seen = (wasm.exit_code, &*wasm.reason);
    assert!(
        seen == (255, "Unknown") || seen == (137, "Error"),
        "{wasm:?}"
    );
    machine.remove_pod(&pod.id).unwrap();
}

#[test]
fn a_runc_shim_killed_while_the_daemon_is_down_takes_its_container_along() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("orphan").unwrap();
    let id = machine
        .run(&pod, Engine::Linux.idle("idle", &image))
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    let shims = processes_named(&machine, "criw-shim-runc");
    assert_eq!(shims.len(), 1, "{shims:?}");
    machine.daemon.kill().unwrap();
    for shim in shims {
        kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    }
    machine.restart(&[]).unwrap();
    let status = machine.ended(&id).unwrap();
    let seen = (status.exit_code, &*status.reason);
    assert!(
        seen == (255, "Unknown") || seen == (137, "Error"),
        "{status:?}"
    );
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

/// Pids of our cgroups whose program has that name.
fn processes_named(machine: &Machine, name: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = criw_tests::leak::cgroup::directories(&machine.world.name)
        .iter()
        .flat_map(|group| criw_tests::leak::cgroup::members(group))
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(name))
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn rebooted(network: Network) {
    let mut machine = Machine::with(network, reboot::FIRST).unwrap();
    for engine in BOTH {
        engine.provide(&machine);
    }
    let before = machine.baseline().unwrap();
    let scene = populate(&machine);
    assert!(
        machine
            .snapshot()
            .unwrap()
            .beyond(&before)
            .iter()
            .any(|left| left.starts_with("Lease"))
    );
    machine.daemon.kill().unwrap();
    reboot::take_away(&machine.world).unwrap();
    machine.restart(reboot::SECOND).unwrap();

    let status = machine.pod_status(&scene.pod.id).unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    let containers = machine.containers().unwrap();
    assert_eq!(containers.len(), 6, "all are still listed");
    for container in containers {
        let status = machine.status(&container.id).unwrap();
        let name = status.metadata.as_ref().unwrap().name.clone();
        let expected = if name.ends_with("ended") {
            (7, "Error")
        } else {
            (255, "Unknown")
        };
        assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
        assert_eq!((status.exit_code, &*status.reason), expected, "{name}");
    }
    wait::until("the leases to be given back", wait::PATIENCE, || {
        let left = machine.snapshot().unwrap().beyond(&before);
        (!left.iter().any(|left| left.starts_with("Lease"))).then_some(())
    })
    .unwrap();
    machine.remove_pod(&scene.pod.id).unwrap();
    // The good twin: the node works after its reboot.
    let pod = machine.pod("after").unwrap();
    let id = machine
        .run(
            &pod,
            Engine::Wasm.idle("idle", &machine.registry.reference("guests:1")),
        )
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    machine.remove_pod(&pod.id).unwrap();
}

#[test]
fn a_reboot_is_told_as_it_was_on_the_built_in_network() {
    rebooted(Network::Builtin);
}

#[test]
fn a_reboot_is_told_as_it_was_with_real_plugins() {
    rebooted(Network::Cni);
}

#[test]
fn one_unreadable_record_costs_that_record_only() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let before = machine.baseline().unwrap();
    let (good, bad) = (machine.pod("good").unwrap(), machine.pod("bad").unwrap());
    let id = machine
        .run(&good, Engine::Wasm.idle("idle", &image))
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    let pid = machine.pid(&id).unwrap();
    machine.daemon.kill().unwrap();
    let record = find(&machine.world.path("root"), &bad.id).expect("the record of a pod");
    std::fs::write(&record, "{ this was a record").unwrap();
    machine.restart(&[]).unwrap();
    assert_eq!(machine.pid(&id).unwrap(), pid);
    assert!(machine.pod_status(&bad.id).is_err());
    let log = std::fs::read_to_string(machine.world.path("criw.log")).unwrap();
    assert!(log.contains(&bad.id), "the log does not name the record");
    machine.remove_pod(&good.id).unwrap();
    // What the lost pod had on the machine is taken down; its file is kept aside.
    let mut left = Vec::new();
    wait::until("all but files to be gone", wait::PATIENCE, || {
        left = machine.snapshot().unwrap().beyond(&before);
        left.iter()
            .all(|left| left.starts_with("File"))
            .then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {left:?}"));
}

/// A JSON file below `dir` whose path names the id.
fn find(dir: &std::path::Path, id: &str) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, id) {
                return Some(found);
            }
        } else if path.extension().is_some_and(|kind| kind == "json")
            && path.to_string_lossy().contains(id)
        {
            return Some(path);
        }
    }
    None
}
