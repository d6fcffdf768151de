//! Containers whose own program is the toolbox.

use std::time::Duration;

use criw_proto::v1::{ContainerConfig, ContainerState};
use criw_tests::image::{Entry, Image, Settings, file, rootfs};
use criw_tests::machine::{Machine, Pod};
use criw_tests::{plan, wait};

use super::sh;

/// An image without any module.
fn data() -> Image {
    let layer = vec![
        Entry::Directory("data".into(), 0o755),
        file("motd", 0o644, "a file of the image\n"),
    ];
    rootfs("wasi/wasm", &[layer], &Settings::default()).unwrap()
}

fn shell(name: &str, image: &str, script: &str) -> ContainerConfig {
    plan::command(name, image, &["sh", "-c", script])
}

/// Has the toolbox compiled, before anything is compared.
fn warm(machine: &Machine, pod: &Pod, image: &str) {
    let (status, log) = machine.outcome(pod, shell("warm", image, "true")).unwrap();
    assert_eq!(status.exit_code, 0, "{log}");
    machine.remove(&status.id).unwrap();
}

#[test]
fn an_image_without_a_module_runs_scripts() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("scripts").unwrap();
    warm(&machine, &pod, &image);
    let before = machine.snapshot().unwrap();
    let script = "echo begin; cat /motd; /bin/ls / | grep motd; echo err >&2; seq 3 | tail -n 1; echo end; exit 5";
    let (status, log) = machine
        .outcome(&pod, shell("main", &image, script))
        .unwrap();
    assert_eq!(status.exit_code, 5, "{log}");
    let lines: Vec<&str> = log.lines().filter(|line| *line != "err").collect();
    // In order, though others than the shell wrote some of them.
    assert_eq!(lines, ["begin", "a file of the image", "motd", "3", "end"]);
    assert!(log.contains("err\n"));
    machine.remove(&status.id).unwrap();
    // A background job ends with the container.
    let config = shell("job", &image, "sleep 1000 & echo gone");
    let (status, _) = machine.outcome(&pod, config).unwrap();
    machine.remove(&status.id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_command_without_memory_ends_its_shell_as_out_of_memory() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("memory").unwrap();
    for (name, script, code, reason) in [
        (
            "passed-on",
            "dd if=/dev/zero of=/dev/null bs=20M",
            137,
            "OOMKilled",
        ),
        (
            "lived-on",
            "dd if=/dev/zero of=/dev/null bs=20M; exit 3",
            3,
            "Error",
        ),
        (
            "enough",
            "dd if=/dev/zero of=/dev/null bs=1M count=2 status=none",
            0,
            "Completed",
        ),
    ] {
        let mut config = shell(name, &image, script);
        config.linux = plan::memory(15 << 20);
        let (status, log) = machine.outcome(&pod, config).unwrap();
        let ended = (status.exit_code, status.reason.as_str());
        assert_eq!(ended, (code, reason), "{name}: {status:?} {log}");
    }
}

#[test]
fn the_stop_signal_ends_the_shell_and_its_commands() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("stop").unwrap();
    warm(&machine, &pod, &image);
    let before = machine.snapshot().unwrap();
    let config = shell("main", &image, "echo ready; sleep 1000 | sleep 2000");
    let id = machine.run(&pod, config).unwrap();
    machine.logged(&id, "ready").unwrap();
    machine.stop(&id, 10).unwrap();
    assert_eq!(machine.status(&id).unwrap().exit_code, 143);
    machine.remove(&id).unwrap();
    machine.assert_nothing_left(&before).unwrap();
}

/// A guest may ask for its first command before its start is on record: it was told that
/// it does not run.
#[test]
fn a_first_command_was_refused_while_the_start_was_recorded() {
    let mut machine = Machine::new().unwrap();
    let path = machine.world.path("gate");
    let gate = std::fs::File::create(&path).unwrap();
    gate.lock().unwrap();
    let held = path.to_str().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("first-command").unwrap();
    warm(&machine, &pod, &image);
    machine.daemon.kill().unwrap();
    machine
        .restart(&[("CRIW_FAULT", "start/sent"), ("CRIW_FAULT_HOLD", held)])
        .unwrap();
    let script = "echo one; /bin/ls / >/dev/null; echo code $?; sleep infinity";
    let id = machine.create(&pod, shell("main", &image, script)).unwrap();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| machine.start(&id));
        machine.logged(&id, "one").unwrap();
        let early = wait::until("an answer", Duration::from_millis(300), || {
            machine.logged_now(&id).ok()?.contains("code").then_some(())
        });
        assert!(early.is_err(), "{:?}", machine.logged_now(&id));
        assert!(!start.is_finished());
        gate.unlock().unwrap();
        start.join().unwrap().unwrap();
    });
    machine.logged(&id, "code 0").unwrap();
}

/// It trapped: more nanoseconds than 64 bits hold.
#[test]
fn sleep_infinity_ended_at_once() {
    let machine = Machine::new().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("endless").unwrap();
    for (name, script) in [
        ("infinity", "timeout 0.3 sleep infinity"),
        ("sum", "timeout 0.3 sleep infinity 999999999d inf"),
        ("top", "timeout 0.3 top -b -d 999999999d >/dev/null"),
    ] {
        let (status, log) = machine.outcome(&pod, shell(name, &image, script)).unwrap();
        assert_eq!(status.exit_code, 124, "{name}: {log}");
    }
}

#[test]
fn a_shell_goes_on_under_the_next_daemon() {
    let mut machine = Machine::new().unwrap();
    let image = machine.provide("data:1", &data()).unwrap();
    let pod = machine.pod("goes-on").unwrap();
    let script = "sleep 1000 & echo started; wait $!; echo code $?; /bin/echo next | cat; echo end; sleep 2000";
    let id = machine.run(&pod, shell("main", &image, script)).unwrap();
    // Said once the daemon has answered: an unanswered start is asked of the next one.
    machine.logged(&id, "started").unwrap();
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    // The command of the old daemon was killed, as all that it had started.
    machine.logged(&id, "code 137").unwrap();
    machine.logged(&id, "end").unwrap();
    let status = machine.status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    let log = criw_tests::machine::text(&machine.log(&status).unwrap());
    assert!(log.ends_with("code 137\nnext\nend\n"), "{log}");
    assert_eq!(sh(&machine, &id, "echo a | cat").1, "a\n");
}
