//! CreateContainer: from a spec to a shim that waits for "go".
//!
//! The record stands before the shim is spawned and names the cgroup leaf that it
//! will be in, so whatever a crash leaves behind can be found and ended.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criw_engines::client::{Child, Join, Launch, Namespaces, ShimSocket, launch};
use criw_engines::protocol::{FdRole, VERSION};
use criw_engines::spec::{EngineSection, Role, RuncSection, Section, Spec, StdinMode};

use super::tear_down::{KILL_DEADLINE, end_process};
use super::{Container, Inner, Pod, Sandboxes, blocking, chain, now, shim};
use crate::container_state::{ContainerEvent, ContainerState, ProcessIdentity};
use crate::error::{Error, Result};
use crate::fault;
use crate::host::{cgroup, mounts, oci, oom_score, rootfs, shm, volume};
use crate::id::{ContainerId, SandboxId};
use crate::laps::Laps;
use crate::model::{ContainerSpec, EngineSpec, Mount, PidMode, Scope};
use crate::record::{self, ContainerRecord, LeafName, PodPhase};
use crate::view::Event;

/// Building the root and mapping code takes milliseconds, runc create 40 ms.
const CREATE_DEADLINE: Duration = Duration::from_secs(90);

impl Sandboxes {
    /// Builds a container up to "go". `code` is the compiled module of a Wasm container;
    /// without it the section says why it cannot start.
    ///
    /// # Errors
    /// `WrongState` when the pod is not READY or a target container does not run,
    /// `AlreadyExists` when name and attempt are taken, `Invalid` for mounts and limits
    /// that cannot be. Nothing is left behind.
    pub async fn create(
        &self,
        pod: &SandboxId,
        spec: ContainerSpec,
        code: Option<File>,
    ) -> Result<ContainerId> {
        let inner = self.inner.clone();
        let pod = inner.pod(pod)?;
        let this = self.clone();
        self.whole_or_undone(
            async move { inner.create(&pod, spec, code).await },
            move |id| async move { this.remove(&id).await },
        )
        .await
    }
}

impl Inner {
    async fn create(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        spec: ContainerSpec,
        code: Option<File>,
    ) -> Result<ContainerId> {
        let _pod_life = pod.life.lock().await;
        if pod.record().phase != PodPhase::Ready {
            return Err(Error::WrongState(format!(
                "create container {} in pod sandbox {}: the pod is not ready",
                spec.name, pod.id
            )));
        }
        let record = self.first_record(pod, spec);
        let container = Container::new(record.clone());
        self.insert_container(&container)?;
        let _life = container.life.lock().await;
        let inner = self.clone();
        let (building, its_pod) = (container.clone(), pod.clone());
        let mut laps = Laps::start();
        let (built, launched) = blocking(move || {
            let mut launched = None;
            let built = inner
                .build(&building, &its_pod, &record, code, &mut laps, &mut launched)
                .map(|pidfd| (pidfd, laps));
            Ok((built, launched))
        })
        .await
        .unwrap_or_else(|error| (Err(error), None));
        match built {
            Ok((pidfd, laps)) => {
                self.watch(container.clone(), pidfd);
                self.publish(Event::Created(container.id.clone()));
                tracing::info!(container = %container.id, pod = %pod.id, name = %container.spec.name, took = %laps, "container created");
                Ok(container.id.clone())
            }
            Err(error) => {
                self.undo(&container, launched).await;
                Err(error)
            }
        }
    }

    fn first_record(&self, pod: &Pod, spec: ContainerSpec) -> ContainerRecord {
        let id = ContainerId::random();
        let parent = pod
            .spec
            .cgroup_parent
            .clone()
            .unwrap_or_else(|| self.config.cgroup_parent.clone());
        let shim_leaf = matches!(spec.engine, EngineSpec::Runc).then(|| LeafName {
            parent: parent.clone(),
            name: cgroup::own_name(&parent, &cgroup::beside(id.as_str(), "shim")),
        });
        let log_path = match (&pod.spec.log_directory, &spec.log_path) {
            (Some(directory), Some(path)) => Some(directory.join(path)),
            _ => None,
        };
        ContainerRecord {
            version: record::VERSION,
            boot_id: self.boot_id.clone(),
            leaf: LeafName {
                name: cgroup::own_name(&parent, id.as_str()),
                parent,
            },
            id,
            sandbox: pod.id.clone(),
            created_at: now(),
            state: ContainerState::Creating,
            shim_leaf,
            killed_by_us: false,
            resources: spec.resources.clone(),
            log_path,
            spec: Arc::new(spec),
        }
    }

