//! A container's way through runc: create, start, and the end. All of it runs on one
//! thread, the driver, whose mount namespace holds the root; nobody waits for it but
//! by a channel.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criw_engines::spec::{RuncSection, Spec};
use rustix::process::Pid;

use crate::call::{self, Streams};
use crate::children::{Children, Tell};
use crate::console::Console;
use crate::mounts::{self, Detached};
use crate::processes;
use crate::runc::{Files, Runc};
use crate::users;

/// Time for `runc create`, `start` and `exec`: on a loaded node they take seconds.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Time for the calls that take down.
const DOWN_LIMIT: Duration = Duration::from_secs(20);

/// Time for killed processes to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Time for runc's console message, which was sent before its call ended.
pub(crate) const CONSOLE_LIMIT: Duration = Duration::from_secs(5);

/// What Create brings besides the spec.
#[derive(Debug)]
pub(crate) struct Pieces {
    pub(crate) rootfs: Option<OwnedFd>,
    /// By index of the spec's mounts.
    pub(crate) mounts: BTreeMap<u32, OwnedFd>,
    pub(crate) user_namespace: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
}

/// A container that runc knows.
pub(crate) struct Container {
    children: Arc<Children>,
    runc: Runc,
    id: String,
    own_pids: bool,
    /// Its first process.
    pub(crate) init: Pid,
}

/// Where the container's output arrives. With a terminal both streams are one.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
    /// The other end of its standard input, when that is kept open.
    pub(crate) stdin: Option<OwnedFd>,
    /// The terminal's master once more, for its size.
    pub(crate) terminal: Option<OwnedFd>,
}

/// `runc create`. `ended` is called when the first process ends. The error is the
/// text for the user; then nothing is left.
pub(crate) fn create(
    children: &Arc<Children>,
    spec: &Spec,
    section: &RuncSection,
    mut pieces: Pieces,
    ended: Tell,
) -> Result<(Container, Output), String> {
    let id = &spec.criw.container;
    let runc = Runc::new(section, section.bundle.join("runc.log"));
    let stdin = pieces.stdin.take();
    attach(spec, &section.bundle, &runc, pieces)?;
    let created = create_in_namespace(children, spec, section, &runc, stdin, ended);
    // The pid is told on the socket; a stale file would name another process one day.
    let _ = fs::remove_file(section.bundle.join(PID_FILE));
    match created {
        Ok((init, output)) => {
            let container = Container {
                children: Arc::clone(children),
                runc,
                id: id.clone(),
                own_pids: mounts::has_own_pids(&spec.oci),
                init,
            };
            Ok((container, output))
        }
        Err(text) => {
            children.expect_no_adoption();
            take_down(children, &runc, id);
            Err(text)
        }
    }
}

const PID_FILE: &str = "init.pid";

/// What the spec names as the path of the user namespace.
const USERS_FILE: &str = "userns";

fn attach(spec: &Spec, bundle: &Path, runc: &Runc, pieces: Pieces) -> Result<(), String> {
    let prefix = |error: String| format!("prepare mounts for {}: {error}", runc.binary.display());
    let target = mounts::rootfs(&spec.oci, bundle);
    fs::create_dir_all(&target)
        .map_err(|error| prefix(format!("make directory {}: {error}", target.display())))?;
    let mut detached = Vec::with_capacity(pieces.mounts.len() + 2);
    detached.extend(pieces.rootfs.map(|tree| Detached { tree, target }));
    if let Some(namespace) = pieces.user_namespace {
        let target = bundle.join(USERS_FILE);
        let users = mounts::of_namespace(&namespace, target)
            .map_err(|error| prefix(format!("mount the user namespace: {error}")))?;
        detached.push(users);
    }
    for (n, tree) in pieces.mounts {
        let target = mounts::source(&spec.oci, n)
            .ok_or_else(|| prefix(format!("the spec has no mount {n} with a source")))?;
        detached.push(Detached { tree, target });
    }
    mounts::enter(detached, &mounts::peers(&spec.oci)).map_err(prefix)
}

