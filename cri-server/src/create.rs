//! CreateContainer: from a request and an image to the spec of a container.

use std::fs::File;
use std::sync::Arc;

use criw_engines::spec::{HttpSection, WasmSection};
use criw_image_service::{
    Code, CodeVariant, CompileError, Image, ImageId, Main, Prepared, StoreError,
};
use criw_proto::v1 as cri;
use criw_sandbox::host::rootview::RootView;
use criw_sandbox::model::{ContainerSpec, EngineSpec, ImageNames, Mount, PidMode, Process};
use criw_sandbox::{ContainerId, PodView};
use tokio::sync::oneshot;
use tonic::Status;

use crate::cdi::Found;
use crate::convert::pod::{ContainerPid, container_pid};
use crate::convert::security::Base;
use crate::convert::{annotations, argv, mounts, resources, security, signal, user};
use crate::daemon::Daemon;
use crate::entry::{self, Module, Place, Program};
use crate::error;
use crate::handlers::Route;
use crate::libraries::{self, Libraries};
use crate::{cdi, image_volumes, spawner, variant};

/// Of an image's /etc/passwd and /etc/group.
const MAX_USER_FILE: usize = 1 << 20;

/// What a start error may have for text.
const MAX_START_ERROR: usize = 4096;

/// Creates a container. Runs to its end in a task of its own; what was built for a
/// caller that has gone meanwhile is taken down again.
pub async fn create(
    daemon: &Arc<Daemon>,
    request: cri::CreateContainerRequest,
) -> Result<ContainerId, Status> {
    let (answer, answered) = oneshot::channel();
    let daemon = daemon.clone();
    tokio::spawn(async move {
        if let Err(Ok(id)) = answer.send(build(&daemon, request).await) {
            tracing::info!(container = %id, "the caller of CreateContainer has gone");
            if let Err(error) = remove(&daemon, &id).await {
                tracing::warn!(container = %id, %error, "take down after an abandoned CreateContainer");
            }
        }
    });
    answered
        .await
        .map_err(|_| Status::internal("CreateContainer ended without an answer"))?
}

/// Removes a container and gives its image's layers free.
pub async fn remove(daemon: &Daemon, id: &ContainerId) -> Result<(), Status> {
    daemon
        .sandboxes
        .remove(id)
        .await
        .map_err(|e| error::sandbox(&e))?;
    daemon
        .images
        .release(id.as_str())
        .await
        .map_err(|e| error::store(&e))
}

