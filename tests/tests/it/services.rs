//! What components may import beside WASI, through the CRI: annotations name directories of
//! volumes, and several components in one image are told apart by `command:`.

use std::os::unix::fs::{PermissionsExt, symlink};

use criw_proto::v1::*;
use criw_tests::binaries::guest;
use criw_tests::image::{Entry, Image, Settings, file, rootfs};
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, plan};

/// Components of all kinds, in one image.
fn image() -> Image {
    let mut layer = vec![Entry::Directory("bin".into(), 0o755)];
    for name in ["services", "served", "jobs", "async", "service"] {
        let module = guest(&format!("{name}.component")).unwrap();
        layer.push(file(&format!("bin/{name}"), 0o755, module));
    }
    let settings = Settings {
        env: vec!["PATH=/bin".into(), "COLOUR=red".into()],
        ..Settings::entrypoint(&["/bin/services"])
    };
    rootfs("wasi/wasm", &[layer], &settings).unwrap()
}

fn config(image: &str, name: &str, command: &[&str]) -> ContainerConfig {
    let mut config = plan::container(name, image);
    config.command = command.iter().map(ToString::to_string).collect();
    config
}

fn get(machine: &Machine, pod: &Pod, path: &str) -> String {
    let at = (machine.pod_ip(&pod.id).unwrap(), 8080).into();
    let answer = machine
        .world
        .enter(|| http::request(at, "GET", path, &[], b""))
        .unwrap();
    answer.text()
}

#[test]
fn containers_of_a_pod_share_buckets_and_objects_on_a_volume() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("services:1", &image()).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("services").unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    let mode = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&volume, mode).unwrap();
    let settings = machine.world.subdir("config").unwrap();
    for (state, colour) in [("..1", "blue"), ("..2", "green")] {
        std::fs::create_dir(settings.join(state)).unwrap();
        std::fs::write(settings.join(state).join("colour"), colour).unwrap();
    }
    symlink("..1", settings.join("..data")).unwrap();
    symlink("..data/colour", settings.join("colour")).unwrap();
    let mounted = |mut config: ContainerConfig| {
        config.mounts = vec![
            plan::mount(&volume, "/data", false),
            plan::mount(&settings, "/settings", true),
        ];
        for (key, value) in [
            ("config-dir", "/settings"),
            ("keyvalue-dir", "/data"),
            ("blobstore-dir", "/data"),
        ] {
            let key = format!("criw.dev/{key}");
            config.annotations.insert(key, value.to_owned());
        }
        config
    };
    let served = machine
        .run(&pod, mounted(config(&image, "served", &["/bin/served"])))
        .unwrap();
    assert_eq!(get(&machine, &pod, "/add:hits:all:2"), "2\n");
    assert_eq!(get(&machine, &pod, "/config:colour"), "blue\n");
    assert_eq!(get(&machine, &pod, "/config:COLOUR"), "red\n");
    assert_eq!(get(&machine, &pod, "/create:c"), "created\n");
    assert_eq!(get(&machine, &pod, "/blob-put:c:o:kept"), "put\n");
    get(&machine, &pod, "/log:3:front:slow");
    machine.logged(&served, "WARN [front] slow").unwrap();
    // As the kubelet changes a ConfigMap.
    symlink("..2", settings.join("..new")).unwrap();
    std::fs::rename(settings.join("..new"), settings.join("..data")).unwrap();
    assert_eq!(get(&machine, &pod, "/config:colour"), "green\n");
    let words = ["/bin/services", "add:hits:all:40", "blob-get:c:o:0"];
    let command = mounted(config(&image, "command", &words));
    let command = machine.run(&pod, command).unwrap();
    machine.logged(&command, "42").unwrap();
    machine.logged(&command, "kept").unwrap();
    machine.remove_pod(&pod.id).unwrap();
    assert!(volume.join("hits/all").is_file() && volume.join("c/o").is_file());
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn one_image_has_components_of_several_worlds_and_entries() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("services:1", &image()).unwrap();
    let pod = machine.pod("worlds").unwrap();
    for (name, command, code, logged) in [
        ("migrate", &["/bin/jobs#migrate"][..], 0, "migrating"),
        ("cleanup", &["jobs#admin#cleanup"], 0, "cleaning"),
        (
            "refused",
            &["jobs#migrate", "now"],
            1,
            "the database is not there",
        ),
        ("async", &["async", "say/async"], 0, "async"),
    ] {
        let id = machine.run(&pod, config(&image, name, command)).unwrap();
        machine.logged(&id, logged).unwrap();
        let ended = machine.ended(&id).unwrap();
        assert_eq!(ended.exit_code, code, "{name}: {ended:?}");
    }
    let none = machine
        .create(&pod, config(&image, "none", &["jobs#none"]))
        .unwrap();
    let error = machine.start(&none).unwrap_err();
    assert!(error.message().contains("admin#cleanup"), "{error:?}");
    machine
        .run(&pod, config(&image, "service", &["service"]))
        .unwrap();
    assert_eq!(get(&machine, &pod, "/"), "hello from 0.3\n");
    machine.remove_pod(&pod.id).unwrap();
}
