//! What goes wrong: each has a text for the user and leaves nothing.

use std::fs;

use criw_engines::protocol::{FdRole, Phase, Reply, Request};
use serde_json::json;

use crate::fixture::{Bundle, bundle, delete, processes, wait_until};

/// A create that must fail, its text, and nothing left of it.
fn failed(bundle: &Bundle) -> String {
    let (shim, reply) = bundle.create();
    let Reply::Failed { message } = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(shim.wait(), (128, None));
    bundle.assert_clean();
    message
}

#[test]
fn a_missing_command_fails_create_in_the_words_of_runc() {
    let Some(bundle) = bundle(&["nope"]) else {
        return;
    };
    let text = failed(&bundle);
    assert!(text.contains("runc create"), "{text}");
    assert!(
        text.contains(r#"exec: "nope": executable file not found in $PATH"#),
        "{text}"
    );
    assert!(!text.contains('{'), "{text}");
}

#[test]
fn without_runc_the_text_names_it() {
    let Some(mut bundle) = bundle(&["ls"]) else {
        return;
    };
    bundle.config["criw"]["engine"]["runc"]["binary"] = json!("/no/such/runc");
    let text = failed(&bundle);
    assert!(
        text.contains("/no/such/runc") && text.contains("No such file"),
        "{text}"
    );
}

#[test]
fn a_runc_that_dies_midway_leaves_no_container() {
    for (script, said) in [
        ("kill -SEGV $$", "killed by signal 11"),
        ("echo broken >&2; exit 9", "broken"),
        ("exit 9", "code 9 and gave no reason"),
        // The container exists by then.
        ("\"$real\" \"$@\" && kill -KILL $$", "killed by signal 9"),
        ("\"$real\" \"$@\"; rm -f $pid", "pid file"),
    ] {
        let Some(mut bundle) = bundle(&["ls"]) else {
            return;
        };
        let real = bundle.config["criw"]["engine"]["runc"]["binary"].clone();
        let pid = bundle.path("bundle/init.pid");
        bundle.replace_runc(&format!(
            "#!/bin/sh\nreal={real}\npid={}\ncase \"$*\" in *' create '*) {script};; *) exec \"$real\" \"$@\";; esac\n",
            pid.display()
        ));
        let text = failed(&bundle);
        assert!(text.contains(said), "{script}: {text}");
    }
}

#[test]
fn a_slow_runc_delays_no_other_answer() {
    let Some(mut bundle) = bundle(&["echo", "hello"]) else {
        return;
    };
    let real = bundle.config["criw"]["engine"]["runc"]["binary"].clone();
    let fifo = bundle.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    bundle.replace_runc(&format!(
        "#!/bin/sh\ncase \"$*\" in *' start '*) read line < {};; esac\nexec {real} \"$@\"\n",
        fifo.display()
    ));
    let (shim, reply) = bundle.create();
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| shim.call(&Request::Start));
        wait_until("runc start waits", || {
            processes(&bundle.id).iter().any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.contains("runc.sh") && line.contains("\0start\0"))
            })
        });
        assert_eq!(shim.phase(), Phase::Created);
        // As by a daemon whose predecessor died while runc was at it: both are answered.
        let second = scope.spawn(|| shim.call(&Request::Start));
        assert_eq!(shim.reopen(&bundle.path("second.log")), Reply::Done);
        fs::write(&fifo, "go\n").unwrap();
        assert_eq!(start.join().unwrap(), Reply::Started);
        assert_eq!(second.join().unwrap(), Reply::Started);
    });
    assert_eq!(shim.ended().0, 0);
    bundle.assert_clean();
}

#[test]
fn a_failing_start_is_a_start_error() {
    let Some(mut bundle) = bundle(&["ls"]) else {
        return;
    };
    let real = bundle.config["criw"]["engine"]["runc"]["binary"].clone();
    bundle.replace_runc(&format!(
        "#!/bin/sh\ncase \"$*\" in *' start '*) echo no >&2; exit 1;; esac\nexec {real} \"$@\"\n"
    ));
    let (shim, reply) = bundle.create();
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    let reply = shim.call(&Request::Start);
    let Reply::StartFailed { message } = reply else {
        panic!("{reply:?}");
    };
    assert!(message.ends_with("runc.sh start: no"), "{message}");
    assert_eq!(shim.ended(), (128, "StartError".into(), message));
    bundle.assert_clean();
}

#[test]
fn wrong_requests_are_refused() {
    let Some(mut bundle) = bundle(&["sleep", "1000"]) else {
        return;
    };
    let good = bundle.config.clone();
    // The frame refuses what it cannot read, and waits for a better one.
    bundle.config["criw"]["engine"]["runc"]["surprise"] = json!(1);
    let (shim, reply) = bundle.create();
    let Reply::Failed { message } = reply else {
        panic!("{reply:?}");
    };
    assert!(
        message.contains("parse spec") && message.contains("surprise"),
        "{message}"
    );
    bundle.config = good.clone();
    let rootfs = [(FdRole::Code, bundle.rootfs())];
    let reply = shim.create(&bundle.config, &rootfs);
    let Reply::Failed { message } = reply else {
        panic!("{reply:?}");
    };
    assert!(message.contains("for Wasm containers only"), "{message}");
    assert_eq!(shim.wait(), (128, None));
    bundle.config = good;
    let shim = bundle.run();
    assert_eq!(shim.call(&Request::Start), Reply::Started);
    let reply = shim.call(&Request::Signal {
        signal: 99,
        stop: false,
        grace_ms: 0,
    });
    assert!(matches!(reply, Reply::Failed { .. }), "{reply:?}");
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    bundle.assert_clean();
}

#[test]
fn a_killed_shim_is_cleaned_up_by_delete_as_often_as_one_likes() {
    let Some(bundle) = bundle(&["sh", "-c", "sleep 1000 & exec sleep 1000"]) else {
        return;
    };
    let shim = bundle.run();
    let pid = rustix::process::Pid::from_raw(shim.child.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(shim.wait(), (137, None));
    assert!(
        !processes(&bundle.id).is_empty(),
        "the container lives on without its shim"
    );
    for _ in 0..2 {
        let output = delete(&bundle);
        assert!(output.status.success(), "{output:?}");
    }
    bundle.assert_clean();
}

#[test]
fn delete_without_runc_says_so() {
    let Some(mut bundle) = bundle(&["ls"]) else {
        return;
    };
    bundle.config["criw"]["engine"]["runc"]["binary"] = json!("/no/such/runc");
    let output = delete(&bundle);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("execute /no/such/runc for delete"), "{text}");
}
