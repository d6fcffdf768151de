//! Exec, attach and port-forward through the kubelet's own server, as an API server asks
//! it, in Wasm and Linux containers.

use anyhow::{Context, Result, ensure};
use criw_tests::spdy::Spdy;

use crate::checks::{Check, beside};
use crate::node::Node;

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "streaming::exec_in_both_kinds_of_container",
        &["streams"],
        exec,
    ),
    beside(
        "streaming::a_shell_in_a_wasm_container_without_one",
        &["streams"],
        shell,
    ),
    beside(
        "streaming::attach_to_both_kinds_of_container",
        &["streams"],
        attach,
    ),
    beside(
        "streaming::port_forward_to_a_wasm_server",
        &["wasm"],
        forward,
    ),
];

/// What came of a command.
struct Said {
    out: String,
    err: String,
    /// As JSON.
    status: String,
}

/// Upgrades a request to the kubelet; the door stays open meanwhile.
fn connect<T: Send>(
    node: &Node,
    target: &str,
    protocol: &str,
    talk: impl FnOnce(Spdy) -> Result<T> + Send,
) -> Result<T> {
    let kubelet = node.kubelet.as_ref().context("the kubelet is down")?;
    let door = kubelet.door(&node.machine.world)?;
    let url = format!("http://{}{target}", door.address);
    node.machine
        .world
        .enter(|| talk(Spdy::connect(&url, protocol)?))
        .with_context(|| target.to_owned())
}

/// The words of a command, for a query.
fn query(argv: &[&str]) -> String {
    let mut query = String::new();
    for word in argv {
        query.push_str("&command=");
        for byte in word.bytes() {
            query.push_str(&format!("%{byte:02x}"));
        }
    }
    query
}

fn run(node: &Node, container: &str, argv: &[&str], input: &str) -> Result<Said> {
    let target = format!(
        "/exec/default/streams-node/{container}?input=1&output=1&error=1{}",
        query(argv)
    );
    connect(node, &target, "v4.channel.k8s.io", |mut client| {
        let [error, stdin, out, err] =
            streams(&mut client, ["error", "stdin", "stdout", "stderr"])?;
        client.send(stdin, input.as_bytes())?;
        client.end(stdin)?;
        let mut text = |stream| -> Result<String> {
            Ok(String::from_utf8_lossy(&client.all(stream)?).into_owned())
        };
        Ok(Said {
            out: text(out)?,
            err: text(err)?,
            status: text(error)?,
        })
    })
}

fn streams<const N: usize>(client: &mut Spdy, kinds: [&str; N]) -> Result<[u32; N]> {
    let mut ids = [0; N];
    for (id, kind) in ids.iter_mut().zip(kinds) {
        *id = client.open(&[("streamtype", kind)])?;
    }
    Ok(ids)
}

fn exec(node: &Node) -> Result<()> {
    for container in ["wasm", "linux"] {
        node.ready("streams", container, true)?;
        let said = run(node, container, &["/bin/cat"], "there and back")?;
        ensure!(said.out == "there and back", "{container}: {}", said.out);
        ensure!(said.status.contains("Success"), "{}", said.status);
        let said = run(node, container, &["/bin/cat", "/no/such/file"], "")?;
        ensure!(said.err.contains("/no/such/file"), "{}", said.err);
        let nonzero = said.status.contains("NonZeroExitCode") && said.status.contains(r#""1""#);
        ensure!(nonzero, "{container}: {}", said.status);
    }
    Ok(())
}

fn shell(node: &Node) -> Result<()> {
    node.ready("streams", "wasm", true)?;
    let script = "for n in 1 2 3; do echo $n; done | wc -l; read line; echo got $line; exit 7";
    let said = run(node, "wasm", &["sh", "-c", script], "a line\n")?;
    ensure!(said.out.trim() == "3\ngot a line", "{:?}", said.out);
    ensure!(said.status.contains(r#""7""#), "{}", said.status);
    Ok(())
}

fn attach(node: &Node) -> Result<()> {
    for container in ["wasm-input", "linux-input"] {
        node.ready("streams", container, true)?;
        let target = format!("/attach/default/streams-node/{container}?input=1&output=1");
        connect(node, &target, "v4.channel.k8s.io", |mut client| {
            let [_error, stdin, out] = streams(&mut client, ["error", "stdin", "stdout"])?;
            client.send(stdin, b"typed\n")?;
            while !client
                .data
                .get(&out)
                .is_some_and(|data| data.ends_with(b"\n"))
            {
                ensure!(client.step()?, "the kubelet closed");
            }
            let came = client.data.remove(&out).unwrap_or_default();
            ensure!(came == b"typed\n", "{}", String::from_utf8_lossy(&came));
            Ok(())
        })
        .with_context(|| container.to_owned())?;
        // In the log, too, and the container goes on.
        node.logged("streams", container, "typed")?;
        node.ready("streams", container, true)?;
    }
    Ok(())
}

fn forward(node: &Node) -> Result<()> {
    node.ready("wasm", "server", true)?;
    let target = "/portForward/default/wasm-node";
    connect(node, target, "portforward.k8s.io", |mut client| {
        for id in ["0", "1"] {
            let headers = |kind| [("streamtype", kind), ("port", "8080"), ("requestid", id)];
            let error = client.open(&headers("error"))?;
            client.end(error)?;
            let data = client.open(&headers("data"))?;
            client.send(data, b"GET /forwarded HTTP/1.0\r\n\r\n")?;
            let answer = String::from_utf8_lossy(&client.all(data)?).into_owned();
            ensure!(answer.contains("hello from a wasm server"), "{answer}");
            let complaint = client.all(error)?;
            ensure!(
                complaint.is_empty(),
                "{}",
                String::from_utf8_lossy(&complaint)
            );
        }
        Ok(())
    })?;
    node.logged("wasm", "server", "served GET /forwarded HTTP/1.0")?;
    Ok(())
}
