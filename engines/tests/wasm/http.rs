//! Components of wasi:http/proxy: served in a network namespace of their own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use criw_engines::protocol::{Reply, Request};
use criw_engines::spec::{HttpSection, WasmSection};

use crate::container::{Container, DEADLINE, Plan, compile, compile_metered, skip, tmpfs};
use crate::guests::component;
use crate::network::{inside, network};

/// Where a server listens that nobody told.
const DEFAULT: &str = "127.0.0.1:8080";

pub(crate) struct Served {
    pub(crate) container: Container,
    network: OwnedFd,
}

pub(crate) fn serve_with(http: HttpSection, change: impl FnOnce(&mut Plan)) -> Served {
    let network = network();
    let mut plan = Plan {
        wasm: WasmSection {
            http,
            ..WasmSection::default()
        },
        network: Some(network.try_clone().unwrap()),
        ..Plan::default()
    };
    change(&mut plan);
    start("proxy", plan, network)
}

/// Serves another guest.
pub(crate) fn serve_component(name: &str, mut plan: Plan) -> Served {
    let network = network();
    plan.network = Some(network.try_clone().unwrap());
    start(name, plan, network)
}

fn start(name: &str, plan: Plan, network: OwnedFd) -> Served {
    let code = match plan.wasm.fuel {
        Some(_) => compile_metered(&component(name)).unwrap(),
        None => compile(&component(name)).unwrap(),
    };
    let container = Container::create(&code, plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    Served { container, network }
}

pub(crate) fn serve(http: HttpSection) -> Served {
    serve_with(http, |_| {})
}

/// A response as it came: status (0 for none), whole head, body, and whether it was whole.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) whole: bool,
}

impl Served {
    pub(crate) fn connect(&self) -> TcpStream {
        self.connect_to(DEFAULT)
    }

    fn connect_to(&self, address: &str) -> TcpStream {
        inside(&self.network, || {
            let stream = TcpStream::connect_timeout(&address.parse().unwrap(), DEADLINE).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream
        })
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        let mut stream = self.connect();
        ask(&mut stream, path, "connection: close\r\n");
        read(&mut stream)
    }
}

pub(crate) fn ask(stream: &mut TcpStream, path: &str, headers: &str) {
    // In one piece: the server may answer and close before the second.
    let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
}

/// Reads one response; the connection may go on behind it.
pub(crate) fn read(stream: &mut TcpStream) -> Response {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head
        .get(9..12)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    let mut body = Vec::new();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let whole = match length {
        Some(length) => {
            body = vec![0; length];
            stream.read_exact(&mut body).is_ok()
        }
        None => head.contains("transfer-encoding: chunked") && read_chunks(stream, &mut body),
    };
    Response {
        status,
        head,
        body: String::from_utf8_lossy(&body).into_owned(),
        whole,
    }
}

fn read_chunks(stream: &mut TcpStream, body: &mut Vec<u8>) -> bool {
    loop {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            if !stream.read(&mut byte).is_ok_and(|n| n > 0) {
                return false;
            }
            line.push(byte[0]);
        }
        let size = String::from_utf8_lossy(&line);
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            return false;
        };
        let mut chunk = vec![0; size + 2];
        if stream.read_exact(&mut chunk).is_err() {
            return false;
        }
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return true;
        }
    }
}

pub(crate) fn limits(timeout_ms: u64) -> HttpSection {
    HttpSection {
        request_timeout_ms: Some(timeout_ms),
        // One thread: what computes must not keep the others waiting.
        cpus: Some(1),
        ..HttpSection::default()
    }
}

