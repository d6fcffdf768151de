//! Whether the memory limit ended a container. Read before `runc delete`, which takes
//! the cgroup and its counter away; the daemon would come too late.

use std::fs;
use std::path::Path;

use criw_engines::protocol::ExitReason;

/// For ContainerStatus.message.
const TEXT: &str = "the container reached its memory limit (cgroup); raise resources.limits.memory if it needs more";

/// Code after SIGKILL, which is what the kernel's out-of-memory killer sends.
const KILLED: i32 = 128 + libc::SIGKILL;

/// The reason after a look at the container's cgroup, and a text with it.
pub(crate) fn judge(code: i32, reason: ExitReason, cgroup: Option<&str>) -> (ExitReason, &str) {
    let top = Path::new("/sys/fs/cgroup");
    if code == KILLED && cgroup.is_some_and(|cgroup| kills(top, cgroup) > 0) {
        return (ExitReason::OOMKilled, TEXT);
    }
    (reason, "")
}

/// `oom_kill` of the v1 memory hierarchy (hybrid too), or of the v2 tree; 0 where
/// there is no counter.
fn kills(top: &Path, cgroup: &str) -> u64 {
    let below = cgroup.trim_start_matches('/');
    [
        top.join("memory").join(below).join("memory.oom_control"),
        top.join(below).join("memory.events"),
    ]
    .into_iter()
    .find_map(|path| fs::read_to_string(path).ok())
    .and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok())
    })
    .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions_are_read() {
        let top = tempfile::tempdir().unwrap();
        let cgroup = "/pods/a";
        assert_eq!(kills(top.path(), cgroup), 0);
        for (directory, file, text, count) in [
            (
                "pods/a",
                "memory.events",
                "max 9\noom 3\noom_kill 2\noom_group_kill 0\n",
                2,
            ),
            (
                "memory/pods/a",
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
                1,
            ),
        ] {
            let directory = top.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), text).unwrap();
            assert_eq!(kills(top.path(), cgroup), count, "{file}");
        }
    }

    #[test]
    fn only_a_kill_can_be_the_limits() {
        for (code, reason) in [
            (0, ExitReason::Completed),
            (1, ExitReason::Error),
            (137, ExitReason::Error),
        ] {
            assert_eq!(judge(code, reason, None), (reason, ""));
        }
    }
}
