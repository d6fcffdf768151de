//! ExecSync: what a command in a running container stands for.

use std::sync::Arc;
use std::time::Duration;

use criw_engines::spec::WasmSection;
use criw_image_service::Kind;
use criw_proto::v1 as cri;
use criw_sandbox::ContainerView;
use criw_sandbox::ExecSpec;
use criw_sandbox::model::EngineSpec;
use tonic::Status;

use crate::convert::argv;
use crate::create::{blocking, code, image_id, want};
use crate::daemon::Daemon;
use crate::entry::{self, Place, Program};
use crate::error;

/// Runs a command to its end.
pub async fn exec_sync(
    daemon: &Arc<Daemon>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    let container = daemon.container(&request.container_id)?;
    if !container.state.is_running() {
        return Err(Status::failed_precondition(format!(
            "container {} is not running",
            container.id
        )));
    }
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("the command is empty"));
    }
    let timeout = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => return Err(Status::invalid_argument("the timeout is negative")),
    };
    let spec = match &container.spec.engine {
        EngineSpec::Runc => ExecSpec {
            args: request.cmd,
            engine: EngineSpec::Runc,
            code: None,
        },
        EngineSpec::Wasm { engine, section } => {
            wasm(daemon, &container, engine, section, request.cmd).await?
        }
    };
    let output = daemon
        .sandboxes
        .exec_sync(&container.id, spec, timeout)
        .await
        .map_err(|e| error::sandbox(&e))?;
    Ok(cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}

/// Another module of the image. The container's own argv[0] names what it did at create;
/// the rule that a single module answers to every name does not hold here, or `exec sh`
/// would start a second server.
async fn wasm(
    daemon: &Arc<Daemon>,
    container: &ContainerView,
    engine: &str,
    section: &WasmSection,
    args: Vec<String>,
) -> Result<ExecSpec, Status> {
    let spec = container.spec.clone();
    let pod = daemon.find_pod(container.sandbox.as_str())?;
    let handler = pod.map(|pod| pod.spec.handler.clone()).unwrap_or_default();
    let route = daemon.handlers.known_route(&handler);
    // The image may have been removed meanwhile; its layers are held, its modules are
    // then compiled as files.
    let mut modules = Vec::new();
    let mut kept = None;
    if let Some(id) = image_id(&spec.image.image_id)
        && let Ok(Some(image)) = daemon.images.find(&spec.image.image_id)
        && let Ok(prepared) = daemon.images.prepare(&id, want(&route, &image.kinds)).await
    {
        modules.clone_from(&prepared.modules);
        kept = Some(prepared);
    }
    let place = Place {
        image: spec.image.image.clone(),
        lowers: spec.lowers.clone(),
        modules,
        kind: Kind::Wasm,
        mounts: spec.mounts.clone(),
        path: argv::lookup(&spec.process.env, "PATH")
            .unwrap_or(argv::DEFAULT_PATH)
            .to_owned(),
        cwd: spec.process.cwd.clone(),
    };
    let word = args[0].clone();
    let own_name = spec.process.args.first() == Some(&word);
    let program = blocking(move || entry::find(&place, &word, own_name)).await?;
    let Program::Wasm(module, export) = program else {
        return Err(Status::invalid_argument(format!(
            "{:?} is a native program; a Wasm container runs only Wasm modules",
            args[0]
        )));
    };
    let (code, start_error) = code(daemon, module).await?;
    drop(kept);
    Ok(ExecSpec {
        args,
        engine: EngineSpec::Wasm {
            engine: engine.to_owned(),
            section: WasmSection {
                export,
                listen: Vec::new(),
                start_error,
                ..section.clone()
            },
        },
        code,
    })
}
