//! From a wait status to what Kubernetes shows.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use criw_engines::protocol::ExitReason;

/// Exit code and reason of a process: its own code, or 128+n after signal n. Whether
/// a kill was the memory limit's, the daemon sees in the cgroup.
pub(crate) fn code_and_reason(status: ExitStatus) -> (i32, ExitReason) {
    let code = match (status.code(), status.signal()) {
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

    #[test]
    fn codes_of_wait_statuses() {
        for (status, code, reason) in [
            (0, 0, ExitReason::Completed),
            (3 << 8, 3, ExitReason::Error),
            (255 << 8, 255, ExitReason::Error),
            (15, 143, ExitReason::Error),
            (9, 137, ExitReason::Error),
            // With a core file.
            (11 | 0x80, 139, ExitReason::Error),
            (64, 192, ExitReason::Error),
        ] {
            let ended = code_and_reason(ExitStatus::from_raw(status));
            assert_eq!(ended, (code, reason), "{status:#x}");
        }
    }
}
