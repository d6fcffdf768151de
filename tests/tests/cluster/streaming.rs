//! `kubectl exec`, `attach`, `run -i`, `port-forward` and `cp`: through API server and
//! kubelet to the daemon.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};

use crate::checks::{Check, beside};
use crate::cluster::{Cluster, Said, address, container};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "streaming::exec_in_a_linux_container",
        &["streams"],
        exec_linux,
    ),
    beside(
        "streaming::exec_in_a_wasm_container_runs_another_module_of_its_image",
        &["streams"],
        exec_wasm,
    ),
    beside(
        "streaming::exec_of_what_is_not_there_is_told",
        &["streams"],
        exec_missing,
    ),
    beside(
        "streaming::exec_with_a_terminal_in_a_linux_container",
        &["streams"],
        terminal,
    ),
    beside("streaming::run_with_an_input_and_remove", &["streams"], run),
    beside("streaming::attach_to_both_kinds", &["streams"], attach),
    beside(
        "streaming::port_forward_to_pods_and_services",
        &["streams", "web"],
        port_forward,
    ),
    beside(
        "streaming::cp_to_and_from_a_linux_container",
        &["streams"],
        copy,
    ),
];

/// kubectl speaks WebSocket to the API server, and SPDY if told so.
const TRANSPORTS: [&str; 2] = ["true", "false"];

fn exec(
    cluster: &Cluster,
    websockets: &str,
    container: &str,
    argv: &[&str],
    input: &str,
) -> Result<Said> {
    let args = [&["exec", "-i", "streams", "-c", container, "--"], argv].concat();
    let mut command = cluster.kubectl_command(&args)?;
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    cluster.said(command, input)
}

fn exec_linux(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    for websockets in TRANSPORTS {
        let script = "echo out; echo err >&2; cat; exit 3";
        let said = exec(cluster, websockets, "linux", &["sh", "-c", script], "in\n")?;
        ensure!(
            said.code == Some(3)
                && said.out == "out\nin\n"
                && said.err.contains("err\n")
                && said.err.contains("exit code 3"),
            "{said:?}"
        );
        // More than fits into any buffer on the way, there and back.
        let input = "0123456789abcdef".repeat(1 << 16);
        let said = exec(cluster, websockets, "linux", &["cat"], &input)?;
        ensure!(
            said.code == Some(0) && said.out == input,
            "{} bytes, {}",
            said.out.len(),
            said.err
        );
    }
    Ok(())
}

fn exec_wasm(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    for websockets in TRANSPORTS {
        let exec = |argv: &[&str], input: &str| exec(cluster, websockets, "wasm", argv, input);
        let said = exec(&["/bin/cat", "/etc/motd"], "")?;
        ensure!(
            said.code == Some(0) && said.out == "a file of the image\n",
            "{said:?}"
        );
        let said = exec(&["cat"], "through wasm\n")?;
        ensure!(
            said.code == Some(0) && said.out == "through wasm\n",
            "{said:?}"
        );
        let said = exec(&["hello"], "")?;
        ensure!(said.out.contains("env FROM_POD=yes"), "{said:?}");
        let said = exec(&["cat", "/missing"], "")?;
        ensure!(
            said.code == Some(1) && said.err.contains("/missing"),
            "{said:?}"
        );
        let said = exec(&["trap", "unreachable"], "")?;
        ensure!(said.code == Some(134), "{said:?}");
    }
    Ok(())
}

fn exec_missing(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    for container in ["linux", "wasm"] {
        let said = exec(cluster, "true", container, &["nonesuch"], "")?;
        ensure!(
            said.code != Some(0) && said.err.contains("nonesuch"),
            "{container}: {said:?}"
        );
    }
    Ok(())
}

fn terminal(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    let inner = "test -t 0 && test -t 1 && echo a terminal; exit 5";
    let kubectl = cluster.kubectl_command(&["exec", "-it", "streams", "-c", "linux", "--"])?;
    let mut line = Vec::new();
    for word in kubectl.get_args() {
        line.push(format!("'{}'", word.to_string_lossy()));
    }
    let line = format!("nsenter {} sh -c '{inner}'", line.join(" "));
    // It gives kubectl a terminal of its own.
    let mut command = std::process::Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]);
    let said = cluster.said(command, "")?;
    ensure!(
        said.code == Some(5) && said.out.contains("a terminal"),
        "{said:?}"
    );
    Ok(())
}