async fn build(
    daemon: &Arc<Daemon>,
    request: cri::CreateContainerRequest,
) -> Result<ContainerId, Status> {
    let pod = daemon.pod(&request.pod_sandbox_id)?;
    let config = request
        .config
        .ok_or_else(|| Status::invalid_argument("the container has no config"))?;
    let asked = config.image.clone().unwrap_or_default();
    let image = find_image(daemon, &asked)?;
    let route = variant::route(daemon, &pod, &config)?;
    let prepared = variant::prepare(daemon, &image, &route, &config).await?;
    let kind = prepared.kind;
    let mut mounts = mounts::mounts(&config.mounts, daemon.host.recursive_read_only)?;
    mounts::check_users(&mounts, pod.spec.user_namespace)?;
    let volumes = image_volumes::resolve(daemon, &mut mounts).await?;
    let cdi = cdi_devices(daemon, &config).await?;
    let mut held = vec![(image.id.clone(), kind)];
    held.extend(volumes.iter().map(|one| (one.image.id.clone(), one.kind)));
    let libraries = Libraries::New {
        pod: &pod.id,
        image: &prepared,
        volumes: &volumes,
    };
    let additions = Additions {
        mounts,
        cdi,
        libraries,
    };
    let plan = plan(daemon, &pod, &config, additions, &asked, &route, &prepared).await?;
    let id = daemon
        .sandboxes
        .create(&pod.id, plan.spec, plan.code)
        .await
        .map_err(|e| error::sandbox(&e))?;
    // `prepared` and `volumes` keep the layers until the lasting hold stands.
    if let Err(failure) = daemon.images.hold(id.as_str(), &held).await {
        if let Err(error) = remove(daemon, &id).await {
            tracing::warn!(container = %id, %error, "take down after a failed hold");
        }
        return Err(error::store(&failure));
    }
    drop((prepared, volumes));
    spawner::serve_container(daemon, &id);
    Ok(id)
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn find_image(daemon: &Daemon, asked: &cri::ImageSpec) -> Result<Image, Status> {
    let name = asked.image.as_str();
    if name.is_empty() {
        return Err(Status::invalid_argument("the container names no image"));
    }
    daemon
        .images
        .find_as(name, &asked.user_specified_image)
        .map_err(|e| error::ambiguous(&e))?
        .ok_or_else(|| {
            Status::not_found(format!(
                "image {name:?} is not on this node; pull it first (CreateContainer does not)"
            ))
        })
}

/// The edits that CDI devices ask for.
async fn cdi_devices(daemon: &Daemon, config: &cri::ContainerConfig) -> Result<Found, Status> {
    let names: Vec<String> = config.cdi_devices.iter().map(|d| d.name.clone()).collect();
    if names.is_empty() {
        return Ok(Found::default());
    }
    let dirs = daemon.config.cdi.dirs.clone();
    blocking(move || {
        cdi::resolve(&names, &dirs).map_err(|error| Status::invalid_argument(error.to_string()))
    })
    .await
}

/// What is mounted, what CDI devices bring, and what a component may be linked with.
struct Additions<'a> {
    mounts: Vec<Mount>,
    cdi: Found,
    libraries: Libraries<'a>,
}

struct Plan {
    spec: ContainerSpec,
    code: Option<File>,
}

