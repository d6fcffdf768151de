//! What a user types: the real crictl, on both kinds of container, with short ids.

use criw_tests::crictl::{ok, refused};
use criw_tests::machine::Machine;
use criw_tests::wait;
use serde_json::{Value, json};

use crate::engine::{BOTH, Engine};

fn write(machine: &Machine, name: &str, value: &Value) -> String {
    let path = machine.world.path(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path.display().to_string()
}

fn pod_file(machine: &Machine, name: &str) -> String {
    let value = json!({
        "metadata": {"name": name, "namespace": "tests", "uid": format!("uid-{name}"), "attempt": 0},
        "log_directory": machine.world.path("logs").join(name),
        "linux": {"cgroup_parent": machine.world.cgroup()},
    });
    write(machine, &format!("{name}-pod.json"), &value)
}

fn container_file(machine: &Machine, engine: Engine, image: &str, name: &str) -> String {
    let config = if name == "idle" {
        engine.idle(name, image)
    } else {
        engine.hello(name, image)
    };
    let value = json!({
        "metadata": {"name": name},
        "image": {"image": image},
        "command": config.command,
        // CRI 1.36: the value is bytes, so base64 in JSON ("7").
        "envs": [{"key": "EXIT_CODE", "value": "Nw=="}],
        "log_path": format!("{name}.log"),
    });
    write(machine, &format!("{name}.json"), &value)
}

fn tour(engine: Engine) {
    let machine = Machine::new().unwrap();
    let image = machine.registry.reference(engine.name());
    machine
        .registry
        .push(&machine.world, engine.name(), &engine.image())
        .unwrap();
    // Twice: a connection to the registry may be kept for the next pull.
    ok(&machine, &["pull", &image]).unwrap();
    ok(&machine, &["rmi", &image]).unwrap();
    let before = machine.baseline().unwrap();

    let version = ok(&machine, &["version"]).unwrap();
    assert!(version.contains("RuntimeName:  criw"), "{version}");
    let info: Value = serde_json::from_str(&ok(&machine, &["info"]).unwrap()).unwrap();
    assert_eq!(info["status"]["conditions"].as_array().unwrap().len(), 2);
    assert!(
        ok(&machine, &["pull", &image])
            .unwrap()
            .contains("up to date")
    );
    assert!(
        ok(&machine, &["images"])
            .unwrap()
            .contains(engine.name().trim_end_matches(":1"))
    );
    let inspected: Value =
        serde_json::from_str(&ok(&machine, &["inspecti", &image]).unwrap()).unwrap();
    assert_eq!(inspected["status"]["repoTags"][0], json!(image));
    assert!(
        ok(&machine, &["imagefsinfo"])
            .unwrap()
            .contains("usedBytes")
    );

    let pod_json = pod_file(&machine, "tour");
    let pod = ok(&machine, &["runp", "-r", engine.handler(), &pod_json]).unwrap();
    let short = &pod[..13];
    assert!(ok(&machine, &["pods"]).unwrap().contains(short));
    let status: Value = serde_json::from_str(&ok(&machine, &["inspectp", short]).unwrap()).unwrap();
    assert_eq!(status["status"]["state"], json!("SANDBOX_READY"));

    let idle_json = container_file(&machine, engine, &image, "idle");
    let idle = ok(&machine, &["create", short, &idle_json, &pod_json]).unwrap();
    let id = &idle[..13];
    assert!(ok(&machine, &["ps", "-a"]).unwrap().contains("Created"));
    ok(&machine, &["start", id]).unwrap();
    assert!(ok(&machine, &["ps"]).unwrap().contains("Running"));
    wait::until("the log", wait::PATIENCE, || {
        ok(&machine, &["logs", id])
            .ok()
            .filter(|log| log == "ready")
    })
    .unwrap();
    let inspected: Value = serde_json::from_str(&ok(&machine, &["inspect", id]).unwrap()).unwrap();
    assert_eq!(inspected["status"]["state"], json!("CONTAINER_RUNNING"));
    assert!(inspected["info"]["pid"].as_i64().unwrap() > 0);
    let out = ok(&machine, &["exec", "--sync", id, "/bin/cat", "/etc/motd"]).unwrap();
    assert_eq!(out, "a file of the image");
    let stats = ok(&machine, &["stats", id]).unwrap();
    assert!(stats.contains(id), "{stats}");
    let said = refused(&machine, &["rm", id]).unwrap();
    assert!(said.contains("running"), "{said}");
    ok(&machine, &["stop", "-t", "20", id]).unwrap();
    assert!(ok(&machine, &["ps", "-a"]).unwrap().contains("Exited"));
    ok(&machine, &["rm", id]).unwrap();
    ok(&machine, &["stopp", short]).unwrap();
    ok(&machine, &["rmp", short]).unwrap();

    // `run` does it all in one.
    let hello_json = container_file(&machine, engine, &image, "hello");
    let hello = ok(
        &machine,
        &[
            "run",
            "-r",
            engine.handler(),
            &hello_json,
            &pod_file(&machine, "once"),
        ],
    )
    .unwrap();
    let ended = machine.ended(&hello).unwrap();
    assert_eq!(ended.exit_code, 7, "{ended:?}");
    assert!(
        ok(&machine, &["logs", &hello])
            .unwrap()
            .contains("hello from")
    );
    ok(&machine, &["rmp", "-f", "-a"]).unwrap();
    ok(&machine, &["rmi", &image]).unwrap();
    let said = refused(&machine, &["inspecti", &image]).unwrap();
    assert!(said.contains("no such image"), "{said}");
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn crictl_tours_wasm() {
    tour(Engine::Wasm);
}

#[test]
fn crictl_tours_linux() {
    tour(Engine::Linux);
}

#[test]
fn an_unknown_handler_is_refused_with_those_that_work() {
    let machine = Machine::new().unwrap();
    let before = machine.baseline().unwrap();
    let pod = pod_file(&machine, "handler");
    let said = refused(&machine, &["runp", "-r", "no-such-handler", &pod]).unwrap();
    for wanted in ["no-such-handler", "wasmtime", "runc"] {
        assert!(said.contains(wanted), "{said}");
    }
    machine.assert_nothing_left(&before).unwrap();
    for engine in BOTH {
        let id = ok(&machine, &["runp", "-r", engine.handler(), &pod]).unwrap();
        ok(&machine, &["rmp", "-f", &id]).unwrap();
    }
}
