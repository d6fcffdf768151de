//! The second socket, on which a kubelet's cAdvisor learns whose a cgroup is.

use std::path::PathBuf;

use criw_proto::containerd::containers::containers_client::ContainersClient;
use criw_proto::containerd::containers::{Container, GetContainerRequest};
use criw_proto::containerd::tasks::tasks_client::TasksClient;
use criw_proto::containerd::tasks::{GetRequest, Process, Status as TaskStatus};
use criw_proto::containerd::version::version_client::VersionClient;
use criw_proto::v1::*;
use criw_tests::config::{self, Network};
use criw_tests::leak::cgroup;
use criw_tests::machine::{Machine, Pod};
use criw_tests::world::World;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::engine::BOTH;

/// What cAdvisor is to a containerd.
struct Cadvisor {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cadvisor {
    fn of(machine: &Machine) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let socket = machine.world.path("cadvisor.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, channel }
    }

    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    fn container(&self, id: &str) -> Result<Container, Status> {
        let mut client = ContainersClient::new(self.channel.clone());
        let request = GetContainerRequest { id: id.into() };
        let answer = self.runtime.block_on(client.get(request))?;
        Ok(answer.into_inner().container.unwrap())
    }

    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    fn process(&self, id: &str) -> Result<Process, Status> {
        let mut client = TasksClient::new(self.channel.clone());
        let container_id = id.into();
        let answer = self
            .runtime
            .block_on(client.get(GetRequest { container_id }))?;
        Ok(answer.into_inner().process.unwrap())
    }

    fn version(&self) -> String {
        let mut client = VersionClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.version(())).unwrap();
        answer.into_inner().version
    }
}

/// Asks for the socket; a daemon that starts from now on has it.
fn configure(machine: &Machine) {
    let socket = machine.world.path("cadvisor.sock");
    let text = format!("[cadvisor]\nsocket = \"{}\"\n", socket.display());
    config::append(&machine.world, &text).unwrap();
}

fn machine() -> Machine {
    let mut machine = Machine::inside(World::new().unwrap(), Network::Builtin, &[]).unwrap();
    configure(&machine);
    machine.daemon.terminate().unwrap();
    machine.restart(&[]).unwrap();
    machine
}

fn pod_with(machine: &Machine, name: &str, pid: NamespaceMode) -> Pod {
    let mut config = machine.pod_config(name);
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            pid: pid.into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    machine.run_pod(config, "").unwrap()
}

