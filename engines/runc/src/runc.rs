//! The command lines of the runc binary (crun and youki take the same ones).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use criw_engines::spec::RuncSection;

/// A runtime with the state directory that it uses.
#[derive(Debug, Clone)]
pub(crate) struct Runc {
    pub(crate) binary: PathBuf,
    root: PathBuf,
    systemd_cgroup: bool,
    /// Where it writes its errors, one JSON object a line; to stderr without.
    pub(crate) log: Option<PathBuf>,
}

/// The files that create and exec exchange with runc.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// Written by runc: the host pid of the process.
    pub(crate) pid: PathBuf,
    /// Listening socket that gets the terminal's master.
    pub(crate) console: Option<PathBuf>,
}

impl Runc {
    pub(crate) fn new(section: &RuncSection, log: PathBuf) -> Self {
        Self {
            binary: section.binary.clone(),
            root: section.root.clone(),
            systemd_cgroup: section.systemd_cgroup,
            log: Some(log),
        }
    }

    /// For tear-down, which needs nothing of the container.
    pub(crate) fn bare(binary: PathBuf, root: PathBuf) -> Self {
        Self {
            binary,
            root,
            systemd_cgroup: false,
            log: None,
        }
    }

    pub(crate) fn create(&self, id: &str, bundle: &Path, files: &Files) -> Vec<OsString> {
        let mut argv = self.call("create");
        argv.extend(["--bundle".into(), bundle.into()]);
        argv.extend(files.arguments());
        argv.push(id.into());
        argv
    }

    pub(crate) fn start(&self, id: &str) -> Vec<OsString> {
        let mut argv = self.call("start");
        argv.push(id.into());
        argv
    }

    /// `process` holds the OCI `process` object.
    pub(crate) fn exec(&self, id: &str, process: &Path, files: &Files) -> Vec<OsString> {
        let mut argv = self.call("exec");
        argv.extend(["--detach".into(), "--process".into(), process.into()]);
        argv.extend(files.arguments());
        argv.push(id.into());
        argv
    }

    /// SIGKILL to every process in the container's cgroup.
    pub(crate) fn kill_all(&self, id: &str) -> Vec<OsString> {
        let mut argv = self.call("kill");
        argv.extend(["--all".into(), id.into(), "KILL".into()]);
        argv
    }

    /// Succeeds when there is no such container, too.
    pub(crate) fn delete(&self, id: &str) -> Vec<OsString> {
        let mut argv = self.call("delete");
        argv.extend(["--force".into(), id.into()]);
        argv
    }

    fn call(&self, command: &str) -> Vec<OsString> {
        let mut argv = vec!["--root".into(), self.root.clone().into()];
        if let Some(log) = &self.log {
            argv.extend(["--log".into(), log.into()]);
        }
        argv.extend(["--log-format".into(), "json".into()]);
        if self.systemd_cgroup {
            argv.push("--systemd-cgroup".into());
        }
        argv.push(command.into());
        argv
    }
}

impl Files {
    fn arguments(&self) -> Vec<OsString> {
        let mut argv = vec!["--pid-file".into(), self.pid.clone().into()];
        if let Some(console) = &self.console {
            argv.extend(["--console-socket".into(), console.into()]);
        }
        argv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let section = RuncSection {
            binary: "/usr/sbin/runc".into(),
            root: "/run/r".into(),
            bundle: "/b".into(),
            systemd_cgroup: false,
        };
        let runc = Runc::new(&section, "/b/runc.log".into());
        let systemd = RuncSection {
            systemd_cgroup: true,
            ..section
        };
        let systemd = Runc::new(&systemd, "/b/l".into());
        let bare = Runc::bare("runc".into(), "/run/r".into());
        let plain = Files {
            pid: "/b/pid".into(),
            console: None,
        };
        let console = Files {
            pid: "/b/pid".into(),
            console: Some("/b/c".into()),
        };
        let head = "--root /run/r --log /b/runc.log --log-format json";
        for (argv, expected) in [
            (
                runc.create("x", Path::new("/b"), &plain),
                format!("{head} create --bundle /b --pid-file /b/pid x"),
            ),
            (
                runc.create("x", Path::new("/b"), &console),
                format!("{head} create --bundle /b --pid-file /b/pid --console-socket /b/c x"),
            ),
            (runc.start("x"), format!("{head} start x")),
            (
                runc.exec("x", Path::new("/p"), &plain),
                format!("{head} exec --detach --process /p --pid-file /b/pid x"),
            ),
            (runc.kill_all("x"), format!("{head} kill --all x KILL")),
            (runc.delete("x"), format!("{head} delete --force x")),
            (
                systemd.start("x"),
                "--root /run/r --log /b/l --log-format json --systemd-cgroup start x".into(),
            ),
            (
                bare.delete("x"),
                "--root /run/r --log-format json delete --force x".into(),
            ),
        ] {
            let argv: Vec<_> = argv.iter().map(|one| one.to_str().unwrap()).collect();
            assert_eq!(argv.join(" "), expected);
        }
    }
}
