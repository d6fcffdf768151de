//! `criw.dev/http-reuse`: an instance that serves several requests. Which one did is seen
//! by `REQUEST_ID`, which is the number of the first.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use criw_engines::spec::HttpSection;

use crate::bounds::facts;
use crate::container::{Plan, skip};
use crate::http::{Served, ask, limits, read, serve, serve_component};

/// How long an instance waits for its next request.
const IDLE: Duration = Duration::from_secs(10);

fn reusing(reuse: u32) -> HttpSection {
    HttpSection {
        reuse: Some(reuse),
        ..limits(700)
    }
}

/// The number of the instance that answers.
fn instance(stream: &mut TcpStream) -> u64 {
    ask(stream, "/env", "");
    let response = read(stream);
    let id = response
        .body
        .lines()
        .find_map(|line| line.strip_prefix("REQUEST_ID="));
    id.unwrap_or_else(|| panic!("{response:?}"))
        .parse()
        .unwrap()
}

fn instances(served: &Served) -> u64 {
    facts(&served.container).instances
}

#[test]
fn an_instance_serves_as_many_requests_as_asked_for() {
    if skip("an_instance_serves_as_many_requests_as_asked_for") {
        return;
    }
    let served = serve(reusing(3));
    let mut stream = served.connect();
    let seen: Vec<u64> = (0..7).map(|_| instance(&mut stream)).collect();
    // The first was made to see whether one can be.
    assert_eq!(seen, [0, 0, 0, 3, 3, 3, 6]);
}

#[test]
fn requests_at_the_same_time_have_instances_of_their_own() {
    if skip("requests_at_the_same_time_have_instances_of_their_own") {
        return;
    }
    let served = serve(reusing(1000));
    let mut slow = served.connect();
    ask(&mut slow, "/wait/400", "");
    served.container.await_log("waiting");
    let mut stream = served.connect();
    let other = instance(&mut stream);
    assert_ne!(other, 0);
    assert_eq!(read(&mut slow).body, "waited\n");
    assert_eq!(instances(&served), 2);
    // The one used last comes first.
    assert_eq!(instance(&mut stream), 0);
}

#[test]
fn an_instance_that_failed_or_holds_on_serves_no_more() {
    if skip("an_instance_that_failed_or_holds_on_serves_no_more") {
        return;
    }
    let served = serve(reusing(1000));
    for path in [
        "/trap",
        "/exit",
        "/silent",
        "/spin",
        "/late-trap",
        "/leak",
        "/echo",
    ] {
        let before = instance(&mut served.connect());
        served.get(path);
        let after = instance(&mut served.connect());
        assert_ne!(before, after, "{path}");
    }
}

#[test]
fn an_instance_that_nobody_wants_goes() {
    if skip("an_instance_that_nobody_wants_goes") {
        return;
    }
    let served = serve(reusing(1000));
    instance(&mut served.connect());
    assert_eq!(instances(&served), 1);
    let end = Instant::now() + 3 * IDLE;
    while instances(&served) > 0 {
        assert!(Instant::now() < end, "it is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(served.get("/").status, 200);
}

#[test]
fn a_server_of_wasi_0_3_is_used_again() {
    if skip("a_server_of_wasi_0_3_is_used_again") {
        return;
    }
    let mut plan = Plan::default();
    plan.wasm.http = reusing(1000);
    let served = serve_component("service", plan);
    for _ in 0..3 {
        assert_eq!(served.get("/").status, 200);
        assert_eq!(instances(&served), 1);
    }
    assert_ne!(served.get("/trap").status, 200);
    assert_eq!(instances(&served), 0);
}
