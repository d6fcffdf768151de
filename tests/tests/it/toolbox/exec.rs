//! Single commands, and who offers them.

use criw_proto::v1::ContainerConfig;
use criw_tests::image::{Entry, Settings, file, rootfs};
use criw_tests::machine::Machine;
use criw_tests::noise::noise;
use criw_tests::{binaries, config, plan};

use super::{idle, run, sh, text};
use crate::engine::Engine;

#[test]
fn every_wasm_container_has_a_shell_and_its_commands() {
    let machine = Machine::new().unwrap();
    let (pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    let (code, out, err) = run(&machine, &id, &["ls", "/"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let names: Vec<&str> = out.lines().collect();
    assert_eq!(names, ["bin", "data", "etc"]);
    for (argv, code, out, err) in [
        (&["/bin/echo", "a", "b"][..], 0, "a b\n", ""),
        (&["/usr/local/bin/echo", "x"], 0, "x\n", ""),
        (&["false"], 1, "", ""),
        (&["sh", "-c", "exit 42"], 42, "", ""),
        (&["sh", "-c", "echo out; echo err >&2"], 0, "out\n", "err\n"),
        (&["hostname"], 0, "toolbox\n", ""),
        (&["sh", "-c", "echo $FROM_IMAGE"], 0, "yes\n", ""),
    ] {
        let expected = (code, out.to_owned(), err.to_owned());
        assert_eq!(run(&machine, &id, argv), expected, "{argv:?}");
    }
    let (_, out, _) = run(&machine, &id, &["id", "-u"]);
    assert_eq!(out, "0\n");
    let table = super::processes(&machine, &id);
    assert!(
        table.contains("/bin/idle") && table.contains("ps"),
        "{table}"
    );
    machine.assert_nothing_left(&before).unwrap();
    machine.remove_pod(&pod.id).unwrap();
}

#[test]
fn what_nobody_has_is_told() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    for word in ["no-such-command", "/bin/no-such-command", "sh/"] {
        let refused = machine.exec(&id, &[word], 10).unwrap_err();
        let said = refused.message();
        assert!(
            said.contains("is not found in image") && said.contains("toolbox"),
            "{said}"
        );
    }
    let (code, _, err) = sh(&machine, &id, "no-such-command");
    assert_eq!(code, 127, "{err}");
    assert!(err.contains("not found"), "{err}");
}

#[test]
fn what_the_image_or_a_volume_has_comes_first() {
    let machine = Machine::new().unwrap();
    let hello = binaries::guest("hello").unwrap();
    // Of a machine that nobody has.
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    let image = rootfs(
        "wasi/wasm",
        &[vec![
            Entry::Directory("bin".into(), 0o755),
            file("bin/idle", 0o755, binaries::guest("idle").unwrap()),
            file("bin/ls", 0o755, hello.clone()),
            file("bin/wc", 0o755, elf),
        ]],
        &Settings::entrypoint(&["/bin/idle"]),
    )
    .unwrap();
    let image = machine.provide("own:1", &image).unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    std::fs::write(volume.join("id"), hello).unwrap();
    let pod = machine.pod("own").unwrap();
    let config = ContainerConfig {
        mounts: vec![plan::mount(&volume, "/sbin", false)],
        ..plan::container("own", &image)
    };
    let id = machine.run(&pod, config).unwrap();
    for name in ["ls", "id"] {
        let (code, out, _) = run(&machine, &id, &[name]);
        assert_eq!(code, 0);
        assert!(out.starts_with("hello from wasm\n"), "{name}: {out}");
        let (_, out, _) = sh(&machine, &id, name);
        assert!(out.starts_with("hello from wasm\n"), "{name}: {out}");
    }
    let (_, out, _) = run(&machine, &id, &["echo", "toolbox"]);
    assert_eq!(out, "toolbox\n");
    // What is there and cannot run is not hidden by the toolbox either.
    let refused = machine.exec(&id, &["wc"], 10).unwrap_err();
    assert!(refused.message().contains("/bin/wc"), "{refused}");
    assert_eq!(sh(&machine, &id, "wc").0, 126);
}

#[test]
fn annotations_and_configuration_switch_it_off() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let mut config = machine.pod_config("off");
    let off = "off".to_owned();
    config
        .annotations
        .insert("criw.dev/toolbox.closed".into(), off.clone());
    let pod = machine.run_pod(config, "").unwrap();
    let idle = |name: &str| Engine::Wasm.idle(name, &image);
    let closed = machine.run(&pod, idle("closed")).unwrap();
    let open = machine.run(&pod, idle("open")).unwrap();
    let refused = machine.exec(&closed, &["ls"], 10).unwrap_err();
    assert!(refused.message().contains("criw.dev/toolbox"), "{refused}");
    machine
        .exec(&closed, &["/bin/cat", "/etc/motd"], 10)
        .unwrap();
    assert_eq!(run(&machine, &open, &["true"]).0, 0);
    let mut odd = idle("odd");
    odd.annotations
        .insert("criw.dev/toolbox".into(), "no".into());
    let refused = machine.create(&pod, odd).unwrap_err();
    assert!(refused.message().contains("criw.dev/toolbox"), "{refused}");
    // A daemon that is configured so offers it to nobody.
    config::append(&machine.world, "[wasm]\ntoolbox = false\n").unwrap();
    machine.daemon.terminate().unwrap();
    machine.restart(&[]).unwrap();
    let refused = machine.exec(&open, &["ls"], 10).unwrap_err();
    assert!(refused.message().contains("wasm.toolbox"), "{refused}");
}

#[test]
fn files_go_in_and_out_as_kubectl_cp_does_it() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let there = machine.world.subdir("there").unwrap();
    let back = machine.world.subdir("back").unwrap();
    let bytes = noise(1 << 20);
    std::fs::write(there.join("noise"), &bytes).unwrap();
    std::fs::write(there.join("empty"), b"").unwrap();
    let tar = |args: &[&str]| {
        let output = std::process::Command::new("tar").args(args).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let archive = tar(&["cf", "-", "-C", there.to_str().unwrap(), "."]);
    let args = ["exec", "-i", &id, "tar", "xmf", "-", "-C", "/data"];
    let put = crate::streaming::piped(&machine, &args, &archive);
    assert!(put.status.success(), "{}", text(&put.stderr));
    let (_, out, _) = sh(&machine, &id, "cd /data; ls; wc -c < noise");
    assert!(
        out.starts_with("empty\nnoise\n") && out.trim().ends_with("1048576"),
        "{out}"
    );
    let args = ["exec", &id, "tar", "cf", "-", "-C", "/", "data"];
    let got = crate::streaming::piped(&machine, &args, b"");
    assert!(got.status.success(), "{}", text(&got.stderr));
    std::fs::write(back.join("a.tar"), &got.stdout).unwrap();
    let (archive, target) = (back.join("a.tar"), back.to_str().unwrap());
    tar(&["xf", archive.to_str().unwrap(), "-C", target]);
    assert!(std::fs::read(back.join("data/noise")).unwrap() == bytes);
    assert!(std::fs::read(back.join("data/empty")).unwrap().is_empty());
}
