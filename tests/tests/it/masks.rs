//! Masked and read-only paths of the security context.

use criw_proto::v1::{
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
};
use criw_tests::machine::Machine;
use criw_tests::plan;

use crate::engine::{BOTH, Engine};

fn paths(masked: &[&str], readonly: &[&str]) -> Option<LinuxContainerConfig> {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            masked_paths: owned(masked),
            readonly_paths: owned(readonly),
            ..Default::default()
        }),
        ..Default::default()
    })
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_refuse() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    // The toolbox is compiled once and its code stays.
    let pod = machine.pod("warm").unwrap();
    let idle = machine
        .run(&pod, Engine::Wasm.idle("idle", &images[0]))
        .unwrap();
    machine.exec(&idle, &["ls", "/"], 120).unwrap();
    machine.remove_pod(&pod.id).unwrap();
    let before = machine.baseline().unwrap();
    for (engine, image) in BOTH.iter().zip(&images) {
        let volume = machine.world.subdir(engine.handler()).unwrap();
        std::fs::create_dir_all(volume.join("secret")).unwrap();
        std::fs::write(volume.join("secret/key"), "key\n").unwrap();
        let pod = machine.pod(engine.handler()).unwrap();
        let mut config = engine.idle("idle", image);
        config.mounts = vec![plan::mount(&volume, "/volume", false)];
        // As the kubelet asks: most of it is in no Wasm container.
        let masked = ["/proc/kcore", "/proc/acpi", "/etc/motd", "/volume/secret"];
        config.linux = paths(&masked, &["/proc/bus", "/data"]);
        let id = machine.run(&pod, config).unwrap();
        machine.logged(&id, "ready").unwrap();
        let run = |argv: &[&str]| {
            let done = machine.exec(&id, argv, 60).unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (done.exit_code, text(&done.stdout), text(&done.stderr))
        };
        let nothing = (0, String::new(), String::new());
        assert_eq!(run(&["cat", "/etc/motd"]), nothing, "{engine:?}");
        assert_eq!(run(&["ls", "/volume/secret"]), nothing, "{engine:?}");
        assert_eq!(run(&["cat", "/etc/group"]).0, 0, "{engine:?}");
        for path in ["/data/new", "/volume/secret/new"] {
            let script = format!("echo x > {path}");
            let (code, _, errors) = run(&["sh", "-c", &script]);
            assert_ne!(code, 0, "{engine:?} {path}");
            assert!(
                errors.contains("Read-only file system"),
                "{engine:?} {errors}"
            );
        }
        // A masked file is a device in a Linux container, which takes anything.
        let takes = run(&["sh", "-c", "echo x > /etc/motd"]).0 == 0;
        assert_eq!(takes, *engine == Engine::Linux);
        assert_eq!(
            run(&["sh", "-c", "echo x > /volume/new"]).0,
            0,
            "{engine:?}"
        );
        machine.remove_pod(&pod.id).unwrap();
        // What it hid and what it protected is as it was.
        let key = std::fs::read_to_string(volume.join("secret/key")).unwrap();
        assert_eq!(key, "key\n");
    }
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_privileged_container_was_masked() {
    let machine = Machine::new().unwrap();
    for engine in BOTH {
        let image = engine.provide(&machine);
        let mut pod = machine.pod_config(engine.handler());
        pod.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
            privileged: true,
            ..Default::default()
        });
        let pod = machine.run_pod(pod, "").unwrap();
        let mut config = engine.hello("hello", &image);
        config.envs = vec![
            plan::env("READ", "/etc/motd"),
            plan::env("WRITE", "/data/new"),
        ];
        config.linux = paths(&["/etc/motd"], &["/data"]);
        let context = config.linux.as_mut().unwrap().security_context.as_mut();
        context.unwrap().privileged = true;
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0, "{engine:?} {status:?} {log}");
        assert!(log.contains("a file of the image\n"), "{engine:?} {log}");
    }
}

#[test]
fn a_masked_module_ran() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("masked").unwrap();
    let mut config = Engine::Wasm.idle("idle", &image);
    config.linux = paths(&["/bin/print"], &[]);
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    // By the daemon's look-up, and by the shell's.
    let refused = machine.exec(&id, &["print"], 60).unwrap_err();
    for part in ["/bin/print", "permission denied", "masked"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    let script = ["/bin/sh", "-c", "print"];
    let done = machine.exec(&id, &script, 60).unwrap();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(
        (done.exit_code, errors.as_str()),
        (126, "/bin/sh: print: Permission denied\n")
    );
    // Nor as a container's own program.
    let mut config = plan::command("print", &image, &["/bin/print"]);
    config.linux = paths(&["/bin/print"], &[]);
    let refused = machine.create(&pod, config).unwrap_err();
    assert!(refused.message().contains("masked"), "{refused}");
}
