//! ExecSync: one more shim, born in the container's namespaces and cgroup.
//!
//! A locked-up shim cannot spawn, so the daemon does: the new process joins what
//! the container has and runs another module of its image (Wasm) or asks runc to.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criw_engines::client::{Child, Join, Launch, Namespaces, ShimSocket, launch};
use criw_engines::protocol::{ExitRecord, FdRole, Reply, Request, VERSION};
use criw_engines::spec::{EngineSection, Role, RuncSection, Section, Spec};
use rustix::thread::ThreadNameSpaceType;

use super::tear_down::{KILL_DEADLINE, end_process, wait_readable};
use super::{Container, Inner, Sandboxes, blocking};
use crate::container_state::ProcessIdentity;
use crate::error::{Error, Result};
use crate::host::boot;
use crate::id::ContainerId;
use crate::model::EngineSpec;
use crate::readiness;
use crate::view::{ExecOutput, MAX_EXEC_OUTPUT};

/// Building up and the answer to "go"; runc's own exec takes 30 ms.
const SHIM_DEADLINE: Duration = Duration::from_secs(30);

/// Grandchildren may hold the pipes after the command has ended; nobody waits for them.
const DRAIN: Duration = Duration::from_secs(1);

/// One more process in a running container.
#[derive(Debug)]
pub struct ExecSpec {
    /// argv, never empty.
    pub args: Vec<String>,
    /// Engine facts; for Wasm those of the module that runs.
    pub engine: EngineSpec,
    /// Compiled code, Wasm only.
    pub code: Option<File>,
}

impl Sandboxes {
    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// `WrongState` when the container does not run, `StartFailed` when the command
    /// cannot be started, `Deadline` after `timeout`: the process is gone then.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        exec: ExecSpec,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        // Dropping this future (the client has gone) drops `Running`, which ends the process.
        let deadline = timeout.map(|t| Instant::now() + t);
        let prepared = blocking(move || inner.begin_exec(&container, exec)).await?;
        prepared.finish(deadline, timeout).await
    }
}

/// A started exec; dropping it ends the process and removes its directory.
struct Running {
    child: Child,
    identity: ProcessIdentity,
    socket: ShimSocket,
    directory: PathBuf,
    exit_record: File,
    stdout: OwnedFd,
    stderr: OwnedFd,
    wasm: bool,
}

