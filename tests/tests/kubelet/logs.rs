//! Logs, through the kubelet's API and as its rotation leaves them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use criw_tests::machine::{parse_log, text};
use criw_tests::wait;

use crate::checks::{Check, beside};
use crate::node::{Node, PATIENCE};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "logs::both_streams_are_there_and_queries_are_honoured",
        &["exits"],
        queries,
    ),
    beside(
        "logs::the_log_before_a_restart_is_kept",
        &["crashes"],
        previous,
    ),
    beside(
        "logs::a_follower_is_done_when_the_container_is",
        &["sidecar"],
        follow,
    ),
    beside(
        "logs::rotation_loses_no_line_of_a_wasm_container",
        &["talkers"],
        |node| rotates(node, "wasm"),
    ),
    beside(
        "logs::rotation_loses_no_line_of_a_linux_container",
        &["talkers"],
        |node| rotates(node, "linux"),
    ),
];

fn queries(node: &Node) -> Result<()> {
    node.ended("exits", "wasm-zero")?;
    let whole = node.logged("exits", "wasm-zero", "to stderr")?;
    ensure!(whole.starts_with("hello from wasm\n"), "{whole}");
    let lines = whole.lines().count();
    let ask = |query: &str| node.log("exits", "wasm-zero", query);
    let last = ask("tailLines=1")?;
    ensure!(
        last.lines().count() == 1 && whole.ends_with(&last),
        "{last}"
    );
    ensure!(ask("limitBytes=5")? == "hello");
    let stamped = ask("timestamps=true")?;
    ensure!(stamped.lines().count() == lines, "{stamped}");
    for line in stamped.lines() {
        let stamp = line.split(' ').next().unwrap_or_default();
        ensure!(stamp.starts_with("20") && stamp.ends_with('Z'), "{line}");
    }
    let never = ask("sinceTime=2100-01-01T00:00:00Z")?;
    ensure!(never.is_empty(), "{never}");
    let unknown = node
        .log("exits", "nobody", "")
        .map(|log| format!("a log: {log}"));
    ensure!(unknown.is_err(), "{unknown:?}");
    Ok(())
}

fn previous(node: &Node) -> Result<()> {
    for (container, said) in [("wasm", "about to trap\n"), ("linux", "")] {
        node.restarted("crashes", container, 1)?;
        // The kubelet keeps one dead container; it may be replaced while we ask.
        wait::until("the log before", PATIENCE, || {
            let log = node.log("crashes", container, "previous=true").ok()?;
            log.contains(said).then_some(())
        })?;
    }
    Ok(())
}

fn follow(node: &Node) -> Result<()> {
    // From the container's first moment on, or its last: it returns either way.
    let log = wait::until("a log to follow", PATIENCE, || {
        node.log("sidecar", "job", "follow=true").ok()
    })?;
    ensure!(log.contains("hello from a wasm server"), "{log}");
    Ok(())
}

/// All files of a container's log, oldest first: the kubelet's names sort that way.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        files.push(entry?.path());
    }
    files.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_owned();
        (name == "0.log", name)
    });
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    if path.extension().is_some_and(|kind| kind == "gz") {
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(&*bytes).read_to_string(&mut text)?;
        return Ok(text);
    }
    Ok(String::from_utf8(bytes)?)
}

fn rotates(node: &Node, container: &str) -> Result<()> {
    node.ready("talkers", container, true)?;
    let pod = node.pod("talkers")?;
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let dir = node
        .machine
        .world
        .path("pods")
        .join(format!("default_talkers-node_{uid}"))
        .join(container);
    wait::until("the log to be rotated", PATIENCE, || {
        let files = files(&dir).ok()?;
        let new = files.last()?.file_name()? == "0.log";
        (new && files.len() > 1).then_some(())
    })
    .with_context(|| format!("{:?}", files(&dir)))?;
    // A second rotation may rename and compress while we read.
    let wanted: String = (0..4000).map(|line| format!("line {line}\n")).collect();
    let mut last = String::new();
    wait::until("every line once", PATIENCE, || {
        let mut whole = String::new();
        for file in files(&dir).ok()? {
            whole.push_str(&text(&parse_log(&read(&file).ok()?).ok()?));
        }
        last = whole;
        (last == wanted).then_some(())
    })
    .with_context(|| format!("{} bytes, not {}", last.len(), wanted.len()))
}
