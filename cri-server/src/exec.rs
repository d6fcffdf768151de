//! Exec and attach: what a command in a running container stands for, and its session.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use criw_engines::protocol::FdRole;
use criw_engines::spec::WasmSection;
use criw_image_service::{CodeVariant, Kind};
use criw_proto::v1 as cri;
use criw_sandbox::model::{EngineSpec, Map};
use criw_sandbox::{ContainerId, ContainerView, ExecPlace, ExecSpec};
use tokio::sync::watch;
use tonic::Status;

use crate::convert::{annotations, argv};
use crate::create::{code, image_id};
use crate::daemon::Daemon;
use crate::entry::{self, Module, Place, Program, Unfit};
use crate::error;
use crate::handlers::Route;
use crate::libraries::Libraries;
use crate::spawner::{self, Session};
use crate::streaming::Granted;
use crate::streaming::remote::{Streams, Wanted};
use crate::streaming::resize::Size;
use crate::streaming::status::Outcome;
use crate::toolbox::Offer;
use crate::variant::want;

/// How long a container whose output has ended may take to be recorded as ended.
const EXIT: Duration = Duration::from_secs(2);

/// What an attached client reads when it was too slow.
const BEHIND: &str = "detached: this client fell behind the container's output by more than 1 MiB; the log has everything";

/// What every client reads when the daemon goes.
const ENDING: &str = "criw ends or restarts; the session is over, try again in a moment";

/// Runs a command to its end.
pub async fn exec_sync(
    daemon: &Arc<Daemon>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    let container = running(daemon, &request.container_id)?;
    let timeout = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => return Err(Status::invalid_argument("the timeout is negative")),
    };
    let wanted = Wanted {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let (spec, session) = spec(daemon, &container, command(request.cmd)?, wanted).await?;
    let output = daemon
        .sandboxes
        .exec_sync(&container.id, spec, timeout)
        .await;
    if let Some(session) = session {
        session.end().await;
    }
    let output = output.map_err(|e| error::sandbox(&e))?;
    Ok(cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}

/// Exec, granted.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn grant_exec(daemon: &Daemon, request: cri::ExecRequest) -> Result<Granted, Status> {
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(wanted)?;
    Ok(Granted::Exec {
        container: running(daemon, &request.container_id)?.id,
        command: command(request.cmd)?,
        wanted,
    })
}

/// Attach, granted.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn grant_attach(daemon: &Daemon, request: cri::AttachRequest) -> Result<Granted, Status> {
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(wanted)?;
    Ok(Granted::Attach {
        container: running(daemon, &request.container_id)?.id,
        wanted,
    })
}

/// PortForward, granted.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn grant_port_forward(
    daemon: &Daemon,
    request: cri::PortForwardRequest,
) -> Result<Granted, Status> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Status::invalid_argument("the pod sandbox id is empty"));
    }
    let pod = daemon.pod(&request.pod_sandbox_id)?;
    if !pod.ready {
        let text = format!("pod sandbox {} is not ready", pod.id);
        return Err(Status::failed_precondition(text));
    }
    let ports = request
        .port
        .iter()
        .map(|port| match u16::try_from(*port) {
            Ok(port @ 1..) => Ok(port),
            _ => Err(Status::invalid_argument(format!("{port} is no port"))),
        })
        .collect::<Result<_, _>>()?;
    Ok(Granted::PortForward { pod: pod.id, ports })
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn check(wanted: Wanted) -> Result<(), Status> {
    if wanted.tty && wanted.stderr {
        return Err(Status::invalid_argument(
            "tty and stderr go not together: a terminal has one output",
        ));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Status::invalid_argument(
            "none of stdin, stdout and stderr is asked for",
        ));
    }
    Ok(())
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn running(daemon: &Daemon, id: &str) -> Result<ContainerView, Status> {
    if id.is_empty() {
        return Err(Status::invalid_argument("the container id is empty"));
    }
    let container = daemon.container(id)?;
    if !container.state.is_running() {
        return Err(Status::failed_precondition(format!(
            "container {} is not running",
            container.id
        )));
    }
    Ok(container)
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn command(cmd: Vec<String>) -> Result<Vec<String>, Status> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("the command is empty"));
    }
    Ok(cmd)
}

