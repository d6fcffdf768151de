//! Clients of a component that mean it ill: slow ones and too many. Each time the next
//! honest request is answered.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use criw_engines::spec::HttpSection;

use crate::container::{DEADLINE, skip};
use crate::http::{Served, ask, limits, read, serve};

/// Sends part of a request.
fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

/// Asks until the answer is 200: places become free again by themselves.
fn answered(served: &Served) {
    let end = Instant::now() + DEADLINE;
    while served.get("/").status != 200 {
        assert!(Instant::now() < end, "no place became free");
    }
}

#[test]
fn slow_clients_wait_for_themselves() {
    if skip("slow_clients_wait_for_themselves") {
        return;
    }
    let served = serve(limits(700));
    let head = "GET / HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n";
    let mut heads: Vec<_> = (0..20).map(|_| served.connect()).collect();
    let mut bodies: Vec<_> = (0..20).map(|_| served.connect()).collect();
    for stream in &mut bodies {
        say(
            stream,
            "POST /echo HTTP/1.1\r\nhost: pod\r\ncontent-length: 100\r\n\r\nsome",
        );
    }
    // A byte at a time of each head, and in between everybody else is served.
    for (position, byte) in head.bytes().enumerate() {
        for stream in &mut heads {
            stream.write_all(&[byte]).unwrap();
        }
        if position % 8 == 0 {
            assert_eq!(served.get("/").status, 200);
        }
    }
    for stream in &mut heads {
        assert_eq!(read(stream).status, 200, "slow is not wrong");
    }
    // The rest of the bodies never comes.
    for stream in &mut bodies {
        let response = read(stream);
        assert!(
            !response.whole && matches!(response.status, 200 | 504) || response.status == 504,
            "{response:?}"
        );
    }
    served.container.await_log("nothing moved for 700ms");
    assert_eq!(served.get("/").status, 200);
}

#[test]
fn clients_that_do_not_read_lose_their_place() {
    if skip("clients_that_do_not_read_lose_their_place") {
        return;
    }
    let served = serve(HttpSection {
        max_connections: Some(3),
        ..limits(700)
    });
    let mut unread: Vec<_> = (0..3).map(|_| served.connect()).collect();
    for stream in &mut unread {
        ask(stream, "/stream", "");
    }
    // Nothing is said of it in the log if the connection is given up before the request.
    answered(&served);
    drop(unread);
}

#[test]
fn a_flood_is_answered_or_refused_and_passes() {
    if skip("a_flood_is_answered_or_refused_and_passes") {
        return;
    }
    let served = serve(HttpSection {
        max_connections: Some(16),
        max_requests: Some(4),
        ..limits(2000)
    });
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|client| {
                let served = &served;
                scope.spawn(move || {
                    let paths = ["/", "/trap", "/silent", "/late-trap", "/short", "/error"];
                    (0..15)
                        .map(|n| served.get(paths[(client + n) % paths.len()]).status)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = clients.into_iter().map(|client| client.join().unwrap());
        joined.flatten().collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    // 0: refused without a word, because too many were being refused.
    let known = [200, 500, 503, 0].map(count);
    assert_eq!(known.iter().sum::<usize>(), 600, "{statuses:?}");
    assert!(known[0] > 0 && known[1] > 0, "{known:?}");
    answered(&served);
}

/// Streams of HTTP/2 that are begun and given up at once, as in CVE-2023-44487.
#[test]
fn streams_that_are_given_up_at_once_end_the_connection_only() {
    if skip("streams_that_are_given_up_at_once_end_the_connection_only") {
        return;
    }
    let served = serve(limits(2000));
    let mut stream = served.connect();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(id.to_be_bytes());
        frame.extend(payload);
        frame
    };
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    // :method GET, :scheme http, :path /, :authority pod.
    let fields = [&[0x82, 0x86, 0x84, 0x41, 3][..], b"pod"].concat();
    for n in 0..5000u32 {
        let id = 2 * n + 1;
        let pair = [frame(1, 5, id, &fields), frame(3, 0, id, &[0, 0, 0, 8])].concat();
        if stream.write_all(&pair).is_err() {
            break;
        }
    }
    // The server ends this connection, with or without a last word.
    let mut rest = [0; 4096];
    while stream.read(&mut rest).is_ok_and(|n| n > 0) {}
    answered(&served);
    assert!(
        served.container.log().len() < 1 << 20,
        "a line for each given up stream"
    );
    let begin = Instant::now();
    assert_eq!(served.get("/").status, 200);
    assert!(begin.elapsed() < Duration::from_secs(5));
}
