//! Devices by the Container Device Interface, and devices of the host by path.

use criw_proto::v1::*;
use criw_tests::machine::Machine;
use criw_tests::plan;

use crate::engine::{BOTH, Engine};

fn write(machine: &Machine, name: &str, text: &str) {
    let path = machine.world.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn with(mut config: ContainerConfig, devices: &[&str]) -> ContainerConfig {
    config.cdi_devices = devices
        .iter()
        .map(|name| CdiDevice {
            name: (*name).into(),
        })
        .collect();
    config
}

/// A device plugin's spec: environment for all, nodes, mounts and a hook for some.
fn spec(machine: &Machine) -> String {
    let note = machine.world.path("note");
    std::fs::write(&note, "of the vendor\n").unwrap();
    let ran = machine.world.path("ran");
    format!(
        r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: ["VENDOR=yes"]
devices:
- name: data
  containerEdits:
    env: ["GPU=data"]
    mounts: [{{hostPath: {note}, containerPath: /vendor/note, options: [ro, nosuid]}}]
- name: node
  containerEdits:
    additionalGids: [4242]
    deviceNodes: [{{path: /dev/gpu0, hostPath: /dev/fuse, permissions: r}}]
    hooks:
    - {{hookName: createRuntime, path: /bin/touch, args: [touch, {ran}]}}
"#,
        note = note.display(),
        ran = ran.display(),
    )
}

#[test]
fn a_linux_container_gets_all_that_a_device_brings() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let before = machine.baseline().unwrap();
    let spec = spec(&machine);
    write(&machine, "cdi/etc/vendor.yaml", &spec);
    let pod = machine.pod("gpu").unwrap();
    let script = "echo $VENDOR $GPU; cat /vendor/note; id -G; echo opened < /dev/gpu0; \
        echo -n 2> /dev/null > /dev/gpu0 || echo read only; echo x 2> /dev/null > /vendor/note || echo sealed";
    let config = plan::command("all", &image, &["sh", "-c", script]);
    let config = with(config, &["vendor.com/gpu=data", "vendor.com/gpu=node"]);
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[..2], ["yes data", "of the vendor"], "{log}");
    assert!(lines[2].split(' ').any(|gid| gid == "4242"), "{log}");
    assert_eq!(lines[3..], ["opened", "read only", "sealed"], "{log}");
    assert!(machine.world.path("ran").exists(), "the hook did not run");
    assert!(status.mounts.is_empty(), "they are no volumes: {status:?}");
    // A later directory wins, without a restart.
    let other = spec.replace("GPU=data", "GPU=other");
    write(&machine, "cdi/run/vendor.yaml", &other);
    let config = plan::command("other", &image, &["sh", "-c", "echo $GPU"]);
    let (status, log) = machine
        .outcome(&pod, with(config, &["vendor.com/gpu=data"]))
        .unwrap();
    assert_eq!((status.exit_code, &*log), (0, "other\n"));
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_wasm_container_gets_environment_and_mounts() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let spec = spec(&machine);
    write(&machine, "cdi/etc/vendor.yaml", &spec);
    let pod = machine.pod("gpu").unwrap();
    let mut config = Engine::Wasm.hello("hello", &image);
    config.envs = vec![plan::env("READ", "/vendor/note")];
    let (status, log) = machine
        .outcome(&pod, with(config, &["vendor.com/gpu=data"]))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    for line in ["VENDOR=yes", "GPU=data", "of the vendor"] {
        assert!(log.contains(line), "{log}");
    }
    let config = with(Engine::Wasm.hello("node", &image), &["vendor.com/gpu=node"]);
    let refused = machine.create(&pod, config).unwrap_err();
    assert!(
        refused.message().contains("device node /dev/gpu0"),
        "{refused:?}"
    );
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let before = machine.baseline().unwrap();
    write(&machine, "cdi/etc/broken.json", "{");
    let pod = machine.pod("gpu").unwrap();
    for (engine, image) in BOTH.into_iter().zip(&images) {
        for (name, word) in [
            ("vendor.com/gpu=0", "is not in any spec"),
            ("vendor.com/gpu=0", "broken.json"),
            ("gpu", "not fully qualified"),
        ] {
            let config = with(engine.hello("c", image), &[name]);
            let refused = machine.create(&pod, config).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(word), "{refused:?}");
        }
    }
    machine.remove_pod(&pod.id).unwrap();
    std::fs::remove_dir_all(machine.world.path("cdi")).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn devices_of_the_host_are_directories_and_links_too() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let pod = machine.pod("devices").unwrap();
    let directory = machine.world.subdir("devices").unwrap();
    machine
        .world
        .run(
            "sh",
            &[
                "-c",
                &format!(
                    "cd {} && mknod fuse c 10 229 && mkdir sub && mknod sub/null c 1 3",
                    directory.display()
                ),
            ],
        )
        .unwrap();
    let link = machine.world.path("link");
    std::os::unix::fs::symlink("/dev/fuse", &link).unwrap();
    let device = |host: &std::path::Path, inside: &str| Device {
        container_path: inside.into(),
        host_path: host.to_string_lossy().into_owned(),
        permissions: "r".into(),
    };
    let script = "for d in /dev/linked /dev/many/fuse /dev/many/sub/null; do echo opened < $d; done; \
        echo -n 2> /dev/null > /dev/linked || echo read only";
    let mut config = plan::command("devices", &image, &["sh", "-c", script]);
    config.devices = vec![
        device(&link, "/dev/linked"),
        device(&directory, "/dev/many"),
    ];
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines, ["opened", "opened", "opened", "read only"]);
    let mut config = plan::command("missing", &image, &["true"]);
    config.devices = vec![device(
        std::path::Path::new("/dev/no-such-device"),
        "/dev/x",
    )];
    let refused = machine.create(&pod, config).unwrap_err();
    assert!(
        refused.message().contains("/dev/no-such-device"),
        "{refused:?}"
    );
}
