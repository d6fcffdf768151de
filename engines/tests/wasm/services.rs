//! Drafts beside WASI: logging, config, keyvalue and blobstore, for commands and for an HTTP
//! guest that has an instance for each request.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use criw_engines::protocol::{Reply, Request};
use criw_engines::spec::{ServicesSection, WasmSection};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use tempfile::TempDir;

use crate::container::{Container, Plan, compile, skip, tmpfs};
use crate::guests::component;
use crate::http::serve_component;

/// A directory that anybody may write to, to be mounted in containers.
fn volume() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mode = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    directory
}

fn mount(directory: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, directory, flags).unwrap()
}

/// A container with `/data` for everything.
fn plan(data: Option<OwnedFd>, words: &[&str]) -> Plan {
    let services = match &data {
        Some(_) => ServicesSection {
            config_dirs: vec!["/data".to_owned()],
            keyvalue_dir: Some("/data".to_owned()),
            blobstore_dir: Some("/data".to_owned()),
        },
        None => ServicesSection::default(),
    };
    Plan {
        wasm: WasmSection {
            services,
            ..WasmSection::default()
        },
        args: std::iter::once(&"services")
            .chain(words)
            .map(ToString::to_string)
            .collect(),
        mounts: data
            .map(|data| ("/data".to_owned(), data))
            .into_iter()
            .collect(),
        ..Plan::default()
    }
}

