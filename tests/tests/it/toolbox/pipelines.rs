//! Commands that commands start.

use criw_tests::machine::Machine;
use criw_tests::noise::noise;

use super::{idle, run, sh, text};
use crate::streaming::piped;

#[test]
fn commands_are_connected_by_pipes() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    for (script, code, out) in [
        ("echo a | cat", 0, "a\n"),
        // A module of the image, no applet.
        ("hello one two | grep 'arg.2'", 0, "arg[2]=two\n"),
        ("echo through | cat | cat | cat", 0, "through\n"),
        ("yes | head -n 1", 0, "y\n"),
        ("true | false", 1, ""),
        ("false | true", 0, ""),
        ("cat /no/such 2>/dev/null | wc -c | tr -d ' '", 0, "0\n"),
        ("/bin/cat < /etc/motd 2>&1", 0, "a file of the image\n"),
        ("/bin/trap unreachable 2>/dev/null; echo $?", 0, "134\n"),
        ("echo $(echo inner | cat)", 0, "inner\n"),
        ("cd /data; /bin/hello | grep cwd; pwd", 0, "/data\n"),
        ("X=1 /bin/hello | grep 'env X'", 0, "env X=1\n"),
        ("sleep 0.05 & wait; echo waited", 0, "waited\n"),
        ("sh -c 'sh -c \"exit 7\"'; echo $?", 0, "7\n"),
    ] {
        let (found, output, err) = sh(&machine, &id, script);
        assert_eq!(found, code, "{script}: {output} {err}");
        assert!(output.ends_with(out), "{script}: {output} {err}");
    }
    machine.assert_nothing_left(&before).unwrap();
    let redirected =
        "/bin/cat < /etc/motd > /data/copy; /bin/echo more >> /data/copy; cat /data/copy";
    let (_, out, err) = sh(&machine, &id, redirected);
    assert_eq!(out, "a file of the image\nmore\n", "{err}");
}

#[test]
fn a_lot_goes_through_a_pipeline_and_input_comes_to_an_end() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let input = noise(3 << 20);
    for transport in ["spdy", "websocket"] {
        let script = "cat | /bin/cat | cat";
        let args = ["exec", "-i", "-r", transport, &id, "sh", "-c", script];
        let copied = piped(&machine, &args, &input);
        assert!(copied.status.success(), "{}", text(&copied.stderr));
        assert!(copied.stdout == input, "{} bytes", copied.stdout.len());
    }
    // The shell takes its own line only, and the command what follows.
    let script = b"read x; cat; echo end $x\nfirst\nsecond\nthird\n";
    let said = piped(&machine, &["exec", "-i", &id, "sh"], script);
    let out = text(&said.stdout);
    assert_eq!(out, "second\nthird\nend first\n", "{}", text(&said.stderr));
}

#[test]
fn a_time_out_ends_the_whole_tree() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    let script = "sleep 1000 | sh -c 'sleep 2000' & sleep 3000";
    let late = machine.exec(&id, &["sh", "-c", script], 2).unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{late}");
    // When the answer is out they are gone.
    let table = super::processes(&machine, &id);
    assert!(!table.contains("000"), "{table}");
    machine.assert_nothing_left(&before).unwrap();
    assert_eq!(run(&machine, &id, &["true"]).0, 0);
}

#[test]
fn what_runs_is_shown_and_can_be_signalled() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let script = "sleep 1000 & ps; kill $!; wait $!; echo code $?";
    let (code, out, err) = sh(&machine, &id, script);
    assert_eq!(code, 0, "{err}");
    for part in ["/bin/idle", "sleep 1000", "sh -c sleep 1000", "code 143"] {
        assert!(out.contains(part), "{part}: {out} {err}");
    }
}
