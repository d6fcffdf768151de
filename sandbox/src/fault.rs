//! Fault points: the places in a life-cycle call between which the node's state
//! differs. A daemon started with `CRIW_FAULT=<point>` kills itself with SIGKILL
//! there, so that tests prove for each of them that the next daemon finds its way. With
//! `CRIW_FAULT_HOLD=<file>` it waits there instead, as long as somebody has that file
//! locked (flock(2)): tests see what others do meanwhile.
//!
//! The table is the truth: `criw fault-points` prints it and the tests drive it.

use std::sync::OnceLock;

/// Every point, in the order in which a pod's life passes them.
pub const POINTS: &[&str] = &[
    "run-pod/recorded",
    "run-pod/namespaces",
    "run-pod/network-planned",
    "run-pod/network-attached",
    "run-pod/init-started",
    "run-pod/files",
    "run-pod/ready",
    "create/recorded",
    "create/cgroup",
    "create/prepared",
    "create/launched",
    "create/shim-created",
    "create/created",
    "start/sent",
    "start/recorded",
    "stop/signalled",
    "stop/kill-noted",
    "exit/seen",
    "exit/recorded",
    "remove/begun",
    "remove/torn-down",
    "remove/files-gone",
    "stop-pod/containers-ended",
    "stop-pod/recorded",
    "stop-pod/network-detached",
    "stop-pod/namespaces-gone",
    "remove-pod/stopped",
    "remove-pod/files-gone",
];

/// Dies or waits here when the environment names this point.
pub(crate) fn point(name: &str) {
    debug_assert!(POINTS.contains(&name), "{name} is not in the table");
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("CRIW_FAULT").ok());
    if chosen.as_deref() == Some(name) {
        if let Some(file) = std::env::var_os("CRIW_FAULT_HOLD") {
            let _ = std::fs::File::open(file).and_then(|file| file.lock());
            return;
        }
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn points_are_named_once() {
        let mut names = super::POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), super::POINTS.len());
    }
}