    /// The failure path of creating is the tear-down. Nobody watches the shim yet, so its end
    /// is waited for here: it would stay a zombie as long as this daemon lives.
    async fn undo(self: &Arc<Self>, container: &Arc<Container>, shim: Option<ProcessIdentity>) {
        let torn_down = self.take_container_down(container).await;
        if let Some(shim) = shim {
            let ended = blocking(move || {
                end_process(shim, KILL_DEADLINE);
                Ok(())
            });
            if let Err(error) = ended.await {
                tracing::error!(container = %container.id, error = %chain(&error), "wait for the end of a shim");
            }
        }
        let root = self.config.root.clone();
        let id = container.id.clone();
        let gone = match torn_down {
            // The record stays, so that the next start of the daemon tries again.
            Err(error) => Err(error),
            Ok(()) => blocking(move || record::remove::<ContainerRecord>(&root, id.as_str())).await,
        };
        if let Err(error) = gone {
            tracing::error!(container = %container.id, error = %chain(&error), "take down a container that could not be created");
        }
        self.forget_container(container);
    }

    fn build(
        &self,
        container: &Container,
        pod: &Pod,
        record: &ContainerRecord,
        code: Option<File>,
        laps: &mut Laps,
        launched: &mut Option<ProcessIdentity>,
    ) -> Result<OwnedFd> {
        record::write(&self.config.root, record)?;
        fault::point("create/recorded");
        let leaf = self.leaf(&record.leaf)?;
        // The scope of a Linux container is started by runc, with its process in it.
        if container.is_wasm() || !leaf.is_scope() {
            leaf.create(&record.resources)?.stay()?;
        }
        let shim_holder = match &record.shim_leaf {
            Some(shim_leaf) => Some(self.leaf(shim_leaf)?.create(&Default::default())?),
            None => None,
        };
        laps.lap("cgroup");
        fault::point("create/cgroup");
        let parts = self.prepare(container, pod, record, code)?;
        laps.lap("root");
        fault::point("create/prepared");
        let child = self.launch_shim(container, pod, record, parts.listener)?;
        // Now the shim is there.
        drop(shim_holder);
        laps.lap("launch");
        fault::point("create/launched");
        let identity = ProcessIdentity {
            pid: child.pid,
            start_time: child.start_time,
        };
        *launched = Some(identity);
        if container.is_wasm() {
            oom_score::set(child.pid, container.spec.resources.oom_score_adj)?;
        }
        let fds: Vec<_> = parts
            .fds
            .iter()
            .map(|(role, fd)| (*role, fd.as_fd()))
            .collect();
        let socket = container.socket(&self.config.state);
        let pid = shim::create(&child, &socket, &fds, CREATE_DEADLINE)
            .map_err(|error| error.on(format!("create container {}", container.spec.name)))?;
        if !container.is_wasm() {
            // Its counter of kills must outlast its last process.
            leaf.hold()?;
        }
        laps.lap("engine");
        fault::point("create/shim-created");
        container.apply(
            &self.config.root,
            &ContainerEvent::ShimReady {
                shim: identity,
                pid,
            },
        )?;
        fault::point("create/created");
        Ok(child.pidfd)
    }

    fn launch_shim(
        &self,
        container: &Container,
        pod: &Pod,
        record: &ContainerRecord,
        listener: OwnedFd,
    ) -> Result<Child> {
        let engine = match &container.spec.engine {
            EngineSpec::Wasm { engine, .. } => engine.as_str(),
            EngineSpec::Runc => "runc",
        };
        let leaf = record.shim_leaf.as_ref().unwrap_or(&record.leaf);
        launch(Launch {
            program: self.config.libexec.join(format!("criw-shim-{engine}")),
            id: container.id.as_str().to_owned(),
            listener,
            cgroup_dirs: self.leaf(leaf)?.dirs(),
            namespaces: self.shim_namespaces(container, pod)?,
            stderr: daemon_stderr(),
        })
        .map_err(|e| Error::node(format!("start the shim of container {}", container.id), e))
    }