fn create_in_namespace(
    children: &Children,
    spec: &Spec,
    section: &RuncSection,
    runc: &Runc,
    stdin: Option<OwnedFd>,
    ended: Tell,
) -> Result<(Pid, Output), String> {
    const WHAT: &str = "create";
    let io =
        |error: std::io::Error| format!("prepare stdio for {}: {error}", runc.binary.display());
    let terminal = wants_terminal(spec);
    let console = terminal
        .then(|| Console::listen(&section.bundle, "console.sock"))
        .transpose()
        .map_err(io)?;
    let (stdin, stdin_writer) = match (stdin, spec.criw.stdin) {
        (None, Some(_)) if !terminal => {
            let (reader, writer) = call::pipe().map_err(io)?;
            (Some(reader), Some(writer))
        }
        (stdin, _) => (stdin, None),
    };
    let (stdout, stdout_writer) = call::pipe().map_err(io)?;
    let (stderr, stderr_writer) = call::pipe().map_err(io)?;
    for stream in stdin.iter().chain([&stdout_writer, &stderr_writer]) {
        users::give(stream, spec).map_err(io)?;
    }
    let files = Files {
        pid: section.bundle.join(PID_FILE),
        console: console.as_ref().map(Console::path),
    };
    children.expect_adoption();
    let streams = Streams {
        stdin,
        stdout: Some(stdout_writer),
        stderr: Some(stderr_writer),
    };
    let argv = runc.create(&spec.criw.container, &section.bundle, &files);
    if let Err(failure) = call::run_with(children, runc, WHAT, argv, streams, CALL_LIMIT) {
        return Err(failure.text(&call::drain(stderr)));
    }
    let init = adopted(children, runc, WHAT, &files.pid, ended)?;
    let output = match console {
        None => Output {
            stdout,
            stderr: Some(stderr),
            stdin: stdin_writer,
            terminal: None,
        },
        Some(console) => {
            let master = console.master(CONSOLE_LIMIT).map_err(|error| {
                format!("receive terminal from {}: {error}", runc.binary.display())
            })?;
            let copy = || master.try_clone().map_err(io);
            Output {
                stdin: spec.criw.stdin.map(|_| copy()).transpose()?,
                terminal: Some(copy()?),
                stdout: master,
                stderr: None,
            }
        }
    };
    Ok((init, output))
}

pub(crate) fn wants_terminal(spec: &Spec) -> bool {
    let process = spec.oci.process().as_ref();
    process.and_then(|process| process.terminal()) == Some(true)
}

/// The process that runc left to this subreaper.
pub(crate) fn adopted(
    children: &Children,
    runc: &Runc,
    what: &str,
    file: &Path,
    ended: Tell,
) -> Result<Pid, String> {
    let text = fs::read_to_string(file)
        .map_err(|error| format!("read pid file {} of runc: {error}", file.display()))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.filter(|pid| children.claim(*pid, ended)).ok_or_else(|| {
        format!(
            "{} {what} succeeded, but its pid file names {text:?}, which is no child of the shim",
            runc.binary.display()
        )
    })
}

impl Container {
    /// `runc start`. After an error the container is to be [ended](Self::end).
    pub(crate) fn start(&self) -> Result<(), String> {
        let argv = self.runc.start(&self.id);
        call::run(&self.children, &self.runc, "start", argv, CALL_LIMIT)
    }

    /// Kills what outlives the first process where no PID namespace ends with it.
    pub(crate) fn kill_rest(&self) -> Result<(), String> {
        if self.own_pids {
            return Ok(());
        }
        let argv = self.runc.kill_all(&self.id);
        call::run(&self.children, &self.runc, "kill", argv, DOWN_LIMIT)
    }

    /// Removes the container, whatever state it is in.
    pub(crate) fn end(&self) {
        take_down(&self.children, &self.runc, &self.id);
    }
}

/// Idempotent. What cannot be removed now, the daemon's `delete` finds again.
fn take_down(children: &Children, runc: &Runc, id: &str) {
    // First what a killed runc left: it may still be building up.
    let deleted = call::run(children, runc, "delete", runc.delete(id), DOWN_LIMIT);
    processes::kill_offspring(rustix::process::getpid(), KILL_LIMIT);
    if let Err(text) = deleted {
        eprintln!("criw-shim-runc: {text}");
    }
}

/// Sub-command `delete`: what the daemon calls when a shim died. Success when there
/// is no such container. Needs no reaper: it has one child.
pub(crate) fn delete(runc: &Runc, id: &str) -> Result<(), String> {
    let children = Children::adopt().map_err(|error| format!("become a subreaper: {error}"))?;
    call::run(&children, runc, "delete", runc.delete(id), DOWN_LIMIT)
}
