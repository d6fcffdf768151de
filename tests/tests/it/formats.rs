//! Images as every tool and runtime of the field makes them: each runs unchanged under a
//! plain kubelet, or is refused with the sentence that says why and what to do.

use criw_proto::v1::*;
use criw_tests::image::{self, Blob, Entry, Image, Settings, file};
use criw_tests::machine::Machine;
use criw_tests::{binaries, images, plan};
use serde_json::json;

use crate::bad_input::{assert_contains, pull_fails};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A file system of one platform with these files and that entrypoint.
fn rootfs(platform: &str, files: Vec<Entry>, settings: &Settings) -> Image {
    image::rootfs(platform, &[files], settings).unwrap()
}

/// What `docker buildx build` and `buildah build` make of `FROM scratch`, `COPY`, `ENTRYPOINT`.
fn built(platform: &str, entrypoint: &str) -> Image {
    let hello = binaries::guest("hello").unwrap();
    rootfs(
        platform,
        vec![file("hello.wasm", 0o644, hello)],
        &Settings::entrypoint(&[entrypoint]),
    )
}

/// An artifact of one layer, with these media types.
fn artifact(config: (&str, &str), layer: &str, module: &[u8]) -> Image {
    let config = Blob::new(config.0, config.1.as_bytes().to_vec());
    image::manifest(config, vec![Blob::new(layer, module.to_vec())])
}

/// An image in Docker's own format, version 2 schema 2.
fn docker(layer: Vec<Entry>, entrypoint: &str) -> Image {
    let tar = image::tar(&layer).unwrap();
    let config = json!({
        "os": "wasi", "architecture": "wasm32",
        "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": [image::digest(&tar)]},
    });
    image::manifest(
        Blob::new(
            "application/vnd.docker.container.image.v1+json",
            config.to_string().into_bytes(),
        ),
        vec![Blob::new(
            "application/vnd.docker.image.rootfs.diff.tar",
            tar,
        )],
    )
}

/// A custom section behind a module, where WasmEdge's compiler puts native code.
fn with_section(mut module: Vec<u8>, name: &str, content: &[u8]) -> Vec<u8> {
    let size = 1 + name.len() + content.len();
    assert!(size < 128);
    module.extend([0, size as u8, name.len() as u8]);
    module.extend(name.as_bytes());
    module.extend(content);
    module
}

