//! `criw images`: archives that an operator puts into a running daemon.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use criw_proto::v1::*;
use criw_tests::image::{self, Entry, Image, file};
use criw_tests::machine::Machine;
use criw_tests::world::World;
use criw_tests::{binaries, images, plan};
use serde_json::json;

use crate::bad_input::assert_contains;

/// An OCI layout, as `ctr images export` and `docker save` write it.
fn archive(image: &Image, name: &str) -> Vec<u8> {
    let mut top = image.top.descriptor();
    top["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
    let mut files = vec![
        Entry::Directory("blobs".into(), 0o755),
        file("index.json", 0o644, index),
        file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
    ];
    for blob in image
        .blobs
        .iter()
        .chain(&image.manifests)
        .chain([&image.top])
    {
        let path = format!("blobs/{}", blob.digest.replace(':', "/"));
        files.push(file(&path, 0o644, blob.bytes.clone()));
    }
    image::tar(&files).unwrap()
}

/// Runs `criw images …` on the daemon of a world, with standard input.
fn criw(world: &World, args: &[&str], input: &[u8]) -> Output {
    let mut child = world
        .command(binaries::criw().unwrap())
        .arg("images")
        .args(args)
        .arg("--config")
        .arg(world.path("config.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who has seen enough does not read the rest.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn an_imported_image_runs_without_a_registry() {
    let machine = Machine::new().unwrap();
    let both = archive(&images::both().unwrap(), "registry.example/team/both:1");
    let path = write(&machine.world.path("both.tar"), &both);
    let said = stdout(&criw(&machine.world, &["import", &path], b""));
    let name = "registry.example/team/both:1";
    assert!(
        said.starts_with("sha256:") && said.ends_with(&format!("  {name}\n")),
        "{said}"
    );
    let listed = stdout(&criw(&machine.world, &["list"], b""));
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert_contains(&listed, &[name, &said[..71]]);
    for (handler, argv, from) in [
        ("", &["echo", "hello from linux"][..], "linux"),
        ("wasm", &[], "wasm"),
    ] {
        let config = machine.pod_config(from);
        let pod = machine.run_pod(config, handler).unwrap();
        let (status, log) = machine
            .outcome(&pod, plan::command("hello", name, argv))
            .unwrap();
        assert_eq!(status.exit_code, 0, "{log}");
        assert!(log.starts_with(&format!("hello from {from}\n")), "{log}");
    }
    // From standard input, under a name of the operator's choice.
    let hello = archive(&images::wasm("hello").unwrap(), "registry.example/a:1");
    let said = stdout(&criw(
        &machine.world,
        &["import", "-", "--name", "b:2"],
        &hello,
    ));
    assert_contains(&said, &["  docker.io/library/b:2\n"]);
    let pod = machine.pod("renamed").unwrap();
    let (status, _) = machine.outcome(&pod, plan::container("b", "b:2")).unwrap();
    assert_eq!(status.exit_code, 0);
}

#[test]
fn a_broken_import_says_why_and_leaves_nothing() {
    let machine = Machine::new().unwrap();
    let hello = archive(&images::wasm("hello").unwrap(), "registry.example/a:1");
    let before = machine.baseline().unwrap();
    let half = &hello[..hello.len() / 2];
    let missing = machine.world.path("missing.tar").display().to_string();
    for (args, input, parts) in [
        (&["import", "-"][..], half, ["archive", "cut short"]),
        (&["import", "-"], &[b'x'; 600], ["archive", "no tar"]),
        (&["import", &missing], b"", ["open", "missing.tar"]),
        (
            &["import", "-", "--name", "A B"],
            &hello,
            ["A B", "invalid"],
        ),
    ] {
        let said = stderr(&criw(&machine.world, args, input));
        assert_contains(&said, &parts);
        machine.assert_nothing_left(&before).unwrap();
    }
    // An operator who gives up in the middle.
    let mut child = machine
        .world
        .command(binaries::criw().unwrap())
        .args(["images", "import", "-", "--config"])
        .arg(machine.world.path("config.toml"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(half).unwrap();
    let tmp = machine.world.path("root/images/tmp");
    criw_tests::wait::until("the archive to arrive", criw_tests::wait::PATIENCE, || {
        let mut inside = std::fs::read_dir(&tmp).ok()?;
        inside.next().map(drop)
    })
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    machine.assert_nothing_left(&before).unwrap();
    let listed = machine.client.list_images(ListImagesRequest::default());
    assert!(listed.unwrap().images.is_empty());
    drop(input);
    stdout(&criw(&machine.world, &["import", "-"], &hello));
}

#[test]
fn without_a_daemon_the_operator_is_told_to_start_it() {
    let world = World::new().unwrap();
    criw_tests::config::write(&world, criw_tests::config::Network::Builtin).unwrap();
    for args in [&["list"][..], &["import", "-"]] {
        let said = stderr(&criw(&world, args, b""));
        assert_contains(&said, &["reach the daemon", "systemctl start criw"]);
    }
}