async fn plan(
    daemon: &Daemon,
    pod: &PodView,
    config: &cri::ContainerConfig,
    additions: Additions<'_>,
    asked_image: &cri::ImageSpec,
    route: &Route,
    prepared: &Prepared,
) -> Result<Plan, Status> {
    let metadata = config
        .metadata
        .clone()
        .filter(|metadata| !metadata.name.is_empty())
        .ok_or_else(|| Status::invalid_argument("the container has no metadata.name"))?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    if context.privileged && !pod.spec.privileged {
        return Err(Status::invalid_argument(
            "a privileged container needs a privileged pod sandbox",
        ));
    }
    // The kubelet sends its lists whatever the container is.
    let (masked_paths, readonly_paths) = match context.privileged {
        true => Default::default(),
        false => (context.masked_paths, context.readonly_paths),
    };
    let wanted = &prepared.config;
    let names = image_names(&prepared.image, asked_image);
    let implied = prepared
        .lowers
        .is_empty()
        .then(|| artifact_name(&names.image));
    let args = argv::argv(
        argv::Asked {
            command: &config.command,
            args: &config.args,
        },
        argv::Image {
            entrypoint: &wanted.entrypoint,
            cmd: &wanted.cmd,
            implied: implied.as_deref(),
        },
    )?;
    let hostname = match pod.spec.hostname.as_str() {
        "" => daemon.host.hostname.as_str(),
        hostname => hostname,
    };
    let mut defaults = vec![("HOSTNAME", hostname)];
    if config.tty {
        defaults.push(("TERM", "xterm"));
    }
    let mut env = argv::env(&defaults, &wanted.env, &config.envs)?;
    let cwd = argv::cwd(&config.working_dir, &wanted.working_dir);
    let Additions {
        mounts,
        cdi,
        libraries,
    } = additions;
    // Of the devices, over everything else.
    argv::set(&mut env, &cdi.env);
    let pod_users = pod.spec.user_namespace;
    user::check_namespace(context.namespace_options.as_ref(), pod_users)?;
    let limits = match &linux.resources {
        Some(asked) => resources::resources(asked)?,
        None => Default::default(),
    };
    let labels: criw_sandbox::model::Map = config.labels.clone().into_iter().collect();
    let own_annotations: criw_sandbox::model::Map =
        config.annotations.clone().into_iter().collect();
    let wishes = annotations::wishes(&metadata.name, &own_annotations, &pod.spec.annotations)?;
    let place = Place {
        image: names.image.clone(),
        lowers: prepared.lowers.clone(),
        modules: prepared.modules.clone(),
        kind: prepared.kind,
        mounts: mounts.clone(),
        masked: masked_paths.clone(),
        path: argv::lookup(&env, "PATH")
            .unwrap_or(argv::DEFAULT_PATH)
            .to_owned(),
        cwd: cwd.clone(),
        toolbox: daemon.toolbox.offer(wishes.no_toolbox),
    };
    let word = args[0].clone();
    let (program, files) = blocking(move || {
        let program = entry::find(&place, &word, true)?;
        Ok((program, UserFiles::read(&place)?))
    })
    .await?;
    let user = user::resolve(
        user::Asked {
            user: context.run_as_user.map(|value| value.value),
            username: &context.run_as_username,
            group: context.run_as_group.map(|value| value.value),
            supplemental: &context.supplemental_groups,
            strict: context.supplemental_groups_policy
                == cri::SupplementalGroupsPolicy::Strict as i32,
        },
        user::Image {
            user: &wanted.user,
            passwd: &files.passwd,
            group: &files.group,
        },
    )?;
    let user = user.with_groups(&cdi.gids);
    user.check_mapped(pod_users)?;
    let base = match (&program, context.privileged) {
        (_, true) => Base::Privileged,
        (Program::Wasm(..), false) => Base::Wasm,
        (Program::Native, false) => Base::Linux,
    };
    let (capabilities, ambient) = security::capabilities(
        base,
        context.capabilities.as_ref(),
        daemon.host.capabilities,
    )?;
    if matches!(program, Program::Wasm(..)) {
        cdi.check_wasm()?;
    }
    let edits = cdi.edits;
    let (engine, code) = match program {
        Program::Native => {
            if argv::lookup(&env, "PATH").is_none() {
                env.push(format!("PATH={}", argv::DEFAULT_PATH));
            }
            (EngineSpec::Runc, None)
        }
        Program::Wasm(module, export) => {
            if let (None, Some(home)) = (argv::lookup(&env, "HOME"), &user.home) {
                env.push(format!("HOME={home}"));
            }
            let spawner = matches!(module, Module::Toolbox);
            // The toolbox is ours, and its code has no meter.
            let fuel = wishes.fuel.filter(|_| !spawner);
            let variant = match fuel {
                Some(_) => CodeVariant::Metered,
                None => CodeVariant::Plain,
            };
            let (code, start_error) = code(daemon, module, libraries, variant).await?;
            let section = WasmSection {
                export,
                spawner,
                listen: wishes.listen,
                memory_limit: u64::try_from(limits.memory_limit).ok().filter(|n| *n > 0),
                memory_grow_fails: wishes.memory_grow_fails,
                stop: wishes.stop,
                http: HttpSection {
                    cpus: cpus(limits.cpu_quota, limits.cpu_period),
                    ..wishes.http
                },
                services: wishes.services,
                start_error,
                deadline_ms: wishes.deadline_ms,
                fuel,
                ..WasmSection::default()
            };
            let engine = route.wasm_engine().to_owned();
            if !daemon.handlers.shim(&engine).is_file() {
                return Err(Status::failed_precondition(format!(
                    "{} is Wasm and needs criw-shim-{engine}, which is not in {}",
                    names.image,
                    daemon.config.libexec.display()
                )));
            }
            (EngineSpec::Wasm { engine, section }, code)
        }
    };
    #[allow(
        deprecated,
        reason = "older clients fill only the fields that the new ones replace"
    )]
    let (old_seccomp, old_apparmor) = (&context.seccomp_profile_path, &context.apparmor_profile);
    let process = Process {
        args,
        env,
        cwd,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        capabilities,
        ambient,
        no_new_privs: context.no_new_privs,
        seccomp: security::seccomp(context.seccomp.as_ref(), old_seccomp, context.privileged)?,
        apparmor: security::apparmor(
            context.apparmor.as_ref(),
            old_apparmor,
            context.privileged,
            daemon.host.apparmor,
        )?,
        selinux: security::selinux(context.selinux_options.as_ref())?,
    };
    Ok(Plan {
        spec: ContainerSpec {
            name: metadata.name,
            attempt: metadata.attempt,
            labels,
            annotations: own_annotations,
            image: names,
            log_path: log_path(pod, &config.log_path)?,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            stop_signal: signal::effective(config.stop_signal, &wanted.stop_signal)?,
            process,
            mounts,
            devices: mounts::devices(&config.devices)?,
            edits,
            resources: limits,
            privileged: context.privileged,
            readonly_rootfs: context.readonly_rootfs,
            masked_paths,
            readonly_paths,
            pid: pid_mode(daemon, pod, context.namespace_options.as_ref())?,
            lowers: prepared.lowers.clone(),
            engine,
        },
        code,
    })
}