    /// Where the shim is born. runc inherits net, ipc and uts from its shim; the PID
    /// namespace of a Linux container is made by runc, for its own process only.
    fn shim_namespaces(&self, container: &Container, pod: &Pod) -> Result<Namespaces> {
        let what = || format!("enter the namespaces of pod {}", pod.id);
        let mut join = Vec::new();
        if let Some(namespaces) = pod.namespaces() {
            for fd in [&namespaces.net, &namespaces.ipc, &namespaces.uts]
                .into_iter()
                .flatten()
            {
                let fd = fd.try_clone().map_err(|e| Error::node(what(), e))?;
                join.push(Join::Namespace(fd));
            }
        }
        let mut new_pid = false;
        if container.is_wasm() {
            match self.pid_namespace_of(container, pod)? {
                PidNamespace::Own => new_pid = true,
                PidNamespace::Node => {}
                PidNamespace::Process(pid) => join.push(Join::Namespace(
                    File::open(format!("/proc/{pid}/ns/pid"))
                        .map_err(|e| Error::node(what(), e))?
                        .into(),
                )),
            }
        }
        Ok(Namespaces { join, new_pid })
    }

    fn pid_namespace_of(&self, container: &Container, pod: &Pod) -> Result<PidNamespace> {
        // The kernel mounts a procfs, which every Linux container has, for the owner of the
        // PID namespace only.
        let foreign = |whose: &str| {
            Err(Error::Invalid(format!(
                "container {} of a pod with a user namespace asks for the process ids of {whose}, which belong to the node",
                container.spec.name
            )))
        };
        let in_users = pod.spec.user_namespace.is_some() && !container.is_wasm();
        Ok(match &container.spec.pid {
            PidMode::Container => PidNamespace::Own,
            PidMode::Node if in_users => return foreign("the node"),
            PidMode::Node => PidNamespace::Node,
            PidMode::Pod => {
                let shared = pod.spec.namespaces.pid == PidMode::Pod;
                let init = pod.record().init.filter(|_| shared).ok_or_else(|| {
                    Error::Invalid(format!(
                        "container {} asks for the pod's PID namespace, but pod {} was not made with one",
                        container.spec.name, pod.id
                    ))
                })?;
                PidNamespace::Process(init.pid)
            }
            PidMode::Target(id) => {
                let target = self.container(id)?;
                if target.sandbox != pod.id {
                    return Err(Error::Invalid(format!(
                        "target container {id} belongs to another pod"
                    )));
                }
                if in_users && target.is_wasm() {
                    return foreign(&format!("the Wasm container {id}"));
                }
                match target.state() {
                    ContainerState::Running { .. } => {
                        let pid = target.state().pid().unwrap_or_default();
                        PidNamespace::Process(pid)
                    }
                    _ => {
                        return Err(Error::WrongState(format!(
                            "target container {id} is not running"
                        )));
                    }
                }
            }
        })
    }

