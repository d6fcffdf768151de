//! WASI 0.3: async commands and services, and what both reach.

use std::io::{Read, Write};
use std::net::TcpListener;

use criw_engines::protocol::{Reply, Request};
use criw_engines::spec::HttpSection;

use crate::container::{Container, Plan, compile, skip, tmpfs};
use crate::guests::component;
use crate::http::{Served, ask, limits, read, serve_component};
use crate::network::{inside, network};

/// Runs the async command; its exit code, output and log.
fn run(words: &[&str], change: impl FnOnce(&mut Plan)) -> (i32, String, String) {
    let mut plan = Plan {
        args: std::iter::once(&"async")
            .chain(words)
            .map(ToString::to_string)
            .collect(),
        ..Plan::default()
    };
    change(&mut plan);
    let code = compile(&component("async")).unwrap();
    let mut container = Container::create(&code, plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    let (code, _) = container.wait();
    let lines = container.lines().into_iter();
    let out = lines.filter(|(stream, _, _)| stream == "stdout");
    let out: Vec<_> = out.map(|(_, _, text)| text).collect();
    (code, out.join("\n"), container.log())
}

#[test]
fn an_async_command_runs_to_its_end() {
    if skip("an_async_command_runs_to_its_end") {
        return;
    }
    let (code, out, log) = run(&["say/one", "wait/50", "say/two"], |_| {});
    assert_eq!((code, &*out), (0, "one\ntwo"), "{log}");
    let (code, out, log) = run(&["say/bad", "fail"], |_| {});
    assert_eq!((code, &*out), (1, "bad"), "{log}");
    // A task that has returned may go on.
    let (code, out, log) = run(&["fail", "return", "wait/50", "say/later"], |_| {});
    assert_eq!((code, &*out), (1, "later"), "{log}");
    let (code, _, log) = run(&["say/x", "trap"], |_| {});
    assert_eq!(code, 134, "{log}");
    assert!(
        log.contains("unreachable") && log.contains("wasm backtrace"),
        "{log}"
    );
}

#[test]
fn an_async_command_reaches_others() {
    if skip("an_async_command_reaches_others") {
        return;
    }
    let network = network();
    let listener = inside(&network, || TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
            head.push(byte[0]);
        }
        let body = "from afar\n".repeat(1000);
        write!(
            stream,
            "HTTP/1.1 201 Created\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        String::from_utf8(head).unwrap()
    });
    // The name stands in the container's own file only: nobody asks the host's libc.
    let fetch = format!("fetch/far.test:{port}/path?q");
    let words = [
        "lookup/far.test",
        "lookup/not a name",
        &fetch,
        "fetch/127.0.0.1:1/",
    ];
    let (code, out, log) = run(&words, |plan| {
        plan.network = Some(network);
        plan.mounts = vec![("/etc".into(), tmpfs(&[("hosts", "127.0.0.1 far.test\n")]))];
    });
    assert_eq!(code, 0, "{log}");
    let head = server.join().unwrap();
    assert!(head.starts_with("GET /path?q HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains(&format!("host: far.test:{port}\r\n")),
        "{head}"
    );
    let expected = format!(
        "127.0.0.1\nerror 1\nstatus 201\n{}error 6",
        "from afar\n".repeat(1000)
    );
    assert_eq!(out, expected);
}

fn serve(http: HttpSection) -> Served {
    serve_component(
        "service",
        Plan {
            wasm: criw_engines::spec::WasmSection {
                http,
                ..Default::default()
            },
            ..Plan::default()
        },
    )
}

#[test]
fn a_service_answers_and_drains() {
    if skip("a_service_answers_and_drains") {
        return;
    }
    let mut served = serve(HttpSection::default());
    let hello = served.get("/");
    assert_eq!((hello.status, &*hello.body), (200, "hello from 0.3\n"));
    assert!(
        hello.whole && hello.head.contains("x-guest: service"),
        "{hello:?}"
    );
    assert_eq!(served.get("/authority").body, "pod");
    assert_eq!(served.get("/empty").body, "");
    for n in 1..4 {
        assert_eq!(served.get("/count").body, n.to_string());
    }
    // A body that goes through, larger than any buffer on the way: the guest hands it on.
    let words = "0123456789abcdef".repeat(40_000);
    let mut stream = served.connect();
    let mut writer = stream.try_clone().unwrap();
    let sent = words.clone();
    let sender = std::thread::spawn(move || {
        let length = sent.len();
        write!(
            writer,
            "POST /echo HTTP/1.1\r\nhost: pod\r\ncontent-length: {length}\r\n\r\n{sent}"
        )
        .unwrap();
    });
    let echo = read(&mut stream);
    sender.join().unwrap();
    assert!(
        echo.whole && echo.body == words,
        "{} bytes",
        echo.body.len()
    );
    let mut busy = served.connect();
    ask(&mut busy, "/drip/100", "");
    // Its first byte: it is inside.
    busy.peek(&mut [0]).unwrap();
    assert_eq!(served.container.stop(), Reply::Done);
    assert_eq!(read(&mut busy).body, "drip\n".repeat(5));
    let (code, record) = served.container.wait();
    assert_eq!(code, 0, "{record:?} {}", served.container.log());
}

#[test]
fn a_request_of_a_service_fails_alone() {
    if skip("a_request_of_a_service_fails_alone") {
        return;
    }
    let served = serve(limits(700));
    for (path, status, whole, logged) in [
        ("/trap", 500, true, "unreachable"),
        ("/error", 500, true, "LoopDetected"),
        // The head was sent: all that is left is to break off.
        ("/late-trap", 200, false, "unreachable"),
        ("/spin", 504, true, "nothing moved for 700ms"),
        ("/wait/5000", 504, true, "nothing moved for 700ms"),
        ("/drip/300", 200, true, ""),
    ] {
        let response = served.get(path);
        assert_eq!(
            (response.status, response.whole),
            (status, whole),
            "{path} {response:?}"
        );
        let log = served.container.log();
        assert!(log.contains(logged), "{path}: {log}");
        assert_eq!(served.get("/").status, 200, "after {path}");
    }
    // A client that leaves in the middle of an endless stream.
    let mut endless = served.connect();
    ask(&mut endless, "/stream", "");
    let mut bytes = vec![0; 1 << 20];
    endless.read_exact(&mut bytes).unwrap();
    drop(endless);
    assert_eq!(served.get("/").status, 200);
}
