//! `nc` and `wget` in the pod's network: what the toolbox asks the host for.

use criw_tests::machine::Machine;

use super::{idle, run, sh};

/// Asks until the other side listens, as a user's script does.
const ASK: &str = "ask() { until nc \"$@\" 2>/dev/null; do sleep 0.05; done; }; ";

#[test]
fn nc_talks_both_ways_to_the_end_of_each() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    // By both kinds of address and by name; ports below 1024 are free to all.
    for (host, port) in [("127.0.0.1", 7000), ("::1", 7001), ("localhost", 80)] {
        let script = format!(
            "{ASK}mkdir -p /tmp; {{ echo answer | nc -l -p {port} >/tmp/heard; }} & \
             echo question | ask {host} {port}; wait; cat /tmp/heard; rm -r /tmp"
        );
        let (code, out, err) = sh(&machine, &id, &script);
        assert_eq!((code, &*out), (0, "answer\nquestion\n"), "{host}: {err}");
    }
    // One after the other, by the same listener.
    let script = format!(
        "{ASK}mkdir -p /tmp; nc -l -k -p 7002 >/tmp/heard & for n in 1 2 3; do echo $n | ask 127.0.0.1 7002; done; \
         until [ $(wc -l </tmp/heard) = 3 ]; do sleep 0.05; done; kill $!; sort /tmp/heard; rm -r /tmp"
    );
    let (code, out, err) = sh(&machine, &id, &script);
    assert_eq!((code, &*out), (0, "1\n2\n3\n"), "{err}");
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn wget_reads_what_another_command_serves() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let script = "printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n' | nc -l -p 8000 >/request & \
        until wget -q -O - http://localhost:8000/path; do sleep 0.05; done; wait; head -n 1 /request";
    let (code, out, err) = sh(&machine, &id, script);
    assert_eq!(code, 0, "{err}");
    let out: Vec<&str> = out.lines().map(str::trim_end).collect();
    assert_eq!(out, ["hello", "GET /path HTTP/1.1"], "{err}");
}

#[test]
fn what_cannot_be_reached_is_named() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    for (argv, said) in [
        (&["nc", "127.0.0.1", "1"][..], "Connection refused"),
        (&["nc", "not a name", "1"], "not a name"),
        (&["wget", "-q", "http://127.0.0.1:1/"], "Connection refused"),
    ] {
        let (code, out, err) = run(&machine, &id, argv);
        assert_eq!((code, &*out), (1, ""), "{argv:?}: {err}");
        assert!(err.contains(said), "{argv:?}: {err}");
    }
    let script = "nc -l -k -p 7001 & until nc -z 127.0.0.1 7001 2>/dev/null; do sleep 0.05; done; nc -l -p 7001; \
        echo $?; kill $!";
    let (_, out, err) = sh(&machine, &id, script);
    assert_eq!(out, "1\n", "{err}");
    assert!(err.contains("Address") && err.contains("in use"), "{err}");
}
