//! Which processes hang on one: a look at `/proc`, for what is left when runc or an
//! exec was killed.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sys;

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// Ticks since boot; with the pid it names a process for ever.
    started: u64,
    ended: bool,
}

/// Kills, until there are none, the processes that descend from `root` or belong to
/// the session that it leads; `root` itself is left to the caller. Gives up after
/// `limit`: a process in an uninterruptible wait dies later.
pub(crate) fn kill_offspring(root: Pid, limit: Duration) {
    if root == rustix::process::getpid() && !sys::has_children() {
        return;
    }
    let end = Instant::now() + limit;
    let root = root.as_raw_nonzero().get();
    loop {
        let left = offspring(&snapshot(), root);
        if left.is_empty() || Instant::now() >= end {
            return;
        }
        for process in left {
            kill(process);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills one process unless its pid has meanwhile become another's.
fn kill(process: Process) {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if read(process.pid).is_some_and(|now| now.started == process.started) {
        // It may have ended by itself: that is what we want.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

fn snapshot() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn read(pid: i32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Process> {
    // The name in brackets may hold anything, brackets and blanks included.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(Process {
        pid: head.split_once(' ')?.0.parse().ok()?,
        ended: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn offspring(all: &[Process], root: i32) -> Vec<Process> {
    let mut family = HashSet::from([root]);
    // One round for each generation; the order in /proc is no help once pids wrap.
    loop {
        let before = family.len();
        family.extend(
            all.iter()
                .filter(|one| family.contains(&one.parent) || one.session == root)
                .map(|one| one.pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    all.iter()
        .filter(|one| one.pid != root && !one.ended && family.contains(&one.pid))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line = "42 (a) b ( c) S 7 42 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9876 0 0\n";
        let process = Process {
            pid: 42,
            parent: 7,
            session: 41,
            started: 9876,
            ended: false,
        };
        assert_eq!(parse(line), Some(process));
        assert!(parse(&line.replace(" S ", " Z ")).unwrap().ended);
        for bad in ["", "42", "42 (a", "42 (a) S 7", "x (a) S 7 1 1 0 0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(read(own).unwrap().pid, own);
    }

    #[test]
    fn families() {
        let process = |pid, parent, session| Process {
            pid,
            parent,
            session,
            started: 0,
            ended: false,
        };
        let all = [
            process(30, 20, 9),
            process(10, 1, 10),
            process(20, 10, 9),
            process(40, 1, 10),
            process(50, 40, 8),
            process(60, 1, 60),
        ];
        let pids = |root| -> Vec<i32> { offspring(&all, root).iter().map(|one| one.pid).collect() };
        assert_eq!(pids(10), [30, 20, 40, 50]);
        assert_eq!(pids(60), [0; 0]);
        assert_eq!(pids(40), [50]);
        let mut all = all;
        all[0].ended = true;
        assert_eq!(offspring(&all, 20), []);
    }
}