    /// Everything that the shim is handed: files, detached mounts, sockets.
    fn prepare(
        &self,
        container: &Container,
        pod: &Pod,
        record: &ContainerRecord,
        code: Option<File>,
    ) -> Result<Parts> {
        let spec = &container.spec;
        let bundle = container.bundle(&self.config.state);
        let lasting =
            record::directory::<ContainerRecord>(&self.config.root, container.id.as_str());
        let (upper, work) = (lasting.join("upper"), lasting.join("work"));
        for directory in [&bundle, &upper, &work] {
            std::fs::create_dir_all(directory)
                .map_err(|e| Error::node(format!("create {}", directory.display()), e))?;
        }
        let confinement = self.confinement(container, pod)?;
        let labels = confinement.selinux.clone();
        let label = labels.as_ref().map(|labels| labels.files.as_str());
        if let Some(label) = label {
            self.label_root(label, &spec.lowers, [upper.as_path(), work.as_path()])?;
        }
        let namespaces = pod.namespaces();
        let users = namespaces.as_ref().and_then(|n| n.user.as_ref());
        let users = users.map(AsFd::as_fd);
        if let Some(ids) = pod.spec.user_namespace {
            std::os::unix::fs::chown(&upper, Some(ids.uids.host), Some(ids.gids.host)).map_err(
                |e| Error::node(format!("give {} to the pod's root", upper.display()), e),
            )?;
        }
        let owner = users.map_or(rootfs::Owner::Node, rootfs::Owner::Namespace);
        let root = rootfs::overlay_of(&spec.lowers, Some((&upper, &work)), owner, label)?;
        let mut fds = vec![(FdRole::Rootfs, root)];
        if let Some(users) = users {
            let users = users.try_clone_to_owned();
            let users = users.map_err(|e| Error::node("share the pod's user namespace", e))?;
            fds.push((FdRole::UserNamespace, users));
        }
        let mut mounts = self.all_mounts(container, pod);
        for (n, volume) in mounts
            .iter_mut()
            .filter_map(|m| m.image.as_mut())
            .enumerate()
        {
            if !volume.files.is_empty() {
                let place = lasting.join("volumes").join(n.to_string());
                volume::lay_out(&volume.files, &place)?;
                volume.lowers = vec![place];
            }
        }
        if let Some(label) = label {
            self.label_volumes(label, &mounts)?;
        }
        let (oci_spec, engine) = match &spec.engine {
            EngineSpec::Wasm { section, .. } => {
                for (n, mount) in mounts.iter().enumerate() {
                    let n = u32::try_from(n).map_err(|e| Error::node("count mounts", e))?;
                    fds.push((
                        FdRole::Mount(n),
                        mounts::detached(mount, mounts::Guest::Wasm, users)?,
                    ));
                }
                let template = self
                    .host
                    .template
                    .try_clone()
                    .map_err(|e| Error::node("share the mount template", e))?;
                fds.push((FdRole::MountTemplate, template));
                (
                    oci::wasm(spec, &mounts, &confinement)?,
                    EngineSection::Wasm(section.clone()),
                )
            }
            EngineSpec::Runc => {
                let (spec, handed) =
                    self.linux_spec(container, pod, record, &bundle, &mounts, confinement)?;
                for (n, what) in handed {
                    let mount = match what {
                        oci::Handed::Shm => self.pod_shm(pod, label)?,
                        oci::Handed::Mount(k) => {
                            mounts::detached(&mounts[k], mounts::Guest::Linux, users)?
                        }
                    };
                    mount_point(&bundle.join("mounts"), n, mount.as_fd())?;
                    fds.push((FdRole::Mount(n), mount));
                }
                (
                    spec,
                    EngineSection::Runc(RuncSection {
                        binary: self.config.runc.clone(),
                        root: self.runc_root(),
                        bundle: bundle.clone(),
                        systemd_cgroup: self.leaf(&record.leaf)?.is_scope(),
                    }),
                )
            }
        };
        let whole = Spec {
            oci: oci_spec,
            criw: Section {
                version: VERSION,
                container: container.id.as_str().to_owned(),
                sandbox: pod.id.as_str().to_owned(),
                role: Role::Container,
                stdin: match (spec.stdin, spec.stdin_once) {
                    (false, _) => None,
                    (true, false) => Some(StdinMode::Open),
                    (true, true) => Some(StdinMode::Once),
                },
                engine,
            },
        };
        let config = write_spec(&bundle.join("config.json"), &whole)?;
        fds.push((FdRole::Spec, config.into()));
        let exit_file = super::exit::exit_file(&self.config.root, container.id.as_str());
        let exit_record = new_file(&exit_file)?;
        self.label_for_shim(container, &exit_file, code.as_ref(), label)?;
        fds.push((FdRole::ExitRecord, exit_record.into()));
        if let Some(path) = &record.log_path {
            fds.push((FdRole::Log, self.open_log(container, path, label)?.into()));
        }
        if let Some(code) = code {
            fds.push((FdRole::Code, code.into()));
        }
        let listener = ShimSocket::bind(&bundle)
            .map_err(|e| Error::node(format!("bind a socket in {}", bundle.display()), e))?;
        Ok(Parts { fds, listener })
    }

