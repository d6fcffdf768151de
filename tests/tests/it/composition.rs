//! Components that import each other: from one image, from image volumes, from the images of
//! the pod's other containers; and what is told when nobody exports an import.

use criw_proto::v1::*;
use criw_tests::image::{Image, Settings, artifact, file, rootfs};
use criw_tests::machine::{self, Machine};
use criw_tests::{binaries, plan};

const GREETING: &str = "hello world!\n";
const FROM_LIBRARY: &str = "words were asked\n";

fn component(name: &str) -> Vec<u8> {
    binaries::guest(&format!("{name}.component")).unwrap()
}

/// An image of components by these names, the first of which is the command.
fn image(names: &[&str]) -> Image {
    let files = names
        .iter()
        .map(|name| file(&format!("{name}.wasm"), 0o755, component(name)))
        .collect();
    let entry = format!("/{}.wasm", names[0]);
    rootfs("wasi/wasm", &[files], &Settings::entrypoint(&[&entry])).unwrap()
}

fn greets(name: &str, image: &str) -> ContainerConfig {
    let mut config = plan::container(name, image);
    config.args = vec!["world".into()];
    config
}

fn assert_greeted(status: &ContainerStatus, log: &str) {
    assert_eq!(status.exit_code, 0, "{}: {log}", status.message);
    assert!(log.contains(GREETING), "{log}");
    assert!(log.contains(FROM_LIBRARY), "{log}");
}

#[test]
fn components_of_an_image_are_linked_when_it_is_pulled() {
    let machine = Machine::new().unwrap();
    let whole = image(&["greeter", "words", "tone"]);
    let name = machine.provide("whole:1", &whole).unwrap();
    // All that is compiled for it is there after the pull.
    let compiled = compilations(&machine);
    assert!(compiled > 0);
    let before = machine.baseline().unwrap();
    let pod = machine.pod("whole").unwrap();
    let (status, log) = machine.outcome(&pod, greets("greeter", &name)).unwrap();
    assert_greeted(&status, &log);
    assert_eq!(compilations(&machine), compiled);
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

/// Entries of the code cache.
fn compilations(machine: &Machine) -> usize {
    let code = machine.world.path("root/images/code");
    let mut count = 0;
    for directory in std::fs::read_dir(code).unwrap() {
        count += std::fs::read_dir(directory.unwrap().path())
            .unwrap()
            .count();
    }
    count
}

#[test]
fn code_that_is_linked_goes_with_the_image() {
    let machine = Machine::new().unwrap();
    let name = machine
        .provide("whole:1", &image(&["greeter", "words", "tone"]))
        .unwrap();
    let linked = compilations(&machine);
    let request = RemoveImageRequest {
        image: Some(criw_tests::client::image_spec(&name)),
    };
    machine.client.remove_image(request).unwrap();
    let gone = || (compilations(&machine) <= linked - 5).then_some(());
    criw_tests::wait::until("the code to go", criw_tests::wait::PATIENCE, gone).unwrap();
}

#[test]
fn libraries_come_from_image_volumes() {
    let machine = Machine::new().unwrap();
    let greeter = machine.provide("greeter:1", &image(&["greeter"])).unwrap();
    let words = machine.provide("words:1", &image(&["words"])).unwrap();
    let tone = machine
        .provide("tone:1", &artifact(&component("tone")))
        .unwrap();
    // The linked code stays in the cache, so the second pod leaves nothing.
    for last in [false, true] {
        let before = machine.baseline().unwrap();
        let pod = machine.pod("volumes").unwrap();
        let mut config = greets("greeter", &greeter);
        for (at, name) in [("/words", &words), ("/tone", &tone)] {
            config.mounts.push(Mount {
                container_path: at.into(),
                readonly: true,
                image: Some(criw_tests::client::image_spec(name)),
                ..Default::default()
            });
        }
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_greeted(&status, &log);
        machine.remove_pod(&pod.id).unwrap();
        if last {
            machine.assert_nothing_left(&before).unwrap();
        }
    }
}

#[test]
fn libraries_come_from_the_pods_other_containers_in_any_kind_of_image() {
    let machine = Machine::new().unwrap();
    let greeter = machine
        .provide("greeter:1", &artifact(&component("greeter")))
        .unwrap();
    let hello = file("hello.wasm", 0o755, binaries::guest("hello").unwrap());
    let idle = file("idle.wasm", 0o755, binaries::guest("idle").unwrap());
    let words = file("words.wasm", 0o644, component("words"));
    let tone = file("tone.wasm", 0o644, component("tone"));
    let settings = Settings::entrypoint(&["/idle.wasm"]);
    let sidecar = rootfs("wasi/wasm", &[vec![hello, idle, words, tone]], &settings).unwrap();
    let sidecar = machine.provide("sidecar:1", &sidecar).unwrap();

    // Alone it cannot start, and says what is missing.
    let alone = machine.pod("alone").unwrap();
    let id = machine.create(&alone, greets("greeter", &greeter)).unwrap();
    let refusal = machine.start(&id).unwrap_err();
    let text = refusal.message();
    assert!(
        text.contains("unknown imports: demo:words/words@1.0.0, which neither"),
        "{text}"
    );
    let status = machine.status(&id).unwrap();
    assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));

    let pod = machine.pod("siblings").unwrap();
    let side = machine
        .run(&pod, plan::container("sidecar", &sidecar))
        .unwrap();
    let (status, log) = machine.outcome(&pod, greets("greeter", &greeter)).unwrap();
    assert_greeted(&status, &log);
    // Each importer has an instance of its own: the sidecar has said nothing.
    let log = machine.log(&machine.status(&side).unwrap()).unwrap();
    assert!(!machine::text(&log).contains(FROM_LIBRARY));
    for pod in [&alone, &pod] {
        machine.remove_pod(&pod.id).unwrap();
    }
}

