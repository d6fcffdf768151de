//! Input that is wrong or hostile: the text that a user sees, the good twin that
//! passes, and nothing left. More of the list stands in `exits`, `logs`, `volumes`,
//! `network` and `crictl`.

use std::process::Command;

use criw_proto::v1::*;
use criw_tests::client::{Client, image_spec};
use criw_tests::config::{self, Network};
use criw_tests::daemon::Daemon;
use criw_tests::faulty::{Fault, Faulty};
use criw_tests::image::{self, Entry, Settings, file};
use criw_tests::machine::Machine;
use criw_tests::registry::Registry;
use criw_tests::world::World;
use criw_tests::{binaries, images, plan, wait};
use tonic::Code;

use crate::engine::Engine;

pub(crate) fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// An image that can be created but not started: StartContainer says why, and so does
/// the status, as EXITED 128 StartError.
fn start_fails(name: &str, built: &image::Image, parts: &[&str]) {
    let machine = Machine::new().unwrap();
    let twin = Engine::Wasm.provide(&machine);
    let reference = machine.provide(name, built).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.run_pod(machine.pod_config("bad"), "wasm").unwrap();
    let id = machine
        .create(&pod, plan::container("bad", &reference))
        .unwrap();
    let refused = machine.start(&id).unwrap_err();
    assert_contains(refused.message(), parts);
    let status = machine.ended(&id).unwrap();
    assert_eq!(
        (status.exit_code, &*status.reason),
        (128, "StartError"),
        "{status:?}"
    );
    assert_contains(&status.message, parts);
    assert!(status.finished_at > 0);
    // Else `kubectl describe` says that it was started in 1970.
    assert_eq!(status.started_at, status.finished_at);
    let (status, _) = machine
        .outcome(&pod, Engine::Wasm.hello("twin", &twin))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_module_that_does_not_parse_fails_at_start() {
    let mut module = binaries::guest("hello").unwrap();
    let length = module.len();
    module.truncate(length / 2);
    start_fails(
        "broken:1",
        &images::wasm_module("broken", &module).unwrap(),
        &["parse WebAssembly module", "unexpected end"],
    );
}

#[test]
fn unknown_imports_are_named() {
    start_fails(
        "rocket:1",
        &images::wasm("unknown_import").unwrap(),
        &["env", "launch_rocket", "acme:weather/today", "temperature"],
    );
}

#[test]
fn a_start_section_that_loops_can_be_stopped() {
    let machine = Machine::new().unwrap();
    let twin = Engine::Wasm.provide(&machine);
    let reference = machine
        .provide("loop:1", &images::wasm("start_loop").unwrap())
        .unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("loop").unwrap();
    let id = machine
        .create(&pod, plan::container("loop", &reference))
        .unwrap();
    let begin = std::time::Instant::now();
    machine.start(&id).unwrap();
    assert!(
        begin.elapsed().as_secs() < 10,
        "start took {:?}",
        begin.elapsed()
    );
    assert_eq!(
        machine.status(&id).unwrap().state(),
        ContainerState::ContainerRunning
    );
    // The daemon is not held up by it.
    let (status, _) = machine
        .outcome(&pod, Engine::Wasm.hello("twin", &twin))
        .unwrap();
    assert_eq!(status.exit_code, 0);
    machine.stop(&id, 20).unwrap();
    assert_eq!(machine.status(&id).unwrap().exit_code, 143);
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn an_image_without_a_program_says_so() {
    let machine = Machine::new().unwrap();
    let built = image::rootfs(
        "linux/amd64",
        &[vec![file("readme", 0o644, "nothing to run")]],
        &Settings::default(),
    )
    .unwrap();
    let reference = machine.provide("empty:1", &built).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("empty").unwrap();
    let refused = machine
        .create(&pod, plan::container("empty", &reference))
        .unwrap_err();
    assert_contains(refused.message(), &["command"]);
    let absent = machine
        .create(
            &pod,
            plan::container("absent", "127.0.0.1:5000/never-pulled:1"),
        )
        .unwrap_err();
    assert_contains(absent.message(), &["never-pulled", "pull"]);
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_refused_create_left_a_zombie() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("busybox:1", &images::busybox().unwrap())
        .unwrap();
    let pod = machine.pod("refused").unwrap();
    // The good twin; with the first Linux container the pod gets its /dev/shm.
    let config = plan::command("there", &image, &["true"]);
    let (status, _) = machine.outcome(&pod, config).unwrap();
    assert_eq!(status.exit_code, 0);
    let before = machine.snapshot().unwrap();
    let config = plan::command("missing", &image, &["/bin/missing"]);
    let error = machine.create(&pod, config).unwrap_err();
    assert!(error.message().contains("/bin/missing"), "{error}");
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_hostile_name_service_library_is_never_loaded() {
    let machine = Machine::new().unwrap();
    let volume = machine.world.subdir("volume").unwrap();
    let library = machine.world.path("libnss_evil.so.2");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/native/libnss_evil.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
    // The mark works: a program that does load it says so.
    let loaded = Command::new("/bin/true")
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    assert_contains(
        &String::from_utf8_lossy(&loaded.stderr),
        &["HOSTILE LIBRARY LOADED"],
    );

    let library = std::fs::read(&library).unwrap();
    let mut layer = vec![
        Entry::Directory("etc".into(), 0o755),
        file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n"),
        file(
            "etc/nsswitch.conf",
            0o644,
            "passwd: evil files\ngroup: evil files\nhosts: evil files dns\n",
        ),
        file("hello.wasm", 0o755, binaries::guest("hello").unwrap()),
    ];
    for dir in [
        "lib",
        "lib64",
        "usr/lib",
        "lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
    ] {
        layer.push(file(
            &format!("{dir}/libnss_evil.so.2"),
            0o755,
            library.clone(),
        ));
    }
    let settings = Settings {
        user: "nobody-known:nogroup".into(),
        ..Settings::entrypoint(&["/hello.wasm"])
    };
    let evil = image::rootfs("wasi/wasm", &[layer], &settings).unwrap();
    let reference = machine.provide("evil:1", &evil).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("evil").unwrap();
    let run = |name: &str, user: &str| {
        let mut config = plan::container(name, &reference);
        config.mounts = vec![plan::mount(&volume, "/volume", false)];
        config.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_username: user.into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        machine.create(&pod, config)
    };
    // A name that only the hostile library would know is an error, not a look-up.
    let refused = run("unknown", "only-the-library-knows").unwrap_err();
    assert_contains(refused.message(), &["only-the-library-knows"]);
    let id = run("root", "root").unwrap();
    machine.start(&id).unwrap();
    let status = machine.ended(&id).unwrap();
    let log = criw_tests::machine::text(&machine.log(&status).unwrap());
    assert_eq!(status.exit_code, 0, "{status:?} {log}");
    assert!(
        !log.contains("HOSTILE") && !status.message.contains("HOSTILE"),
        "{log}"
    );
    assert!(!volume.join("loaded").exists());
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

/// A pull that must fail: the text, and nothing left behind.
pub(crate) fn pull_fails(machine: &Machine, reference: &str, parts: &[&str]) {
    let before = machine.snapshot().unwrap();
    let refused = machine.pull(reference).unwrap_err();
    assert_contains(refused.message(), parts);
    let request = ImageStatusRequest {
        image: Some(image_spec(reference)),
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
    machine
        .assert_nothing_left(&before)
        .unwrap_or_else(|error| panic!("{reference}: {error:#}"));
}

#[test]
fn a_registry_that_misbehaves_is_told_apart() {
    let machine = Machine::new().unwrap();
    let built = images::wasm("hello").unwrap();
    let layer = built.blobs[0].digest.clone();
    for (fault, parts) in [
        (Fault::WrongBytes, vec!["sha256", &*layer]),
        (Fault::Truncate, vec!["127.0.0.1"]),
        (Fault::Status(401), vec!["401"]),
        (Fault::Status(403), vec!["403"]),
        (Fault::Status(404), vec!["app"]),
        (Fault::Status(429), vec!["429"]),
        (Fault::Status(500), vec!["500"]),
    ] {
        let registry = Faulty::start(&machine.world, "app:1", &built, fault).unwrap();
        let reference = format!("{}/app:1", registry.address);
        eprintln!("{fault:?}");
        pull_fails(&machine, &reference, &parts);
        registry.stop(&machine.world).unwrap();
    }
    let registry = Faulty::start(&machine.world, "app:1", &built, Fault::None).unwrap();
    machine
        .pull(&format!("{}/app:1", registry.address))
        .unwrap();
    registry.stop(&machine.world).unwrap();
}

#[test]
fn a_registry_that_hangs_holds_nobody_up() {
    let machine = Machine::new().unwrap();
    let built = images::wasm("hello").unwrap();
    let before = machine.baseline().unwrap();
    let registry = Faulty::start(&machine.world, "app:1", &built, Fault::Hang).unwrap();
    let reference = format!("{}/app:1", registry.address);
    // A client that gives up gets its error and leaves nothing.
    let hasty = Client::connect(&machine.world.path("s"))
        .unwrap()
        .with_deadline(std::time::Duration::from_secs(1));
    let request = PullImageRequest {
        image: Some(image_spec(&reference)),
        ..Default::default()
    };
    let late = hasty.pull_image(request).unwrap_err();
    assert!(
        matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{late:?}"
    );
    drop(hasty);
    machine.assert_nothing_left(&before).unwrap();
    // A patient client is told in the end.
    let refused = machine.pull(&reference).unwrap_err();
    assert_contains(refused.message(), &[&registry.address.to_string()]);
    registry.stop(&machine.world).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn layers_cannot_leave_the_image() {
    let machine = Machine::new().unwrap();
    let mark = format!("{}-escaped", machine.world.name);
    let tmp = std::env::temp_dir();
    let settings = Settings::entrypoint(&["/a"]);
    let up = "../".repeat(12);
    let cases = [
        ("dots:1", vec![file(&format!("{up}tmp/{mark}"), 0o644, "x")]),
        (
            "parents:1",
            vec![
                Entry::Symlink("way".into(), tmp.to_string_lossy().into_owned()),
                file(&format!("way/{mark}"), 0o644, "x"),
            ],
        ),
        (
            "hardlink:1",
            vec![Entry::Hardlink(
                "stolen".into(),
                "../../../../../../../../../etc/shadow".into(),
            )],
        ),
    ];
    for (name, entries) in cases {
        let built = image::rootfs("linux/amd64", &[entries], &settings).unwrap();
        machine.registry.push(&machine.world, name, &built).unwrap();
        let reference = machine.registry.reference(name);
        match machine.pull(&reference) {
            Err(refused) => {
                eprintln!("{name}: {}", refused.message());
                assert_contains(refused.message(), &["layer"]);
                assert_ne!(
                    name, "parents:1",
                    "a link in a path is resolved inside, as peers do"
                );
            }
            // Resolved beneath the image's root: harmless, and what peers do with links.
            Ok(_) => assert_eq!(name, "parents:1"),
        }
        assert!(!tmp.join(&mark).exists(), "{name} wrote outside");
    }
    let good = image::rootfs("linux/amd64", &[vec![file("a", 0o755, "x")]], &settings).unwrap();
    machine.provide("good:1", &good).unwrap();
}

#[test]
fn a_sparse_bomb_is_refused() {
    let machine = Machine::new().unwrap();
    let settings = Settings::entrypoint(&["/a"]);
    let bomb = vec![Entry::Sparse("bomb".into(), 1 << 42)];
    let bomb = image::rootfs("linux/amd64", &[bomb], &settings).unwrap();
    // A connection to the registry may be kept for the next pull.
    let _ = machine.pull(&machine.registry.reference("nothing:1"));
    machine
        .registry
        .push(&machine.world, "bomb:1", &bomb)
        .unwrap();
    pull_fails(
        &machine,
        &machine.registry.reference("bomb:1"),
        &["allowed", "bomb"],
    );
    let twin = vec![Entry::Sparse("small".into(), 1 << 20)];
    let twin = image::rootfs("linux/amd64", &[twin], &settings).unwrap();
    machine.provide("twin:1", &twin).unwrap();
}

#[test]
fn a_full_disk_is_named_and_survived() {
    // Root on a small tmpfs of the world, mounted before the daemon starts.
    let world = World::new().unwrap();
    config::write(&world, Network::Builtin).unwrap();
    let root = world.path("root").display().to_string();
    world
        .run("mount", &["-t", "tmpfs", "-o", "size=6m", "none", &root])
        .unwrap();
    let registry = Registry::start(&world, 5000).unwrap();
    let (daemon, client) = Daemon::start(&world, &[]).unwrap();
    let machine = Machine {
        client,
        daemon,
        registry,
        world,
    };
    // Bytes that do not compress.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(7 << 20)
    .collect();
    let large = image::rootfs(
        "linux/amd64",
        &[vec![file("a", 0o755, noise)]],
        &Settings::entrypoint(&["/a"]),
    )
    .unwrap();
    machine
        .registry
        .push(&machine.world, "large:1", &large)
        .unwrap();
    let reference = machine.registry.reference("large:1");
    let refused = machine.pull(&reference).unwrap_err();
    assert_contains(refused.message(), &["No space left on device", &root]);
    // The daemon lives, lists, and pulls as soon as there is room.
    let listed = machine
        .client
        .list_images(ListImagesRequest::default())
        .unwrap();
    assert!(listed.images.is_empty());
    machine
        .world
        .run("mount", &["-o", "remount,size=256m", &root])
        .unwrap();
    machine.pull(&reference).unwrap();
}

#[test]
fn environment_that_is_no_text_is_refused_by_name() {
    let machine = Machine::new().unwrap();
    for engine in crate::engine::BOTH {
        let image = engine.provide(&machine);
        let before = machine.baseline().unwrap();
        let pod = machine.pod(engine.handler()).unwrap();
        let mut config = engine.hello("raw", &image);
        config.envs = vec![plan::env("RAW_VALUE", vec![0xff, 0xfe])];
        let refused = machine.create(&pod, config.clone()).unwrap_err();
        assert_contains(refused.message(), &["RAW_VALUE", "UTF-8"]);
        config.envs = vec![plan::env("RAW_VALUE", "ä ok")];
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0);
        assert_contains(&log, &["env RAW_VALUE=ä ok"]);
        machine.remove_pod(&pod.id).unwrap();
        machine.assert_nothing_left(&before).unwrap();
    }
}

#[test]
fn an_oversized_request_is_refused_as_such() {
    let machine = Machine::new().unwrap();
    let before = machine.baseline().unwrap();
    let mut config = machine.pod_config("large");
    config
        .annotations
        .insert("large".into(), "x".repeat(17 << 20));
    let refused = machine.run_pod(config, "").unwrap_err();
    assert_eq!(
        refused.code(),
        Code::ResourceExhausted,
        "{:?}",
        refused.code()
    );
    machine.assert_nothing_left(&before).unwrap();
    let mut config = machine.pod_config("fits");
    config
        .annotations
        .insert("fits".into(), "x".repeat(1 << 20));
    machine.run_pod(config, "").unwrap();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let before = machine.baseline().unwrap();
    let refused = machine
        .client
        .run_pod_sandbox(RunPodSandboxRequest::default())
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let mut config = machine.pod_config("no-metadata");
    config.metadata = None;
    let refused = machine.run_pod(config, "").unwrap_err();
    assert_contains(refused.message(), &["metadata"]);
    let pod = machine.pod("stopped").unwrap();
    machine.stop_pod(&pod.id).unwrap();
    let refused = machine
        .create(&pod, Engine::Wasm.idle("late", &image))
        .unwrap_err();
    assert_contains(refused.message(), &["not ready"]);
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_second_daemon_on_the_same_directories_is_refused() {
    let mut machine = Machine::new().unwrap();
    let mut second = Daemon::spawn(&machine.world, &[]).unwrap();
    let status = second.ended(wait::PATIENCE).unwrap();
    assert!(!status.success());
    assert!(machine.daemon.is_alive());
    machine.client.version(VersionRequest::default()).unwrap();
}
