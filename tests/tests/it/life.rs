//! A pod's whole life through CRI, on both kinds of container, with nothing left.

use criw_proto::v1::*;
use criw_tests::machine::{Machine, text};
use criw_tests::plan;
use tonic::Code;

use crate::engine::{BOTH, Engine};

fn whole_life(engine: Engine) {
    let machine = Machine::new().unwrap();
    let image = engine.provide(&machine);
    let before = machine.baseline().unwrap();

    let pod = machine
        .run_pod(machine.pod_config("life"), engine.handler())
        .unwrap();
    let status = machine.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.annotations, pod.config.annotations);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.runtime_handler, engine.handler());
    assert!(status.created_at > 0);
    machine.pod_ip(&pod.id).unwrap();

    let mut config = engine.hello("hello", &image);
    config.args.extend(["one".into(), "two words".into()]);
    config.envs = vec![plan::env("COLOUR", "blue"), plan::env("EXIT_CODE", "7")];
    let id = machine.create(&pod, config.clone()).unwrap();
    let created = machine.status(&id).unwrap();
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!((created.started_at, created.exit_code), (0, 0));
    assert_eq!(created.labels, config.labels);
    machine.start(&id).unwrap();
    let ended = machine.ended(&id).unwrap();
    assert_eq!((ended.exit_code, &*ended.reason), (7, "Error"));
    assert!(created.created_at <= ended.started_at && ended.started_at <= ended.finished_at);
    assert_eq!(ended.image.as_ref().unwrap().image, image);
    let lines = machine.log(&ended).unwrap();
    let output = text(&lines);
    for wanted in [
        "hello from",
        "one\n",
        "two words\n",
        "env COLOUR=blue",
        "env FROM_IMAGE=yes",
    ] {
        assert!(output.contains(wanted), "{wanted:?} is not in:\n{output}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line.stream == "stderr" && line.text == "to stderr")
    );

    let again = machine.start(&id).unwrap_err();
    assert!(again.message().contains("exited"), "{again:?}");
    machine.stop(&id, 0).unwrap();
    machine.remove(&id).unwrap();
    machine.remove(&id).unwrap();
    let gone = machine.status(&id).unwrap_err();
    assert_eq!(
        gone.downcast_ref::<tonic::Status>().unwrap().code(),
        Code::NotFound
    );

    let idle = machine.run(&pod, engine.idle("idle", &image)).unwrap();
    machine.logged(&idle, "ready").unwrap();
    let twice = machine.start(&idle).unwrap_err();
    assert!(twice.message().contains("running"), "{twice:?}");
    machine.stop(&idle, 20).unwrap();
    let stopped = machine.status(&idle).unwrap();
    assert_eq!(stopped.state(), ContainerState::ContainerExited);
    assert_eq!((stopped.exit_code, &*stopped.reason), (143, "Error"));

    machine.stop_pod(&pod.id).unwrap();
    machine.stop_pod(&pod.id).unwrap();
    let status = machine.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    machine.remove_pod(&pod.id).unwrap();
    assert!(machine.pods().unwrap().is_empty() && machine.containers().unwrap().is_empty());
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_wasm_pod_lives_and_leaves_nothing() {
    whole_life(Engine::Wasm);
}

#[test]
fn a_linux_pod_lives_and_leaves_nothing() {
    whole_life(Engine::Linux);
}

#[test]
fn removing_a_pod_takes_running_containers_along() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    let pod = machine.pod("mixed").unwrap();
    for (engine, image) in BOTH.iter().zip(&images) {
        let id = machine
            .run(&pod, engine.idle(engine.handler(), image))
            .unwrap();
        machine.logged(&id, "ready").unwrap();
        machine
            .create(&pod, engine.idle(&format!("{}-2", engine.handler()), image))
            .unwrap();
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn exec_runs_another_program_of_the_image() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        let id = machine.run(&pod, engine.idle("idle", &image)).unwrap();
        machine.logged(&id, "ready").unwrap();
        machine.exec(&id, &["/bin/cat"], 10).unwrap();
        let before = machine.snapshot().unwrap();
        let done = machine.exec(&id, &["/bin/cat", "/etc/motd"], 10).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&done.stdout),
            "a file of the image\n"
        );
        assert_eq!(done.exit_code, 0, "{engine:?}");
        let failed = machine.exec(&id, &["cat", "/no/such/file"], 10).unwrap();
        assert_eq!(failed.exit_code, 1, "{engine:?}");
        assert!(String::from_utf8_lossy(&failed.stderr).contains("/no/such/file"));
        let missing = machine
            .exec(&id, &["/bin/no-such-program"], 10)
            .unwrap_err();
        assert!(missing.message().contains("no-such-program"), "{missing:?}");
        let endless: &[&str] = match engine {
            Engine::Wasm => &["/bin/spin"],
            Engine::Linux => &["sleep", "3600"],
        };
        let late = machine.exec(&id, endless, 1).unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
        machine.assert_nothing_left(&before).unwrap();
        machine.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn names_are_reserved_and_short_ids_work() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("names").unwrap();
    let taken = machine.pod("names").unwrap_err();
    assert!(taken.message().contains("names"), "{taken:?}");
    let id = machine
        .create(&pod, Engine::Wasm.idle("same", &image))
        .unwrap();
    let taken = machine
        .create(&pod, Engine::Wasm.idle("same", &image))
        .unwrap_err();
    assert!(taken.message().contains("same"), "{taken:?}");
    assert_eq!(machine.status(&id[..13]).unwrap().id, id);
    assert_eq!(machine.pod_status(&pod.id[..13]).unwrap().id, pod.id);
    machine.start(&id[..13]).unwrap();
    machine.remove(&id[..13]).unwrap();
    machine.remove_pod(&pod.id[..13]).unwrap();
    assert!(machine.pods().unwrap().is_empty());
}

