//! What a session may take, and what is left when something dies.

use criw_tests::leak::cgroup;
use criw_tests::machine::Machine;
use criw_tests::wait;

use super::{idle, processes, run, sh};

#[test]
fn commands_have_a_bound_that_breaks_nothing() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    // 64 live at once, more are refused.
    let script = "n=0; while [ $n -lt 70 ]; do sleep 1000 & n=$((n+1)); done; echo done";
    let (_, out, err) = sh(&machine, &id, script);
    assert_eq!(out, "done\n", "{err}");
    assert_eq!(err.matches("Too many").count(), 6, "{err}");
    machine.assert_nothing_left(&before).unwrap();
    assert_eq!(run(&machine, &id, &["echo", "fine"]).1, "fine\n");
}

#[test]
fn a_bomb_stays_in_its_session() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    let bomb = "f() { f | f & }; f; sleep 1000";
    let late = machine.exec(&id, &["sh", "-c", bomb], 4).unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late}");
    let deep = "export D=0; exec sh -c 'D=$((D+1)); echo $D; sh -c \"$0\" \"$0\"' 'D=$((D+1)); echo $D; sh -c \"$0\" \"$0\"'";
    let (_, out, err) = sh(&machine, &id, deep);
    let deepest = out.lines().filter_map(|n| n.parse::<u32>().ok()).max();
    assert!(deepest.is_some_and(|n| n <= 18), "{out} {err}");
    machine.assert_nothing_left(&before).unwrap();
    assert_eq!(run(&machine, &id, &["echo", "fine"]).1, "fine\n");
}

#[test]
fn a_daemon_that_is_killed_leaves_no_commands() {
    let mut machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let exec = crate::streaming::request(&id, &["sh", "-c", "sleep 1000 | sleep 2000"]);
    let url = machine.client.exec(exec).unwrap().url;
    let mut client = machine
        .world
        .enter(|| criw_tests::spdy::Spdy::connect(&url, "v4.channel.k8s.io"))
        .unwrap();
    for kind in ["error", "stdout"] {
        client.open(&[("streamtype", kind)]).unwrap();
    }
    wait::until("the commands to run", wait::PATIENCE, || {
        let table = processes(&machine, &id);
        (table.contains("sleep 1000") && table.contains("sleep 2000")).then_some(())
    })
    .unwrap();
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    // Not shown by the new daemon, which did not start them; so by the cgroup.
    let pid = machine.pid(&id).unwrap();
    let groups = cgroup::directories(&machine.world.name);
    let group = groups
        .into_iter()
        .find(|group| cgroup::members(group).contains(&pid));
    let group = group.unwrap();
    wait::until("the commands to be gone", wait::PATIENCE, || {
        (cgroup::members(&group) == [pid]).then_some(())
    })
    .unwrap();
    assert_eq!(sh(&machine, &id, "echo a | cat").1, "a\n");
}