/// Runs the calls in one command and gives the lines of its output and those of its log.
fn run(code: &File, plan: Plan) -> (Vec<String>, Vec<String>) {
    let mut container = Container::create(code, plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    let (status, record) = container.wait();
    assert_eq!(status, 0, "{record:?} {}", container.log());
    let lines = container.lines();
    let of = |stream: &str| -> Vec<String> {
        let lines = lines.iter().filter(|(name, _, _)| name == stream);
        lines.map(|(_, _, text)| text.clone()).collect()
    };
    (of("stdout"), of("stderr"))
}

/// Runs calls and compares their lines; an expectation with `…` at its end is a beginning.
fn check(code: &File, data: Option<OwnedFd>, calls: &[(&str, &str)]) {
    let words: Vec<_> = calls.iter().map(|(call, _)| *call).collect();
    let (lines, _) = run(code, plan(data, &words));
    assert_eq!(lines.len(), calls.len(), "{lines:#?}");
    for ((call, expected), line) in calls.iter().zip(&lines) {
        let fits = match expected.strip_suffix('…') {
            Some(begin) => line.starts_with(begin),
            None => line == expected,
        };
        assert!(fits, "{call}: {line:?} is not {expected:?}");
    }
}

fn guest() -> File {
    compile(&component("services")).unwrap()
}

#[test]
fn log_messages_stand_in_the_log_with_their_level() {
    if skip("log_messages_stand_in_the_log_with_their_level") {
        return;
    }
    let words = [
        "log:2:boot:ready",
        "log:4::two\nlines",
        "log:5:a\nb:INFO not one",
        "log:0:x:",
    ];
    let (out, log) = run(&guest(), plan(None, &words));
    assert_eq!(out, [""; 0]);
    assert_eq!(
        log,
        [
            "INFO [boot] ready",
            "ERROR two",
            "ERROR lines",
            "CRITICAL [a b] INFO not one",
            "TRACE [x] ",
        ]
    );
}

#[test]
fn configuration_is_files_then_environment() {
    if skip("configuration_is_files_then_environment") {
        return;
    }
    let code = guest();
    let files = || {
        tmpfs(&[
            ("colour", "blue"),
            ("..hidden", "x"),
            ("log.level", "debug\n"),
        ])
    };
    let words = [
        "config:colour",
        "config:SIZE",
        "config:none",
        "config:../etc/colour",
        "config:..hidden",
        "runtime:colour",
        "all",
    ];
    let expected = [
        "blue",
        "9",
        "none",
        "none",
        "none",
        "blue", // and all of them:
        "PATH=/bin",
        "SIZE=9",
        "colour=blue",
        "log.level=debug",
        "",
    ];
    // The default place, and one that an annotation names, with a second before it.
    for (at, directories) in [
        ("/etc/config", &[][..]),
        ("/settings", &["/nowhere", "/settings"]),
    ] {
        let mut plan = plan(None, &words);
        plan.env = vec!["SIZE=9".into(), "PATH=/bin".into(), "colour=red".into()];
        plan.mounts = vec![(at.to_owned(), files())];
        plan.wasm.services.config_dirs = directories.iter().map(ToString::to_string).collect();
        assert_eq!(run(&code, plan).0, expected, "{at}");
    }
}

#[test]
fn an_http_guest_sees_a_config_map_change() {
    if skip("an_http_guest_sees_a_config_map_change") {
        return;
    }
    let data = volume();
    let path = |name: &str| data.path().join(name);
    for (state, colour) in [("..1", "blue"), ("..2", "green")] {
        std::fs::create_dir(path(state)).unwrap();
        std::fs::write(path(state).join("colour"), colour).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/colour", path("colour")).unwrap();
    let plan = plan(Some(mount(data.path())), &[]);
    let served = serve_component("served", plan);
    assert_eq!(served.get("/config:colour").body, "blue\n");
    symlink("..2", path("..new")).unwrap();
    std::fs::rename(path("..new"), path("..data")).unwrap();
    std::fs::remove_dir_all(path("..1")).unwrap();
    assert_eq!(served.get("/config:colour").body, "green\n");
    assert!(served.get("/all").body.contains("colour=green\n"));
}

/// The same in memory and on a volume.
const KEYVALUE: &[(&str, &str)] = &[
    ("get:b:key", "none"),
    ("set:b:key:value", "set"),
    ("get:b:key", "value"),
    ("get:other:key", "none"),
    ("exists:b:key", "1"),
    ("set:b:key:", "set"),
    ("get:b:key", ""),
    ("delete:b:key", "deleted"),
    ("delete:b:key", "deleted"),
    ("exists:b:key", "0"),
    ("keys:b", "0 keys, 1 pages: .."),
    ("set:../..:../../key:away", "set"),
    ("get:../..:../../key", "away"),
    ("keys:../..", "1 keys, 1 pages: ../../key..../../key"),
    ("set::.lock:mine", "set"),
    ("get::.lock", "mine"),
    ("add:n:count:5", "5"),
    ("add:n:count:37", "42"),
    ("get:n:count", "42"),
    ("add2:n:count:3", "1035"),
    ("set:n:text:x", "set"),
    (
        "add:n:text:1",
        "error: increment key \"text\": its value is no decimal…",
    ),
    ("batch:many", "two=2 none one=1 0 keys, 1 pages: .."),
    ("fill:pages:1205", "filled"),
    ("keys:pages", "1205 keys, 2 pages: key00000..key01204"),
    ("keys2:pages", "1205 keys, 2 pages: key00000..key01204"),
    ("swap:s:key:new", "swapped"),
    ("lose:s:key:newer", "lost to meddled"),
    ("get:s:key", "meddled"),
    ("large:b:key:0", "set"),
    (
        "large:b:key:1",
        "error: set key \"key\": the value has 1048577 bytes, at most 1048576…",
    ),
];

#[test]
fn buckets_in_memory_and_on_a_volume_are_alike() {
    if skip("buckets_in_memory_and_on_a_volume_are_alike") {
        return;
    }
    let (code, data) = (guest(), volume());
    let long = "x".repeat(251);
    let (set, error) = (
        format!("set:b:{long}:"),
        format!("error: set key \"{long}\": the name has 251 bytes…"),
    );
    let calls = [KEYVALUE, &[(set.as_str(), error.as_str())]].concat();
    check(&code, None, &calls);
    check(&code, Some(mount(data.path())), &calls);
    // In memory all is gone with the container, on the volume it stays.
    check(&code, None, &[("get:s:key", "none")]);
    check(&code, Some(mount(data.path())), &[("get:s:key", "meddled")]);
    let all: Vec<_> = std::fs::read_dir(data.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(all.contains(&"%2E.%2F..".to_owned()), "{all:?}");
}

#[test]
fn containers_on_one_volume_count_together() {
    if skip("containers_on_one_volume_count_together") {
        return;
    }
    let (code, data) = (guest(), volume());
    let words = ["add:b:count:1"; 100];
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mount = mount(data.path());
                run(&code, plan(Some(mount), &words))
            });
        }
    });
    let mount = mount(data.path());
    check(&code, Some(mount), &[("get:b:count", "300")]);
}

#[test]
fn a_missing_or_read_only_volume_is_named() {
    if skip("a_missing_or_read_only_volume_is_named") {
        return;
    }
    let code = guest();
    let mut missing = plan(None, &["get:b:key", "set:b:key:x", "create:c"]);
    missing.wasm.services.keyvalue_dir = Some("/nowhere".to_owned());
    let (lines, _) = run(&code, missing);
    for (line, part) in lines.iter().zip([
        "which annotation criw.dev/keyvalue-dir names",
        "a volume has to be mounted there",
        "this container has no blobstore: name a directory",
    ]) {
        assert!(line.starts_with("error: ") && line.contains(part), "{line}");
    }
    // Another user's.
    let data = tempfile::tempdir().unwrap();
    let mode = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(data.path(), mode).unwrap();
    check(
        &code,
        Some(mount(data.path())),
        &[
            ("get:b:key", "none"),
            (
                "set:b:key:x",
                "error: set key \"key\": /data/b: Permission denied…",
            ),
            (
                "create:c",
                "error: create container \"c\": Permission denied…",
            ),
        ],
    );
}

