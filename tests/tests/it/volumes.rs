//! Volumes: read, write, read-only, and what is not to be reached.

use criw_proto::v1::{LinuxContainerConfig, LinuxContainerSecurityContext};
use criw_tests::machine::Machine;
use criw_tests::plan;

use crate::engine::{BOTH, Engine};

#[test]
fn a_volume_is_read_and_written_and_a_read_only_one_refuses() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    for (engine, image) in BOTH.iter().zip(&images) {
        let volume = machine
            .world
            .subdir(&format!("volume-{}", engine.handler()))
            .unwrap();
        std::fs::write(volume.join("in"), "from the host\n").unwrap();
        let pod = machine.pod(engine.handler()).unwrap();
        let mut config = engine.hello("rw", image);
        config.mounts = vec![plan::mount(&volume, "/volume", false)];
        config.envs = vec![
            plan::env("READ", "/volume/in"),
            plan::env("WRITE", "/volume/out"),
        ];
        let (status, log) = machine.outcome(&pod, config.clone()).unwrap();
        assert_eq!(status.exit_code, 0, "{engine:?} {status:?} {log}");
        assert!(log.contains("from the host\n"), "{log}");
        assert_eq!(status.mounts, config.mounts);
        let written = std::fs::read_to_string(volume.join("out")).unwrap();
        assert!(written.starts_with("written by"), "{written}");
        std::fs::remove_file(volume.join("out")).unwrap();

        config.metadata.as_mut().unwrap().name = "ro".into();
        config.mounts = vec![plan::mount(&volume, "/volume", true)];
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 4, "{engine:?} {status:?} {log}");
        assert!(log.contains("/volume/out: Read-only file system"), "{log}");
        assert!(!volume.join("out").exists());
        machine.remove_pod(&pod.id).unwrap();
    }
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_read_only_root_was_writable_for_a_wasm_guest() {
    let machine = Machine::new().unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        for (name, readonly, path, code) in [
            ("sealed", true, "/data/mine", 4),
            ("open", false, "/data/mine", 0),
            // A place that the image does not have, and a volume there.
            ("volume", true, "/made/mine", 0),
        ] {
            let mut config = engine.hello(name, &image);
            config.envs = vec![plan::env("WRITE", path)];
            config.mounts = vec![plan::mount(&volume, "/made", false)];
            config.linux = Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    readonly_rootfs: readonly,
                    ..Default::default()
                }),
                ..Default::default()
            });
            let (status, log) = machine.outcome(&pod, config).unwrap();
            assert_eq!(status.exit_code, code, "{engine:?} {name}: {log}");
        }
        machine.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn what_a_container_writes_is_its_own() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let pod = machine.pod(engine.handler()).unwrap();
        let mut config = engine.hello("writer", &image);
        config.envs = vec![plan::env("WRITE", "/data/mine")];
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0, "{engine:?} {log}");
        let mut config = engine.hello("reader", &image);
        config.envs = vec![plan::env("READ", "/data/mine")];
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(
            status.exit_code, 3,
            "{engine:?} the other's file is there: {log}"
        );
    }
}

#[test]
fn the_pod_has_its_names() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let mut config = machine.pod_config(engine.handler());
        config.dns_config = Some(criw_proto::v1::DnsConfig {
            servers: vec!["10.0.0.53".into()],
            searches: vec!["tests.svc".into()],
            options: vec!["ndots:5".into()],
        });
        let pod = machine.run_pod(config, "").unwrap();
        let argv = ["/bin/cat", "/etc/resolv.conf", "/etc/hostname"];
        let (status, log) = machine
            .outcome(&pod, plan::command("cat", &image, &argv))
            .unwrap();
        assert_eq!(status.exit_code, 0, "{engine:?} {log}");
        let expected = format!(
            "search tests.svc\nnameserver 10.0.0.53\noptions ndots:5\n{}\n",
            engine.handler()
        );
        assert_eq!(log, expected, "{engine:?}");
    }
}

#[test]
fn a_process_file_system_cannot_be_brought_in_by_a_host_path() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("procmem").unwrap();
    let (status, log) = machine
        .outcome(&pod, plan::command("direct", &image, &["/bin/procmem"]))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    assert_eq!(log.matches("refused ").count(), 3, "{log}");

    let mut config = plan::command(
        "hostpath",
        &image,
        &["/bin/procmem", "/host/self/mem", "/host/1/mem"],
    );
    config.mounts = vec![plan::mount(std::path::Path::new("/proc"), "/host", false)];
    // Refused at create, or forced read-only: either way nothing is opened.
    match machine.create(&pod, config) {
        Err(refused) => assert!(refused.message().contains("/proc is procfs"), "{refused:?}"),
        Ok(id) => match machine.start(&id) {
            Err(refused) => assert!(refused.message().contains("proc"), "{refused:?}"),
            Ok(()) => {
                let status = machine.ended(&id).unwrap();
                assert_eq!(status.exit_code, 0, "{:?}", machine.log(&status));
            }
        },
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}
