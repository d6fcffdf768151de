//! Exec: one more shim, born in the container's namespaces and cgroup.
//!
//! A locked-up shim cannot spawn, so the daemon does: the new process joins what
//! the container has and runs another module of its image (Wasm) or asks runc to.
//! The command's streams are pipes whose other ends are here, for whoever asked.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criw_engines::client::{CallError, Child, Join, Launch, Namespaces, ShimSocket, launch};
use criw_engines::protocol::{ExitReason, ExitRecord, FdRole, Reply, Request, VERSION};
use criw_engines::spec::{EngineSection, Role, RuncSection, Section, Spec};
use rustix::thread::ThreadNameSpaceType;

use super::shim::{self, CreateError};
use super::streams::{Ends, Pipes, Reader, Streams};
use super::tear_down::{KILL_DEADLINE, end_process, wait_readable};
use super::{Container, Inner, Sandboxes, blocking, chain};
use crate::container_state::{ContainerState, ProcessIdentity};
use crate::error::{Error, Result};
use crate::host::boot;
use crate::id::ContainerId;
use crate::model::EngineSpec;
use crate::readiness;
use crate::view::ExecOutput;

/// Building up and the answer to "go"; runc's own exec takes 30 ms.
const SHIM_DEADLINE: Duration = Duration::from_secs(30);

/// A control thread answers at once.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(5);

/// One more process in a running container.
#[derive(Debug)]
pub struct ExecSpec {
    /// argv, never empty.
    pub args: Vec<String>,
    /// Engine facts; for Wasm those of the module that runs.
    pub engine: EngineSpec,
    /// Compiled code, Wasm only.
    pub code: Option<File>,
    /// Which streams it gets; all others are `/dev/null`.
    pub streams: Streams,
    /// On a terminal; then there is no stderr of its own.
    pub tty: bool,
    /// Directory and environment of a command that a guest of the container started; others
    /// have the container's.
    pub place: Option<ExecPlace>,
    /// Descriptors for the shim: streams that are no pipes of ours, a spawner's socket.
    pub handed: Vec<(FdRole, OwnedFd)>,
}

/// Where a command finds itself.
#[derive(Debug)]
pub struct ExecPlace {
    /// Working directory, absolute.
    pub cwd: String,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
}

