//! SELinux: the labels of pods and containers, and that the node's policy knows them.
//!
//! Each pod has a level of its own, two categories, so that a container can touch the
//! files of its pod and of no other. Its processes have the type `container_t` (`spc_t` when
//! privileged) and its files `container_file_t`, as container-selinux and the reference
//! policy have them; layers, which all pods share, are `container_ro_file_t`.

mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

pub use files::{label_file, label_layers, label_shared, relabel};

use crate::error::{Error, Result};
use crate::model::{SelinuxLabels, SelinuxOptions};

/// Where the kernel's SELinux file system is.
const ROOT: &str = "/sys/fs/selinux";

const USER: &str = "system_u";
const ROLE: &str = "system_r";
const TYPE: &str = "container_t";
const PRIVILEGED_TYPE: &str = "spc_t";
const FILES: &str = "system_u:object_r:container_file_t";

/// Without categories, files of this label are readable by all pods, and written by none.
const LAYERS: &str = "system_u:object_r:container_ro_file_t";

/// Categories that policies have, from 0 on.
const CATEGORIES: u16 = 1024;

/// Among half a million levels one of 20,000 tries is free, unless nearly all are taken.
const TRIES: usize = 20_000;

/// Whether the kernel has SELinux on, with a policy.
pub fn is_on() -> bool {
    Path::new(ROOT).join("enforce").exists()
}

/// Whether it denies what the policy does not allow, and does not only report it.
pub fn is_enforcing() -> bool {
    std::fs::read(Path::new(ROOT).join("enforce")).is_ok_and(|text| text.starts_with(b"1"))
}

