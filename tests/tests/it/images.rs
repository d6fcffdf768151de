//! Images from a real registry: forms, names, credentials, mirrors, removal.

use criw_proto::v1::*;
use criw_tests::client::image_spec;
use criw_tests::image::{self, Entry, Settings, file};
use criw_tests::machine::Machine;
use criw_tests::registry::{CREDENTIALS, Registry};
use criw_tests::{binaries, images, plan};

use crate::engine::Engine;

fn status(machine: &Machine, name: &str) -> Option<Image> {
    let request = ImageStatusRequest {
        image: Some(image_spec(name)),
        verbose: false,
    };
    machine.client.image_status(request).unwrap().image
}

fn remove(machine: &Machine, name: &str) {
    let request = RemoveImageRequest {
        image: Some(image_spec(name)),
    };
    machine.client.remove_image(request).unwrap();
}

#[test]
fn every_form_of_wasm_image_runs() {
    let machine = Machine::new().unwrap();
    let hello = binaries::guest("hello").unwrap();
    let pod = machine
        .run_pod(machine.pod_config("forms"), "wasm")
        .unwrap();
    for (name, built) in [
        ("rootfs:1", images::wasm("hello").unwrap()),
        ("artifact:1", image::artifact(&hello)),
        ("layer:1", image::module_layer(&hello, "hello.wasm")),
        ("both:1", images::both().unwrap()),
    ] {
        let reference = machine.provide(name, &built).unwrap();
        let config = plan::container(name.trim_end_matches(":1"), &reference);
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0, "{name}: {status:?} {log}");
        assert!(log.starts_with("hello from wasm\n"), "{name}: {log}");
    }
}

#[test]
fn an_index_gives_each_handler_its_platform() {
    let machine = Machine::new().unwrap();
    let reference = machine.provide("both:1", &images::both().unwrap()).unwrap();
    let wasm = machine
        .run_pod(machine.pod_config("wasm"), "wasmtime")
        .unwrap();
    let (_, log) = machine
        .outcome(&wasm, plan::container("hello", &reference))
        .unwrap();
    assert!(log.starts_with("hello from wasm\n"), "{log}");
    let auto = machine.pod("auto").unwrap();
    let config = plan::command("linux", &reference, &["echo", "hello from linux"]);
    let (status, log) = machine.outcome(&auto, config).unwrap();
    assert_eq!((status.exit_code, &*log), (0, "hello from linux\n"));
}

#[test]
fn names_ids_and_digests_mean_the_same_image() {
    let machine = Machine::new().unwrap();
    let built = images::wasm("hello").unwrap();
    let reference = machine.provide("hello:1", &built).unwrap();
    let found = status(&machine, &reference).unwrap();
    let digest = format!(
        "{}@{}",
        machine.registry.reference("hello"),
        built.top.digest
    );
    assert_eq!(found.repo_tags, std::slice::from_ref(&reference));
    assert_eq!(found.repo_digests, std::slice::from_ref(&digest));
    assert!(found.size > 0 && found.id.starts_with("sha256:"));
    let bare = found.id.trim_start_matches("sha256:");
    for name in [&*digest, &found.id, bare, &bare[..13]] {
        assert_eq!(status(&machine, name).as_ref(), Some(&found), "{name}");
    }
    assert_eq!(machine.pull(&digest).unwrap(), found.id);
    let listed = machine
        .client
        .list_images(ListImagesRequest::default())
        .unwrap()
        .images;
    assert_eq!(listed.len(), 1);
    remove(&machine, &found.id);
    assert!(status(&machine, &reference).is_none());
    remove(&machine, &found.id);
}

#[test]
fn a_moved_tag_moves() {
    let machine = Machine::new().unwrap();
    let reference = machine
        .provide("app:1", &images::wasm("hello").unwrap())
        .unwrap();
    let old = status(&machine, &reference).unwrap();
    machine
        .provide("app:1", &images::wasm("cat").unwrap())
        .unwrap();
    let new = status(&machine, &reference).unwrap();
    assert_ne!(old.id, new.id);
    let old = status(&machine, &old.id);
    assert!(
        old.is_none_or(|old| old.repo_tags.is_empty()),
        "the tag is on both"
    );
}

