//! How long the steps take and what an idle shim weighs: printed, and held against
//! generous bounds, because other tests run at the same time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criw_engines::protocol::{Reply, Request};

use crate::container::{Container, Plan, compile, skip};
use crate::guests::{hello, spin};

/// n of the bench; `CRIW_SHIM_ROUNDS` asks for more.
fn rounds() -> usize {
    std::env::var("CRIW_SHIM_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30)
}

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what}: min {:?} p50 {:?} p99 {:?} (n={})",
        at(0),
        at(50),
        at(99),
        times.len()
    );
    at(50)
}

/// Time of day of the first log line, which the guest's thread takes right before
/// its write. Watching the file instead would take one of two CPUs away.
fn stamp(log: &str) -> Duration {
    let field = |at: std::ops::Range<usize>| log[at].parse::<u64>().unwrap();
    let seconds = field(11..13) * 3600 + field(14..16) * 60 + field(17..19);
    Duration::new(seconds, field(20..29) as u32)
}

/// Time since midnight, UTC.
fn time_of_day() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Duration::new(now.as_secs() % 86_400, now.subsec_nanos())
}

#[test]
fn the_steps_are_quick() {
    if skip("the_steps_are_quick") {
        return;
    }
    let code = compile(hello().as_bytes()).unwrap();
    let (mut launches, mut creates, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds() {
        let begin = Instant::now();
        let mut container = Container::create(&code, Plan::default()).unwrap();
        creates.push(begin.elapsed());
        launches.push(container.launched);
        let begin = time_of_day();
        assert_eq!(container.call(&Request::Start), Reply::Started);
        container.wait();
        firsts.push(stamp(&container.log()).saturating_sub(begin));
    }
    report("launch", launches);
    assert!(report("launch to Created", creates) < Duration::from_millis(200));
    assert!(report("Start to first byte", firsts) < Duration::from_millis(100));
}

#[test]
fn an_idle_shim_is_light() {
    if skip("an_idle_shim_is_light") {
        return;
    }
    let code = compile(spin().as_bytes()).unwrap();
    // Several, because they share what they map.
    let all: Vec<_> = (0..10)
        .map(|_| Container::create(&code, Plan::default()).unwrap())
        .collect();
    let kilobytes = |pid: i32, key: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let sum = |key: &str| -> u64 { all.iter().map(|c| kilobytes(c.child.pid, key)).sum() };
    let pss = sum("Pss:") / all.len() as u64;
    let private = sum("Private_Dirty:") / all.len() as u64;
    println!("idle shim, one of ten: PSS {pss} kB, private dirty {private} kB");
    assert!(pss < 3000, "{pss} kB");
    // Each shim wrote 430 kB of its own pointers at its start, when it was position-independent.
    assert!(private < 350, "{private} kB");
}
