//! `kubectl logs`.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, address, container};

pub(crate) const CHECKS: &[Check] = &[
    beside("logs::they_are_shown_whole_and_in_parts", &["logs"], parts),
    beside("logs::they_are_followed", &["logs"], followed),
    beside(
        "logs::those_of_a_crashed_wasm_container_are_kept",
        &["logs"],
        previous,
    ),
];

fn parts(cluster: &Cluster) -> Result<()> {
    cluster.ready("talks")?;
    cluster.logged("talks", "lines", "line 999\n")?;
    let logs = |args: &[&str]| cluster.kubectl(&[&["logs", "talks", "-c", "lines"], args].concat());
    let whole: String = (0..1000).map(|line| format!("line {line}\n")).collect();
    ensure!(logs(&[])? == whole, "not the 1000 lines");
    let tail = logs(&["--tail=2"])?;
    ensure!(tail == "line 998\nline 999\n", "{tail}");
    let limited = logs(&["--limit-bytes=7"])?;
    ensure!(limited == "line 0\n", "{limited}");
    let stamped = logs(&["--tail=1", "--timestamps"])?;
    ensure!(
        stamped.contains('T') && stamped.ends_with("Z line 999\n"),
        "{stamped}"
    );
    let all = cluster.kubectl(&[
        "logs",
        "-l",
        "app=talks",
        "--all-containers",
        "--prefix",
        "--tail=1",
    ])?;
    ensure!(all.contains("[pod/talks/lines] line 999"), "{all}");
    Ok(())
}

fn followed(cluster: &Cluster) -> Result<()> {
    let pod = cluster.ready("talks")?;
    let mut running = cluster.kubectl_running(&["logs", "-f", "talks", "-c", "server"])?;
    let out = running.0.stdout.take().context("no stdout of kubectl")?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    for _ in 0..2 {
        cluster.http(&address(&pod, 8080)?, "/log")?;
        for wanted in ["said on stdout", "said on stderr"] {
            cluster.until(&format!("the line {wanted:?}"), || {
                lines.try_iter().find(|line| line == wanted)
            })?;
        }
    }
    Ok(())
}

fn previous(cluster: &Cluster) -> Result<()> {
    cluster.pod_until("crashes", "to be restarted", |pod| {
        let status = container(pod, "main").ok()?;
        (status["restartCount"].as_u64()? > 0).then_some(())
    })?;
    let mut last = String::new();
    cluster
        .until("the log of the crashed container", || {
            last = cluster
                .kubectl(&["logs", "crashes", "--previous"])
                .unwrap_or_else(|error| format!("{error:#}"));
            last.contains("hit_unreachable").then_some(())
        })
        .with_context(|| last.clone())?;
    let said = cluster.described("crashes", &["CrashLoopBackOff", "Trap", "134"])?;
    ensure!(said.contains("wasm"), "{said}");
    Ok(())
}