#[test]
fn what_other_tools_make_runs_under_a_plain_kubelet() {
    let machine = Machine::new().unwrap();
    let hello = binaries::guest("hello").unwrap();
    let command = binaries::guest("net.component").unwrap();
    let files = || vec![file("hello.wasm", 0o644, hello.clone())];
    let attestation = Image {
        platform: json!({"os": "unknown", "architecture": "unknown"}),
        ..artifact((OCI_CONFIG, "{}"), "application/vnd.in-toto+json", b"{}")
    };
    let universal = with_section(hello.clone(), "wasmedge", b"native code of somebody");
    let cmd = Settings {
        cmd: vec!["hello.wasm".into()],
        ..Settings::default()
    };
    let pod = machine.pod("plain").unwrap();
    for (name, image) in [
        ("buildx", built("wasi/wasm", "/hello.wasm")),
        ("buildx-before-2024", built("wasi/wasm32", "/hello.wasm")),
        ("bare-name", built("wasi/wasm", "hello.wasm")),
        ("cmd-only", rootfs("wasi/wasm", files(), &cmd)),
        (
            "buildx-attested",
            image::index(&[built("wasi/wasm", "/hello.wasm"), attestation]),
        ),
        ("docker-v2s2", docker(files(), "/hello.wasm")),
        ("runwasi-demo", built("wasip1/wasm", "/hello.wasm")),
        ("capital", built("Wasip1/wasm", "/hello.wasm")),
        ("go-js", built("js/wasm", "/hello.wasm")),
        ("linux-wasm", built("linux/wasm", "/hello.wasm")),
        ("crun-annotated", built("linux/amd64", "/hello.wasm")),
        (
            "single-manifest",
            built("wasip2/wasm", "/hello.wasm#_start"),
        ),
        ("oci-tar-builder", image::module_layer(&hello, "hello.wasm")),
        ("wkg", image::artifact(&hello)),
        (
            "wasm-to-oci",
            artifact(
                ("application/vnd.wasm.config.v1+json", "{}"),
                "application/vnd.wasm.content.layer.v1+wasm",
                &hello,
            ),
        ),
        (
            "solo",
            artifact(
                ("application/vnd.module.wasm.config.v1+json", "{}"),
                "application/vnd.module.wasm.content.layer.v1+wasm",
                &hello,
            ),
        ),
        (
            "oras",
            artifact(
                ("application/vnd.oci.empty.v1+json", "{}"),
                "application/wasm",
                &hello,
            ),
        ),
        ("wasmedge-universal", image::artifact(&universal)),
    ] {
        let reference = machine.provide(&format!("{name}:1"), &image).unwrap();
        let (status, log) = machine
            .outcome(&pod, plan::container(name, &reference))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(status.exit_code, 0, "{name}: {status:?} {log}");
        assert!(log.starts_with("hello from wasm\n"), "{name}: {log}");
    }
    // A component as an artifact; its arguments come from the pod.
    let config = json!({"architecture": "wasm", "os": "wasip2", "layerDigests": [image::digest(&command)],
        "component": {"exports": ["wasi:cli/run@0.2.0"], "imports": []}});
    let component = artifact(
        ("application/vnd.wasm.config.v0+json", &config.to_string()),
        "application/wasm",
        &command,
    );
    let reference = machine.provide("component:1", &component).unwrap();
    for (args, code) in [(&[][..], 0), (&["what is this"], 1)] {
        let mut config = plan::container(&format!("component-{code}"), &reference);
        config.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, code, "{status:?} {log}");
    }
}

#[test]
fn an_index_gives_what_handler_annotation_or_command_ask_for() {
    let machine = Machine::new().unwrap();
    let both = machine.provide("both:1", &images::both().unwrap()).unwrap();
    let said = |name: &str, handler: &str, annotation: Option<(&str, &str)>, argv: &[&str]| {
        let mut config = machine.pod_config(name);
        let pair = annotation.map(|(key, value)| (key.to_owned(), value.to_owned()));
        config.annotations.extend(pair);
        let pod = machine.run_pod(config, handler).unwrap();
        let outcome = machine.outcome(&pod, plan::command("web", &both, argv));
        machine.remove_pod(&pod.id).unwrap();
        let (status, log) = outcome.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(status.exit_code, 0, "{name}: {log}");
        log.lines().next().unwrap_or_default().to_owned()
    };
    let linux = &["sh", "-c", "echo hello from linux"][..];
    for (name, handler, annotation, argv, from) in [
        ("host-first", "", None, linux, "linux"),
        ("runc", "runc", None, linux, "linux"),
        ("by-content", "", None, &["/hello.wasm"][..], "wasm"),
        ("by-export", "", None, &["hello.wasm#_start"], "wasm"),
        ("by-handler", "wasm", None, &[], "wasm"),
        ("crun-symlink", "crun-wasm", None, &[], "wasm"),
        (
            "crun",
            "crun",
            Some(("run.oci.handler", "wasm")),
            &[],
            "wasm",
        ),
        // WasmEdge is not installed here; what it would run is plain WASI.
        (
            "wasmedge",
            "",
            Some(("run.oci.handler", "wasmedge")),
            &[],
            "wasm",
        ),
        (
            "youki",
            "",
            Some(("module.wasm.image/variant", "compat")),
            &[],
            "wasm",
        ),
        (
            "one-container",
            "",
            Some(("module.wasm.image/variant.web", "compat")),
            &[],
            "wasm",
        ),
        (
            "other-container",
            "",
            Some(("module.wasm.image/variant.db", "compat")),
            linux,
            "linux",
        ),
        (
            "smart-linux",
            "",
            Some(("module.wasm.image/variant", "compat-smart")),
            linux,
            "linux",
        ),
        (
            "smart-wasm",
            "",
            Some(("run.oci.handler", "wasm-smart")),
            &["/hello.wasm"],
            "wasm",
        ),
    ] {
        let line = said(name, handler, annotation, argv);
        assert_eq!(line, format!("hello from {from}"), "{name}");
    }
    let mut config = machine.pod_config("krun");
    config
        .annotations
        .insert("run.oci.handler".into(), "krun".into());
    let pod = machine.run_pod(config, "").unwrap();
    let refused = machine
        .create(&pod, plan::container("web", &both))
        .unwrap_err();
    assert_contains(refused.message(), &["run.oci.handler", "krun", "left out"]);
    machine.remove_pod(&pod.id).unwrap();
}

