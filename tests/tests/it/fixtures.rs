//! The fixtures are real: guests are modules, the registry keeps what was pushed and
//! asks for credentials, the faulty one is faulty in the way it says.

use criw_tests::faulty::{Fault, Faulty};
use criw_tests::image::{Settings, digest, file, rootfs};
use criw_tests::registry::Registry;
use criw_tests::world::World;
use criw_tests::{http, images};

#[test]
fn a_pushed_image_can_be_read_back() {
    let world = World::new().unwrap();
    let registry = Registry::start(&world, 5000).unwrap();
    let image = rootfs(
        "wasi/wasm",
        &[vec![file("app.wasm", 0o755, "\0asm\x01\0\0\0")]],
        &Settings::entrypoint(&["/app.wasm"]),
    )
    .unwrap();
    let name = registry.push(&world, "app:1", &image).unwrap();
    let answer = world
        .enter(|| {
            let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
            http::request(registry.address, "GET", "/v2/app/manifests/1", &accept, &[])
        })
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(digest(&answer.body), name);
}

#[test]
fn the_protected_registry_wants_a_password() {
    let world = World::new().unwrap();
    let registry = Registry::start_protected(&world, 5000).unwrap();
    let image = rootfs("wasi/wasm", &[vec![]], &Settings::default()).unwrap();
    let refused = registry.push(&world, "app:1", &image).unwrap_err();
    assert!(
        format!("{refused:#}").contains("UNAUTHORIZED"),
        "{refused:#}"
    );
    registry.push_protected(&world, "app:1", &image).unwrap();
}

#[test]
fn the_faulty_registry_does_what_it_says() {
    let world = World::new().unwrap();
    let image = rootfs(
        "wasi/wasm",
        &[vec![file("a", 0o644, "x")]],
        &Settings::default(),
    )
    .unwrap();
    let layer = image.blobs[0].clone();
    let path = format!("/v2/app/blobs/{}", layer.digest);
    for (fault, status, same) in [
        (Fault::None, 200, true),
        (Fault::WrongBytes, 200, false),
        (Fault::Truncate, 200, false),
        (Fault::Status(429), 429, false),
    ] {
        let registry = Faulty::start(&world, "app:1", &image, fault).unwrap();
        let answer = world
            .enter(|| http::request(registry.address, "GET", &path, &[], &[]))
            .unwrap();
        assert_eq!(answer.status, status, "{fault:?}");
        assert_eq!(answer.body == layer.bytes, same, "{fault:?}");
        registry.stop(&world).unwrap();
    }
}

#[test]
fn guests_are_modules() {
    for name in images::GUESTS
        .iter()
        .chain(&["start_loop", "unknown_import", "exit"])
    {
        let module = criw_tests::binaries::guest(name).unwrap();
        assert!(module.starts_with(b"\0asm\x01\0\0\0"), "{name}");
    }
}