/// A session of Exec: the command lives as long as its client.
pub async fn stream(
    daemon: &Arc<Daemon>,
    container: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
    streams: Streams,
) {
    let begin = async {
        let view = running(daemon, container.as_str())?;
        let (spec, session) = spec(daemon, &view, command, wanted).await?;
        let begun = daemon.sandboxes.exec(container, spec).await;
        let (exec, pipes) = begun.map_err(|e| error::sandbox(&e))?;
        Ok((exec, pipes, session))
    };
    let begun = tokio::select! {
        begun = begin => begun,
        () = streams.gone() => return,
    };
    let (exec, pipes, session) = match begun {
        Ok(begun) => begun,
        Err::<_, Status>(status) => {
            let text = format!("exec in container {container}: {}", status.message());
            return streams.finish(&Outcome::Failed(text)).await;
        }
    };
    let mut ending = daemon.ending.clone();
    let (sizes, mut size) = watch::channel(Size::default());
    let resize = async {
        while size.changed().await.is_ok() {
            let Size { width, height } = *size.borrow_and_update();
            if let Err(error) = exec.resize(width, height).await {
                tracing::debug!(%container, error = %error::chain(&error), "resize an exec's terminal");
            }
        }
        std::future::pending().await
    };
    let ended = async {
        tokio::select! {
            code = exec.ended() => match code {
                Ok(code) => Outcome::exit(code),
                Err(error) => Outcome::Failed(error::chain(&error)),
            },
            _ = ending.wait_for(|ending| *ending) => Outcome::Failed(ENDING.to_owned()),
            outcome = resize => outcome,
        }
    };
    if streams.connect(pipes, ended, sizes).await.is_none() {
        tracing::debug!(%container, "the client of an exec has left; the command is ended");
    }
    exec.end().await;
    if let Some(session) = session {
        session.end().await;
    }
}