/// A kubelet asks by image id, which both names share, and tells the name beside it.
#[test]
fn an_image_that_shares_its_linux_half_does_not_run_the_others_module() {
    let machine = Machine::new().unwrap();
    let both = machine.provide("both:1", &images::both().unwrap()).unwrap();
    let plain = machine
        .provide("busybox:1", &images::busybox().unwrap())
        .unwrap();
    let id = machine.pull(&plain).unwrap();
    assert_eq!(machine.pull(&both).unwrap(), id, "they are one image");
    let pod = machine
        .run_pod(machine.pod_config("shared"), "wasm")
        .unwrap();
    let echo = &["sh", "-c", "echo hello from linux"][..];
    for (name, image, user, argv, from) in [
        ("by-name", &plain, "", echo, "linux"),
        ("by-id", &id, plain.as_str(), echo, "linux"),
        ("the-other", &id, both.as_str(), &[], "wasm"),
        ("the-other-by-name", &both, "", &[], "wasm"),
    ] {
        let mut config = plan::command(name, image, argv);
        if let Some(image) = &mut config.image {
            image.user_specified_image = user.to_owned();
        }
        let (status, log) = machine.outcome(&pod, config).unwrap();
        assert_eq!(status.exit_code, 0, "{name}: {log}");
        assert_eq!(
            log.lines().next(),
            Some(&*format!("hello from {from}")),
            "{name}"
        );
    }
}

#[test]
fn what_can_never_run_is_refused_at_the_pull() {
    let machine = Machine::new().unwrap();
    let hello = binaries::guest("hello").unwrap();
    let module = |name: &str| file(name, 0o644, hello.clone());
    let nothing = Settings::default();
    let spin_label = json!({
        "os": "Wasip1", "architecture": "wasm",
        "config": {"Labels": {"com.fermyon.spin.lockedAppDigest": "sha256:0"}},
        "rootfs": {"type": "layers", "diff_ids": []},
    })
    .to_string();
    let spin_push = |layer: &str| artifact((OCI_CONFIG, &spin_label), layer, &hello);
    let two = |config: &str| {
        let layer = Blob::new("application/wasm", hello.clone());
        let other = Blob::new("application/wasm", with_section(hello.clone(), "x", b""));
        image::manifest(Blob::new(config, b"{}".to_vec()), vec![layer, other])
    };
    // A connection to the registry may be kept for the next pull.
    let _ = machine.pull(&machine.registry.reference("nothing:1"));
    for (name, image, parts) in [
        (
            "istio",
            rootfs("linux/amd64", vec![module("plugin.wasm")], &nothing),
            ["Envoy", "WasmPlugin"],
        ),
        (
            "spin-push",
            spin_push("application/vnd.fermyon.spin.application.v1+config"),
            ["Spin", "entrypoint"],
        ),
        (
            "spin-data",
            spin_push("application/vnd.wasm.content.layer.v1+data"),
            ["Spin", "entrypoint"],
        ),
        (
            "spin-bundle",
            spin_push("application/vnd.wasm.content.bundle.v1.tar+gzip"),
            ["Spin", "entrypoint"],
        ),
        (
            "spin-label",
            spin_push("application/vnd.wasm.content.layer.v1+wasm"),
            ["Spin", "entrypoint"],
        ),
        (
            "spin-docker",
            rootfs(
                "wasi/wasm",
                vec![
                    file("spin.toml", 0o644, "spin_manifest_version = 2"),
                    module("app.wasm"),
                ],
                &nothing,
            ),
            ["Spin", "entrypoint"],
        ),
        (
            "slight",
            rootfs(
                "wasi/wasm",
                vec![
                    file("slightfile.toml", 0o644, "specversion = \"0.2\""),
                    module("app.wasm"),
                ],
                &Settings::entrypoint(&["/"]),
            ),
            ["SpiderLightning", "wasi:http/proxy"],
        ),
        (
            "two-layers",
            two("application/vnd.wasm.config.v0+json"),
            ["2 layers", "exactly one"],
        ),
        (
            "helm",
            artifact(
                ("application/vnd.cncf.helm.config.v1+json", "{}"),
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
                b"chart",
            ),
            ["helm.chart", "no container image"],
        ),
        (
            "foreign",
            image::index(&[rootfs("linux/s390x", vec![module("a.wasm")], &nothing)]),
            ["linux/s390x", "build it for"],
        ),
    ] {
        eprintln!("{name}");
        let tag = format!("{name}:1");
        machine.registry.push(&machine.world, &tag, &image).unwrap();
        pull_fails(&machine, &machine.registry.reference(&tag), &parts);
    }
    // The twin: the same files, and a command that says what to run.
    let twin = rootfs(
        "wasi/wasm",
        vec![file("spin.toml", 0o644, ""), module("app.wasm")],
        &Settings::entrypoint(&["/app.wasm"]),
    );
    let reference = machine.provide("twin:1", &twin).unwrap();
    let pod = machine.pod("twin").unwrap();
    let (status, _) = machine
        .outcome(&pod, plan::container("twin", &reference))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
}

