//! `oom_score_adj` of a process. Without CAP_SYS_RESOURCE it cannot go below what
//! the daemon itself was started with: then the nearest possible value is set.

use std::io::{self, ErrorKind};
use std::sync::Once;

use super::Context;
use crate::error::{Error, Result};

static CLAMPED: Once = Once::new();

/// The value that the daemon could set instead of `wanted`: it may always raise,
/// and lower only with the capability.
pub fn allowed(wanted: i64) -> Result<i32> {
    const STATUS: &str = "/proc/self/status";
    let status = std::fs::read_to_string(STATUS).context(|| format!("read {STATUS}"))?;
    let own = read("/proc/self/oom_score_adj")?;
    Ok(clamp(wanted, own, has_sys_resource(&status)))
}

/// Sets it for a process and returns what was really set.
pub fn set(pid: i32, wanted: i64) -> Result<i32> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let exact = clamp(wanted, -1000, true);
    match std::fs::write(&path, exact.to_string()) {
        Ok(()) => Ok(exact),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // The floor is inherited: what this process may have, its children may have.
            let possible = clamp(wanted, read("/proc/self/oom_score_adj")?, false);
            CLAMPED.call_once(|| {
                tracing::warn!(
                    wanted,
                    set = possible,
                    "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE; pods get the lowest possible value"
                );
            });
            std::fs::write(&path, possible.to_string())
                .context(|| format!("write {possible} to {path}"))?;
            Ok(possible)
        }
        Err(error) => Err(Error::node(format!("write {exact} to {path}"), error)),
    }
}

fn read(path: &str) -> Result<i32> {
    let text = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
    text.trim()
        .parse()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
        .context(|| format!("parse {path}"))
}

fn clamp(wanted: i64, own: i32, may_lower: bool) -> i32 {
    let lowest = if may_lower { -1000 } else { own };
    i32::try_from(wanted.clamp(-1000, 1000))
        .expect("between -1000 and 1000")
        .max(lowest)
}

fn has_sys_resource(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_clamped_to_what_may_be_set() {
        for (wanted, own, may_lower, expected) in [
            (-998, 0, true, -998),
            (-998, 0, false, 0),
            (-998, -500, false, -500),
            (1000, 0, false, 1000),
            (5000, 0, false, 1000),
            (-5000, 0, true, -1000),
            (3, 3, false, 3),
        ] {
            assert_eq!(
                clamp(wanted, own, may_lower),
                expected,
                "{wanted} {own} {may_lower}"
            );
        }
    }

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        let status = |set| format!("CapPrm:\tffffffffffffffff\nCapEff:\t{set}\n");
        assert!(has_sys_resource(&status("0000000001000000")));
        assert!(!has_sys_resource(&status("000001fffeffffff")));
        assert!(!has_sys_resource("CapEff: nonsense"));
    }

    #[test]
    fn a_real_process_gets_the_nearest_value() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let set_high = set(pid, 900);
        let set_low = set(pid, -998);
        let now = read(&format!("/proc/{pid}/oom_score_adj"));
        let own = read("/proc/self/oom_score_adj").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(set_high.unwrap(), 900);
        let set_low = set_low.unwrap();
        assert_eq!(set_low, now.unwrap());
        assert!(
            set_low == -998 || set_low == own,
            "{set_low}, own value {own}"
        );
    }
}
