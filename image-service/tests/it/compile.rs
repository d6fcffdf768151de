//! The code cache: with stand-ins for the compiler's faults, and with the real
//! compiler where it has been built.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use criw_image_service::{Code, CodeVariant, CompileError, ImageService, Want};

use crate::fixture::{DEADLINE, EMPTY_MODULE, Home, request, wasm_image};
use crate::scripted::Server;

/// A compiler that is a shell script; `$count` is a file that grows with each run.
fn with_script(body: &str) -> Home {
    let mut home = Home::new();
    let path = home.directory.path().join("compiler");
    let count = home.directory.path().join("count");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --fingerprint ] && echo stand-in-1 && exit 0\necho run >> {}\n{body}\n",
        count.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    home.config.compiler = Some(path);
    home
}

fn runs(home: &Home) -> usize {
    fs::read_to_string(home.directory.path().join("count")).map_or(0, |text| text.lines().count())
}

fn content(mut code: Code) -> Vec<u8> {
    let mut bytes = Vec::new();
    code.file.read_to_end(&mut bytes).unwrap();
    assert_eq!(code.size, bytes.len() as u64);
    bytes
}

async fn pulled(home: &Home, service: &ImageService) -> criw_image_service::Prepared {
    let server = Server::with_image(&wasm_image(EMPTY_MODULE), |_, _| None).await;
    let pull = service.pull(request(&format!("{}/app", server.host)));
    let id = tokio::time::timeout(DEADLINE, pull).await.unwrap().unwrap();
    assert!(home.config.root.is_dir());
    service.prepare(&id, None, Want::Wasm).await.unwrap()
}

#[tokio::test]
async fn code_is_made_at_the_pull_once_and_goes_with_the_image() {
    let home = with_script("[ -z \"$HOME\" ] || exit 3; printf code:; cat");
    let service = home.open().await;
    let prepared = pulled(&home, &service).await;
    assert_eq!(runs(&home), 1);
    let module = prepared.modules[0].digest.clone();
    for _ in 0..2 {
        let code = service.code(&module, CodeVariant::Plain).await.unwrap();
        assert_eq!(content(code), [b"code:", EMPTY_MODULE].concat());
    }
    // A module of a volume with the same bytes is the same entry.
    let volume = home.directory.path().join("m.wasm");
    fs::write(&volume, EMPTY_MODULE).unwrap();
    service
        .compile_file(fs::File::open(&volume).unwrap(), CodeVariant::Plain)
        .await
        .unwrap();
    assert_eq!(runs(&home), 1);
    fs::write(&volume, [EMPTY_MODULE, b"more"].concat()).unwrap();
    service
        .compile_file(fs::File::open(&volume).unwrap(), CodeVariant::Plain)
        .await
        .unwrap();
    assert_eq!(runs(&home), 2);
    let id = prepared.image.id.to_string();
    drop(prepared);
    service.remove(&id).await.unwrap();
    // Only the volume's code is left.
    home.wait_for_files(1).await;
    let error = service.code(&module, CodeVariant::Plain).await.unwrap_err();
    assert!(matches!(error, CompileError::UnknownModule(_)), "{error}");
}

#[tokio::test]
async fn metered_code_is_an_entry_of_its_own_and_goes_with_the_image() {
    let home = with_script("printf 'code%s:' \"$1\"; cat");
    let service = home.open().await;
    let prepared = pulled(&home, &service).await;
    let module = prepared.modules[0].digest.clone();
    for (variant, prefix, count) in [
        (CodeVariant::Metered, "code--fuel:", 2),
        (CodeVariant::Plain, "code:", 2),
        (CodeVariant::Metered, "code--fuel:", 2),
    ] {
        let code = service.code(&module, variant).await.unwrap();
        assert_eq!(content(code), [prefix.as_bytes(), EMPTY_MODULE].concat());
        assert_eq!(runs(&home), count);
    }
    assert_eq!(service.code_cache_hits(), 2);
    let volume = home.directory.path().join("m.wasm");
    fs::write(&volume, EMPTY_MODULE).unwrap();
    let file = fs::File::open(&volume).unwrap();
    let code = service
        .compile_file(file, CodeVariant::Metered)
        .await
        .unwrap();
    assert_eq!(content(code), [b"code--fuel:", EMPTY_MODULE].concat());
    assert_eq!((runs(&home), service.code_cache_hits()), (2, 3));
    let id = prepared.image.id.to_string();
    drop(prepared);
    service.remove(&id).await.unwrap();
    home.wait_for_files(0).await;
}