#[test]
fn what_cannot_run_here_says_why_before_it_is_running() {
    let machine = Machine::new().unwrap();
    let wat = |text: &str| wat::parse_str(text).unwrap();
    let importing = |module: &str, name: &str| {
        let text = format!(
            r#"(module (import "{module}" "{name}" (func)) (memory (export "memory") 1) (func (export "_start")))"#
        );
        image::artifact(&wat(&text))
    };
    let file_as = |name: &str, content: &[u8]| {
        rootfs(
            "wasi/wasm",
            vec![file(name, 0o755, content)],
            &Settings::entrypoint(&[&format!("/{name}")]),
        )
    };
    let elf = |abi: u8, machine: u8| {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(64, 0);
        (bytes[7], bytes[16], bytes[18]) = (abi, 2, machine);
        bytes
    };
    let filter = artifact(
        ("application/vnd.module.wasm.config.v1+json", "{}"),
        "application/vnd.module.wasm.content.layer.v1+wasm",
        &wat(
            r#"(module (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
                (func (export "proxy_abi_version_0_2_1")) (func (export "proxy_on_tick") (param i32)))"#,
        ),
    );
    let spin = image::artifact(&wat(
        r#"(component (import "fermyon:spin/llm@2.0.0" (instance (export "x" (func))))
            (instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#,
    ));
    let trigger = image::artifact(&wat(
        r#"(component (instance $i) (export "fermyon:spin/inbound-redis" (instance $i)))"#,
    ));
    let workers = rootfs(
        "wasi/wasm",
        vec![file(
            "index.js",
            0o644,
            "addEventListener('fetch', () => {})",
        )],
        &Settings::entrypoint(&["/"]),
    );
    let twin = machine
        .provide("twin:1", &images::wasm("hello").unwrap())
        .unwrap();
    let before = machine.baseline().unwrap();
    let pod = machine.pod("why").unwrap();
    for (name, image, parts) in [
        ("proxy-wasm", filter, ["proxy_on_tick", "Envoy"]),
        (
            "wasix",
            importing("wasix_32v1", "thread_spawn_v2"),
            ["thread_spawn_v2", "WASIX"],
        ),
        (
            "preview0",
            importing("wasi_unstable", "fd_write"),
            ["fd_write", "preview 0"],
        ),
        (
            "wasmedge-sockets",
            importing("wasi_snapshot_preview1", "sock_open"),
            ["sock_open", "wasm32-wasip2"],
        ),
        (
            "wasi-nn",
            importing("wasi_ephemeral_nn", "load"),
            ["load", "wasi-nn"],
        ),
        (
            "lunatic",
            importing("lunatic::process", "spawn"),
            ["spawn", "lunatic"],
        ),
        (
            "kubewarden",
            importing("wapc", "__guest_request"),
            ["wapc", "policy server"],
        ),
        (
            "go-js",
            importing("gojs", "runtime.wasmExit"),
            ["gojs", "GOOS=wasip1"],
        ),
        (
            "bindgen",
            importing("wbg", "__wbg_log"),
            ["wbg", "wasm-bindgen"],
        ),
        ("spin", spin, ["fermyon:spin/llm", "Spin component"]),
        (
            "spin-redis",
            trigger,
            ["fermyon:spin/inbound-redis", "Spin component"],
        ),
        ("wws", workers, ["\"/\"", "no Wasm module"]),
        (
            "text",
            file_as("app.wat", b"(module)"),
            ["WebAssembly text", "wasm-tools"],
        ),
        (
            "cwasm",
            file_as("app.cwasm", &elf(200, 62)),
            ["compiled beforehand", ".wasm"],
        ),
        (
            "s390x",
            file_as("app", &elf(0, 22)),
            ["another machine", "22"],
        ),
    ] {
        let tag = format!("{name}:1");
        let reference = machine.provide(&tag, &image).unwrap();
        let refused = match machine.create(&pod, plan::container(name, &reference)) {
            Err(refused) => refused,
            Ok(id) => {
                let refused = machine.start(&id).expect_err(name);
                let status = machine.status(&id).unwrap();
                assert_eq!(
                    (status.exit_code, &*status.reason),
                    (128, "StartError"),
                    "{name}"
                );
                assert_contains(&status.message, &parts);
                refused
            }
        };
        eprintln!("{name}: {}", refused.message());
        assert_contains(refused.message(), &parts);
        let request = RemoveImageRequest {
            image: Some(criw_tests::client::image_spec(&reference)),
        };
        machine.client.remove_image(request).unwrap();
    }
    let (status, _) = machine
        .outcome(&pod, plan::container("twin", &twin))
        .unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    machine.remove_pod(&pod.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn runtime_classes_of_other_runtimes_have_a_handler_or_advice() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("hello:1", &images::wasm("hello").unwrap())
        .unwrap();
    for handler in ["", "crun", "crun-wasm", "wasm", "wasmtime", "runc"] {
        let name = format!("class{}", handler.len());
        let pod = machine.run_pod(machine.pod_config(&name), handler).unwrap();
        let (status, log) = machine
            .outcome(&pod, plan::container("hello", &image))
            .unwrap();
        assert_eq!(status.exit_code, 0, "{handler}: {log}");
        machine.remove_pod(&pod.id).unwrap();
    }
    for (handler, part) in [
        ("slight", "wasi:http/proxy"),
        ("wasmtime-slight-v1", "wasi:http/proxy"),
        ("wws", "wasi:http/proxy"),
        ("lunatic", "wasm32-wasip2"),
        ("spin", "criw-shim-spin"),
        ("spin-v2", "criw-shim-spin"),
        ("wasmtime-spin-v2", "criw-shim-spin"),
        ("wasmedge", "criw-shim-wasmedge"),
        ("wasmer", "criw-shim-wasmer"),
        ("wamr", "criw-shim-wamr"),
        ("gvisor", "unknown runtime handler"),
    ] {
        let refused = machine
            .run_pod(machine.pod_config("refused"), handler)
            .unwrap_err();
        assert_contains(
            refused.message(),
            &[handler, part, "usable here: ", "\"wasm\""],
        );
    }
    assert!(machine.pods().unwrap().is_empty());
}
