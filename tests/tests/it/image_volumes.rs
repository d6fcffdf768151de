//! Images as volumes: what is seen of them, that they are held, and what is refused.

use criw_proto::v1::*;
use criw_tests::image::{Entry, Image, Settings, artifact, file, rootfs};
use criw_tests::machine::Machine;
use criw_tests::{binaries, plan};

use crate::engine::{BOTH, Engine};
use crate::users;

/// An image of data in two layers.
fn data() -> Image {
    let lower = vec![
        Entry::Directory("share".into(), 0o755),
        Entry::Directory("share/doc".into(), 0o755),
        file("share/doc/text", 0o644, "replaced\n"),
    ];
    let upper = vec![
        Entry::Directory("share".into(), 0o755),
        Entry::Directory("share/doc".into(), 0o755),
        file("share/doc/text", 0o644, "from an image\n"),
        Entry::Symlink("out".into(), "../../../../etc".into()),
    ];
    rootfs("linux/amd64", &[lower, upper], &Settings::default()).unwrap()
}

fn volume(image: &str, inside: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: inside.into(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// Reads a file; or tries to write one, and must fail.
fn outcome(
    machine: &Machine,
    pod: &criw_tests::machine::Pod,
    engine: Engine,
    image: &str,
    mounts: &[Mount],
    (key, path): (&str, &str),
) -> (i32, String) {
    let mut config = engine.hello(
        &format!("{}-{key}-{}", engine.handler(), path.replace('/', "-")),
        image,
    );
    config.mounts = mounts.to_vec();
    config.envs = vec![plan::env(key, path)];
    let (status, log) = machine.outcome(pod, config).unwrap();
    assert_eq!(status.mounts, mounts, "{engine:?}");
    (status.exit_code, log)
}

#[test]
fn an_image_is_read_and_not_written_in_both_kinds_of_container() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let data = machine.provide("data:1", &data()).unwrap();
    let before = machine.baseline().unwrap();
    let plain = machine.pod("plain").unwrap();
    let config = users::with(&machine, "users", users::options(NamespaceMode::Container));
    let mapped = machine.run_pod(config, "").unwrap();
    for pod in [&plain, &mapped] {
        for (engine, image) in BOTH.into_iter().zip(&images) {
            let mounts = [
                volume(&data, "/all", ""),
                volume(&data, "/part", "share/doc"),
                volume(&data, "/file", "share/doc/text"),
            ];
            for path in ["/all/share/doc/text", "/part/text", "/file"] {
                let (code, log) = outcome(&machine, pod, engine, image, &mounts, ("READ", path));
                assert_eq!(code, 0, "{engine:?} {path}: {log}");
                assert!(log.contains("from an image\n"), "{path}: {log}");
            }
            for path in ["/all/new", "/part/text"] {
                let (code, log) = outcome(&machine, pod, engine, image, &mounts, ("WRITE", path));
                assert_eq!(code, 4, "{engine:?} {path}: {log}");
            }
        }
        machine.remove_pod(&pod.id).unwrap();
    }
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_module_of_an_artifact_is_a_file_and_a_program() {
    let machine = Machine::new().unwrap();
    let images = BOTH.map(|engine| engine.provide(&machine));
    let hello = binaries::guest("hello").unwrap();
    let module = machine.provide("module:1", &artifact(&hello)).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("artifact").unwrap();
    let mut config = plan::command(
        "linux",
        &images[1],
        &[
            "sh",
            "-c",
            "ls /m; dd if=/m/module.wasm bs=1 skip=1 count=3 2> /dev/null",
        ],
    );
    config.mounts = vec![volume(&module, "/m", "")];
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert_eq!((status.exit_code, &*log), (0, "module.wasm\nasm"));
    let mut config = plan::command("wasm", &images[0], &["/m/module.wasm", "an argument"]);
    config.mounts = vec![volume(&module, "/m", "")];
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    assert!(log.contains("an argument"), "{log}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_volume_outlives_the_removal_of_its_image() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let data = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("held").unwrap();
    let mut config = Engine::Wasm.idle("idle", &image);
    config.mounts = vec![volume(&data, "/v", "share")];
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    let request = RemoveImageRequest {
        image: Some(criw_tests::client::image_spec(&data)),
    };
    machine.client.remove_image(request).unwrap();
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    let text = machine.exec(&id, &["/bin/cat", "/v/doc/text"], 10).unwrap();
    assert_eq!(text.stdout, b"from an image\n", "{text:?}");
    assert_eq!(
        machine.status(&id).unwrap().mounts[0]
            .image
            .as_ref()
            .unwrap()
            .image,
        data
    );
    machine.remove_pod(&pod.id).unwrap();
    // With the last container its layers go.
    let layers = machine.world.path("root/images/layers");
    let count = || std::fs::read_dir(&layers).unwrap().count();
    criw_tests::wait::until("the layers to go", criw_tests::wait::PATIENCE, || {
        (count() == 1).then_some(())
    })
    .unwrap();
}

#[test]
fn refusals_begin_with_the_word_that_the_kubelet_knows() {
    let machine = Machine::new().unwrap();
    let image = Engine::Linux.provide(&machine);
    let data = machine.provide("data:1", &data()).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("refused").unwrap();
    for (mount, word) in [
        (
            volume("registry.example/none:1", "/v", ""),
            "is not on this node",
        ),
        (
            volume(&data, "/v", "no/such/part"),
            "has no \"no/such/part\"",
        ),
        (volume(&data, "/v", "out/passwd"), "has no \"out/passwd\""),
        (
            volume(&data, "/v", "../share"),
            "does not stay in the image",
        ),
        (volume(&data, "v", ""), "not an absolute path"),
        (
            Mount {
                host_path: "/tmp".into(),
                ..volume(&data, "/v", "")
            },
            "a mount has one source",
        ),
    ] {
        let mut config = plan::command("c", &image, &["true"]);
        config.mounts = vec![mount];
        let refused = machine.create(&pod, config).unwrap_err();
        assert!(
            refused.message().starts_with("ImageVolumeMountFailed: "),
            "{refused:?}"
        );
        assert!(refused.message().contains(word), "{refused:?}");
    }
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}
