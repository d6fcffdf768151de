//! Confinement of a Wasm shim by an AppArmor profile.
//!
//! The kernel lets a thread put itself under a profile by a file of its procfs, which the
//! guest's root does not have: so the file is opened first and written to last. What was
//! opened before stays usable whatever the profile says (the log, the exit record), but
//! for sockets, which are asked about at each message.

use std::fs::File;
use std::io::{self, Write as _};

use oci_spec::runtime::Process;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Where the kernel takes the order; the second one is that of kernels before 5.8.
const DOORS: [&str; 2] = [
    "/proc/thread-self/attr/apparmor/current",
    "/proc/thread-self/attr/current",
];

/// A profile that the calling thread will put itself under.
#[derive(Debug)]
pub(crate) struct Profile {
    name: String,
    door: File,
}

impl Profile {
    /// The one that the spec names; needs a procfs. The same thread has to [enter](Self::enter) it.
    pub(crate) fn of(process: &Process) -> Result<Option<Self>, String> {
        let Some(name) = process.apparmor_profile().clone().filter(|n| !n.is_empty()) else {
            return Ok(None);
        };
        let open = |path: &str| File::options().write(true).open(path);
        let door = open(DOORS[0]).or_else(|_older_kernel| open(DOORS[1]));
        match door {
            Ok(door) => Ok(Some(Self { name, door })),
            Err(error) => Err(format!(
                "open {} for AppArmor profile {name:?}: {error}; this kernel has no AppArmor",
                DOORS[1]
            )),
        }
    }

    /// From here on the thread, and all that it starts, is under the profile.
    pub(crate) fn enter(mut self) -> Result<(), String> {
        // One write is one order.
        let order = format!("changeprofile {}", self.name);
        if let Err(error) = self.door.write_all(order.as_bytes()) {
            return Err(refused(&self.name, &error));
        }
        // Without sockets the shim could be asked nothing any more, a stop neither. The
        // daemon reads this sentence from the exit record.
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        socket.map(drop).map_err(|error| {
            format!(
                "AppArmor profile {:?} lets a Wasm container have no connection to the daemon: {error}; add the rule \"network unix,\" to it",
                self.name
            )
        })
    }
}

fn refused(name: &str, error: &io::Error) -> String {
    let what_to_do = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "; it is not loaded on this node: load it with apparmor_parser -r FILE"
        }
        Some(libc::EINVAL) => "; this kernel has no AppArmor",
        _ => "",
    };
    format!("enter AppArmor profile {name:?}: {error}{what_to_do}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(profile: Option<&str>) -> Process {
        let mut value =
            serde_json::json!({"user": {"uid": 1, "gid": 2}, "args": ["x"], "cwd": "/"});
        if let Some(profile) = profile {
            value["apparmorProfile"] = profile.into();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn without_a_profile_nothing_is_opened() {
        assert!(Profile::of(&process(None)).unwrap().is_none());
        assert!(Profile::of(&process(Some(""))).unwrap().is_none());
    }

    /// With AppArmor the kernel has no such profile, without it knows no such order.
    #[test]
    fn a_profile_that_is_not_there_is_named() {
        let error = match Profile::of(&process(Some("criw-no-such"))) {
            Ok(profile) => profile.unwrap().enter().unwrap_err(),
            Err(error) => error,
        };
        assert!(error.contains("\"criw-no-such\""), "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (number, expected) in [
            (libc::ENOENT, "apparmor_parser -r"),
            (libc::EINVAL, "no AppArmor"),
            (libc::EACCES, "Permission denied"),
        ] {
            let text = refused("p", &io::Error::from_raw_os_error(number));
            assert!(text.contains(expected), "{text}");
        }
    }
}
