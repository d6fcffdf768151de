//! The daemon dies by SIGKILL at every point of every life-cycle call, then at random
//! moments. After each restart the node is consistent, every call can be repeated,
//! and in the end nothing is left.

use criw_proto::v1::*;
use criw_tests::config::Network;
use criw_tests::leak::Snapshot;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{binaries, wait};

use crate::engine::Engine;
use crate::users;

fn points() -> Vec<String> {
    let output = std::process::Command::new(binaries::criw().unwrap())
        .arg("fault-points")
        .output()
        .unwrap();
    assert!(output.status.success(), "criw fault-points: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let points: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(points.len() > 10, "{points:?}");
    points
}

/// Whether the pod has a user namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    Nodes,
    Own,
}

/// One whole life; every call may find the daemon dead.
fn live(machine: &Machine, engine: Engine, image: &str, users: Users) -> Result<(), tonic::Status> {
    let pod = match users {
        Users::Nodes => machine.pod("fault")?,
        Users::Own => {
            let options = users::options(NamespaceMode::Pod);
            machine.run_pod(users::with(machine, "fault", options), "")?
        }
    };
    let id = machine.run(&pod, engine.idle("idle", image))?;
    machine.stop(&id, 5)?;
    machine.remove(&id)?;
    let id = machine.run(&pod, engine.hello("hello", image))?;
    wait::until("hello to end", wait::PATIENCE, || {
        match machine.client.container_status(ContainerStatusRequest {
            container_id: id.clone(),
            verbose: false,
        }) {
            Ok(answer) => {
                (answer.status?.state() == ContainerState::ContainerExited).then_some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        }
    })
    .map_err(|error| tonic::Status::internal(error.to_string()))??;
    // One still runs when the pod goes: it is killed without a grace.
    machine.run(&pod, engine.idle("until-the-end", image))?;
    machine.remove_pod(&pod.id)
}

/// What must be true after any restart: each listed thing can be asked and used.
fn assert_consistent(machine: &Machine, context: &str) {
    let pods = machine.pods().unwrap();
    assert!(pods.len() <= 1, "{context}: {pods:?}");
    for pod in &pods {
        let status = machine.pod_status(&pod.id).unwrap();
        if status.state() == PodSandboxState::SandboxReady {
            assert!(
                machine.pod_ip(&pod.id).is_ok(),
                "{context}: ready without an address"
            );
        }
    }
    for container in machine.containers().unwrap() {
        let status = machine.status(&container.id).unwrap();
        assert_ne!(
            status.state(),
            ContainerState::ContainerUnknown,
            "{context}: {status:?}"
        );
        assert!(
            pods.iter().any(|pod| pod.id == container.pod_sandbox_id),
            "{context}: {status:?}"
        );
        match status.state() {
            // A start that was cut off is repeated or told as lost; both end the guest's doubt.
            ContainerState::ContainerCreated => machine.start(&container.id).unwrap(),
            ContainerState::ContainerRunning => {
                // A kill that was noted is finished meanwhile: then it ends, and says so.
                let pid = machine.pid(&container.id).unwrap_or(0);
                if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                    machine.ended(&container.id).unwrap();
                }
            }
            _ => assert!(status.finished_at > 0, "{context}: {status:?}"),
        }
    }
}

fn recover(
    machine: &mut Machine,
    before: &Snapshot,
    (engine, users): (Engine, Users),
    image: &str,
    context: &str,
) {
    machine
        .restart(&[])
        .unwrap_or_else(|error| panic!("{context}: {error:#}"));
    assert_consistent(machine, context);
    machine
        .remove_all_pods()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    machine
        .assert_nothing_left(before)
        .unwrap_or_else(|error| panic!("{context}: {error:#}"));
    // The good twin: the same life from start to end, names free again.
    live(machine, engine, image, users)
        .unwrap_or_else(|error| panic!("{context}, again: {error:?}"));
    machine
        .assert_nothing_left(before)
        .unwrap_or_else(|error| panic!("{context}, again: {error:#}"));
}