    /// What the CRI asked for, and the files of the pod where nobody mounts his own;
    /// parents before children.
    fn all_mounts(&self, container: &Container, pod: &Pod) -> Vec<Mount> {
        let files = self.pod_state(&pod.id);
        let asked = &container.spec.mounts;
        let own_network = pod.spec.namespaces.network == Scope::Pod;
        let defaults = [
            ("/etc/hosts", "hosts", own_network),
            ("/etc/hostname", "hostname", true),
            ("/etc/resolv.conf", "resolv.conf", true),
        ];
        let mut mounts: Vec<Mount> = defaults
            .into_iter()
            .filter(|(path, _, wanted)| *wanted && !asked.iter().any(|m| m.container_path == *path))
            .filter(|(_, name, _)| files.join(name).exists())
            .map(|(path, name, _)| Mount {
                container_path: path.to_owned(),
                host_path: files.join(name),
                readonly: container.spec.readonly_rootfs,
                selinux_relabel: true,
                ..Mount::default()
            })
            .chain(asked.iter().cloned())
            .chain(edited_mounts(container))
            .collect();
        mounts.sort_by_key(|m| Path::new(&m.container_path).components().count());
        mounts
    }

    /// The pod's /dev/shm, made for its first Linux container: a pod of Wasm containers
    /// never pays for it. The caller holds the pod's `life`.
    fn pod_shm(&self, pod: &Pod, label: Option<&str>) -> Result<OwnedFd> {
        let (room, name) = (&self.host.pins, pod.id.as_str());
        shm::open(room, name).or_else(|_absent| {
            shm::create(room, name, pod.spec.user_namespace, label)?;
            shm::open(room, name)
        })
    }

    fn linux_spec(
        &self,
        container: &Container,
        pod: &Pod,
        record: &ContainerRecord,
        bundle: &Path,
        mounts: &[Mount],
        confinement: oci::Confinement,
    ) -> Result<(oci_spec::runtime::Spec, oci::HandedMounts)> {
        let pid = match self.pid_namespace_of(container, pod)? {
            PidNamespace::Own => oci::PidNamespace::New,
            PidNamespace::Node => oci::PidNamespace::Host,
            PidNamespace::Process(pid) => {
                oci::PidNamespace::Path(format!("/proc/{pid}/ns/pid").into())
            }
        };
        oci::linux(&oci::LinuxInput {
            pod: &pod.spec,
            container: &container.spec,
            mounts,
            bundle,
            cgroups_path: self.leaf(&record.leaf)?.oci_path(),
            pid,
            confinement,
            own_shm: pod.spec.namespaces.ipc == Scope::Pod,
        })
    }
}

/// Mounts of CDI devices in a Wasm container, which knows no other options; runc reads
/// them from its config as they are.
fn edited_mounts(container: &Container) -> impl Iterator<Item = Mount> {
    let edits = container.is_wasm().then_some(&container.spec.edits);
    edits
        .into_iter()
        .flat_map(|edits| &edits.mounts)
        .map(|mount| Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone().into(),
            readonly: mount.options.iter().any(|option| option == "ro"),
            ..Mount::default()
        })
}

/// Where a shim attaches a mount for runc: a directory, or a file for a file.
fn mount_point(directory: &Path, n: u32, mount: BorrowedFd<'_>) -> Result<()> {
    let point = directory.join(n.to_string());
    let what = || format!("create {}", point.display());
    std::fs::create_dir_all(directory).map_err(|e| Error::node(what(), e))?;
    let kind = rustix::fs::fstat(mount).map_err(|e| Error::node("look at a mount", e))?;
    let made = match rustix::fs::FileType::from_raw_mode(kind.st_mode) {
        rustix::fs::FileType::Directory => std::fs::create_dir(&point),
        _ => File::create(&point).map(drop),
    };
    made.map_err(|e| Error::node(what(), e))
}

struct Parts {
    fds: Vec<(FdRole, OwnedFd)>,
    listener: OwnedFd,
}

enum PidNamespace {
    Own,
    Node,
    Process(i32),
}

/// Writes a spec and opens it for reading.
pub(super) fn write_spec(path: &Path, spec: &Spec) -> Result<File> {
    let failed = |e: std::io::Error| Error::node(format!("write spec {}", path.display()), e);
    let json = spec
        .to_json()
        .map_err(|e| Error::node(format!("write spec {}", path.display()), e))?;
    let mut file = new_file(path)?;
    file.write_all(&json).map_err(failed)?;
    File::open(path).map_err(failed)
}

/// A new empty file, private to the daemon.
pub(super) fn new_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::node(format!("create {}", path.display()), e))
}

/// What a shim says before and after its life as a shim goes where our log goes.
pub(super) fn daemon_stderr() -> Option<OwnedFd> {
    std::io::stderr().as_fd().try_clone_to_owned().ok()
}
