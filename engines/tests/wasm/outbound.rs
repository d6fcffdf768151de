//! Components that reach others: UDP, names, HTTP and HTTPS, against real servers in
//! a network namespace.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criw_engines::protocol::{Reply, Request};

use crate::container::{Container, Plan, compile, skip, skipped, tmpfs};
use crate::guests::component;
use crate::network::{inside, network};

/// Runs the network guest with these words and gives what it printed.
fn run(network: &OwnedFd, words: &[&str], etc: &[(&str, &str)], env: &[&str]) -> String {
    let plan = Plan {
        args: std::iter::once(&"net")
            .chain(words)
            .map(ToString::to_string)
            .collect(),
        env: env.iter().map(ToString::to_string).collect(),
        mounts: vec![("/etc".to_owned(), tmpfs(etc))],
        network: Some(network.try_clone().unwrap()),
        ..Plan::default()
    };
    let mut container = Container::create(&compile(&component("net")).unwrap(), plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    let (code, record) = container.wait();
    assert_eq!(code, 0, "{record:?}");
    let lines = container.lines().into_iter().map(|(_, _, text)| text);
    lines.collect::<Vec<_>>().join("\n")
}

/// Answers the next question: cuts it short (TC) when `cut`, else `a.test.zone` has an
/// address, `none.test.zone` has none, and all else does not exist.
fn answer(question: &[u8], cut: bool) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] > 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..at + 1 + length]).into_owned());
        at += length + 1;
    }
    let is_a = question[at + 2] == 1;
    let name = labels.join(".");
    let mut answer = question[..at + 5].to_vec();
    let addresses: &[[u8; 4]] = match &*name {
        "a.test.zone" if is_a && !cut => &[[127, 0, 0, 1], [127, 0, 0, 9]],
        _ => &[],
    };
    let known = ["a.test.zone", "none.test.zone"].contains(&&*name);
    answer[2] = 0x81 | if cut { 2 } else { 0 };
    answer[3] = if known { 0x80 } else { 0x83 };
    answer[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        // The name by pointer, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

/// A name server that cuts each answer by UDP, so that TCP is needed as well. Its
/// threads end with the test's process.
fn name_server(network: &OwnedFd) {
    let (udp, tcp) = inside(network, || {
        (
            UdpSocket::bind("127.0.0.1:53").unwrap(),
            TcpListener::bind("127.0.0.1:53").unwrap(),
        )
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            // One that does not fit the question comes first.
            let mut wrong = answer(&buffer[..length], false);
            wrong[0] ^= 1;
            let cut = buffer[13] == b'a';
            for bytes in [wrong, answer(&buffer[..length], cut)] {
                udp.send_to(&bytes, peer).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = answer(&question, false);
            stream
                .write_all(&(answer.len() as u16).to_be_bytes())
                .unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
}

const RESOLV: &str =
    "nameserver 127.0.0.1\nsearch nowhere.zone test.zone\noptions ndots:5 timeout:2\n";

#[test]
fn names_are_found_in_hosts_and_dns() {
    if skip("names_are_found_in_hosts_and_dns") {
        return;
    }
    let network = network();
    name_server(&network);
    let etc = [("resolv.conf", RESOLV), ("hosts", "10.1.2.3 here alias\n")];
    for (name, expected) in [
        ("alias", "10.1.2.3"),
        ("10.0.0.7", "10.0.0.7"),
        // By the search list; by the whole name.
        ("a", "127.0.0.1\n127.0.0.9"),
        ("A.test.zone.", "127.0.0.1\n127.0.0.9"),
        // 18: name-unresolvable, 3: invalid-argument.
        ("none", "error 18"),
        ("nobody.test.zone.", "error 18"),
        ("not a..name", "error 3"),
    ] {
        let found = run(&network, &[&format!("lookup/{name}")], &etc, &[]);
        assert_eq!(found, expected, "{name}");
    }
    // Nobody answers there: 19 is temporary-resolver-failure.
    let dead = [(
        "resolv.conf",
        "nameserver 127.0.0.2\noptions timeout:1 attempts:1\n",
    )];
    assert_eq!(run(&network, &["lookup/a."], &dead, &[]), "error 19");
}

#[test]
fn udp_sockets_send_and_receive() {
    if skip("udp_sockets_send_and_receive") {
        return;
    }
    let network = network();
    let echo = inside(&network, || UdpSocket::bind("127.0.0.1:7007").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let (length, peer) = echo.recv_from(&mut buffer).unwrap();
        let text = format!("{} back", String::from_utf8_lossy(&buffer[..length]));
        echo.send_to(text.as_bytes(), peer).unwrap();
    });
    assert_eq!(run(&network, &["udp/7007"], &[], &[]), "ping back");
}

/// A server of one kind of answer; ends with the test's process.
fn http_server(network: &OwnedFd, address: &str) {
    let listener = inside(network, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let first = head.lines().next().unwrap_or_default();
            let host = head
                .lines()
                .find(|line| line.to_lowercase().starts_with("host:"));
            let body = format!("{first}|{}\n", host.unwrap_or_default().to_lowercase());
            let length = body.len();
            let answer = format!("HTTP/1.1 201 Created\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
}

#[test]
fn requests_go_out_by_name() {
    if skip("requests_go_out_by_name") {
        return;
    }
    let network = network();
    name_server(&network);
    http_server(&network, "127.0.0.1:80");
    http_server(&network, "127.0.0.1:8081");
    let etc = [("resolv.conf", RESOLV)];
    for (url, expected) in [
        ("http/a/x?y=1", "status 201\nGET /x?y=1 HTTP/1.1|host: a"),
        (
            "http/127.0.0.1:8081/",
            "status 201\nGET / HTTP/1.1|host: 127.0.0.1:8081",
        ),
        // 1: DNS-error, 6: connection-refused.
        ("http/nobody/", "error 1"),
        ("http/127.0.0.1:9/", "error 6"),
    ] {
        let found = run(&network, &[&format!("fetch/{url}")], &etc, &[]);
        assert_eq!(found, expected, "{url}");
    }
    // A component that serves can do it too.
    let plan = Plan {
        mounts: vec![("/etc".to_owned(), tmpfs(&etc))],
        network: Some(network.try_clone().unwrap()),
        ..Plan::default()
    };
    let code = compile(&component("proxy")).unwrap();
    let container = Container::create(&code, plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    let mut answer = String::new();
    inside(&network, || {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:8080").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let request = "GET /fetch/http/a/z HTTP/1.1\r\nhost: p\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
    });
    assert!(answer.contains("GET /z HTTP/1.1|host: a"), "{answer}");
}

/// `openssl s_server` with a certificate for `secure.test`, and that certificate.
struct Secure {
    server: Child,
    certificate: String,
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn secure(test: &str, network: &OwnedFd) -> Option<Secure> {
    const CONFIG: &str = "[req]\nprompt = no\ndistinguished_name = dn\nx509_extensions = v3\n\
        [dn]\nCN = secure.test\n\
        [v3]\nsubjectAltName = DNS:secure.test\nbasicConstraints = critical,CA:FALSE\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config"), CONFIG).unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-config"])
        .arg(directory.path().join("config"))
        .arg("-keyout")
        .arg(directory.path().join("key"))
        .arg("-out")
        .arg(directory.path().join("cert"))
        .stderr(Stdio::null())
        .status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        skipped(test, &format!("openssl: {made:?}"));
        return None;
    }
    let server = inside(network, || {
        let mut server = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:443", "-www", "-cert"])
            .arg(directory.path().join("cert"))
            .arg("-key")
            .arg(directory.path().join("key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It says ACCEPT when it listens.
        let mut said = Vec::new();
        let mut byte = [0];
        let output = server.stdout.as_mut().unwrap();
        while !said.ends_with(b"ACCEPT") && output.read(&mut byte).unwrap() > 0 {
            said.push(byte[0]);
        }
        server
    });
    let certificate = std::fs::read_to_string(directory.path().join("cert")).unwrap();
    Some(Secure {
        server,
        certificate,
    })
}

#[test]
fn tls_trusts_what_the_container_trusts() {
    const TEST: &str = "tls_trusts_what_the_container_trusts";
    if skip(TEST) {
        return;
    }
    let network = network();
    let Some(secure) = secure(TEST, &network) else {
        return;
    };
    let hosts = "127.0.0.1 secure.test other.test\n";
    let trusting = [("hosts", hosts), ("ca.pem", &*secure.certificate)];
    let named = ["SSL_CERT_FILE=/etc/ca.pem"];
    let found = run(&network, &["fetch/https/secure.test/"], &trusting, &named);
    assert!(found.starts_with("status 200\n"), "{found}");
    for (url, env, error, logged) in [
        // 13: TLS-certificate-error. The name is not in the certificate; nobody said
        // that it is to be trusted.
        ("https/other.test/", &named[..], "error 13", ""),
        ("https/secure.test/", &[], "error 13", ""),
        // 37: configuration-error.
        (
            "https/secure.test/",
            &["SSL_CERT_FILE=/etc/none"],
            "error 37",
            "SSL_CERT_FILE /etc/none",
        ),
    ] {
        let found = run(&network, &[&format!("fetch/{url}")], &trusting, env);
        assert!(
            found.contains(error) && found.contains(logged),
            "{url} {env:?}: {found}"
        );
    }
}