#[tokio::test]
async fn damaged_code_is_never_handed_out() {
    let home = with_script("printf code:; cat");
    let service = home.open().await;
    let module = pulled(&home, &service).await.modules[0].digest.clone();
    drop(service);
    let entry = home
        .config
        .root
        .join(format!("code/stand-in-1/{}.cwasm", module.hex()));
    fs::write(&entry, b"evil").unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    let service = loop {
        match ImageService::open(home.config.clone()).await {
            Ok(service) => break service,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        content(service.code(&module, CodeVariant::Plain).await.unwrap()),
        [b"code:", EMPTY_MODULE].concat()
    );
    assert_eq!(runs(&home), 2);
}

#[tokio::test]
async fn a_bad_module_fails_its_start_and_not_the_pull() {
    let home = with_script("cat >/dev/null; echo 'unknown import: env.evil' >&2; exit 1");
    let service = home.open().await;
    let module = pulled(&home, &service).await.modules[0].digest.clone();
    for _ in 0..2 {
        match service.code(&module, CodeVariant::Plain).await.unwrap_err() {
            CompileError::Invalid(text) => assert_eq!(text, "unknown import: env.evil"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(runs(&home), 1, "the verdict is kept");
}

#[tokio::test]
async fn a_compiler_that_misbehaves_is_stopped_and_told() {
    for (body, part) in [
        ("while :; do :; done", "took longer than"),
        ("kill -9 $$", "signal: 9"),
        ("cat >/dev/null", "wrote no code"),
        ("exec cat /dev/zero", "more than 100000 bytes of code"),
        ("echo broken >&2; exit 2", "exit status: 2: broken"),
        ("head -c 100000 /dev/zero >&2; exit 2", "exit status: 2"),
    ] {
        let mut home = with_script(body);
        home.config.compile_timeout = Duration::from_millis(700);
        home.config.limits.code_bytes = 100_000;
        let service = home.open().await;
        let prepared = pulled(&home, &service).await;
        let error = service
            .code(&prepared.modules[0].digest, CodeVariant::Plain)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(part) && error.len() < 4400,
            "{part}: {error}"
        );
        // Layer, manifest, config: no code, no scratch.
        home.wait_for_files(3).await;
    }
    let home = Home::new();
    let service = home.open().await;
    let prepared = pulled(&home, &service).await;
    let error = service
        .code(&prepared.modules[0].digest, CodeVariant::Plain)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("none is configured"), "{error}");
}

#[tokio::test]
async fn the_real_compiler_makes_code() {
    let binary = std::env::var_os("CRIW_BUILD_DIR")
        .map(|directory| std::path::Path::new(&directory).join("libexec/criw/criw-compile"))
        .filter(|binary| binary.is_file());
    let Some(binary) = binary else {
        eprintln!("skipped: CRIW_BUILD_DIR names no directory with libexec/criw/criw-compile");
        return;
    };
    let mut home = Home::new();
    home.config.compiler = Some(binary);
    let service = home.open().await;
    let prepared = pulled(&home, &service).await;
    let code = service
        .code(&prepared.modules[0].digest, CodeVariant::Plain)
        .await
        .unwrap();
    assert!(
        content(code).starts_with(b"\x7fELF"),
        "wasmtime's code is an ELF file"
    );
    let broken = home.directory.path().join("broken.wasm");
    fs::write(&broken, b"\0asm\x01\0\0\0\xff\xff").unwrap();
    let error = service
        .compile_file(fs::File::open(&broken).unwrap(), CodeVariant::Plain)
        .await
        .unwrap_err();
    assert!(matches!(error, CompileError::Invalid(_)), "{error}");
}