/// A session of Attach: the container does not notice that it ends.
pub async fn attach(
    daemon: &Arc<Daemon>,
    container: &ContainerId,
    wanted: Wanted,
    streams: Streams,
) {
    let asked = criw_sandbox::Streams {
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let pipes = match daemon.sandboxes.attach(container, asked).await {
        Ok(pipes) => pipes,
        Err(error) => return streams.finish(&Outcome::Failed(error::chain(&error))).await,
    };
    let mut ending = daemon.ending.clone();
    let (sizes, mut size) = watch::channel(Size::default());
    let resize = async {
        while size.changed().await.is_ok() {
            let Size { width, height } = *size.borrow_and_update();
            if let Err(error) = daemon.sandboxes.resize(container, width, height).await {
                tracing::debug!(%container, error = %error::chain(&error), "resize a terminal");
            }
        }
        std::future::pending().await
    };
    let ended = async {
        tokio::select! {
            () = daemon.sandboxes.exited(container) => Outcome::Success,
            _ = ending.wait_for(|ending| *ending) => Outcome::Failed(ENDING.to_owned()),
            outcome = resize => outcome,
        }
    };
    let behind = async {
        tokio::time::sleep(EXIT).await;
        Outcome::Failed(BEHIND.to_owned())
    };
    streams.connect_until(pipes, ended, behind, sizes).await;
}

/// The command, and the session of those that it may start.
async fn spec(
    daemon: &Arc<Daemon>,
    container: &ContainerView,
    args: Vec<String>,
    wanted: Wanted,
) -> Result<(ExecSpec, Option<Session>), Status> {
    let (engine, code) = match &container.spec.engine {
        EngineSpec::Runc => (EngineSpec::Runc, None),
        EngineSpec::Wasm { engine, section } => {
            let (section, code) = program(daemon, container, engine, section, &args, None).await?;
            let engine = engine.clone();
            (EngineSpec::Wasm { engine, section }, code)
        }
    };
    let mut handed = Vec::new();
    let mut session = None;
    if spawner::may_spawn(&engine) {
        let (begun, socket) = Session::begin(daemon, &container.id)?;
        handed.push((FdRole::Spawner, socket));
        session = Some(begun);
    }
    let spec = ExecSpec {
        args,
        engine,
        code,
        streams: criw_sandbox::Streams {
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        },
        tty: wanted.tty,
        place: None,
        handed,
    };
    Ok((spec, session))
}

/// Another module of the image, or the toolbox. The container's own argv[0] names what it did
/// at create; the rule that a single module answers to every name does not hold here, or
/// `exec sh` would start a second server.
pub(crate) async fn program(
    daemon: &Arc<Daemon>,
    container: &ContainerView,
    engine: &str,
    section: &WasmSection,
    args: &[String],
    elsewhere: Option<&ExecPlace>,
) -> Result<(WasmSection, Option<File>), Unfit> {
    let spec = container.spec.clone();
    let route = Route::Wasm(engine.to_owned());
    // The image may have been removed meanwhile; its layers are held, its modules are
    // then compiled as files.
    let mut modules = Vec::new();
    let mut kept = None;
    let asked = match spec.image.user_specified.as_str() {
        "" => &spec.image.image,
        asked => asked,
    };
    if let Some(id) = image_id(&spec.image.image_id)
        && let Ok(Some(image)) = daemon
            .images
            .find_as(&spec.image.image_id, asked)
        && let Ok(prepared) = daemon
            .images
            .prepare(&id, image.scope.as_deref(), want(&route, &image.kinds))
            .await
        // Its name may stand for something else by now.
        && prepared.lowers == spec.lowers
    {
        modules.clone_from(&prepared.modules);
        kept = Some(prepared);
    }
    let env = elsewhere.map_or(&spec.process.env, |place| &place.env);
    let place = Place {
        image: spec.image.image.clone(),
        lowers: spec.lowers.clone(),
        modules,
        kind: Kind::Wasm,
        mounts: spec.mounts.clone(),
        masked: spec.masked_paths.clone(),
        path: argv::lookup(env, "PATH")
            .unwrap_or(argv::DEFAULT_PATH)
            .to_owned(),
        cwd: elsewhere
            .map_or(&spec.process.cwd, |place| &place.cwd)
            .clone(),
        toolbox: offer(daemon, container),
    };
    let word = args[0].clone();
    let own_name = spec.process.args.first() == Some(&word);
    let found = tokio::task::spawn_blocking(move || entry::find(&place, &word, own_name))
        .await
        .map_err(|error| Status::internal(format!("run blocking work: {error}")))?;
    let Program::Wasm(module, export) = found? else {
        return Err(Unfit::NotExecutable(format!(
            "{:?} is a native program; a Wasm container runs only Wasm modules",
            args[0]
        )));
    };
    let spawner = matches!(module, Module::Toolbox);
    let libraries = Libraries::There {
        container,
        image: kept.as_ref(),
    };
    let (code, start_error) = code(daemon, module, libraries, CodeVariant::Plain).await?;
    drop(kept);
    let section = WasmSection {
        export,
        listen: Vec::new(),
        spawner,
        broken_pipe_ends: false,
        start_error,
        // Bounds of the container's own program.
        deadline_ms: None,
        fuel: None,
        ..section.clone()
    };
    Ok((section, code))
}

/// What the toolbox offers to a container, by the annotations it was created with.
fn offer(daemon: &Daemon, container: &ContainerView) -> Offer {
    let pod = daemon.find_pod(container.sandbox.as_str()).ok().flatten();
    let none = Map::new();
    let of_pod = pod.as_ref().map_or(&none, |pod| &pod.spec.annotations);
    let spec = &container.spec;
    // They were checked when it was created.
    let off = annotations::no_toolbox(&spec.name, &spec.annotations, of_pod).unwrap_or(true);
    daemon.toolbox.offer(off)
}