fn run(cluster: &Cluster) -> Result<()> {
    for (name, image, program) in [
        ("once-linux", "busybox:1", "cat"),
        ("once-wasm", "guests:1", "/bin/cat"),
    ] {
        let image = format!("--image={}", cluster.machine.registry.reference(image));
        let args = [
            "run",
            name,
            "-i",
            "--rm",
            "--restart=Never",
            "--quiet",
            &image,
            "--command",
            "--",
            program,
        ];
        let said = cluster.kubectl_said(&args, "once and for all\n")?;
        ensure!(
            said.code == Some(0) && said.out.contains("once and for all\n"),
            "{name}: {said:?}"
        );
        ensure!(
            cluster
                .get(&format!("/api/v1/namespaces/default/pods/{name}"))
                .is_err()
        );
    }
    Ok(())
}

/// Lines of a program that goes on.
fn lines(out: ChildStdout) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn attach(cluster: &Cluster) -> Result<()> {
    let pod = cluster.ready("streams")?;
    let mut linux = cluster.kubectl_running(&["attach", "-q", "-i", "streams", "-c", "listens"])?;
    let out = lines(linux.0.stdout.take().context("no stdout of kubectl")?);
    let mut stdin = linux.0.stdin.take().context("no stdin of kubectl")?;
    let mut said = 0;
    cluster.until("an answer of the attached container", || {
        // Said again, because it may be said before the container is attached to.
        said += 1;
        stdin.write_all(format!("{said}\n").as_bytes()).ok()?;
        out.try_iter().find(|line| line.starts_with("heard "))
    })?;
    drop(linux);

    let mut wasm = cluster.kubectl_running(&["attach", "-q", "streams", "-c", "server"])?;
    let out = lines(wasm.0.stdout.take().context("no stdout of kubectl")?);
    cluster.until("a line of the attached guest", || {
        cluster.http(&address(&pod, 8080).ok()?, "/log").ok()?;
        out.try_iter().find(|line| line == "said on stdout")
    })?;
    drop(wasm);
    // Leaving ends nothing.
    let pod = cluster.ready("streams")?;
    for name in ["listens", "server"] {
        let status = container(&pod, name)?;
        ensure!(
            !status["state"]["running"].is_null() && status["restartCount"] == 0,
            "{status}"
        );
    }
    Ok(())
}

fn port_forward(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    cluster.ready_pods("web", 2)?;
    for websockets in TRANSPORTS {
        for (object, port, target, wanted) in [
            ("pod/streams", ":8080", "/", "hello from a component"),
            ("pod/streams", ":9090", "/index.html", "hello from linux"),
            ("service/web", ":80", "/", "hello from a component"),
        ] {
            let mut child = cluster
                .kubectl_command(&["port-forward", object, port])?
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map(crate::cluster::Running)?;
            let out = lines(child.0.stdout.take().context("no stdout of kubectl")?);
            let local = cluster.until("the forwarded port", || {
                let line = out.try_iter().find(|line| line.contains("127.0.0.1:"))?;
                let rest = line.strip_prefix("Forwarding from ")?;
                Some(rest.split(' ').next()?.to_owned())
            })?;
            for _ in 0..3 {
                let answer = cluster.http(&local, target)?;
                ensure!(answer.contains(wanted), "{object}{port}: {answer}");
            }
        }
    }
    Ok(())
}

fn copy(cluster: &Cluster) -> Result<()> {
    cluster.ready("streams")?;
    let here = cluster.machine.world.subdir("copied")?;
    let content = "a line of a file\n".repeat(10_000);
    std::fs::write(here.join("there"), &content)?;
    let path = |name: &str| here.join(name).to_string_lossy().into_owned();
    cluster.kubectl(&["cp", &path("there"), "streams:/tmp/copy", "-c", "linux"])?;
    cluster.kubectl(&["cp", "streams:/tmp/copy", &path("back"), "-c", "linux"])?;
    ensure!(std::fs::read_to_string(here.join("back"))? == content);
    Ok(())
}
