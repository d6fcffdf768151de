//! One more process in a running container, by `runc exec --detach`: runc ends, the
//! process stays and is adopted here.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criw_engines::spec::{RuncSection, Spec};
use rustix::fs::MemfdFlags;
use rustix::process::Pid;

use crate::call::{self, Streams};
use crate::children::{Children, Tell};
use crate::console::Console;
use crate::container::{CALL_LIMIT, CONSOLE_LIMIT, adopted, wants_terminal};
use crate::processes;
use crate::runc::{Files, Runc};
use crate::terminal::Terminal;
use crate::users;

/// Time for the children of a killed exec to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// An exec that is ready to run.
pub(crate) struct Exec {
    children: Arc<Children>,
    runc: Runc,
    id: String,
    process: File,
    terminal: bool,
    section: RuncSection,
    streams: Streams,
}

/// A running one, and its terminal if it has one.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Pid,
    pub(crate) terminal: Option<Terminal>,
}

impl Exec {
    pub(crate) fn prepare(
        children: &Arc<Children>,
        spec: &Spec,
        section: &RuncSection,
        streams: Streams,
    ) -> Result<Self, String> {
        let process = spec
            .oci
            .process()
            .as_ref()
            .ok_or("the spec of an exec has no process")?;
        let file = in_memory(&serde_json::to_vec(process).map_err(|error| error.to_string())?)
            .map_err(|error| format!("store the process for runc exec: {error}"))?;
        for stream in [&streams.stdin, &streams.stdout, &streams.stderr] {
            let given = stream.as_ref().map_or(Ok(()), |one| users::give(one, spec));
            given.map_err(|error| format!("prepare stdio for runc exec: {error}"))?;
        }
        let log = section.bundle.join(own_name("log"));
        Ok(Self {
            children: Arc::clone(children),
            runc: Runc::new(section, log),
            id: spec.criw.container.clone(),
            process: file,
            terminal: wants_terminal(spec),
            section: section.clone(),
            streams,
        })
    }

    /// Runs it; `ended` is called at its end. The error is the text for the user;
    /// then nothing is left.
    pub(crate) fn start(self, ended: Tell) -> Result<Running, String> {
        let children = Arc::clone(&self.children);
        let files = [self.pid_file(), self.runc.log.clone().unwrap_or_default()];
        let running = self.run(ended);
        for file in files {
            // Not there when runc did not come so far.
            let _ = fs::remove_file(file);
        }
        if running.is_err() {
            children.expect_no_adoption();
            processes::kill_offspring(rustix::process::getpid(), KILL_LIMIT);
        }
        running
    }

    fn run(self, ended: Tell) -> Result<Running, String> {
        const WHAT: &str = "exec";
        let io = |error: io::Error| format!("prepare stdio for runc exec: {error}");
        let console = self
            .terminal
            .then(|| Console::listen(&self.section.bundle, &own_name("sock")))
            .transpose()
            .map_err(io)?;
        let pid_file = self.pid_file();
        let files = Files {
            pid: pid_file.clone(),
            console: console.as_ref().map(Console::path),
        };
        let process = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.process.as_raw_fd()
        );
        let argv = self.runc.exec(&self.id, process.as_ref(), &files);
        let (streams, kept) = if console.is_some() {
            let none = Streams {
                stdin: None,
                stdout: None,
                stderr: None,
            };
            (none, Some(self.streams))
        } else {
            (self.streams, None)
        };
        self.children.expect_adoption();
        call::run_with(&self.children, &self.runc, WHAT, argv, streams, CALL_LIMIT)
            .map_err(|failure| failure.text(&[]))?;
        let process = adopted(&self.children, &self.runc, WHAT, &pid_file, ended)?;
        let terminal = match (console, kept) {
            (Some(console), Some(streams)) => Some(Terminal {
                master: console
                    .master(CONSOLE_LIMIT)
                    .map_err(|error| format!("receive terminal from runc exec: {error}"))?,
                stdin: streams.stdin,
                stdout: streams.stdout,
            }),
            _ => None,
        };
        Ok(Running { process, terminal })
    }

    fn pid_file(&self) -> PathBuf {
        self.section.bundle.join(own_name("pid"))
    }
}

/// Kills the process with its session and descendants, those first: once it is gone,
/// they belong to the container's init and nobody can tell them from its own.
pub(crate) fn kill(children: &Children, pid: Pid) -> io::Result<()> {
    // Stopped, it cannot fork faster than they are counted.
    children.signal(pid, libc::SIGSTOP)?;
    processes::kill_offspring(pid, KILL_LIMIT);
    children.signal(pid, libc::SIGKILL)
}

/// Names in the container's bundle that no other exec has.
fn own_name(kind: &str) -> String {
    format!("exec-{}.{kind}", std::process::id())
}

/// A file that vanishes with the process, however that ends.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}
