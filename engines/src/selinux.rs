//! The SELinux label of a Wasm shim.
//!
//! As with AppArmor, the kernel takes it by a file of procfs, which the guest's root does
//! not have: opened first, written to last. A process of several threads may not change its
//! label. What was opened before is looked at again with the new one: the daemon labels the
//! log and the exit record for it.

use std::fs::File;
use std::io::{self, Write as _};

use oci_spec::runtime::Process;

/// Where the kernel takes it.
const DOOR: &str = "/proc/thread-self/attr/current";

/// A label that the calling thread, the only one of its process, will take.
#[derive(Debug)]
pub(crate) struct Label {
    text: String,
    door: File,
}

impl Label {
    /// The one that the spec names; needs a procfs. The same thread has to [enter](Self::enter) it.
    pub(crate) fn of(process: &Process) -> Result<Option<Self>, String> {
        let Some(text) = process.selinux_label().clone().filter(|l| !l.is_empty()) else {
            return Ok(None);
        };
        match File::options().write(true).open(DOOR) {
            Ok(door) => Ok(Some(Self { text, door })),
            Err(error) => Err(format!("open {DOOR} for SELinux label {text}: {error}")),
        }
    }

    /// From here on the process, and all that it starts, has the label.
    pub(crate) fn enter(mut self) -> Result<(), String> {
        self.door
            .write_all(self.text.as_bytes())
            .map_err(|error| refused(&self.text, &error))
    }
}

fn refused(label: &str, error: &io::Error) -> String {
    let what_to_do = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "; the node's policy must let the daemon's domain change to it (dyntransition), see docs/node.md"
        }
        Some(libc::EINVAL) => "; the node's policy does not know it",
        _ => "",
    };
    format!("take SELinux label {label}: {error}{what_to_do}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(label: Option<&str>) -> Process {
        let mut value =
            serde_json::json!({"user": {"uid": 1, "gid": 2}, "args": ["x"], "cwd": "/"});
        if let Some(label) = label {
            value["selinuxLabel"] = label.into();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn without_a_label_nothing_is_opened() {
        assert!(Label::of(&process(None)).unwrap().is_none());
        assert!(Label::of(&process(Some(""))).unwrap().is_none());
    }

    /// No kernel takes it, with SELinux or without.
    #[test]
    fn a_label_that_is_none_is_named() {
        let label = Label::of(&process(Some("criw-no-such-label")));
        let error = label.and_then(|l| l.unwrap().enter()).unwrap_err();
        assert!(error.contains("criw-no-such-label"), "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (number, expected) in [
            (libc::EACCES, "dyntransition"),
            (libc::EINVAL, "does not know it"),
            (libc::EIO, "Input/output error"),
        ] {
            let text = refused("l", &io::Error::from_raw_os_error(number));
            assert!(text.contains(expected), "{text}");
        }
    }
}