/// CPUs of a limit, rounded up; `None` without one.
fn cpus(quota: i64, period: i64) -> Option<u32> {
    let (quota, period) = (u64::try_from(quota).ok()?, u64::try_from(period).ok()?);
    if quota == 0 || period == 0 {
        return None;
    }
    u32::try_from(quota.div_ceil(period)).ok()
}

struct UserFiles {
    passwd: String,
    group: String,
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
impl UserFiles {
    fn read(place: &Place) -> Result<Self, Status> {
        let mut files = Self {
            passwd: String::new(),
            group: String::new(),
        };
        if place.lowers.is_empty() {
            return Ok(files);
        }
        let view = RootView::open(&place.lowers).map_err(|e| error::sandbox(&e))?;
        for (path, text) in [
            ("/etc/passwd", &mut files.passwd),
            ("/etc/group", &mut files.group),
        ] {
            if let Some(bytes) = view
                .read(path, MAX_USER_FILE)
                .map_err(|e| error::sandbox(&e))?
            {
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
        Ok(files)
    }
}

/// Compiled code, or the text with which the start will fail: a module that cannot be
/// compiled is the guest's fault and shows at its start, not at its creation.
pub async fn code(
    daemon: &Daemon,
    module: Module,
    libraries: Libraries<'_>,
    variant: CodeVariant,
) -> Result<(Option<File>, Option<String>), Status> {
    match compiled(daemon, module, libraries, variant).await {
        Ok(code) => Ok((Some(code.file), None)),
        Err(CompileError::Store(error)) => Err(error::store(&error)),
        Err(error) => {
            let mut text = error::chain(&error);
            let end = (0..=MAX_START_ERROR)
                .rev()
                .find(|n| text.is_char_boundary(*n))
                .unwrap_or(0);
            text.truncate(end);
            Ok((None, Some(text)))
        }
    }
}

async fn compiled(
    daemon: &Daemon,
    module: Module,
    libraries: Libraries<'_>,
    variant: CodeVariant,
) -> Result<Code, CompileError> {
    match module {
        Module::Stored(digest) => {
            let alone = daemon.images.code(&digest, variant).await?;
            let main = || Ok(Main::Stored(digest.clone()));
            libraries::link(daemon, alone, libraries, variant, main).await
        }
        Module::File(file) => {
            let failed = |source| StoreError::Io {
                action: "open",
                path: "the module".into(),
                source,
            };
            let kept = file.try_clone().map_err(failed)?;
            let alone = daemon.images.compile_file(file, variant).await?;
            libraries::link(daemon, alone, libraries, variant, || {
                libraries::again(&kept)
            })
            .await
        }
        Module::Toolbox => daemon.toolbox.code(&daemon.images).await,
    }
}

/// The tag the pod asked for if the image still has it, else any tag, digest or its id.
fn image_names(image: &Image, asked: &cri::ImageSpec) -> ImageNames {
    let id = image.id.to_string();
    let tag = [&asked.image, &asked.user_specified_image]
        .into_iter()
        .find_map(|name| image.repo_tags.iter().find(|tag| *tag == name))
        .or(image.repo_tags.first());
    let digest = image.repo_digests.first();
    ImageNames {
        image: tag.or(digest).unwrap_or(&id).clone(),
        user_specified: asked.user_specified_image.clone(),
        annotations: asked.annotations.clone().into_iter().collect(),
        image_ref: digest.unwrap_or(&id).clone(),
        image_id: id,
    }
}

/// `registry/a/hello:1` -> `hello`: argv[0] of an artifact that names no entrypoint.
fn artifact_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let name = last.split(['@', ':']).next().unwrap_or(last);
    if name.is_empty() { "module" } else { name }.to_owned()
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn log_path(pod: &PodView, asked: &str) -> Result<Option<std::path::PathBuf>, Status> {
    if asked.is_empty() || pod.spec.log_directory.is_none() {
        return Ok(None);
    }
    let path = std::path::PathBuf::from(asked);
    let inside = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err(Status::invalid_argument(format!(
            "log_path {asked:?} does not stay below the pod's log directory"
        )));
    }
    Ok(Some(path))
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn pid_mode(
    daemon: &Daemon,
    pod: &PodView,
    options: Option<&cri::NamespaceOption>,
) -> Result<PidMode, Status> {
    let target = match container_pid(options, &pod.spec.namespaces.pid)? {
        ContainerPid::Decided(mode) => return Ok(mode),
        ContainerPid::Target(id) => daemon.container(&id)?,
    };
    if target.sandbox != pod.id {
        return Err(Status::invalid_argument(format!(
            "target container {} is in another pod sandbox",
            target.id
        )));
    }
    if !target.state.is_running() {
        return Err(Status::failed_precondition(format!(
            "target container {} is not running",
            target.id
        )));
    }
    Ok(PidMode::Target(target.id))
}

/// Blocking work on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(format!("run blocking work: {error}")))?
}

/// The id of a stored image out of a container's record.
pub fn image_id(text: &str) -> Option<ImageId> {
    text.parse().ok().map(ImageId)
}

#[cfg(test)]
mod tests {
    use criw_image_service::Digest;