impl Sandboxes {
    /// Starts a command. Its streams end when it does, or a while later if what it
    /// started holds them.
    ///
    /// # Errors
    /// `WrongState` when the container does not run, `StartFailed` when the command
    /// cannot be started.
    pub async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<(Exec, Pipes)> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        // A guest asks for commands from its first moment, and its shim may be quicker than
        // the record of its start.
        if matches!(container.state(), ContainerState::Created { .. }) {
            drop(container.life.lock().await);
        }
        // Dropped half-way (the client has gone), what was built goes with it.
        let (exec, ends) = blocking(move || {
            let (exec, ends) = inner.begin_exec(&container, spec)?;
            exec.body.go()?;
            Ok((exec, ends))
        })
        .await?;
        Ok((exec, ends.into_pipes()?))
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::exec`], and `Deadline` after `timeout`: the process is gone then.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        spec: ExecSpec,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let (exec, pipes) = self.exec(id, spec).await?;
        let (stdout, stderr) = (Reader::start(pipes.stdout), Reader::start(pipes.stderr));
        let ended = match deadline {
            None => Ok(exec.ended().await),
            Some(at) => tokio::time::timeout_at(at.into(), exec.ended()).await,
        };
        exec.end().await;
        let Ok(code) = ended else {
            let shown = timeout.unwrap_or_default();
            return Err(Error::Deadline(format!(
                "the command did not end within {shown:?} and was killed"
            )));
        };
        Ok(ExecOutput {
            code: code?,
            stdout: stdout.collect().await,
            stderr: stderr.collect().await,
        })
    }
}

/// A started command. Dropped, it is killed with what it started.
pub struct Exec {
    body: Arc<Body>,
    /// Nobody has ended it yet.
    open: bool,
}

struct Body {
    container: Arc<Container>,
    child: Child,
    socket: ShimSocket,
    directory: PathBuf,
    exit_record: File,
    wasm: bool,
    /// A guest of the container asked for it.
    asked_inside: bool,
}

impl Exec {
    /// Waits for its end; the exit code.
    pub async fn ended(&self) -> Result<i32> {
        let failed = |error: std::io::Error| Error::node("wait for an exec", error);
        let pidfd = self.body.child.pidfd.try_clone().map_err(failed)?;
        let pidfd = readiness::register(pidfd).map_err(failed)?;
        let _ = pidfd.readable().await.map_err(failed)?;
        let record = ExitRecord::read(self.body.exit_record.as_fd())
            .map_err(|e| Error::node("read how an exec ended", e))?;
        if let Some(record) = &record
            && self.body.asked_inside
            && record.reason == ExitReason::OOMKilled
        {
            *super::lock(&self.body.container.command_out_of_memory) = Some(record.message.clone());
        }
        // A shim that was killed wrote none.
        Ok(match record {
            Some(record) => record.code,
            None => boot::exit_status(self.body.child.pidfd.as_fd())
                .ok()
                .flatten()
                .map_or(128 + libc::SIGKILL, |status| status.exit_code()),
        })
    }

    /// Tells its terminal a size, in characters.
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        let body = self.body.clone();
        blocking(move || super::attach::resize(&body.socket, width, height)).await
    }

    /// For signals, as long as it lives.
    pub fn signals(&self) -> Signals {
        Signals(self.body.clone())
    }

    /// Kills it if it still runs, and waits until nothing of it is left.
    pub async fn end(mut self) {
        self.open = false;
        let body = self.body.clone();
        let ended = blocking(move || {
            body.end();
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::warn!(error = %chain(&error), "end an exec");
        }
    }
}

/// Signals a command. Keeps nothing of it alive.
#[derive(Clone)]
pub struct Signals(Arc<Body>);

impl Signals {
    /// Sends a Linux signal, as the shim understands it.
    ///
    /// # Errors
    /// `WrongState` when there is no such signal or the command has ended.
    pub async fn send(&self, signal: i32) -> Result<()> {
        let body = self.0.clone();
        blocking(move || body.signal(signal)).await
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let body = self.body.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || body.end())),
            Err(_) => body.end(),
        }
    }
}

impl Body {
    fn identity(&self) -> ProcessIdentity {
        ProcessIdentity {
            pid: self.child.pid,
            start_time: self.child.start_time,
        }
    }

    fn go(&self) -> Result<()> {
        let answer = self
            .socket
            .call(&Request::Start, &[], SHIM_DEADLINE)
            .map_err(|e| Error::node("start an exec", e))?;
        match answer {
            Reply::Started => Ok(()),
            Reply::StartFailed { message } | Reply::Failed { message } => {
                Err(Error::StartFailed(message))
            }
            other => Err(Error::node(
                "start an exec",
                format!("the shim answered {other:?}"),
            )),
        }
    }

    fn signal(&self, signal: i32) -> Result<()> {
        const WHAT: &str = "signal an exec";
        let request = Request::Signal {
            signal,
            stop: false,
            grace_ms: 0,
        };
        match self.socket.call(&request, &[], SIGNAL_DEADLINE) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::Failed { message }) => Err(Error::WrongState(message)),
            Ok(other) => Err(Error::node(WHAT, format!("the shim answered {other:?}"))),
            Err(error @ CallError::Gone { .. }) => Err(Error::WrongState(chain(&error))),
            Err(error) => Err(Error::node(WHAT, error)),
        }
    }

    /// Idempotent.
    fn end(&self) {
        let ended = boot::open_if_same(self.identity()).is_ok_and(|one| one.is_none());
        if !ended && !self.wasm && !wait_readable(&self.child.pidfd, Duration::ZERO) {
            // The keeper kills its command first; then the keeper follows by itself.
            let kill = Request::Signal {
                signal: libc::SIGKILL,
                stop: false,
                grace_ms: 0,
            };
            let _ = self.socket.call(&kill, &[], Duration::from_secs(5));
            wait_readable(&self.child.pidfd, Duration::from_secs(3));
        }
        end_process(self.identity(), KILL_DEADLINE);
        super::lock(&self.container.execs).remove(&self.child.pid);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Inner {
    fn begin_exec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        spec: ExecSpec,
    ) -> Result<(Exec, Ends)> {
        let state = container.state();
        let Some(shim) = state.shim().filter(|_| state.is_running()) else {
            return Err(Error::WrongState(format!(
                "exec in container {}: it is not running",
                container.id
            )));
        };
        let directory = self.exec_directory(container)?;
        self.launch_exec(container, spec, shim, &directory)
            .inspect_err(|_| {
                let _ = std::fs::remove_dir_all(&directory);
            })
    }

    fn exec_directory(&self, container: &Container) -> Result<PathBuf> {
        let id = ContainerId::random();
        let directory = container
            .bundle(&self.config.state)
            .join("exec")
            .join(&id.as_str()[..16]);
        std::fs::create_dir_all(&directory)
            .map_err(|e| Error::node(format!("create {}", directory.display()), e))?;
        Ok(directory)
    }

    fn launch_exec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        mut exec: ExecSpec,
        shim: ProcessIdentity,
        directory: &Path,
    ) -> Result<(Exec, Ends)> {
        let what = |step: &str| format!("{step} for exec in container {}", container.id);
        let wasm = matches!(exec.engine, EngineSpec::Wasm { .. });
        let (program, engine) = match &exec.engine {
            EngineSpec::Wasm { engine, section } => (
                self.config.libexec.join(format!("criw-shim-{engine}")),
                EngineSection::Wasm(section.clone()),
            ),
            EngineSpec::Runc => (
                self.config.libexec.join("criw-shim-runc"),
                EngineSection::Runc(RuncSection {
                    binary: self.config.runc.clone(),
                    root: self.runc_root(),
                    bundle: directory.to_owned(),
                    systemd_cgroup: self.leaf(&container.record().leaf)?.is_scope(),
                }),
            ),
        };
        let bundle = container.bundle(&self.config.state);
        let shown = exec.args.clone();
        let asked_inside = exec.place.is_some();
        let spec = self.exec_spec(container, &bundle, &mut exec, engine)?;
        let spec_path = directory.join("spec.json");
        let spec_file = super::containers::write_spec(&spec_path, &spec)?;
        let exit_file = directory.join("exit.json");
        let exit_record = super::containers::new_file(&exit_file)?;
        let label = self.shim_label(container)?;
        self.label_for_shim(container, &exit_file, exec.code.as_ref(), label.as_deref())?;
        let (guest_ends, ends) =
            super::streams::pipes(exec.streams).map_err(|e| Error::node(what("make pipes"), e))?;
        let listener =
            ShimSocket::bind(directory).map_err(|e| Error::node(what("bind the socket"), e))?;

        let mut parts: Vec<(FdRole, BorrowedFd<'_>)> = vec![
            (FdRole::Spec, spec_file.as_fd()),
            (FdRole::ExitRecord, exit_record.as_fd()),
        ];
        let guest_ends = guest_ends.iter().chain(&exec.handed);
        parts.extend(guest_ends.map(|(role, fd)| (*role, fd.as_fd())));
        let Some(pidfd) = boot::open_if_same(shim)? else {
            return Err(Error::WrongState(format!(
                "exec in container {}: it has just ended",
                container.id
            )));
        };
        // runc joins only the namespaces that its config lists; the pod's it inherits,
        // in an exec as at the start.
        let mut kinds = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        let mounts: OwnedFd;
        let leaf = if wasm {
            mounts = File::open(format!("/proc/{}/ns/mnt", shim.pid))
                .map_err(|e| Error::node(what("open the mount namespace"), e))?
                .into();
            parts.push((FdRole::ContainerMounts, mounts.as_fd()));
            kinds |= ThreadNameSpaceType::PROCESS_ID;
            container.record().leaf.clone()
        } else {
            let record = container.record();
            record.shim_leaf.as_ref().unwrap_or(&record.leaf).clone()
        };
        if let Some(code) = &exec.code {
            parts.push((FdRole::Code, code.as_fd()));
        }
        // runc's own exec goes where its container is.
        let namespaces = self.pod(&container.sandbox)?.namespaces();
        let users = namespaces.as_ref().and_then(|n| n.user.as_ref());
        if let Some(users) = users.filter(|_| wasm) {
            parts.push((FdRole::UserNamespace, users.as_fd()));
        }
        let child = launch(Launch {
            program,
            id: format!("{}-exec", container.id),
            listener,
            cgroup_dirs: self.leaf(&leaf)?.dirs(),
            namespaces: Namespaces {
                join: vec![Join::Process { pidfd, kinds }],
                new_pid: false,
            },
            stderr: super::containers::daemon_stderr(),
        })
        .map_err(|e| Error::node(what("start the shim"), e))?;
        super::lock(&container.execs).insert(child.pid, shown);
        let body = Body {
            container: container.clone(),
            child,
            socket: ShimSocket::at(directory),
            directory: directory.to_owned(),
            exit_record: exit_record
                .try_clone()
                .map_err(|e| Error::node(what("keep the exit record"), e))?,
            wasm,
            asked_inside,
        };
        let exec = Exec {
            body: Arc::new(body),
            open: true,
        };
        match shim::create(&exec.body.child, &exec.body.socket, &parts, SHIM_DEADLINE) {
            Ok(_) => Ok((exec, ends)),
            Err(CreateError::Refused(text)) => Err(Error::StartFailed(text)),
            Err(error) => Err(error.on(what("build the shim"))),
        }
    }

    /// The container's own spec with another argv: same user and limits, and if nothing else
    /// is said the same directory and environment.
    fn exec_spec(
        &self,
        container: &Container,
        bundle: &Path,
        exec: &mut ExecSpec,
        engine: EngineSection,
    ) -> Result<Spec> {
        let path = bundle.join("config.json");
        let json = std::fs::read(&path)
            .map_err(|e| Error::node(format!("read spec {}", path.display()), e))?;
        let mut spec = Spec::parse(&json)
            .map_err(|e| Error::node(format!("read spec {}", path.display()), e))?;
        let mut process = spec.oci.process().clone().unwrap_or_default();
        process.set_args(Some(std::mem::take(&mut exec.args)));
        process.set_terminal(Some(exec.tty));
        if let Some(place) = exec.place.take() {
            process.set_cwd(place.cwd.into());
            process.set_env(Some(place.env));
        }
        if exec.tty {
            // Programs that draw on a terminal need its kind.
            let mut env = process.env().clone().unwrap_or_default();
            if !env.iter().any(|pair| pair.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
            process.set_env(Some(env));
        }
        spec.oci.set_process(Some(process));
        spec.criw = Section {
            version: VERSION,
            container: container.id.as_str().to_owned(),
            sandbox: container.sandbox.as_str().to_owned(),
            role: Role::Exec,
            stdin: None,
            engine,
        };
        Ok(spec)
    }
}