impl Inner {
    fn begin_exec(self: &Arc<Self>, container: &Arc<Container>, exec: ExecSpec) -> Result<Running> {
        let state = container.state();
        let Some(shim) = state.shim().filter(|_| state.is_running()) else {
            return Err(Error::WrongState(format!(
                "exec in container {}: it is not running",
                container.id
            )));
        };
        let directory = self.exec_directory(container)?;
        self.launch_exec(container, exec, shim, &directory)
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
        exec: ExecSpec,
        shim: ProcessIdentity,
        directory: &Path,
    ) -> Result<Running> {
        let what = |step: &str| format!("{step} for exec in container {}", container.id);
        let wasm = matches!(exec.engine, EngineSpec::Wasm { .. });
        let (program, engine) = match exec.engine {
            EngineSpec::Wasm { engine, section } => (
                self.config.libexec.join(format!("criw-shim-{engine}")),
                EngineSection::Wasm(section),
            ),
            EngineSpec::Runc => (
                self.config.libexec.join("criw-shim-runc"),
                EngineSection::Runc(RuncSection {
                    binary: self.config.runc.clone(),
                    root: self.runc_root(),
                    bundle: directory.to_owned(),
                    systemd_cgroup: false,
                }),
            ),
        };
        let bundle = container.bundle(&self.config.state);
        let spec = self.exec_spec(container, &bundle, exec.args, engine)?;
        let spec_path = directory.join("spec.json");
        let spec_file = super::containers::write_spec(&spec_path, &spec)?;
        let exit_record = super::containers::new_file(&directory.join("exit.json"))?;
        let (stdout, stdout_guest) = pipe().map_err(|e| Error::node(what("make pipes"), e))?;
        let (stderr, stderr_guest) = pipe().map_err(|e| Error::node(what("make pipes"), e))?;
        let listener =
            ShimSocket::bind(directory).map_err(|e| Error::node(what("bind the socket"), e))?;

        let mut roles = vec![
            FdRole::Spec,
            FdRole::ExitRecord,
            FdRole::Stdout,
            FdRole::Stderr,
        ];
        let mut fds: Vec<BorrowedFd<'_>> = vec![
            spec_file.as_fd(),
            exit_record.as_fd(),
            stdout_guest.as_fd(),
            stderr_guest.as_fd(),
        ];
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
        let mounts;
        let leaf = if wasm {
            mounts = File::open(format!("/proc/{}/ns/mnt", shim.pid))
                .map_err(|e| Error::node(what("open the mount namespace"), e))?;
            roles.push(FdRole::ContainerMounts);
            fds.push(mounts.as_fd());
            kinds |= ThreadNameSpaceType::PROCESS_ID;
            container.record().leaf.clone()
        } else {
            let record = container.record();
            record.shim_leaf.as_ref().unwrap_or(&record.leaf).clone()
        };
        let namespaces = Namespaces {
            join: vec![Join::Process { pidfd, kinds }],
            new_pid: false,
        };
        if let Some(code) = &exec.code {
            roles.push(FdRole::Code);
            fds.push(code.as_fd());
        }
        let child = launch(Launch {
            program,
            id: format!("{}-exec", container.id),
            listener,
            cgroup_dirs: self.leaf(&leaf)?.dirs(),
            namespaces,
            stderr: super::containers::daemon_stderr(),
        })
        .map_err(|e| Error::node(what("start the shim"), e))?;
        let running = Running {
            identity: ProcessIdentity {
                pid: child.pid,
                start_time: child.start_time,
            },
            child,
            socket: ShimSocket::at(directory),
            directory: directory.to_owned(),
            exit_record: exit_record
                .try_clone()
                .map_err(|e| Error::node(what("keep the exit record"), e))?,
            stdout,
            stderr,
            wasm,
        };
        let request = Request::Create {
            version: VERSION,
            fds: roles,
        };
        match running.socket.call(&request, &fds, SHIM_DEADLINE) {
            Ok(Reply::Created { .. }) => Ok(running),
            Ok(Reply::Failed { message } | Reply::StartFailed { message }) => {
                Err(Error::StartFailed(message))
            }
            Ok(other) => Err(Error::node(
                what("build the shim"),
                format!("it answered {other:?}"),
            )),
            Err(error) => Err(Error::node(what("build the shim"), error)),
        }
    }

    /// The container's own spec with another argv: same user, env, cwd, limits.
    fn exec_spec(
        &self,
        container: &Container,
        bundle: &Path,
        args: Vec<String>,
        engine: EngineSection,
    ) -> Result<Spec> {
        let path = bundle.join("config.json");
        let json = std::fs::read(&path)
            .map_err(|e| Error::node(format!("read spec {}", path.display()), e))?;
        let mut spec = Spec::parse(&json)
            .map_err(|e| Error::node(format!("read spec {}", path.display()), e))?;
        let mut process = spec.oci.process().clone().unwrap_or_default();
        process.set_args(Some(args));
        process.set_terminal(Some(false));
        spec.oci.set_process(Some(process));
        spec.criw = Section {
            version: VERSION,
            container: container.id.as_str().to_owned(),
            sandbox: container.sandbox.as_str().to_owned(),
            role: Role::Exec,
            engine,
        };
        Ok(spec)
    }
}

