//! What this machine and kernel can do; read once at start.

use std::path::Path;

/// Facts that conversions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Bit n = capability n, of the daemon's bounding set: more cannot be given away.
    pub capabilities: u64,
    /// The kernel makes mounts read-only with everything below (5.12).
    pub recursive_read_only: bool,
    /// Pods can have user namespaces; else why not.
    pub user_namespaces: Result<(), String>,
    /// AppArmor is on.
    pub apparmor: bool,
    /// SELinux is on.
    pub selinux: bool,
    /// The node's name, for pods on its network.
    pub hostname: String,
}

impl HostFacts {
    /// Reads them; what cannot be read counts as not there. `root` is the daemon's lasting
    /// directory, where it is tried what the file system knows.
    pub fn read(root: &Path) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let uname = rustix::system::uname();
        Self {
            capabilities: bounding_set(&status).unwrap_or(0),
            user_namespaces: criw_sandbox::host::userns::probe(root)
                .map_err(|error| crate::error::chain(&error)),
            recursive_read_only: at_least(&uname.release().to_string_lossy(), (5, 12)),
            apparmor: criw_sandbox::host::apparmor::is_on(),
            selinux: criw_sandbox::host::selinux::is_on(),
            hostname: uname.nodename().to_string_lossy().into_owned(),
        }
    }
}

fn bounding_set(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether a kernel release such as `6.1.0-18-amd64` is at least this.
pub fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_capability_lines() {
        for (release, expected) in [
            ("6.1.0-18-amd64", true),
            ("5.12", true),
            ("5.4.0", false),
            ("4.19-rc1", false),
            ("", false),
        ] {
            assert_eq!(at_least(release, (5, 12)), expected, "{release}");
        }
        assert_eq!(
            bounding_set("Name:\tx\nCapBnd:\t00000000000000ff\n"),
            Some(255)
        );
        assert_eq!(bounding_set("Name:\tx\n"), None);
    }
}