/// Whether the policy has what containers without options get.
///
/// # Errors
/// The kernel cannot be asked.
pub fn has_container_types() -> io::Result<bool> {
    let policy = Policy::of_node();
    for label in [
        policy.label(USER, ROLE, TYPE, "s0"),
        policy.files("s0"),
        policy.layers(),
    ] {
        if !policy.knows(&label)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The node's policy.
#[derive(Debug)]
pub struct Policy {
    root: PathBuf,
    on: bool,
    /// Labels end with a level.
    levels: bool,
    choosing: Mutex<()>,
    warned: Once,
}

impl Policy {
    /// Of this node, which keeps SELinux on or off until it is booted again.
    pub fn of_node() -> Self {
        Self::at(ROOT.into(), is_on())
    }

    fn at(root: PathBuf, on: bool) -> Self {
        let levels = std::fs::read(root.join("mls")).map_or(true, |text| !text.starts_with(b"0"));
        Self {
            root,
            on,
            levels,
            choosing: Mutex::new(()),
            warned: Once::new(),
        }
    }

    /// One pod after the other chooses its level; held until others can see which.
    pub fn choosing(&self) -> MutexGuard<'_, ()> {
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of a new pod. `None` without SELinux, and on a node whose policy knows no
    /// containers, unless the pod asks for a label. `taken` is whether another pod has a level.
    ///
    /// # Errors
    /// `Invalid` for a label that the policy does not know, `Unavailable` if no level is free,
    /// `Node` if the kernel cannot be asked.
    pub fn pod(
        &self,
        asked: Option<&SelinuxOptions>,
        privileged: bool,
        taken: impl Fn(&str) -> bool,
    ) -> Result<Option<SelinuxLabels>> {
        if !self.on {
            return Ok(None);
        }
        let level = match asked_level(asked) {
            Some(level) => level.to_owned(),
            None => free_level(taken)?,
        };
        self.labels(asked, privileged, &level)
    }

    /// The labels of a container. What it does not ask for itself is the pod's, the level too.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub fn container(
        &self,
        asked: Option<&SelinuxOptions>,
        privileged: bool,
        pod_asked: Option<&SelinuxOptions>,
        pod: Option<&SelinuxLabels>,
    ) -> Result<Option<SelinuxLabels>> {
        // A pod without labels was made before there was SELinux, or on a node without types.
        if !self.on || (asked.is_none() && pod.is_none()) {
            return Ok(None);
        }
        let asked = asked.or(pod_asked);
        let level = asked_level(asked).or_else(|| pod.map(|pod| level_of(&pod.files)));
        self.labels(asked, privileged, level.unwrap_or("s0"))
    }

    /// The label of the files of a layer.
    pub fn layers(&self) -> String {
        self.with_level(LAYERS, "s0")
    }

    /// What the small file system of shims and inits is labelled with, if the policy knows it.
    pub fn shared_files(&self) -> Option<String> {
        let label = self.layers();
        (self.on && self.knows(&label).unwrap_or(false)).then_some(label)
    }

    fn labels(
        &self,
        asked: Option<&SelinuxOptions>,
        privileged: bool,
        level: &str,
    ) -> Result<Option<SelinuxLabels>> {
        let process = match (privileged, asked) {
            (true, _) => self.label(USER, ROLE, PRIVILEGED_TYPE, "s0"),
            (false, None) => self.label(USER, ROLE, TYPE, level),
            (false, Some(asked)) => self.label(
                or(&asked.user, USER),
                or(&asked.role, ROLE),
                or(&asked.kind, TYPE),
                level,
            ),
        };
        let labels = SelinuxLabels {
            process,
            files: self.files(level),
        };
        for label in [&labels.process, &labels.files] {
            let known = self.knows(label).map_err(|error| {
                Error::node(format!("ask the kernel about SELinux label {label}"), error)
            })?;
            if known {
                continue;
            }
            let text = format!(
                "SELinux label {label} is not one that this node's policy knows; load a policy for containers that has it (package container-selinux, or the module container), or take it out of the pod"
            );
            if asked.is_some() {
                return Err(Error::Invalid(text));
            }
            self.warned.call_once(|| {
                tracing::warn!(reason = text, "containers run without SELinux labels");
            });
            return Ok(None);
        }
        Ok(Some(labels))
    }

    fn files(&self, level: &str) -> String {
        self.with_level(FILES, level)
    }

    fn label(&self, user: &str, role: &str, kind: &str, level: &str) -> String {
        self.with_level(&format!("{user}:{role}:{kind}"), level)
    }

    fn with_level(&self, label: &str, level: &str) -> String {
        match self.levels {
            true => format!("{label}:{level}"),
            false => label.to_owned(),
        }
    }

    /// The kernel takes a label in this file if the policy has it.
    fn knows(&self, label: &str) -> io::Result<bool> {
        let door = std::fs::File::options()
            .write(true)
            .open(self.root.join("context"))?;
        match rustix::io::write(&door, label.as_bytes()) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

fn asked_level(asked: Option<&SelinuxOptions>) -> Option<&str> {
    asked
        .map(|asked| asked.level.as_str())
        .filter(|level| !level.is_empty())
}

/// The level of a label, `s0` if it has none.
pub fn level_of(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or("s0")
}

/// Two categories that no other pod has as its pair.
fn free_level(taken: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..TRIES {
        let [one, two] = random_categories()
            .map_err(|error| Error::node("draw an SELinux level for a pod", error))?;
        if one == two {
            continue;
        }
        let level = format!("s0:c{},c{}", one.min(two), one.max(two));
        if !taken(&level) {
            return Ok(level);
        }
    }
    Err(Error::Unavailable(
        "no SELinux level is free for another pod on this node; remove pods".to_owned(),
    ))
}

fn random_categories() -> io::Result<[u16; 2]> {
    let mut bytes = [0; 4];
    rustix::io::retry_on_intr(|| {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
    })?;
    let [a, b, c, d] = bytes;
    // 1024 divides 65536: each is as likely as the others.
    Ok([[a, b], [c, d]].map(|two| u16::from_ne_bytes(two) % CATEGORIES))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A node whose kernel knows every label: a file takes what is written.
    fn node(directory: &Path, mls: &str) -> Policy {
        std::fs::write(directory.join("context"), "").unwrap();
        std::fs::write(directory.join("mls"), mls).unwrap();
        Policy::at(directory.to_owned(), true)
    }

    fn options(user: &str, kind: &str, level: &str) -> SelinuxOptions {
        SelinuxOptions {
            user: user.into(),
            role: String::new(),
            kind: kind.into(),
            level: level.into(),
        }
    }

    #[test]
    fn containers_have_what_they_ask_for_and_else_the_pods() {
        let directory = tempfile::tempdir().unwrap();
        let policy = node(directory.path(), "1");
        let pod = policy
            .pod(Some(&options("", "", "s0:c7,c8")), false, |_| true)
            .unwrap()
            .unwrap();
        assert_eq!(pod.process, "system_u:system_r:container_t:s0:c7,c8");
        assert_eq!(pod.files, "system_u:object_r:container_file_t:s0:c7,c8");
        let pod_asked = options("", "pod_t", "s0:c7,c8");
        for (asked, privileged, pod_asked, process) in [
            (None, false, None, "system_u:system_r:container_t:s0:c7,c8"),
            (
                None,
                false,
                Some(&pod_asked),
                "system_u:system_r:pod_t:s0:c7,c8",
            ),
            (
                Some(options("user_u", "", "")),
                false,
                Some(&pod_asked),
                "user_u:system_r:container_t:s0:c7,c8",
            ),
            (
                Some(options("", "own_t", "s0:c1,c2")),
                false,
                None,
                "system_u:system_r:own_t:s0:c1,c2",
            ),
            (
                Some(options("", "own_t", "")),
                true,
                None,
                "system_u:system_r:spc_t:s0",
            ),
            (None, true, None, "system_u:system_r:spc_t:s0"),
        ] {
            let got = policy
                .container(asked.as_ref(), privileged, pod_asked, Some(&pod))
                .unwrap()
                .unwrap();
            assert_eq!(got.process, process, "{asked:?} {privileged}");
            let level = asked.filter(|asked| !asked.level.is_empty());
            let level = level.map_or("s0:c7,c8".to_owned(), |asked| asked.level);
            assert_eq!(level_of(&got.files), level);
        }
    }

    #[test]
    fn where_labels_have_no_level_none_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let policy = node(directory.path(), "0");
        let labels = policy.pod(None, false, |_| false).unwrap().unwrap();
        assert_eq!(labels.process, "system_u:system_r:container_t");
        assert_eq!(labels.files, "system_u:object_r:container_file_t");
        assert_eq!(policy.layers(), "system_u:object_r:container_ro_file_t");
        assert_eq!(level_of(&labels.files), "s0");
    }

    #[test]
    fn each_pod_has_a_level_of_its_own() {
        let mut seen = HashSet::new();
        for _ in 0..2000 {
            let level = free_level(|level| seen.contains(level)).unwrap();
            assert_eq!(
                crate::host::selinux::level_of(&format!("u:r:t:{level}")),
                level
            );
            assert!(seen.insert(level));
        }
        let error = free_level(|_| true).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }

    #[test]
    fn without_selinux_nothing_is_labelled() {
        let policy = Policy::at("/no/such/directory".into(), false);
        let asked = options("", "", "s0:c1,c2");
        assert_eq!(policy.pod(Some(&asked), false, |_| false).unwrap(), None);
        let got = policy.container(Some(&asked), false, None, None).unwrap();
        assert_eq!((got, policy.shared_files()), (None, None));
    }

    /// The kernel refuses a label; here /dev/full stands for it, with another error.
    #[test]
    fn who_cannot_be_asked_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", directory.path().join("context")).unwrap();
        let policy = Policy::at(directory.path().to_owned(), true);
        let error = policy.pod(None, false, |_| false).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("ask the kernel about SELinux label system_u:"),
            "{error}"
        );
    }
}
