//! Good pulls, from a real registry.

use std::path::Path;
use std::time::{Duration, Instant};

use criw_image_service::{Auth, AuthKind, ImageUser, Kind, Program, PullError, Want};
use serde_json::json;

use crate::fixture::{
    DEADLINE, EMPTY_MODULE, Home, OCI_CONFIG, Push, Registry, request, tar, wasm_image,
};

fn send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn an_image_is_pulled_found_held_and_removed() {
    let Some(registry) = Registry::start(None).await else {
        return;
    };
    let home = Home::new();
    let service = home.open().await;
    let usage = service.usage();
    assert!(usage.mountpoint.is_dir() && usage.used_bytes == 0);
    let name = format!("{}/team/app", registry.host);
    let push = wasm_image(EMPTY_MODULE);
    let digest = registry.push("team/app", "v1", &push).await;
    let id = send(service.pull(request(&format!("{name}:v1"))))
        .await
        .unwrap();
    let image = service.find(&format!("{name}:v1")).unwrap().unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [format!("{name}:v1")]);
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
    assert_eq!(image.user, Some(ImageUser::Uid(1000)));
    assert!(image.size >= 12 && service.usage().used_bytes == image.size);
    for other in [
        id.to_string(),
        id.0.hex().to_owned(),
        id.0.hex()[..12].to_owned(),
        format!("{name}@{digest}"),
    ] {
        assert_eq!(service.find(&other).unwrap().unwrap().id, id, "{other}");
    }
    assert_eq!(service.list(Some(&name)).len(), 1);
    assert_eq!(service.list(Some("other")).len(), 0);
    let prepared = send(service.prepare(&id, None, Want::Any)).await.unwrap();
    assert_eq!((prepared.kind, prepared.lowers.len()), (Kind::Wasm, 1));
    assert_eq!(
        std::fs::read(prepared.lowers[0].join("etc/data")).unwrap(),
        b"data"
    );
    assert_eq!(
        prepared.modules[0].path.as_deref(),
        Some(Path::new("/app.wasm"))
    );
    let module = Program::Module(prepared.modules[0].clone());
    for (word, dir) in [
        ("/app.wasm", ""),
        ("app.wasm", "/"),
        ("./app.wasm", "/etc/.."),
    ] {
        assert_eq!(
            prepared.program(word, dir, None).unwrap().as_ref(),
            Some(&module),
            "{word}"
        );
    }
    assert_eq!(
        prepared.program("data", "", Some("/x:/etc")).unwrap(),
        Some(Program::Other("/etc/data".into()))
    );
    assert_eq!(prepared.program("nothing", "", None).unwrap(), None);
    let lower = prepared.lowers[0].clone();
    service
        .hold("container-1", &[(id.clone(), prepared.kind)])
        .await
        .unwrap();
    drop(prepared);
    // A second daemon on the same store is kept out; the next one finds everything.
    assert!(
        criw_image_service::ImageService::open(home.config.clone())
            .await
            .is_err()
    );
    drop(service);
    let service = reopen(&home).await;
    assert_eq!(service.holders(), ["container-1"]);
    for _ in 0..2 {
        service.remove(&id.to_string()).await.unwrap();
    }
    assert!(service.list(None).is_empty());
    // What the container holds is left, in this life of the daemon and in the next.
    home.wait_for_files(1).await;
    drop(service);
    let service = reopen(&home).await;
    assert!(lower.join("app.wasm").is_file());
    for _ in 0..2 {
        service.release("container-1").await.unwrap();
    }
    home.assert_empty().await;
    assert_eq!(service.usage().used_bytes, 0);
}