#[test]
fn a_component_is_served_on_the_pods_addresses() {
    if skip("a_component_is_served_on_the_pods_addresses") {
        return;
    }
    let mut served = serve_with(HttpSection::default(), |plan| {
        plan.args = vec!["proxy".into(), "one".into(), "two words".into()];
        plan.env = vec!["COLOUR=blue".into(), "WASMTIME_HTTP_BACKLOG=7".into()];
        plan.mounts = vec![("/data".into(), tmpfs(&[("note", "from a volume\n")]))];
    });
    let mut stream = served.connect();
    for id in 0..3 {
        ask(&mut stream, "/env", "");
        let response = read(&mut stream);
        assert_eq!(response.status, 200, "{response:?}");
        let env: Vec<_> = response.body.lines().collect();
        assert!(env.contains(&"COLOUR=blue"), "{env:?}");
        assert!(env.contains(&&*format!("REQUEST_ID={id}")), "{env:?}");
        assert!(!response.body.contains("WASMTIME"), "{env:?}");
    }
    let hello = served.get("/");
    assert_eq!(
        (hello.status, &*hello.body),
        (200, "hello from a component\n")
    );
    assert!(hello.head.contains("x-guest: proxy"), "{hello:?}");
    assert_eq!(served.get("/args").body, "proxy\none\ntwo words\n");
    assert_eq!(served.get("/file/greeting").body, "hello from the root\n");
    assert_eq!(served.get("/file/data/note").body, "from a volume\n");
    assert_eq!(served.get("/log").status, 200);
    let lines = served.container.lines();
    for stream in ["stdout", "stderr"] {
        let wanted = (
            stream.to_owned(),
            "F".to_owned(),
            format!("said on {stream}"),
        );
        assert!(lines.contains(&wanted), "{lines:?}");
    }
    // IPv6 as well, by the same socket.
    let mut stream = served.connect_to("[::1]:8080");
    ask(&mut stream, "/", "");
    assert_eq!(read(&mut stream).status, 200);
    // A body in both directions at once, larger than any buffer on the way.
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
    assert_eq!(served.container.stop(), Reply::Done);
    let (code, record) = served.container.wait();
    assert_eq!(code, 0, "{record:?} {}", served.container.log());
}

/// One request by HTTP/2 without asking whether the server speaks it.
#[test]
fn http_2_is_spoken_by_prior_knowledge() {
    if skip("http_2_is_spoken_by_prior_knowledge") {
        return;
    }
    let served = serve(HttpSection::default());
    let mut stream = served.connect();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(id.to_be_bytes());
        frame.extend(payload);
        frame
    };
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    // :method GET, :scheme http, :path /, :authority pod; the whole request.
    let fields = [&[0x82, 0x86, 0x84, 0x41, 3][..], b"pod"].concat();
    stream.write_all(&frame(1, 5, 1, &fields)).unwrap();
    let (mut status, mut body) = (0, Vec::new());
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        match head[3] {
            0 => body.extend_from_slice(&payload),
            1 => status = payload[0],
            // SETTINGS wants to be acknowledged.
            4 if head[4] == 0 => stream.write_all(&frame(4, 1, 0, &[])).unwrap(),
            _ => {}
        }
        if head[3] <= 1 && head[4] & 1 != 0 {
            break;
        }
    }
    // 0x88 is ":status 200" in the static table.
    assert_eq!(
        (status, &body[..]),
        (0x88, &b"hello from a component\n"[..])
    );
}

#[test]
fn a_request_that_fails_fails_alone() {
    if skip("a_request_that_fails_fails_alone") {
        return;
    }
    requests_that_fail(None);
}

#[test]
fn a_request_that_fails_takes_its_instance_along() {
    if skip("a_request_that_fails_takes_its_instance_along") {
        return;
    }
    requests_that_fail(Some(1000));
}

fn requests_that_fail(reuse: Option<u32>) {
    let served = serve(HttpSection {
        reuse,
        ..limits(700)
    });
    for (path, status, whole, logged) in [
        ("/trap", 500, true, "unreachable"),
        ("/silent", 500, true, ""),
        ("/exit", 500, true, "called exit(1)"),
        ("/error", 500, true, "LoopDetected"),
        ("/broken", 200, true, ""),
        ("/leak", 200, true, ""),
        // The head was sent: all that is left is to break off.
        ("/late-trap", 200, false, "unreachable"),
        ("/short", 200, false, ""),
        ("/spin", 504, true, "nothing moved for 700ms"),
        ("/late-spin", 200, false, "nothing moved for 700ms"),
        ("/wait/5000", 504, true, "nothing moved for 700ms"),
        // Slower than the limit as a whole, but it moves.
        ("/drip/300", 200, true, ""),
    ] {
        let response = served.get(path);
        assert_eq!(
            (response.status, response.whole),
            (status, whole),
            "{path} {response:?}"
        );
        assert!(
            served.container.log().contains(logged),
            "{path}: {}",
            served.container.log()
        );
        assert_eq!(served.get("/").status, 200, "after {path}");
    }
    // The backtrace names the guest's function.
    let log = served.container.log();
    assert!(
        log.contains("(GET /trap)") && log.contains("wasm backtrace"),
        "{log}"
    );
}