#[test]
fn lists_obey_their_filters() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let (first, second) = (
        machine.pod("first").unwrap(),
        machine.pod("second").unwrap(),
    );
    let created = machine
        .create(&first, Engine::Wasm.idle("created", &image))
        .unwrap();
    let running = machine
        .run(&second, Engine::Wasm.idle("running", &image))
        .unwrap();
    let list = |filter: ContainerFilter| -> Vec<String> {
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let mut ids: Vec<String> = machine
            .client
            .list_containers(request)
            .unwrap()
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect();
        ids.sort();
        ids
    };
    let state = |state: ContainerState| {
        Some(ContainerStateValue {
            state: state.into(),
        })
    };
    let mut both = [created.clone(), running.clone()];
    both.sort();
    assert_eq!(list(ContainerFilter::default()), both);
    assert_eq!(
        list(ContainerFilter {
            state: state(ContainerState::ContainerCreated),
            ..Default::default()
        }),
        std::slice::from_ref(&created)
    );
    assert_eq!(
        list(ContainerFilter {
            pod_sandbox_id: second.id[..13].into(),
            ..Default::default()
        }),
        std::slice::from_ref(&running)
    );
    assert_eq!(
        list(ContainerFilter {
            label_selector: [("container".to_owned(), "created".to_owned())].into(),
            ..Default::default()
        }),
        [created]
    );
    assert!(
        list(ContainerFilter {
            id: "ffffffffffff".into(),
            ..Default::default()
        })
        .is_empty()
    );
    assert!(
        list(ContainerFilter {
            id: running,
            state: state(ContainerState::ContainerExited),
            ..Default::default()
        })
        .is_empty()
    );
    let request = ListPodSandboxRequest {
        filter: Some(PodSandboxFilter {
            label_selector: [("app".to_owned(), "first".to_owned())].into(),
            ..Default::default()
        }),
    };
    let pods = machine.client.list_pod_sandbox(request).unwrap().items;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].id, first.id);
}

#[test]
fn unknown_ids_are_told_apart_as_kubelet_needs_it() {
    let machine = Machine::new().unwrap();
    let nobody = "0123456789abcdef";
    machine.stop_pod(nobody).unwrap();
    machine.remove_pod(nobody).unwrap();
    machine.stop(nobody, 0).unwrap();
    machine.remove(nobody).unwrap();
    let request = ContainerStatusRequest {
        container_id: nobody.into(),
        verbose: false,
    };
    assert_eq!(
        machine.client.container_status(request).unwrap_err().code(),
        Code::NotFound
    );
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: nobody.into(),
        verbose: false,
    };
    assert_eq!(
        machine
            .client
            .pod_sandbox_status(request)
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    let request = ImageStatusRequest {
        image: Some(criw_tests::client::image_spec("nowhere:1")),
        verbose: false,
    };
    assert!(
        machine
            .client
            .image_status(request)
            .unwrap()
            .image
            .is_none()
    );
}

#[test]
fn stats_move() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("stats").unwrap();
    let id = machine
        .run(&pod, plan::command("spin", &image, &["/bin/spin"]))
        .unwrap();
    machine.logged(&id, "spinning").unwrap();
    let cpu = || {
        let request = ContainerStatsRequest {
            container_id: id.clone(),
        };
        let stats = machine
            .client
            .container_stats(request)
            .unwrap()
            .stats
            .unwrap();
        assert!(stats.attributes.unwrap().metadata.is_some());
        let memory = stats.memory.unwrap().working_set_bytes.unwrap().value;
        assert!(memory > 0);
        let cpu = stats.cpu.unwrap();
        (cpu.timestamp, cpu.usage_core_nano_seconds.unwrap().value)
    };
    let first = cpu();
    criw_tests::wait::until("cpu time to be counted", criw_tests::wait::PATIENCE, || {
        let now = cpu();
        assert!(now.0 >= first.0 && now.1 >= first.1, "{first:?} {now:?}");
        (now.0 > first.0 && now.1 > first.1 + 10_000_000).then_some(())
    })
    .unwrap();
}

/// The pod's counter was the sum of its running containers, so it fell when one ended.
#[test]
fn a_pods_cpu_counter_fell_when_a_container_ended() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let mut config = machine.pod_config("stats");
    // As the kubelet does, a group for this pod alone.
    let uid = config.metadata.clone().unwrap().uid;
    let parent = format!("{}/pod{uid}", machine.world.cgroup());
    config.linux.get_or_insert_default().cgroup_parent = parent;
    let pod = machine.run_pod(config, "").unwrap();
    let idle = plan::command("idle", &image, &["/bin/idle"]);
    machine.run(&pod, idle).unwrap();
    let spinning = plan::command("spin", &image, &["/bin/spin"]);
    let spinning = machine.run(&pod, spinning).unwrap();
    let cpu = || {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let stats = machine.client.pod_sandbox_stats(request).unwrap();
        stats.stats.unwrap().linux.unwrap().cpu.unwrap()
    };
    let used = || cpu().usage_core_nano_seconds.unwrap().value;
    let busy = criw_tests::wait::until("a rate of cpu time", criw_tests::wait::PATIENCE, || {
        let rate = cpu().usage_nano_cores?.value;
        (rate > 10_000_000).then(&used)
    })
    .unwrap();
    machine
        .client
        .stop_container(StopContainerRequest {
            container_id: spinning,
            timeout: 0,
        })
        .unwrap();
    assert!(used() >= busy, "{} after {busy}", used());
}