fn every_point(engine: Engine, users: Users, points: &[String]) {
    let mut machine = Machine::new().unwrap();
    let image = engine.provide(&machine);
    live(&machine, engine, &image, users).unwrap();
    let before = machine.snapshot().unwrap();
    let mut never = Vec::new();
    for point in points {
        machine.daemon.kill().unwrap();
        machine.restart(&[("CRIW_FAULT", point)]).unwrap();
        let lived = live(&machine, engine, &image, users);
        if lived.is_ok() && machine.daemon.is_alive() {
            never.push(point.clone());
        } else {
            let status = machine.daemon.ended(wait::PATIENCE).unwrap();
            assert_eq!(
                std::os::unix::process::ExitStatusExt::signal(&status),
                Some(9),
                "{point}: the daemon ended by itself, {status}"
            );
        }
        machine.daemon.kill().unwrap();
        recover(&mut machine, &before, (engine, users), &image, point);
    }
    assert!(
        never.is_empty(),
        "points that a whole life does not pass: {never:?}"
    );
}

#[test]
fn a_wasm_pod_survives_a_kill_at_every_point() {
    every_point(Engine::Wasm, Users::Nodes, &points());
}

#[test]
fn a_linux_pod_survives_a_kill_at_every_point() {
    every_point(Engine::Linux, Users::Nodes, &points());
}

#[test]
fn a_pod_with_users_of_its_own_survives_a_kill_at_every_point_that_is_about_them() {
    let mut points = points();
    points.retain(|point| {
        let about = [
            "run-pod/",
            "create/prepared",
            "create/launched",
            "stop-pod/",
        ];
        about.iter().any(|start| point.starts_with(start))
    });
    for engine in [Engine::Wasm, Engine::Linux] {
        every_point(engine, Users::Own, &points);
    }
}

/// Rounds of random kills; `make test` does a few, a soak run sets CRIW_KILLS=500.
fn kills() -> u32 {
    std::env::var("CRIW_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30)
}

/// A small generator with a seed that is printed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn seed() -> u64 {
    std::env::var("CRIW_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap_or_default().as_micros() as u64 | 1
        })
}

#[test]
fn random_kills_leave_a_node_that_works() {
    let seed = seed();
    eprintln!("CRIW_SEED={seed}");
    let mut random = Random(seed);
    let mut machine = Machine::with(Network::Builtin, &[]).unwrap();
    let images = [Engine::Wasm, Engine::Linux].map(|engine| (engine, engine.provide(&machine)));
    for (engine, image) in &images {
        live(&machine, *engine, image, Users::Nodes).unwrap();
    }
    let before = machine.snapshot().unwrap();
    for round in 0..kills() {
        let (engine, image) = &images[usize::from(random.below(4) == 0)];
        // A life takes some tens of milliseconds; the blow falls anywhere in it.
        let pause = std::time::Duration::from_micros(random.below(120_000));
        let pid = i32::try_from(machine.daemon.pid()).unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(pause);
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        });
        let lived = live(&machine, *engine, image, Users::Nodes);
        killer.join().unwrap();
        machine.daemon.ended(wait::PATIENCE).unwrap();
        let context = format!("seed {seed} round {round} {engine:?} after {pause:?} ({lived:?})");
        machine
            .restart(&[])
            .unwrap_or_else(|error| panic!("{context}: {error:#}"));
        assert_consistent(&machine, &context);
        machine
            .remove_all_pods()
            .unwrap_or_else(|error| panic!("{context}: {error:?}"));
        machine
            .assert_nothing_left(&before)
            .unwrap_or_else(|error| panic!("{context}: {error:#}"));
    }
}

#[test]
fn an_abandoned_call_leaves_nothing() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    live(&machine, Engine::Wasm, &image, Users::Nodes).unwrap();
    let before = machine.snapshot().unwrap();
    let socket = machine.world.path("s");
    for micros in [50, 300, 1_000, 3_000] {
        let hasty = criw_tests::client::Client::connect(&socket)
            .unwrap()
            .with_deadline(std::time::Duration::from_micros(micros));
        let config = machine.pod_config("abandoned");
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        match hasty.run_pod_sandbox(request) {
            Ok(answer) => {
                let pod = Pod {
                    id: answer.pod_sandbox_id,
                    config,
                };
                machine.remove_pod(&pod.id).unwrap();
            }
            Err(status) => assert!(
                matches!(
                    status.code(),
                    tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
                ),
                "{status:?}"
            ),
        }
        drop(hasty);
        wait::until("the abandoned pod to go", wait::PATIENCE, || {
            machine.pods().unwrap().is_empty().then_some(())
        })
        .unwrap();
        machine.assert_nothing_left(&before).unwrap();
    }
}