#[test]
fn requests_that_compute_take_turns_with_others() {
    if skip("requests_that_compute_take_turns_with_others") {
        return;
    }
    let served = serve(limits(20_000));
    let mut spinning: Vec<_> = (0..3).map(|_| served.connect()).collect();
    for stream in &mut spinning {
        ask(stream, "/spin", "");
    }
    for _ in 0..5 {
        assert_eq!(served.get("/").status, 200);
    }
    // A stream that nobody reads, and one that is read for a while.
    let mut unread = served.connect();
    ask(&mut unread, "/stream", "");
    let mut endless = served.connect();
    ask(&mut endless, "/stream", "");
    let mut bytes = vec![0; 1 << 20];
    endless.read_exact(&mut bytes).unwrap();
    drop(endless);
    assert_eq!(served.get("/").status, 200);
}

#[test]
fn floods_meet_bounds() {
    if skip("floods_meet_bounds") {
        return;
    }
    let served = serve_with(
        HttpSection {
            max_connections: Some(6),
            max_requests: Some(1),
            max_body: Some(1000),
            ..limits(30_000)
        },
        |plan| plan.wasm.memory_limit = Some(4 << 20),
    );
    // More linear memory than the container may have ends the request, not the container.
    assert_eq!(served.get("/hog").status, 500);
    assert!(served.container.log().contains("out of memory"));
    assert_eq!(served.get("/").status, 200);
    for (head, status) in [
        (
            format!(
                "GET / HTTP/1.1\r\nhost: a\r\nlong: {}\r\n\r\n",
                "x".repeat(100_000)
            ),
            431,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
                "x: y\r\n".repeat(200)
            ),
            431,
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n".to_owned(),
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n".to_owned(),
            413,
        ),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 501),
    ] {
        let mut stream = served.connect();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(head.as_bytes());
        let line = &head[..head.len().min(60)];
        assert_eq!(read(&mut stream).status, status, "{line}");
    }
    // One request has the only place, the next waits, and gives up.
    let mut first = served.connect();
    ask(&mut first, "/wait/6000", "");
    let begin = Instant::now();
    let late = served.get("/");
    assert_eq!(late.status, 503, "{late:?}");
    assert!(late.head.contains("retry-after"), "{late:?}");
    assert!(begin.elapsed() >= Duration::from_secs(4));
    assert_eq!(read(&mut first).status, 200);
    // Silent connections take all places; one more is told so, and others come in again
    // when they leave.
    let silent: Vec<_> = (0..5).map(|_| served.connect()).collect();
    let end = Instant::now() + DEADLINE;
    let refused = loop {
        let response = served.get("/");
        if response.status == 503 || Instant::now() > end {
            break response;
        }
    };
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.body, "too many connections\n");
    drop((silent, first));
    while served.get("/").status != 200 {
        assert!(Instant::now() < end);
    }
}