/// Background work of the service before may still have the index open for a moment.
async fn reopen(home: &Home) -> criw_image_service::ImageService {
    let end = Instant::now() + DEADLINE;
    loop {
        match criw_image_service::ImageService::open(home.config.clone()).await {
            Ok(service) => return service,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_index_gives_both_variants_and_the_host_names_the_image() {
    let Some(registry) = Registry::start(None).await else {
        return;
    };
    let home = Home::new();
    let service = home.open().await;
    let mut push = Push::default();
    let wasm = push.image(
        "wasip1/wasm",
        json!({"Entrypoint": ["app.wasm"]}),
        &[tar(&[("app.wasm", EMPTY_MODULE)])],
    );
    let host = push.image(
        "linux/amd64",
        json!({"Cmd": ["/bin/app"]}),
        &[tar(&[("bin/app", b"\x7fELF")])],
    );
    push.index(&["wasip1/wasm", "linux/amd64"]);
    let digest = registry.push("multi", "latest", &push).await;
    let name = format!("{}/multi", registry.host);
    let only_wasm = service
        .pull(criw_image_service::PullRequest {
            want: Want::Wasm,
            ..request(&name)
        })
        .await
        .unwrap();
    assert_eq!(only_wasm.0, wasm);
    assert!(
        service
            .prepare(&only_wasm, None, Want::Host)
            .await
            .unwrap_err()
            .to_string()
            .contains("no Linux variant")
    );
    let both = service
        .pull(request(&format!("{name}@{digest}")))
        .await
        .unwrap();
    assert_eq!(both.0, host);
    let image = service.find(&host.to_string()).unwrap().unwrap();
    assert_eq!(image.kinds, [Kind::Linux, Kind::Wasm]);
    assert!(image.repo_tags.is_empty(), "pulled by digest only");
    service.pull(request(&name)).await.unwrap();
    assert_eq!(
        service.list(None).len(),
        1,
        "the tag moved to the host's image"
    );
    for (want, kind) in [
        (Want::Any, Kind::Linux),
        (Want::Host, Kind::Linux),
        (Want::Wasm, Kind::Wasm),
    ] {
        assert_eq!(
            service.prepare(&both, None, want).await.unwrap().kind,
            kind,
            "{want:?}"
        );
    }
}

#[tokio::test]
async fn a_moved_tag_follows_and_layers_are_shared() {
    let Some(registry) = Registry::start(None).await else {
        return;
    };
    let home = Home::new();
    let service = home.open().await;
    let name = format!("{}/app:latest", registry.host);
    let base = tar(&[("base", b"base"), ("hidden.wasm", EMPTY_MODULE)]);
    let mut ids = Vec::new();
    for top in [
        tar(&[("one", b"1")]),
        tar(&[("two", b"2"), (".wh.hidden.wasm", b"")]),
    ] {
        let mut push = Push::default();
        push.image(
            "linux/amd64",
            json!({"Cmd": ["/one"]}),
            &[base.clone(), top],
        );
        registry.push("app", "latest", &push).await;
        // Many at once share the work.
        let pulls = (0..4).map(|_| service.pull(request(&name)));
        let got: Vec<_> = futures::future::join_all(pulls)
            .await
            .into_iter()
            .map(|id| id.unwrap())
            .collect();
        assert!(got.iter().all(|id| *id == got[0]));
        ids.push(got[0].clone());
    }
    assert_eq!(service.find(&name).unwrap().unwrap().id, ids[1]);
    let old = service.find(&ids[0].to_string()).unwrap().unwrap();
    assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1);
    let first = service.prepare(&ids[0], None, Want::Any).await.unwrap();
    let second = service.prepare(&ids[1], None, Want::Any).await.unwrap();
    assert_eq!(first.lowers[0], second.lowers[0]);
    assert_eq!(
        (first.modules.len(), second.modules.len()),
        (1, 0),
        "the whiteout hides the module"
    );
    service.remove(&ids[0].to_string()).await.unwrap();
    drop(first);
    // Two layers, manifest and config of the one that is left.
    home.wait_for_files(4).await;
    drop(second);
}

#[tokio::test]
async fn artifacts_are_modules_without_a_root() {
    let Some(registry) = Registry::start(None).await else {
        return;
    };
    let home = Home::new();
    let service = home.open().await;
    let kinds = [
        ("application/vnd.wasm.config.v0+json", "application/wasm"),
        (
            OCI_CONFIG,
            "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        ),
        (
            "application/vnd.wasm.config.v1+json",
            "application/vnd.wasm.content.layer.v1+wasm",
        ),
        (
            "application/vnd.module.wasm.config.v1+json",
            "application/vnd.module.wasm.content.layer.v1+wasm",
        ),
    ];
    let mut ids = std::collections::BTreeSet::new();
    for (number, (config, layer)) in kinds.into_iter().enumerate() {
        let mut push = Push::default();
        let module = [EMPTY_MODULE, &[0, 2, 1, number as u8]].concat();
        let config = push.descriptor(config, b"{}".to_vec());
        let layer = push.descriptor(layer, module.clone());
        push.manifest(config, vec![layer]);
        let name = format!("a{number}");
        registry.push(&name, "v1", &push).await;
        let id = service
            .pull(request(&format!("{}/{name}:v1", registry.host)))
            .await
            .unwrap();
        let prepared = service.prepare(&id, None, Want::Any).await.unwrap();
        assert_eq!(
            (prepared.kind, prepared.lowers.len(), prepared.modules.len()),
            (Kind::Wasm, 0, 1)
        );
        assert_eq!(
            prepared.modules[0].digest,
            criw_image_service::Digest::of(&module)
        );
        ids.insert(id);
    }
    assert_eq!(ids.len(), 4, "an empty config is no identity");
}

#[tokio::test]
async fn credentials_open_a_private_registry() {
    let Some(hash) = htpasswd() else { return };
    let Some(registry) = Registry::start(Some(&hash)).await else {
        return;
    };
    let home = Home::new();
    let service = home.open().await;
    registry
        .push("private", "latest", &wasm_image(EMPTY_MODULE))
        .await;
    let name = format!("{}/private", registry.host);
    let with = |server: &str, kind: AuthKind| criw_image_service::PullRequest {
        auth: Some(Auth {
            server_address: server.to_owned(),
            kind,
        }),
        ..request(&name)
    };
    let basic = |password: &str| AuthKind::Basic {
        username: "bob".into(),
        password: password.into(),
    };
    for (attempt, part) in [
        (request(&name), "give the pod an image pull secret"),
        (with("", basic("wrong")), "check the image pull secret"),
        (
            with("other.example", basic("hunter2")),
            "give the pod an image pull secret",
        ),
    ] {
        let error = service.pull(attempt).await.unwrap_err();
        assert!(
            matches!(error, PullError::Denied(_)) && error.to_string().contains(part),
            "{error}"
        );
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    home.assert_empty().await;
    // Base64 of bob:hunter2.
    for kind in [
        basic("hunter2"),
        AuthKind::Encoded("Ym9iOmh1bnRlcjI=".into()),
    ] {
        service
            .pull(with(&format!("http://{}/v2/", registry.host), kind))
            .await
            .unwrap();
    }
    // An image that is here still needs the credentials.
    assert!(service.pull(request(&name)).await.is_err());
}

fn htpasswd() -> Option<String> {
    let output = std::process::Command::new("python3")
        .args(["-c", "import crypt; print('bob:' + crypt.crypt('hunter2', '$2b$05$' + 'a' * 22).replace('$2b$', '$2y$', 1))"])
        .output();
    match output {
        Ok(output) if output.stdout.starts_with(b"bob:$2y$") => {
            String::from_utf8(output.stdout).ok()
        }
        _ => {
            eprintln!("skipped: no python3 with bcrypt in crypt to make an htpasswd file");
            None
        }
    }
}
