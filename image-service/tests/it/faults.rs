//! Registries that misbehave: each gives its own text, leaves nothing, and its good
//! twin passes on the same store.

use criw_image_service::{Auth, AuthKind, ImageService, PullError, PullRequest};
use serde_json::json;

use crate::fixture::{DEADLINE, EMPTY_MODULE, Home, OCI_CONFIG, Push, request, tar, wasm_image};
use crate::scripted::{Reply, Server};

async fn pull(service: &ImageService, server: &Server) -> Result<(), PullError> {
    let pull = service.pull(request(&format!("{}/app:v1", server.host)));
    tokio::time::timeout(DEADLINE, pull)
        .await
        .unwrap()
        .map(|_| ())
}

/// The error's variant and text; nothing is left.
async fn failure(home: &Home, service: &ImageService, server: &Server) -> String {
    let error = pull(service, server).await.unwrap_err();
    assert!(service.list(None).is_empty());
    home.assert_empty().await;
    format!("{error:?}")
}

#[tokio::test]
async fn each_fault_has_its_text_and_leaves_nothing() {
    let push = wasm_image(EMPTY_MODULE);
    let layer = push
        .blobs
        .values()
        .find(|blob| blob.len() > 1000)
        .unwrap()
        .clone();
    let home = Home::new();
    let service = home.open().await;
    type Twist = Box<dyn Fn(&str, usize) -> Option<Reply> + Send + Sync>;
    let on_manifest = |reply: fn() -> Reply| -> Twist {
        Box::new(move |head, _| head.contains("/manifests/").then(reply))
    };
    let of_layer = criw_image_service::Digest::of(&layer).to_string();
    let on_layer = |reply: Box<dyn Fn() -> Reply + Send + Sync>| -> Twist {
        let digest = of_layer.clone();
        Box::new(move |head, _| head.contains(&digest).then(&reply))
    };
    let (cut, mut wrong) = (layer.clone(), layer.clone());
    wrong[600] ^= 1;
    let table: Vec<(Twist, &str, &str)> = vec![
        (
            on_manifest(|| Reply::Hang),
            "Transport",
            "sent nothing for 0.5 s",
        ),
        (
            on_manifest(|| Reply::status("401 Unauthorized")),
            "Denied",
            "wants credentials",
        ),
        (
            on_manifest(|| Reply::status("403 Forbidden")),
            "Denied",
            "forbids",
        ),
        (
            on_manifest(|| Reply::status("404 Not Found")),
            "NotFound",
            "check name and tag",
        ),
        (
            on_manifest(|| Reply::status("429 Too Many Requests\r\nretry-after: 99")),
            "Transport",
            "free again in 99 s",
        ),
        (
            on_manifest(|| Reply::status("500 Internal Server Error")),
            "Transport",
            "failed on",
        ),
        (on_manifest(|| Reply::ok(b"<html>")), "Refused", "no JSON"),
        (
            on_manifest(|| Reply::ok(&vec![b' '; 5 << 20])),
            "BadContent",
            "more than",
        ),
        (
            on_layer(Box::new(|| Reply::Hang)),
            "Transport",
            "sent nothing",
        ),
        (
            on_layer(Box::new(move || Reply::Cut(cut.clone(), 700))),
            "BadContent",
            "broke off",
        ),
        (
            on_layer(Box::new(move || Reply::ok(&wrong))),
            "BadContent",
            "with the digest",
        ),
        (
            on_layer(Box::new(|| Reply::ok(b"short"))),
            "BadContent",
            "sent only 5 of",
        ),
        (
            on_layer(Box::new(|| Reply::ok(&[0; 9999]))),
            "BadContent",
            "more than the",
        ),
        (
            on_layer(Box::new(|| Reply::status("404 Not Found"))),
            "NotFound",
            "404",
        ),
    ];
    for (twist, kind, part) in table {
        let server = Server::with_image(&push, twist).await;
        let text = failure(&home, &service, &server).await;
        assert!(
            text.starts_with(kind) && text.contains(part),
            "{part}: {text}"
        );
    }
    let server = Server::with_image(&push, |_, _| None).await;
    let gone = server.host.clone();
    pull(&service, &server).await.unwrap();
    service.remove(&format!("{gone}/app:v1")).await.unwrap();
    home.assert_empty().await;
    drop(server);
    let error = service
        .pull(request("127.0.0.1:1/app"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("connect to registry 127.0.0.1:1") && error.contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn passing_faults_are_waited_out() {
    let push = wasm_image(EMPTY_MODULE);
    let layer = push
        .blobs
        .values()
        .find(|blob| blob.len() > 1000)
        .unwrap()
        .clone();
    let digest = criw_image_service::Digest::of(&layer).to_string();
    let server = Server::with_image(&push, move |head, count| match count {
        0 => Some(Reply::status("429 Too Many Requests\r\nretry-after: 0")),
        1 => Some(Reply::status("503 Service Unavailable")),
        _ if !head.contains(&digest) => None,
        _ => match head
            .lines()
            .find_map(|line| line.strip_prefix("range: bytes="))
        {
            // Taken up where it ended.
            Some(range) => {
                let start: usize = range.trim_end_matches('-').parse().unwrap();
                assert!(start > 0);
                Some(Reply::Send(
                    "206 Partial Content\r\n".into(),
                    layer[start..].to_vec(),
                ))
            }
            None => Some(Reply::Cut(layer.clone(), 1000)),
        },
    })
    .await;
    let home = Home::new();
    let service = home.open().await;
    pull(&service, &server).await.unwrap();
    let requests = server.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .any(|head| head.contains("range: bytes=1000-")),
        "{requests:#?}"
    );
}

#[tokio::test]
async fn tokens_are_fetched_and_mirrors_are_tried_in_order() {
    let push = wasm_image(EMPTY_MODULE);
    let broken = Server::start(|_, _| Reply::status("500 Internal Server Error")).await;
    let mirror = Server::with_image(&push, |head, _| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        if head.starts_with("POST /token") {
            return Some(Reply::ok(br#"{"access_token":"fresh"}"#));
        }
        (!head.contains("authorization: Bearer fresh")).then(|| {
            Reply::status(&format!(
                "401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\""
            ))
        })
    })
    .await;
    let home = Home::new();
    let hosts = home.directory.path().join("hosts/registry.example");
    std::fs::create_dir(&hosts).unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://{}\".header]\nx-test = \"yes\"\n",
        broken.host, mirror.host, mirror.host
    );
    let text = text.replace(
        &format!(
            "[host.\"http://{}\"]\n[host.\"http://{}\".header]",
            mirror.host, mirror.host
        ),
        &format!(
            "[host.\"http://{0}\"]\nskip_verify = false\n[host.\"http://{0}\".header]",
            mirror.host
        ),
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let service = home.open().await;
    let attempt = PullRequest {
        auth: Some(Auth {
            server_address: String::new(),
            kind: AuthKind::IdentityToken("refresh".into()),
        }),
        ..request("registry.example/app:v1")
    };
    service.pull(attempt).await.unwrap();
    assert!(service.find("registry.example/app:v1").unwrap().is_some());
    let requests = mirror.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|head| head.starts_with("POST") || head.contains("?ns=registry.example"))
    );
    assert!(requests.iter().any(|head| head.contains("x-test: yes")));
    assert!(broken.requests.lock().unwrap().len() >= 3);
}

#[tokio::test]
async fn what_can_never_run_is_refused_with_a_sentence() {
    let image = |layers: &[Vec<u8>]| {
        let mut push = Push::default();
        push.image("linux/amd64", json!({}), layers);
        push
    };
    let artifact = |media_type: &str| {
        let mut push = Push::default();
        let config = push.descriptor(OCI_CONFIG, b"{}".to_vec());
        let layer = push.descriptor(media_type, b"x".to_vec());
        push.manifest(config, vec![layer]);
        push
    };
    let mut foreign = image(&[tar(&[("a", b"")])]);
    foreign.index(&["linux/s390x"]);
    let mut lying = Push::default();
    lying.image("linux/amd64", json!({}), &[tar(&[("a", b"1")])]);
    let other = lying.descriptor(
        "application/vnd.oci.image.layer.v1.tar",
        tar(&[("b", b"2")]),
    );
    let mut manifest: serde_json::Value = serde_json::from_slice(&lying.manifests[0].1).unwrap();
    manifest["layers"][0] = other;
    lying.manifests[0].1 = serde_json::to_vec(&manifest).unwrap();
    let mut escape = tar(&[("xx/xx", b"")]);
    escape[..5].copy_from_slice(b"../xx");
    let sum: u32 = escape[..148]
        .iter()
        .chain(&escape[156..512])
        .map(|b| u32::from(*b))
        .sum::<u32>()
        + 256;
    escape[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let home = Home::new();
    let service = home.open().await;
    for (push, kind, part) in [
        (
            image(&[tar(&[("plugin.wasm", EMPTY_MODULE)])]),
            "Refused",
            "run inside Envoy",
        ),
        (
            artifact("application/vnd.fermyon.spin.application.v1+config"),
            "Refused",
            "Spin",
        ),
        (
            artifact("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
            "Refused",
            "no container image",
        ),
        (foreign, "Refused", "only for linux/s390x"),
        (lying, "BadContent", "config says"),
        (image(&[escape]), "BadContent", "leads out of the image"),
        (
            image(&[b"no tar".repeat(200)]),
            "BadContent",
            "no tar archive",
        ),
    ] {
        let server = Server::with_image(&push, |_, _| None).await;
        let text = failure(&home, &service, &server).await;
        assert!(
            text.starts_with(kind) && text.contains(part),
            "{part}: {text}"
        );
    }
}

#[tokio::test]
async fn an_abandoned_pull_leaves_nothing() {
    let push = wasm_image(EMPTY_MODULE);
    let layer = push
        .blobs
        .values()
        .find(|blob| blob.len() > 1000)
        .unwrap()
        .clone();
    let digest = criw_image_service::Digest::of(&layer).to_string();
    let server = Server::with_image(&push, move |head, _| {
        head.contains(&digest).then_some(Reply::Hang)
    })
    .await;
    let mut home = Home::new();
    home.config.limits.stall_timeout = DEADLINE;
    let service = home.open().await;
    let name = format!("{}/app", server.host);
    let running = tokio::spawn({
        let service = service.clone();
        async move { service.pull(request(&name)).await }
    });
    // Manifest, config, and the layer's scratch file are there while it hangs.
    home.wait_for_files(3).await;
    running.abort();
    assert!(running.await.is_err());
    home.assert_empty().await;
    assert!(service.list(None).is_empty());
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_the_next_pull_works() {
    let mut push = Push::default();
    let noise: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    push.image(
        "linux/amd64",
        json!({"Cmd": ["/a"]}),
        &[tar(&[("a", &noise)])],
    );
    let server = Server::with_image(&push, |_, _| None).await;
    let small = Server::with_image(&wasm_image(EMPTY_MODULE), |_, _| None).await;
    let home = Home::new();
    std::fs::create_dir(&home.config.root).unwrap();
    let Some(_mount) = Tmpfs::mount(&home.config.root, "5m") else {
        return;
    };
    let service = home.open().await;
    let text = failure(&home, &service, &server).await;
    assert!(text.contains("StorageFull"), "{text}");
    let error = pull(&service, &server).await.unwrap_err();
    assert!(
        error.to_string().contains("No space left on device"),
        "{error}"
    );
    // Archives meet the same end.
    let name = "io.containerd.image.name";
    let descriptor = |push: &Push| {
        let manifest = &push.manifests[0].1;
        json!({"digest": criw_image_service::Digest::of(manifest).as_str(), "size": manifest.len(),
            "annotations": {name: "example.test/a:1"}})
    };
    let index = json!({"manifests": [descriptor(&push)]}).to_string();
    let mut files = vec![("index.json".to_owned(), index.into_bytes())];
    for blob in push.blobs.values().chain([&push.manifests[0].1]) {
        let digest = criw_image_service::Digest::of(blob);
        files.push((format!("blobs/sha256/{}", digest.hex()), blob.clone()));
    }
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, c)| (n.as_str(), c.as_slice()))
        .collect();
    let archive = std::io::Cursor::new(tar(&files));
    let error = service.import(archive, None).await.unwrap_err();
    assert!(
        error.to_string().contains("No space left on device"),
        "{error}"
    );
    home.assert_empty().await;
    pull(&service, &small).await.unwrap();
    // The service must be gone before its file system can be.
    drop(service);
}

/// Detached when dropped: what is open in it goes with its last user.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(target: &std::path::Path, size: &str) -> Option<Tmpfs> {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(target)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("skipped: a tmpfs cannot be mounted here");
            return None;
        }
        Some(Tmpfs(target.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_crash_leaves_nothing_visible() {
    let home = Home::new();
    for leftover in [
        "tmp/.tmpabc/layer/etc",
        "layers/0000",
        "layers/.x",
        "code/old",
    ] {
        std::fs::create_dir_all(home.config.root.join(leftover)).unwrap();
    }
    let blob = home.config.root.join("blobs/sha256");
    std::fs::create_dir_all(&blob).unwrap();
    std::fs::write(blob.join("00".repeat(32)), b"torn").unwrap();
    std::fs::write(home.config.root.join("code/old/x.cwasm"), b"torn").unwrap();
    let service = home.open().await;
    home.assert_empty().await;
    assert_eq!(service.usage().used_bytes, 0);
}