impl Running {
    async fn finish(
        self,
        deadline: Option<Instant>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let what = "run an exec";
        let stdout = reader(&self.stdout)?;
        let stderr = reader(&self.stderr)?;
        let socket = self.socket.clone();
        let started = blocking(move || {
            socket
                .call(&Request::Start, &[], SHIM_DEADLINE)
                .map_err(|e| Error::node("start an exec", e))
        })
        .await;
        match started {
            Ok(Reply::Started) => {}
            Ok(Reply::StartFailed { message } | Reply::Failed { message }) => {
                return Err(Error::StartFailed(message));
            }
            Ok(other) => {
                return Err(Error::node(
                    "start an exec",
                    format!("the shim answered {other:?}"),
                ));
            }
            Err(error) => return Err(error),
        }
        let ended = async {
            let pidfd = readiness::register(
                self.child
                    .pidfd
                    .try_clone()
                    .map_err(|e| Error::node(what, e))?,
            )
            .map_err(|e| Error::node(what, e))?;
            let _ = pidfd.readable().await.map_err(|e| Error::node(what, e))?;
            Ok::<(), Error>(())
        };
        match deadline {
            None => ended.await?,
            Some(at) => {
                if tokio::time::timeout_at(at.into(), ended).await.is_err() {
                    let shown = timeout.unwrap_or_default();
                    self.end().await;
                    return Err(Error::Deadline(format!(
                        "the command did not end within {shown:?} and was killed"
                    )));
                }
            }
        }
        let record = ExitRecord::read(self.exit_record.as_fd())
            .map_err(|e| Error::node("read how an exec ended", e))?;
        let stdout = stdout.collect().await;
        let stderr = stderr.collect().await;
        let code = record.map_or(128 + libc::SIGKILL, |r| r.code);
        Ok(ExecOutput {
            stdout,
            stderr,
            code,
        })
    }

    /// Kills the command and waits until it is gone.
    async fn end(self) {
        let socket = self.socket.clone();
        let wasm = self.wasm;
        let identity = self.identity;
        let pidfd = self.child.pidfd.try_clone();
        let _ = blocking(move || {
            if !wasm {
                // The keeper kills its command first; then the keeper follows by itself.
                let kill = Request::Signal {
                    signal: libc::SIGKILL,
                    stop: false,
                    grace_ms: 0,
                };
                let _ = socket.call(&kill, &[], Duration::from_secs(5));
                if let Ok(pidfd) = &pidfd {
                    wait_readable(pidfd, Duration::from_secs(3));
                }
            }
            end_process(identity, KILL_DEADLINE);
            Ok(())
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Reaps it too; short, because a killed process ends within a scheduling delay.
        end_process(self.identity, Duration::from_secs(5));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Reads a pipe to its end on a thread of the blocking pool; keeps the first bytes only.
struct Reader {
    task: tokio::task::JoinHandle<()>,
    kept: Arc<std::sync::Mutex<Vec<u8>>>,
}

fn reader(pipe: &OwnedFd) -> Result<Reader> {
    let pipe = pipe
        .try_clone()
        .map_err(|e| Error::node("read the output of an exec", e))?;
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let target = kept.clone();
    let task = tokio::spawn(async move {
        let Ok(()) = rustix::io::ioctl_fionbio(&pipe, true) else {
            return;
        };
        let Ok(pipe) = readiness::register(pipe) else {
            return;
        };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(mut ready) = pipe.readable().await {
            match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut buffer)?)) {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(n)) => {
                    let mut kept = super::lock(&target);
                    let room = MAX_EXEC_OUTPUT.saturating_sub(kept.len());
                    kept.extend_from_slice(&buffer[..n.min(room)]);
                }
                Err(_would_block) => {}
            }
        }
    });
    Ok(Reader { task, kept })
}

impl Reader {
    async fn collect(self) -> Vec<u8> {
        let mut task = self.task;
        if tokio::time::timeout(DRAIN, &mut task).await.is_err() {
            task.abort();
        }
        std::mem::take(&mut *super::lock(&self.kept))
    }
}
