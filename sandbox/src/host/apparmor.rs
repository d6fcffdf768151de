//! AppArmor: which profile a container gets, and that the kernel has it.
//!
//! The kernel's list of loaded profiles is looked at for each container, because an
//! administrator loads and removes them while the daemon runs. The default profile is
//! loaded by `apparmor_parser`, which compiles what the kernel takes.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Error, Result};
use crate::model::AppArmor;

/// Name of the profile of containers for which a pod names no other one.
pub const DEFAULT_PROFILE: &str = "criw-default";

/// Its text, but for the label of the daemon.
const DEFAULT_TEXT: &str = include_str!("criw-default.apparmor");

/// The kernel's word on whether AppArmor is on.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";

/// The kernel's list of loaded profiles, in securityfs.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Compiling the default profile takes a tenth of a second.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

/// Of what the parser says, that much is shown.
const MAX_SAID: u64 = 2048;

/// Whether AppArmor is on.
pub fn is_on() -> bool {
    std::fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether the kernel has a profile now.
///
/// # Errors
/// The list cannot be read: no securityfs, or no CAP_MAC_ADMIN.
pub fn is_loaded(name: &str) -> std::io::Result<bool> {
    std::fs::read_to_string(LOADED).map(|list| has(&list, name))
}

/// The profiles of a node.
#[derive(Debug)]
pub struct Profiles {
    on: bool,
    list: PathBuf,
    parser: PathBuf,
    /// One loads, the others find it loaded.
    loading: Mutex<()>,
    warned: Once,
}

impl Profiles {
    /// Of this node. `parser` is the path of apparmor_parser.
    pub fn of_node(parser: PathBuf) -> Self {
        Self::new(is_on(), LOADED.into(), parser)
    }

    fn new(on: bool, list: PathBuf, parser: PathBuf) -> Self {
        Self {
            on,
            list,
            parser,
            loading: Mutex::new(()),
            warned: Once::new(),
        }
    }

    /// The name of the profile that a container shall have, `None` for none. The kernel
    /// has it when this returns.
    ///
    /// # Errors
    /// `Invalid` for a profile that is not loaded, or any on a node without AppArmor;
    /// `Unavailable` if the default profile was asked for and the node lacks what loads
    /// it; `Node` if loading failed.
    pub fn ready(&self, wanted: &AppArmor) -> Result<Option<String>> {
        match wanted {
            AppArmor::Unconfined => Ok(None),
            AppArmor::Localhost(name) if !self.on => Err(Error::Invalid(format!(
                "AppArmor profile {name:?} is asked for, but this node has no AppArmor; start its kernel with it, or take the profile out of the pod"
            ))),
            AppArmor::Localhost(name) => self.loaded(name).map(Some),
            AppArmor::Unsaid | AppArmor::RuntimeDefault if !self.on => Ok(None),
            AppArmor::RuntimeDefault => self.default_profile().map(Some),
            AppArmor::Unsaid => match self.default_profile() {
                Ok(name) => Ok(Some(name)),
                // Many nodes have a kernel with AppArmor and none of its tools.
                Err(Error::Unavailable(reason)) => {
                    self.warned.call_once(|| {
                        tracing::warn!(%reason, "containers whose pod says nothing of AppArmor run without a profile");
                    });
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn loaded(&self, name: &str) -> Result<String> {
        // Other namespaces and stacks of profiles are the kernel's to judge; so is all
        // where its list cannot be read.
        let foreign = name.starts_with(':') || name.contains("//&");
        match std::fs::read_to_string(&self.list) {
            Ok(list) if !foreign && !has(&list, name) => Err(Error::Invalid(format!(
                "AppArmor profile {name:?} is not loaded on this node; load it with apparmor_parser -r FILE, and at each boot from /etc/apparmor.d"
            ))),
            _ => Ok(name.to_owned()),
        }
    }

    fn default_profile(&self) -> Result<String> {
        if !self.has_default()? {
            let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.has_default()? {
                load(&self.parser, &self.list)?;
                tracing::info!(profile = DEFAULT_PROFILE, "AppArmor profile loaded");
            }
        }
        Ok(DEFAULT_PROFILE.to_owned())
    }

    fn has_default(&self) -> Result<bool> {
        match std::fs::read_to_string(&self.list) {
            Ok(list) => Ok(has(&list, DEFAULT_PROFILE)),
            Err(error) => Err(Error::Unavailable(format!(
                "read the loaded AppArmor profiles in {}: {error}; mount securityfs at /sys/kernel/security, and run criw with CAP_MAC_ADMIN",
                self.list.display()
            ))),
        }
    }
}

/// Whether a list, a line of `name (mode)` for each profile, has one.
fn has(list: &str, name: &str) -> bool {
    list.lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(one, _)| one == name))
}

/// Has the default profile compiled and loaded.
fn load(parser: &Path, list: &Path) -> Result<()> {
    let what = || {
        format!(
            "load AppArmor profile {DEFAULT_PROFILE} with {}",
            parser.display()
        )
    };
    // -K: a profile that comes on standard input has no place in the cache.
    let child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::Unavailable(format!(
                "{}: there is no such program; install it (on Debian and Ubuntu the package apparmor), or load a profile of this name by other means",
                what()
            )));
        }
        Err(error) => return Err(Error::node(what(), error)),
    };
    let said = run(child, &default_text(&own_label())).map_err(|e| Error::node(what(), e))?;
    match std::fs::read_to_string(list) {
        Ok(list) if has(&list, DEFAULT_PROFILE) => Ok(()),
        _ => Err(Error::node(what(), said)),
    }
}