fn network_of(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

/// Names of the groups that cAdvisor takes for those of this id.
fn groups(machine: &Machine, id: &str) -> Vec<String> {
    let mut names: Vec<String> = cgroup::directories(&machine.world.name)
        .into_iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name.contains(id))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn pods_and_containers_of_both_kinds_are_told() {
    let machine = machine();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    let cadvisor = Cadvisor::of(&machine);
    assert_eq!(cadvisor.version(), env!("CARGO_PKG_VERSION"));
    let pod = pod_with(&machine, "seen", NamespaceMode::Container);

    let sandbox = cadvisor.container(&pod.id).unwrap();
    assert_eq!(sandbox.labels["app"], "seen");
    assert_eq!(sandbox.labels["io.cri-containerd.kind"], "sandbox");
    assert_eq!((&*sandbox.id, &*sandbox.image), (&*pod.id, "criw-init"));
    let own = cadvisor.process(&pod.id).unwrap();
    assert_eq!(own.status(), TaskStatus::Running);
    assert_eq!(groups(&machine, &pod.id), [&*pod.id]);

    for (engine, image) in BOTH.iter().zip(&images) {
        let config = engine.idle(engine.handler(), image);
        let name = config.metadata.as_ref().unwrap().name.clone();
        let id = machine.create(&pod, config).unwrap();
        let process = cadvisor.process(&id).unwrap();
        assert_eq!(process.status(), TaskStatus::Created, "{engine:?}");
        machine.start(&id).unwrap();
        let container = cadvisor.container(&id).unwrap();
        assert_eq!(container.labels["container"], name);
        assert_eq!(container.labels["io.cri-containerd.kind"], "container");
        assert_eq!(&container.image, image);
        let spec = container.spec.unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec.value).unwrap();
        assert!(spec["process"]["args"][0].is_string(), "{spec}");
        assert_eq!(spec["process"]["env"], serde_json::json!([]));
        let process = cadvisor.process(&id).unwrap();
        assert_eq!(process.status(), TaskStatus::Running, "{engine:?}");
        assert_eq!(process.pid, machine.pid(&id).unwrap().unsigned_abs());
        assert_eq!(network_of(process.pid), network_of(own.pid), "{engine:?}");
        // Two groups of one id are none to a kubelet, when nothing runs in them.
        assert_eq!(groups(&machine, &id), [&*id], "{engine:?}");
        machine.stop(&id, 0).unwrap();
        let process = cadvisor.process(&id).unwrap();
        assert_eq!(process.status(), TaskStatus::Stopped, "{engine:?}");
        assert_eq!(process.exit_status, 137, "{engine:?}");
    }
    machine.stop_pod(&pod.id).unwrap();
    assert_eq!(
        cadvisor.process(&pod.id).unwrap_err().code(),
        Code::NotFound
    );
    machine.remove_pod(&pod.id).unwrap();
    assert_eq!(
        cadvisor.container(&pod.id).unwrap_err().code(),
        Code::NotFound
    );
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn whole_ids_only_and_nothing_that_changes_anything() {
    let machine = machine();
    let cadvisor = Cadvisor::of(&machine);
    let pod = machine.pod("p").unwrap();
    for id in ["", "x", &pod.id[..12], &"0".repeat(64)] {
        assert_eq!(cadvisor.container(id).unwrap_err().code(), Code::NotFound);
        assert_eq!(cadvisor.process(id).unwrap_err().code(), Code::NotFound);
    }
    // The CRI is not there, nor is any other call of containerd's.
    for path in [
        "/containerd.services.containers.v1.Containers/Delete",
        "/containerd.services.tasks.v1.Tasks/Kill",
        "/runtime.v1.RuntimeService/StopPodSandbox",
    ] {
        let mut client = tonic::client::Grpc::new(cadvisor.channel.clone());
        let status = cadvisor.runtime.block_on(async {
            client.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<GetContainerRequest, ()>::default();
            let request = tonic::Request::new(GetContainerRequest { id: pod.id.clone() });
            client.unary(request, path.parse().unwrap(), codec).await
        });
        assert_eq!(status.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    assert!(machine.pods().unwrap().iter().any(|it| it.id == pod.id));
}

#[test]
fn a_pods_own_process_outlives_the_daemon_and_old_pods_stay_without() {
    let mut machine = Machine::new().unwrap();
    let engines = BOTH.map(|engine| (engine, engine.provide(&machine)));
    let before = machine.baseline().unwrap();
    let old = pod_with(&machine, "old", NamespaceMode::Container);
    let old_shared = pod_with(&machine, "old-shared", NamespaceMode::Pod);
    configure(&machine);
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    let cadvisor = Cadvisor::of(&machine);
    assert_eq!(cadvisor.container(&old.id).unwrap().id, old.id);
    assert_eq!(
        cadvisor.process(&old.id).unwrap_err().code(),
        Code::NotFound
    );
    let init = cadvisor.process(&old_shared.id).unwrap();

    let shared = pod_with(&machine, "shared", NamespaceMode::Pod);
    let apart = pod_with(&machine, "apart", NamespaceMode::Container);
    let pids = [&shared, &apart].map(|pod| cadvisor.process(&pod.id).unwrap().pid);
    // One process serves both ends.
    assert_eq!(groups(&machine, &shared.id), [&*shared.id]);
    drop(cadvisor);
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    let cadvisor = Cadvisor::of(&machine);
    let again = [&shared, &apart].map(|pod| cadvisor.process(&pod.id).unwrap().pid);
    assert_eq!(pids, again);
    assert_eq!(cadvisor.process(&old_shared.id).unwrap().pid, init.pid);
    let inspected = machine.client.pod_sandbox_status(PodSandboxStatusRequest {
        pod_sandbox_id: apart.id.clone(),
        verbose: true,
    });
    let info: serde_json::Value = serde_json::from_str(&inspected.unwrap().info["info"]).unwrap();
    assert_eq!(info["pid"], again[1]);

    // The process of a pod is no shared PID namespace.
    let (engine, image) = &engines[0];
    for (pod, own, is_shared) in [(&shared, again[0], true), (&apart, again[1], false)] {
        let id = machine
            .run(pod, engine.idle(engine.handler(), image))
            .unwrap();
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        let container = machine.pid(&id).unwrap().unsigned_abs();
        assert_eq!(
            of(container) == of(own),
            is_shared,
            "{}",
            pod.config.hostname
        );
    }
    // Killed by somebody, it takes nothing of the pod with it.
    let pid = rustix::process::Pid::from_raw(again[1].cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    let apart = machine.pod_status(&apart.id).unwrap();
    assert_eq!(apart.state(), PodSandboxState::SandboxReady);
    machine.remove_all_pods().unwrap();
    machine.assert_nothing_left(&before).unwrap();
}