#[test]
fn requests_share_what_they_keep() {
    if skip("requests_share_what_they_keep") {
        return;
    }
    let served = serve_component("served", plan(None, &[]));
    for n in 1..=20 {
        let count = served.get("/add:hits:front:1");
        assert_eq!(count.body, format!("{n}\n"));
    }
    served.get("/log:3:web:slow");
    served.container.await_log("stderr F WARN [web] slow");
}

#[test]
fn objects_live_on_the_volume() {
    if skip("objects_live_on_the_volume") {
        return;
    }
    let (code, data) = (guest(), volume());
    let on_volume = || Some(mount(data.path()));
    let calls = [
        ("there:c", "0"),
        ("blob-put:c:o:x", "error: there is no container \"c\""),
        ("create:c", "created"),
        ("create:c", "created"),
        ("there:c", "1"),
        ("blob-put:c:dir/a:0123456789", "put"),
        ("blob-get:c:dir/a:0", "0123456789"),
        ("blob-get:c:dir/a:2:4", "234"),
        ("blob-get:c:dir/a:8:99", "89"),
        (
            "blob-get:c:dir/a:11:99",
            "error: get bytes 11 to 99 of object \"dir/a\": it has 10 bytes",
        ),
        ("blob-get:c:dir/a:3:2", "error: get bytes 3 to 2…"),
        ("blob-get:c:none:0", "error: there is no object \"none\""),
        ("blob-put:c:empty:", "put"),
        ("blob-get:c:empty:0", ""),
        ("blob-half:c:dir/a:lost", "dropped"),
        ("blob-get:c:dir/a:0", "0123456789"),
        ("blob-has:c:dir/a", "1"),
        ("blob-has:c:dir", "0"),
        ("copy:c:dir/a:c:b", "done"),
        ("move:c:dir/a:d:a", "error: there is no container \"d\""),
        ("create:d", "created"),
        ("move:c:dir/a:d:../a", "done"),
        ("blob-has:c:dir/a", "0"),
        ("blob-get:d:../a:0", "0123456789"),
        ("copy:c:none:c:b", "error: there is no object \"none\""),
        ("blob-put:c:z:", "put"),
        ("blob-put:c:y:", "put"),
        // All but the first of b, empty, y, z.
        ("blob-list:c", "empty y z ."),
        ("blob-delete:c:z", "deleted"),
        ("blob-delete:c:z", "deleted"),
        // 20 MiB: too much for one piece, streamed in pieces.
        ("blob-big:c:big:320", "put"),
        ("blob-get:c:big:0", "error: get 20971520 bytes at once…"),
        ("blob-clear:d", "cleared"),
        ("blob-has:d:../a", "0"),
        ("drop:d", "deleted"),
        ("there:d", "0"),
        ("drop:d", "deleted"),
        ("there:..", "0"),
    ];
    check(&code, on_volume(), &calls);
    // Read by another container, which sees whole objects only.
    let (lines, log) = run(
        &code,
        plan(on_volume(), &["blob-sum:c:big", "blob-info:c:b"]),
    );
    let sum = (320_u64 * 256 * (255 * 256 / 2)).to_string();
    assert_eq!(lines, ["20971520", &sum, "in c", "10", "1"], "{log:?}");
    let left = std::fs::read_dir(data.path().join(".new")).unwrap().count();
    assert_eq!(left, 0);
    assert!(!data.path().parent().unwrap().join("a").exists());
}

#[test]
fn a_full_volume_leaves_what_was_there() {
    if skip("a_full_volume_leaves_what_was_there") {
        return;
    }
    // A tmpfs of 256 KiB.
    let small = crate::container::tmpfs_of("256k", &[]);
    check(
        &guest(),
        Some(small),
        &[
            ("create:c", "created"),
            ("blob-put:c:o:whole", "put"),
            (
                "blob-big:c:o:10",
                "error: write object \"o\": No space left on device…",
            ),
            ("blob-get:c:o:0", "whole"),
            ("set:b:k:old", "set"),
            (
                "large:b:k:0",
                "error: set key \"k\": /data/b: No space left on device…",
            ),
            ("get:b:k", "old"),
            ("set:b:k:new", "set"),
            ("get:b:k", "new"),
        ],
    );
}