/// A slow loris: a head that never ends, byte by byte.
#[test]
fn a_head_that_comes_too_slowly_loses_its_place() {
    if skip("a_head_that_comes_too_slowly_loses_its_place") {
        return;
    }
    let served = serve(limits(1_000));
    let mut idle = served.connect();
    ask(&mut idle, "/", "");
    assert_eq!(read(&mut idle).status, 200);
    for begun in ["G", "GET / HTTP/1.1\r\nhost: pod\r\nx: ", "PRI"] {
        let mut slow = served.connect();
        let begin = Instant::now();
        slow.write_all(begun.as_bytes()).unwrap();
        slow.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        // The time-out of the read paces the bytes.
        while matches!(slow.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        {
            let _ = slow.write_all(b"y");
            assert!(begin.elapsed() < DEADLINE, "{begun:?} is still served");
        }
        assert!(begin.elapsed() >= Duration::from_millis(900), "{begun:?}");
    }
    // Who sends nothing between two requests is welcome.
    ask(&mut idle, "/", "");
    assert_eq!(read(&mut idle).status, 200);
}

#[test]
fn a_stop_signal_drains() {
    if skip("a_stop_signal_drains") {
        return;
    }
    let mut served = serve(HttpSection::default());
    let mut idle = served.connect();
    ask(&mut idle, "/", "");
    assert_eq!(read(&mut idle).status, 200);
    let mut busy = served.connect();
    ask(&mut busy, "/log", "");
    assert_eq!(read(&mut busy).status, 200);
    ask(&mut busy, "/wait/1500", "");
    served.container.await_log("waiting");
    let mut new = served.connect();
    assert_eq!(served.container.stop(), Reply::Done);
    let begin = Instant::now();
    while inside(&served.network, || TcpStream::connect(DEFAULT).is_ok()) {
        assert!(begin.elapsed() < DEADLINE);
    }
    // Connected before, and nothing said yet: there is a last call.
    ask(&mut new, "/", "");
    let last = read(&mut new);
    let in_time = begin.elapsed() < Duration::from_millis(400);
    if in_time {
        assert_eq!(last.status, 200, "{last:?}");
        assert!(last.head.contains("connection: close"), "{last:?}");
    }
    let response = read(&mut busy);
    assert_eq!((response.status, &*response.body), (200, "waited\n"));
    assert!(response.head.contains("connection: close"), "{response:?}");
    // An idle one is just closed.
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    let (code, record) = served.container.wait();
    assert_eq!(code, 0, "{record:?} {}", served.container.log());
}

#[test]
fn a_drain_ends_with_the_grace() {
    if skip("a_drain_ends_with_the_grace") {
        return;
    }
    for path in ["/wait/60000", "/spin", "/stream"] {
        let mut served = serve(limits(60_000));
        let mut stream = served.connect();
        ask(&mut stream, path, "");
        // Inside: another one that came later was answered.
        assert_eq!(served.get("/").status, 200);
        let stop = Request::Signal {
            signal: libc::SIGTERM,
            stop: true,
            grace_ms: 2000,
        };
        assert_eq!(served.container.call(&stop), Reply::Done);
        let (code, record) = served.container.wait();
        let record = record.unwrap();
        // By itself: nobody sends SIGKILL here.
        assert_eq!((code, record.code), (143, 143), "{path}");
        assert!(
            record.message.contains("1 requests unfinished"),
            "{record:?}"
        );
    }
}

#[test]
fn the_address_is_chosen_by_the_environment_and_must_be_free() {
    if skip("the_address_is_chosen_by_the_environment_and_must_be_free") {
        return;
    }
    let address = "WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:9191";
    let served = serve_with(HttpSection::default(), |plan| {
        plan.env = vec![address.into()]
    });
    let mut stream = served.connect_to("127.0.0.1:9191");
    ask(&mut stream, "/", "");
    assert_eq!(read(&mut stream).status, 200);
    let code = compile(&component("proxy")).unwrap();
    for (env, parts) in [
        (address, ["127.0.0.1:9191", "in use"]),
        ("SPIN_HTTP_LISTEN_ADDR=10.9.8.7:1", ["10.9.8.7:1", "assign"]),
        (
            "SPIN_HTTP_LISTEN_ADDR=0.0.0.0:80",
            ["0.0.0.0:80", "unprivileged"],
        ),
        (
            "SPIN_HTTP_LISTEN_ADDR=here",
            ["SPIN_HTTP_LISTEN_ADDR", "ip:port"],
        ),
    ] {
        let plan = Plan {
            env: vec![env.into()],
            network: Some(served.network.try_clone().unwrap()),
            ..Plan::default()
        };
        let mut container = Container::create(&code, plan).unwrap();
        let Reply::StartFailed { message } = container.call(&Request::Start) else {
            panic!("{env} was taken");
        };
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{env}: {message}"
        );
        assert_eq!(container.wait().0, 128);
    }
}

#[test]
fn what_runs_here_is_said_to_components_that_do_not() {
    if skip("what_runs_here_is_said_to_components_that_do_not") {
        return;
    }
    for (wat, parts) in [
        (
            r#"(component
                (import "wasi:keyvalue/store@0.2.0" (instance (export "get" (func))))
                (import "wasi:cli/stdout@0.4.0" (instance (export "x" (func))))
                (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#,
            [
                "wasi:keyvalue/store is provided as 0.2.0-draft, 0.2.0-draft2",
                "wasi:cli/stdout@0.4.0",
                "wasi:http/proxy 0.2",
            ],
        ),
        (
            r#"(component
                (instance $i) (export "wasi:messaging/incoming-handler@0.2.0" (instance $i)))"#,
            [
                "wasi:messaging/incoming-handler@0.2.0",
                "none of our worlds",
                "wasi:cli/command",
            ],
        ),
        ("(component)", ["exports nothing", "worlds", "preview 1"]),
    ] {
        let code = compile(wat.as_bytes()).unwrap();
        let container = Container::create(&code, Plan::default()).unwrap();
        let Reply::StartFailed { message } = container.call(&Request::Start) else {
            panic!("{wat} started");
        };
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}
