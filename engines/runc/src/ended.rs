//! From a wait status to what Kubernetes shows.

use criw_engines::protocol::ExitReason;
use rustix::process::WaitStatus;

/// Exit code and reason of a process: its own code, or 128+n after signal n. Whether
/// a kill was the memory limit's, the daemon sees in the cgroup.
pub(crate) fn code_and_reason(status: WaitStatus) -> (i32, ExitReason) {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    let reason = if code == 0 {
        ExitReason::Completed
    } else {
        ExitReason::Error
    };
    (code, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn codes_of_real_processes() {
        for (script, code, reason) in [
            ("exit 0", 0, ExitReason::Completed),
            ("exit 3", 3, ExitReason::Error),
            ("exit 255", 255, ExitReason::Error),
            ("kill -TERM $$", 143, ExitReason::Error),
            ("kill -KILL $$", 137, ExitReason::Error),
            ("kill -SEGV $$", 139, ExitReason::Error),
        ] {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = rustix::process::Pid::from_child(&child);
            let (_, status) =
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
                    .unwrap()
                    .unwrap();
            assert_eq!(code_and_reason(status), (code, reason), "{script}");
        }
    }
}