#[test]
fn a_removed_image_leaves_no_file_and_running_containers_alone() {
    let machine = Machine::new().unwrap();
    // A connection to the registry may be kept for the next pull.
    let first = machine
        .provide("first:1", &images::wasm("exit").unwrap())
        .unwrap();
    remove(&machine, &first);
    let before = machine.baseline().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("runs").unwrap();
    let id = machine
        .run(&pod, Engine::Wasm.idle("idle", &image))
        .unwrap();
    machine.logged(&id, "ready").unwrap();
    let used = machine.client.image_fs_info(ImageFsInfoRequest {}).unwrap();
    assert!(used.image_filesystems[0].used_bytes.unwrap().value > 100_000);
    remove(&machine, &image);
    let done = machine.exec(&id, &["/bin/cat", "/etc/motd"], 10);
    // Its files are there; whether a module of a removed image may still be started is
    // not promised, but the running one must not notice.
    drop(done);
    assert_eq!(
        machine.status(&id).unwrap().state(),
        ContainerState::ContainerRunning
    );
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn credentials_are_used_and_wrong_ones_are_named() {
    let machine = Machine::new().unwrap();
    let registry = Registry::start_protected(&machine.world, 5001).unwrap();
    let built = images::wasm("hello").unwrap();
    registry
        .push_protected(&machine.world, "secret:1", &built)
        .unwrap();
    let reference = registry.reference("secret:1");
    let pull = |auth: Option<AuthConfig>| {
        machine.client.pull_image(PullImageRequest {
            image: Some(image_spec(&reference)),
            auth,
            sandbox_config: None,
        })
    };
    let refused = pull(None).unwrap_err();
    assert!(
        refused.message().contains("401") || refused.message().contains("credential"),
        "{refused:?}"
    );
    let wrong = AuthConfig {
        username: CREDENTIALS.0.into(),
        password: "not this one".into(),
        ..Default::default()
    };
    let refused = pull(Some(wrong)).unwrap_err();
    assert!(!refused.message().contains("not this one"), "{refused:?}");
    assert!(status(&machine, &reference).is_none());
    let right = AuthConfig {
        username: CREDENTIALS.0.into(),
        password: CREDENTIALS.1.into(),
        ..Default::default()
    };
    pull(Some(right)).unwrap();
    assert!(status(&machine, &reference).is_some());
    let log = criw_tests::daemon::tail(&machine.world);
    assert!(!log.contains(CREDENTIALS.1), "a password is in the log");
}

#[test]
fn a_mirror_serves_what_hosts_toml_says() {
    let machine = Machine::new().unwrap();
    let built = images::wasm("hello").unwrap();
    machine
        .registry
        .push(&machine.world, "hello:1", &built)
        .unwrap();
    let dir = machine.world.subdir("hosts.d/mirrored.test").unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n\n[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        machine.registry.address
    );
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
    machine.pull("mirrored.test/hello:1").unwrap();
    let found = status(&machine, "mirrored.test/hello:1").unwrap();
    assert_eq!(found.repo_tags, ["mirrored.test/hello:1"]);
}

#[test]
fn layers_are_laid_over_each_other_as_they_should_be() {
    let machine = Machine::new().unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let lower = vec![
        Entry::Directory("bin".into(), 0o755),
        file("bin/busybox", 0o4755, busybox),
        Entry::Directory("dir".into(), 0o755),
        file("dir/hidden", 0o644, "must not be seen"),
        Entry::Directory("opaque".into(), 0o755),
        file("opaque/old", 0o644, "must not be seen"),
        file("kept", 0o640, "kept"),
        Entry::Hardlink("linked".into(), "kept".into()),
    ];
    let upper = vec![
        file("dir/.wh.hidden", 0o644, ""),
        Entry::Directory("opaque".into(), 0o755),
        file("opaque/.wh..wh..opq", 0o644, ""),
        file("opaque/new", 0o644, "new"),
    ];
    let built = image::rootfs("linux/amd64", &[lower, upper], &Settings::default()).unwrap();
    let reference = machine.provide("layers:1", &built).unwrap();
    let pod = machine.pod("layers").unwrap();
    let script =
        "b=/bin/busybox; $b ls -a dir opaque; $b stat -c '%a %h %n' /kept /linked /bin/busybox";
    let config = plan::command("ls", &reference, &["/bin/busybox", "sh", "-c", script]);
    let (status, log) = machine.outcome(&pod, config).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    assert_eq!(
        log,
        "dir:\n.\n..\n\nopaque:\n.\n..\nnew\n640 2 /kept\n640 2 /linked\n4755 1 /bin/busybox\n"
    );
}