    use super::*;

    #[test]
    fn images_are_named_by_tag_then_digest_then_id() {
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: ImageId(Digest::of(b"x")),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: digests.iter().map(|d| (*d).to_owned()).collect(),
            size: 1,
            user: None,
            pinned: false,
            kinds: Vec::new(),
            labels: Default::default(),
            scope: None,
        };
        let id = Digest::of(b"x").to_string();
        let asked = |name: &str, user: &str| cri::ImageSpec {
            image: name.into(),
            user_specified_image: user.into(),
            ..Default::default()
        };
        for (image, asked, name, reference) in [
            (
                image(&["r/a:1", "r/a:2"], &["r/a@d"]),
                asked(&id, "r/a:2"),
                "r/a:2",
                "r/a@d",
            ),
            (
                image(&["r/a:1", "r/a:2"], &["r/a@d"]),
                asked("a:9", ""),
                "r/a:1",
                "r/a@d",
            ),
            (image(&[], &["r/a@d"]), asked(&id, ""), "r/a@d", "r/a@d"),
            (image(&[], &[]), asked(&id, ""), id.as_str(), id.as_str()),
        ] {
            let names = image_names(&image, &asked);
            assert_eq!(
                (names.image.as_str(), names.image_ref.as_str()),
                (name, reference)
            );
            assert_eq!(names.image_id, id);
        }
    }

    #[test]
    fn artifacts_are_called_by_their_name() {
        for (image, name) in [
            ("127.0.0.1:5000/team/hello:1", "hello"),
            ("r/hello@sha256:ab", "hello"),
            ("hello", "hello"),
            ("", "module"),
        ] {
            assert_eq!(artifact_name(image), name, "{image}");
        }
    }
}