/// Feeds it and waits for its end, within bounds; what it said.
fn run(mut child: Child, text: &str) -> std::io::Result<String> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("its pid is no pid"))?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    // Less than a pipe holds: this does not wait. An early end of the parser shows below.
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let limit = Timespec::try_from(LOAD_LIMIT).map_err(std::io::Error::other)?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&limit)))? == 0 {
        child.kill()?;
        child.wait()?;
        return Err(std::io::Error::other(format!(
            "it did not end within {LOAD_LIMIT:?} and was killed"
        )));
    }
    let status = child.wait()?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_SAID).read_to_end(&mut said)?;
    }
    let said = String::from_utf8_lossy(&said).trim().replace('\n', " / ");
    match (status.success(), written) {
        (true, Ok(())) => Ok(said),
        _ => Err(std::io::Error::other(format!(
            "it ended with {status}: {said}"
        ))),
    }
}

/// The label of this process, `unconfined` on most nodes.
fn own_label() -> String {
    let read = |path: &str| {
        let mut text = String::new();
        let file = File::open(path)?;
        file.take(4096).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    let text = read("/proc/self/attr/apparmor/current")
        .or_else(|_older_kernel| read("/proc/self/attr/current"));
    text.map_or_else(|_| UNCONFINED.to_owned(), |text| label(&text))
}

const UNCONFINED: &str = "unconfined";

/// The name in what the kernel tells of a process, `name (mode)`. Stacks and names that
/// mean something else in a profile's text are not put there.
fn label(told: &str) -> String {
    let told = told.trim_end_matches(['\0', '\n']);
    let name = told.rsplit_once(" (").map_or(told, |(name, _)| name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        UNCONFINED.to_owned()
    }
}

fn default_text(daemon: &str) -> String {
    format!("@{{criw_daemon}}={daemon}\n{DEFAULT_TEXT}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIST: &str = "snap.a//b (complain)\ncriw-default (enforce)\nwith (brackets) (enforce)\n:ns://other (enforce)\n";

    #[test]
    fn names_in_the_kernels_list() {
        for (name, expected) in [
            ("criw-default", true),
            ("criw", false),
            ("criw-default (enforce)", false),
            ("with (brackets)", true),
            ("snap.a//b", true),
            ("snap.a", false),
            ("", false),
        ] {
            assert_eq!(has(LIST, name), expected, "{name}");
        }
    }

    #[test]
    fn labels_of_the_daemon() {
        for (told, expected) in [
            ("unconfined\n", "unconfined"),
            ("criw (enforce)\n", "criw"),
            ("/usr/bin/criw (complain)", "/usr/bin/criw"),
            ("a//&b (enforce)", "unconfined"),
            ("{a,b} (enforce)", "unconfined"),
            ("", "unconfined"),
        ] {
            assert_eq!(label(told), expected, "{told:?}");
        }
        let text = default_text("criw");
        assert!(text.starts_with("@{criw_daemon}=criw\n"), "{text}");
        assert!(text.contains(&format!("\nprofile {DEFAULT_PROFILE} ")));
    }

    /// A node of files: the list of the kernel and a parser, a shell script.
    struct Node {
        directory: tempfile::TempDir,
    }

    impl Node {
        fn new(list: Option<&str>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            if let Some(list) = list {
                std::fs::write(directory.path().join("list"), list).unwrap();
            }
            Self { directory }
        }

        fn with_parser(self, script: &str) -> Self {
            let parser = self.directory.path().join("parser");
            std::fs::write(&parser, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&parser, std::fs::Permissions::from_mode(0o755)).unwrap();
            self
        }

        fn ready(
            &self,
            on: bool,
            wanted: &AppArmor,
        ) -> std::result::Result<Option<String>, String> {
            let at = |name: &str| self.directory.path().join(name);
            let profiles = Profiles::new(on, at("list"), at("parser"));
            let ready = profiles.ready(wanted);
            ready.map_err(|error| crate::manager::chain(&error))
        }
    }

    fn named(name: &str) -> AppArmor {
        AppArmor::Localhost(name.to_owned())
    }

    #[test]
    fn what_is_loaded_is_used() {
        let node = Node::new(Some(LIST));
        let default = Ok(Some(DEFAULT_PROFILE.to_owned()));
        for (on, wanted, expected) in [
            (true, AppArmor::Unconfined, Ok(None)),
            (true, AppArmor::Unsaid, default.clone()),
            (true, AppArmor::RuntimeDefault, default),
            (true, named("snap.a//b"), Ok(Some("snap.a//b".to_owned()))),
            (true, named(":ns:any"), Ok(Some(":ns:any".to_owned()))),
            (false, AppArmor::Unsaid, Ok(None)),
            (false, AppArmor::RuntimeDefault, Ok(None)),
            (false, AppArmor::Unconfined, Ok(None)),
        ] {
            assert_eq!(node.ready(on, &wanted), expected, "{on} {wanted:?}");
        }
        let error = node.ready(true, &named("no-such")).unwrap_err();
        assert!(error.contains("\"no-such\" is not loaded"), "{error}");
        assert!(error.contains("apparmor_parser -r"), "{error}");
        let error = node.ready(false, &named("criw-default")).unwrap_err();
        assert!(error.contains("this node has no AppArmor"), "{error}");
    }

    #[test]
    fn without_the_parser_only_who_asked_is_refused() {
        let node = Node::new(Some(""));
        let error = node.ready(true, &AppArmor::RuntimeDefault).unwrap_err();
        assert!(error.contains("the package apparmor"), "{error}");
        assert_eq!(node.ready(true, &AppArmor::Unsaid), Ok(None));
    }

    #[test]
    fn without_securityfs_names_are_left_to_the_kernel() {
        let node = Node::new(None);
        assert_eq!(node.ready(true, &named("p")), Ok(Some("p".to_owned())));
        let error = node.ready(true, &AppArmor::RuntimeDefault).unwrap_err();
        assert!(error.contains("mount securityfs"), "{error}");
        assert_eq!(node.ready(true, &AppArmor::Unsaid), Ok(None));
    }

    #[test]
    fn the_default_profile_is_loaded_when_it_is_missing() {
        let node = Node::new(Some("other (enforce)\n")).with_parser(
            "cd \"${0%/*}\"; cat >text; echo \"$*\" >arguments; echo 'criw-default (enforce)' >>list",
        );
        for wanted in [AppArmor::Unsaid, AppArmor::RuntimeDefault] {
            let ready = node.ready(true, &wanted);
            assert_eq!(ready, Ok(Some(DEFAULT_PROFILE.to_owned())), "{wanted:?}");
        }
        let read = |name: &str| std::fs::read_to_string(node.directory.path().join(name)).unwrap();
        assert_eq!(read("text"), default_text(&own_label()));
        assert_eq!(read("arguments"), "--replace --skip-cache\n");
        // The second container found it.
        assert_eq!(read("list").lines().count(), 2);
    }

    #[test]
    fn a_parser_that_fails_refuses_the_container_in_its_words() {
        for (script, expected) in [
            (
                "cat >/dev/null; echo syntax error >&2; exit 1",
                "syntax error",
            ),
            (
                "cat >/dev/null; echo says nothing happened >&2",
                "nothing happened",
            ),
        ] {
            let node = Node::new(Some("")).with_parser(script);
            for wanted in [AppArmor::Unsaid, AppArmor::RuntimeDefault] {
                let error = node.ready(true, &wanted).unwrap_err();
                assert!(
                    error.contains("load AppArmor profile criw-default"),
                    "{error}"
                );
                assert!(error.contains(expected), "{error}");
            }
        }
    }
}
