//! Archives instead of a registry: those that tools write, and hostile ones. Each fault
//! has its text and leaves nothing, and its good twin passes on the same store.

use std::io::{Cursor, Read, Write as _};
use std::sync::mpsc;

use criw_image_service::{Digest, ImageService, Imported, Kind, PullError, Want};
use serde_json::{Value, json};

use crate::fixture::{EMPTY_MODULE, Home, Push, request, tar, wasm_image};
use crate::scripted::Server;

/// An OCI layout in a tar; `names` are the annotations of each manifest.
fn layout(push: &Push, names: &[Value]) -> Vec<u8> {
    let listed: Vec<Value> = push
        .manifests
        .iter()
        .zip(names)
        .map(|((media_type, manifest), annotations)| {
            json!({"mediaType": media_type, "digest": Digest::of(manifest).as_str(),
                "size": manifest.len(), "annotations": annotations})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": listed}).to_string();
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    let manifests = push.manifests.iter().map(|(_, manifest)| manifest);
    for blob in push.blobs.values().chain(manifests) {
        files.push((
            format!("blobs/sha256/{}", Digest::of(blob).hex()),
            blob.clone(),
        ));
    }
    archive(&files)
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    tar(&files)
}

fn named(name: &str) -> Value {
    json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"})
}

async fn import(service: &ImageService, archive: Vec<u8>) -> Result<Vec<Imported>, PullError> {
    service.import(Cursor::new(archive), None).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_layout_is_taken_in_as_if_it_had_been_pulled() {
    let home = Home::new();
    let service = home.open().await;
    let push = wasm_image(EMPTY_MODULE);
    let server = Server::with_image(&push, |_, _| None).await;
    let name = format!("{}/app:v1", server.host);
    let pulled = service.pull(request(&name)).await.unwrap();
    let image = service.find(&name).unwrap();
    service.remove(&name).await.unwrap();
    home.assert_empty().await;
    for archive in [
        layout(&push, &[named(&name)]),
        gzip(&layout(
            &push,
            &[json!({"org.opencontainers.image.ref.name": name})],
        )),
    ] {
        let imported = import(&service, archive).await.unwrap();
        let expected = Imported {
            name: name.clone(),
            id: pulled.clone(),
        };
        assert_eq!(imported, [expected]);
        assert_eq!(service.find(&name).unwrap(), image);
        let prepared = service.prepare(&pulled, None, Want::Any).await.unwrap();
        assert_eq!((prepared.kind, prepared.modules.len()), (Kind::Wasm, 1));
        drop(prepared);
        service.remove(&name).await.unwrap();
        home.assert_empty().await;
    }
    // A name of the user's choice, for an archive that has a tag alone.
    let nameless = layout(
        &push,
        &[json!({"org.opencontainers.image.ref.name": "latest"})],
    );
    let refused = import(&service, nameless.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("--name"), "{refused}");
    let name = Some("example.test/app:2".to_owned());
    service.import(Cursor::new(nameless), name).await.unwrap();
    assert!(service.find("example.test/app:2").unwrap().is_some());
}

#[tokio::test]
async fn several_images_and_an_index_come_out_of_one_archive() {
    let home = Home::new();
    let service = home.open().await;
    let mut push = wasm_image(EMPTY_MODULE);
    push.image(
        "linux/amd64",
        json!({"Cmd": ["/bin/app"]}),
        &[tar(&[("bin/app", b"\x7fELF")])],
    );
    push.index(&["wasi/wasm", "linux/amd64"]);
    let names = [
        named("docker.io/library/one:1"),
        json!({}),
        named("example.test/both:1"),
    ];
    let imported = import(&service, layout(&push, &names)).await.unwrap();
    assert_eq!(imported.len(), 2);
    let both = service.find("example.test/both:1").unwrap().unwrap();
    assert_eq!(both.kinds, [Kind::Linux, Kind::Wasm]);
    let one = service.find("one:1").unwrap().unwrap();
    assert_eq!(one.kinds, [Kind::Wasm]);
}

#[tokio::test]
async fn what_docker_save_writes_is_taken_in() {
    let home = Home::new();
    let service = home.open().await;
    let (base, top) = (tar(&[("base", b"1")]), tar(&[("top", b"2")]));
    let diff_ids = [&base, &top, &base].map(|layer| Digest::of(layer).to_string());
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/base"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1", "example.test/app:2"],
        "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}])
    .to_string();
    let files = archive(&[
        ("c.json".to_owned(), config.clone().into_bytes()),
        ("a/layer.tar".to_owned(), base),
        ("b/layer.tar".to_owned(), top),
        ("manifest.json".to_owned(), manifest.into_bytes()),
    ]);
    // Layers that are there twice were links in old archives. The end mark is cut off first.
    let mut whole = files[..files.len() - 1024].to_vec();
    whole.extend(entry(b'2', "c/layer.tar", "../a/layer.tar", 0));
    whole.extend([0; 1024]);
    let imported = import(&service, whole).await.unwrap();
    assert_eq!(imported.len(), 2);
    let image = service.find("app:1").unwrap().unwrap();
    assert_eq!(image.id.0, Digest::of(config.as_bytes()));
    assert_eq!(
        image.repo_tags,
        ["docker.io/library/app:1", "example.test/app:2"]
    );
    let prepared = service.prepare(&image.id, None, Want::Any).await.unwrap();
    assert_eq!(prepared.lowers.len(), 3);
}

/// One header block, also one that no tool writes.
fn entry(kind: u8, name: &str, link: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..336].copy_from_slice(b"0000000");
    block[337..344].copy_from_slice(b"0000000");
    if kind == b'S' {
        // One piece at the end of a terabyte.
        block[386..397].copy_from_slice(b"00000000000");
        block[398..409].copy_from_slice(b"00000000000");
        block[483..494].copy_from_slice(b"77777777777");
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Gives what it has, then fails or hangs until it is let go.
struct Breaking {
    data: Cursor<Vec<u8>>,
    hang: Option<mpsc::Receiver<()>>,
}

impl Read for Breaking {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.data.read(buffer)? {
            0 => {
                if let Some(hang) = &self.hang {
                    let _ = hang.recv();
                }
                Err(std::io::Error::other("the pipe broke"))
            }
            count => Ok(count),
        }
    }
}

#[tokio::test]
async fn hostile_archives_have_their_text_and_leave_nothing() {
    let mut home = Home::new();
    home.config.limits.manifest_bytes = 64 << 10;
    home.config.limits.blob_bytes = 1 << 20;
    home.config.limits.unpacked_bytes = 2 << 20;
    let service = home.open().await;
    let push = wasm_image(EMPTY_MODULE);
    let name = named("example.test/app:1");
    let good = layout(&push, std::slice::from_ref(&name));
    let before_good = |head: Vec<u8>| [head, good.clone()].concat();
    let mut flipped = good.clone();
    let module = flipped
        .windows(8)
        .position(|window| window == EMPTY_MODULE)
        .unwrap();
    flipped[module + 5] ^= 1;
    let mut twice = push.clone();
    twice.image(
        "linux/amd64",
        json!({"Cmd": ["/a"]}),
        &[tar(&[("a", b"1")])],
    );
    let mut incomplete = push.clone();
    let layer = incomplete
        .blobs
        .iter()
        .find(|(_, blob)| blob.len() > 1000)
        .map(|(digest, _)| digest.clone())
        .unwrap();
    incomplete.blobs.remove(&layer);
    let mut lying = push.clone();
    let manifest = String::from_utf8(lying.manifests[0].1.clone()).unwrap();
    let size = lying.blobs[&layer].len();
    lying.manifests[0].1 = manifest
        .replace(&format!("\"size\":{size}"), "\"size\":7")
        .into_bytes();
    let mut spin = Push::default();
    let config = spin.descriptor("application/vnd.oci.image.config.v1+json", b"{}".to_vec());
    let blob = spin.descriptor(
        "application/vnd.fermyon.spin.application.v1+config",
        b"{}".to_vec(),
    );
    spin.manifest(config, vec![blob]);
    let zeros = vec![0; (1 << 20) + 1];
    let docker = |layer: &str| {
        let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": [layer]}]).to_string();
        archive(&[
            ("c".to_owned(), b"{}".to_vec()),
            ("manifest.json".to_owned(), manifest.into_bytes()),
        ])
    };
    let index = |text: &str| archive(&[("index.json".to_owned(), text.as_bytes().to_vec())]);
    let mut unexpected = Vec::new();
    let wrong_digest = named(&format!("example.test/app@sha256:{}", "0".repeat(64)));
    for (what, archive, kind, part) in [
        (
            "half",
            good[..good.len() / 2].to_vec(),
            "BadContent",
            "cut short",
        ),
        ("nothing", Vec::new(), "BadContent", "no files"),
        (
            "no tar",
            b"not a tar".repeat(200),
            "BadContent",
            "no tar archive",
        ),
        (
            "half of gzip",
            gzip(&good)[..200].to_vec(),
            "BadContent",
            "archive",
        ),
        ("flipped", flipped, "BadContent", "content with the digest"),
        (
            "dots",
            before_good(entry(b'0', "../../etc/cron.d/x", "", 0)),
            "BadContent",
            "leads out",
        ),
        (
            "absolute",
            before_good(entry(b'0', "/etc/cron.d/x", "", 0)),
            "BadContent",
            "leads out",
        ),
        (
            "link out",
            before_good(entry(b'2', "a/b", "../../etc/shadow", 0)),
            "BadContent",
            "leads out",
        ),
        (
            "device",
            before_good(entry(b'3', "sda", "", 0)),
            "BadContent",
            "is a device",
        ),
        (
            "sparse",
            before_good(entry(b'S', "bomb", "", 0)),
            "Refused",
            "bomb",
        ),
        (
            "twice",
            [good[..good.len() - 1024].to_vec(), good.clone()].concat(),
            "BadContent",
            "twice",
        ),
        (
            "large",
            archive(&[("large".to_owned(), zeros.clone())]),
            "Refused",
            "more than are allowed",
        ),
        (
            "large together",
            archive(&["a", "b", "c"].map(|name| (name.to_owned(), zeros[1..].to_vec()))),
            "Refused",
            "more than are allowed",
        ),
        (
            "huge index",
            index(&format!("{{\"manifests\":[{}]}}", " ".repeat(70_000))),
            "Refused",
            "more than the 65536",
        ),
        ("no json", index("<html>"), "BadContent", "index.json"),
        (
            "empty index",
            index(r#"{"manifests":[]}"#),
            "BadContent",
            "neither",
        ),
        (
            "same name",
            layout(&twice, &[name.clone(), name.clone()]),
            "BadContent",
            "two images",
        ),
        (
            "bad name",
            layout(&push, &[named("example.test/UPPER:1")]),
            "InvalidReference",
            "UPPER",
        ),
        (
            "wrong digest",
            layout(&push, &[wrong_digest]),
            "BadContent",
            "what has the digest",
        ),
        (
            "incomplete",
            layout(&incomplete, std::slice::from_ref(&name)),
            "BadContent",
            "lacks sha256:",
        ),
        (
            "wrong size",
            layout(&lying, std::slice::from_ref(&name)),
            "BadContent",
            "its manifest says 7",
        ),
        (
            "spin",
            layout(&spin, std::slice::from_ref(&name)),
            "Refused",
            "Spin",
        ),
        (
            "docker without layer",
            docker("x/layer.tar"),
            "BadContent",
            "lacks the file",
        ),
        (
            "docker link out",
            docker("../../etc/shadow"),
            "BadContent",
            "lacks the file",
        ),
    ] {
        let error = import(&service, archive).await.unwrap_err();
        let text = format!("{error:?}");
        if !text.starts_with(kind) || !text.contains(part) {
            unexpected.push(format!("{what}: {text}"));
        }
        assert!(service.list(None).is_empty(), "{what}");
        home.assert_empty().await;
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    let broken = Breaking {
        data: Cursor::new(good[..good.len() - 2000].to_vec()),
        hang: None,
    };
    let error = service.import(broken, None).await.unwrap_err();
    assert!(error.to_string().contains("the pipe broke"), "{error}");
    home.assert_empty().await;
    import(&service, good).await.unwrap();
}

#[tokio::test]
async fn an_abandoned_import_leaves_nothing() {
    let home = Home::new();
    let service = home.open().await;
    let good = layout(&wasm_image(EMPTY_MODULE), &[named("example.test/app:1")]);
    let (release, hang) = mpsc::channel();
    let archive = Breaking {
        data: Cursor::new(good[..good.len() - 2000].to_vec()),
        hang: Some(hang),
    };
    let running = tokio::spawn({
        let service = service.clone();
        async move { service.import(archive, None).await }
    });
    // The directory that the archive is written out to.
    home.wait_for_files(1).await;
    running.abort();
    assert!(running.await.is_err());
    // As the daemon's pipe does when its client goes.
    drop(release);
    home.assert_empty().await;
    assert!(service.list(None).is_empty());
}