/// One meter for all of a composition: the loop is in another component than the command.
#[test]
fn fuel_is_counted_in_linked_components() {
    let machine = Machine::new().unwrap();
    let whole = image(&["greeter", "words", "tone"]);
    let name = machine.provide("whole:1", &whole).unwrap();
    let pod = machine.pod("fuel").unwrap();
    for (container, whom, fuel, code, reason) in [
        ("enough", "world", "100000000", 0, "Completed"),
        ("spins", "for ever", "100000000", 124, "DeadlineExceeded"),
        ("none", "world", "10", 124, "DeadlineExceeded"),
    ] {
        let mut config = plan::container(container, &name);
        config.args = vec![whom.into()];
        config
            .annotations
            .insert("criw.dev/fuel".into(), fuel.into());
        let (status, log) = machine.outcome(&pod, config).unwrap();
        let ended = (status.exit_code, status.reason.as_str());
        assert_eq!(ended, (code, reason), "{container}: {status:?} {log}");
        assert_eq!(log.contains(GREETING), code == 0, "{container}: {log}");
        assert_eq!(log.contains(FROM_LIBRARY), fuel != "10", "{container}");
    }
}

#[test]
fn an_exec_of_a_component_is_linked_too() {
    let machine = Machine::new().unwrap();
    let idle = file("idle.wasm", 0o755, binaries::guest("idle").unwrap());
    let mut files = vec![idle];
    for name in ["greeter", "words", "tone"] {
        files.push(file(&format!("{name}.wasm"), 0o755, component(name)));
    }
    let settings = Settings::entrypoint(&["/idle.wasm"]);
    let name = rootfs("wasi/wasm", &[files], &settings).unwrap();
    let name = machine.provide("idle:1", &name).unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("exec").unwrap();
    let id = machine.run(&pod, plan::container("idle", &name)).unwrap();
    let answer = machine.exec(&id, &["/greeter.wasm", "world"], 30).unwrap();
    assert_eq!(answer.stdout, GREETING.as_bytes(), "{answer:?}");
    assert_eq!(answer.stderr, FROM_LIBRARY.as_bytes(), "{answer:?}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn what_fits_not_is_named_at_the_start() {
    let machine = Machine::new().unwrap();
    let other_type =
        wat(r#"(component (instance $e) (export "demo:words/words@1.0.0" (instance $e)))"#);
    let newer = wat(r#"(component (instance $e) (export "demo:words/words@2.0.0" (instance $e)))"#);
    let broken = b"\0asm\x0d\0\x01\0broken".to_vec();
    for (tag, library, expected) in [
        ("type", other_type, "is of another type"),
        ("version", newer, "unknown imports: demo:words/words@1.0.0"),
        ("broken", broken, "unknown imports: demo:words/words@1.0.0"),
    ] {
        let files = vec![
            file("greeter.wasm", 0o755, component("greeter")),
            file("library.wasm", 0o755, library),
        ];
        let settings = Settings::entrypoint(&["/greeter.wasm"]);
        let image = rootfs("wasi/wasm", &[files], &settings).unwrap();
        let name = machine.provide(&format!("{tag}:1"), &image).unwrap();
        let pod = machine.pod(tag).unwrap();
        let id = machine.create(&pod, greets(tag, &name)).unwrap();
        let refusal = machine.start(&id).unwrap_err();
        assert!(refusal.message().contains(expected), "{tag}: {refusal}");
        machine.remove_pod(&pod.id).unwrap();
    }
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}
