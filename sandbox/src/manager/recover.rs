//! Coming back: from the records, the exit records, the live shims and what is left
//! of a crash to the same pods and containers. Nothing is restarted.
//!
//! ```text
//!   another boot    pods NOTREADY, networks detached without a namespace,
//!                   containers EXITED (255 Unknown unless their shim said how)
//!   same boot       Creating           -> torn down, forgotten
//!                   Created, Running   -> shim alive: watched again
//!                                         gone: exit record, OOM counter, else Unknown
//!                   NotReady, Exited   -> as they are
//!   afterwards      pins, leaves, bundles, leases that no record names are removed
//! ```

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criw_engines::protocol::{Phase, Reply, Request};
use criw_net::Network;
use futures_util::future::join_all;
use tokio::sync::broadcast;

use super::node::Host;
use super::{Config, Container, EVENT_QUEUE, Index, Inner, Pod, Sandboxes, blocking, chain, now};
use crate::container_state::{ContainerEvent, ContainerState};
use crate::error::{Error, Result};
use crate::host::boot;
use crate::host::cgroup::{id_in, plain_name};
use crate::id::{ContainerId, SandboxId};
use crate::record::{self, ContainerRecord, PodPhase, PodRecord};

/// A live shim answers at once; one that does not is killed.
const STATE_DEADLINE: Duration = Duration::from_secs(5);

impl Sandboxes {
    /// Reads every record and brings memory and node into line with them, then serves.
    pub async fn open(config: Config, network: Network) -> Result<Self> {
        let boot_id = match &config.boot_id {
            Some(id) => id.clone(),
            None => boot::boot_id()?,
        };
        let setup = config.clone();
        let (host, pods, containers) = blocking(move || {
            private_directory(&setup.root)?;
            private_directory(&setup.state)?;
            let host = Host::open(&setup)?;
            let pods: Vec<PodRecord> = record::read_all(&setup.root)?;
            let containers: Vec<ContainerRecord> = record::read_all(&setup.root)?;
            Ok((host, pods, containers))
        })
        .await?;
        let inner = Arc::new(Inner {
            config,
            network,
            host,
            boot_id,
            index: Mutex::new(Index::default()),
            events: broadcast::Sender::new(EVENT_QUEUE),
        });
        let (pod_count, container_count) = (pods.len(), containers.len());
        let pods = inner.index_pods(pods);
        let containers = inner.index_containers(containers);
        join_all(containers.iter().map(|c| inner.readopt_container(c))).await;
        join_all(pods.iter().map(|p| inner.readopt_pod(p))).await;
        inner.drop_orphans().await;
        tracing::info!(
            pods = pod_count,
            containers = container_count,
            "state recovered"
        );
        Ok(Self { inner })
    }
}

impl Inner {
    fn index_pods(&self, records: Vec<PodRecord>) -> Vec<Arc<Pod>> {
        let pods: Vec<_> = records.into_iter().map(Pod::new).collect();
        for pod in &pods {
            if let Err(error) = self.insert_pod(pod) {
                // Two records for one name: keep both reachable by id.
                tracing::error!(pod = %pod.id, error = %chain(&error), "two records claim one pod name");
                self.index().pods.insert(pod.id.clone(), pod.clone());
            }
        }
        pods
    }

    fn index_containers(&self, records: Vec<ContainerRecord>) -> Vec<Arc<Container>> {
        let containers: Vec<_> = records.into_iter().map(Container::new).collect();
        for container in &containers {
            if let Err(error) = self.insert_container(container) {
                tracing::error!(container = %container.id, error = %chain(&error), "two records claim one container name");
                self.index()
                    .containers
                    .insert(container.id.clone(), container.clone());
            }
        }
        containers
    }

    async fn readopt_container(self: &Arc<Self>, container: &Arc<Container>) {
        let id = &container.id;
        let pod_known = self.index().pods.contains_key(&container.sandbox);
        let state = container.state();
        let result = if state == ContainerState::Creating || !pod_known {
            tracing::info!(container = %id, pod_known, "take down a container that was never whole");
            self.discard(container).await
        } else if state.is_exited() {
            self.take_container_down(container).await
        } else if container.record().boot_id != self.boot_id {
            self.settle(container, None).await;
            Ok(())
        } else {
            self.readopt_running(container).await
        };
        if let Err(error) = result {
            tracing::error!(container = %id, error = %chain(&error), "recover container");
        }
    }

    /// Finds the shim of a created or running container again.
    async fn readopt_running(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let shim = container.state().shim();
        let pidfd = blocking(move || shim.map_or(Ok(None), boot::open_if_same)).await?;
        let Some(pidfd) = pidfd else {
            self.settle(container, None).await;
            return Ok(());
        };
        let socket = container.socket(&self.config.state);
        let reply =
            tokio::task::spawn_blocking(move || socket.call(&Request::State, &[], STATE_DEADLINE))
                .await
                .map_err(|e| Error::node("run blocking work", e))?;
        match reply {
            Ok(Reply::State { phase, .. }) => {
                // "go" was said, but the daemon died before it could write that down.
                if phase == Phase::Running && !container.state().is_running() {
                    container.apply(&self.config.root, &ContainerEvent::Started { at: now() })?;
                }
                tracing::debug!(container = %container.id, ?phase, "shim found again");
                if container.record().killed_by_us {
                    // The kill was noted, perhaps not sent.
                    let inner = self.clone();
                    let doomed = container.clone();
                    tokio::spawn(async move {
                        if let Err(error) = inner.kill_container(&doomed).await {
                            tracing::error!(container = %doomed.id, error = %chain(&error), "finish a kill");
                        }
                    });
                }
                self.end_stray_execs(container);
            }
            answer => {
                // It is about to end (then this kill changes nothing), or it is broken.
                tracing::warn!(container = %container.id, ?answer, "shim does not answer; wait for its end");
            }
        }
        self.watch(container.clone(), pidfd);
        Ok(())
    }

    /// Nobody is left to read what an exec of the old daemon prints. In a Wasm container
    /// every process but the shim is such an exec; runc's are indistinguishable and run on.
    fn end_stray_execs(&self, container: &Container) {
        if !container.is_wasm() {
            return;
        }
        let (leaf, shim) = {
            let record = container.record();
            (record.leaf.clone(), record.state.shim())
        };
        let procs = self.leaf(&leaf).and_then(|leaf| leaf.workload());
        for pid in procs.unwrap_or_default() {
            if shim.is_some_and(|shim| shim.pid == pid) {
                continue;
            }
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    async fn discard(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        self.take_container_down(container).await?;
        let root = self.config.root.clone();
        let id = container.id.clone();
        blocking(move || record::remove::<ContainerRecord>(&root, id.as_str())).await?;
        self.forget_container(container);
        Ok(())
    }

    async fn readopt_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (phase, boot_id) = {
            let record = pod.record();
            (record.phase, record.boot_id.clone())
        };
        let result = if phase == PodPhase::Creating {
            tracing::info!(pod = %pod.id, "take down a pod that was never whole");
            self.forget_unborn(pod).await
        } else if boot_id != self.boot_id {
            self.pod_lost(pod, "the node was rebooted").await
        } else if phase == PodPhase::Ready {
            self.reopen_namespaces(pod).await
        } else {
            // A stop may have been cut short.
            self.try_reopen(pod).await;
            self.take_pod_down(pod).await
        };
        if let Err(error) = result {
            tracing::error!(pod = %pod.id, error = %chain(&error), "recover pod");
        }
    }

    async fn forget_unborn(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        self.try_reopen(pod).await;
        if let Err(error) = self.take_pod_down(pod).await {
            // Listed as NOTREADY, so that the kubelet's Stop and Remove try again.
            pod.change(&self.config.root, |r| {
                r.phase = PodPhase::NotReady;
                r.message = chain(&error);
            })?;
            return Err(error);
        }
        let root = self.config.root.clone();
        let id = pod.id.clone();
        blocking(move || record::remove::<PodRecord>(&root, id.as_str())).await?;
        self.forget_pod(pod);
        Ok(())
    }

    /// Opens pins where there are any; a missing pin is a namespace that is gone.
    async fn try_reopen(self: &Arc<Self>, pod: &Arc<Pod>) {
        let inner = self.clone();
        let id = pod.id.clone();
        let opened = blocking(move || inner.host.pins.open_pod(id.as_str())).await;
        pod.set_namespaces(opened.ok());
    }

    async fn reopen_namespaces(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        self.try_reopen(pod).await;
        let needs_net = pod.spec.namespaces.network == crate::model::Scope::Pod;
        let has_net = pod.namespaces().is_some_and(|n| n.net.is_some());
        let shared_pid = pod.spec.namespaces.pid == crate::model::PidMode::Pod;
        let init_gone = match pod.record().init.filter(|_| shared_pid) {
            Some(identity) => boot::open_if_same(identity)?.is_none(),
            None => false,
        };
        let user_gone =
            pod.spec.user_namespace.is_some() && pod.namespaces().is_none_or(|n| n.user.is_none());
        if (needs_net && !has_net) || init_gone || user_gone {
            let why = if init_gone {
                "the init of its shared PID namespace is gone"
            } else if user_gone {
                "its user namespace is gone"
            } else {
                "its network namespace is gone"
            };
            return self.pod_lost(pod, why).await;
        }
        Ok(())
    }

    /// A pod whose namespaces are gone is NOTREADY for ever; its containers end.
    async fn pod_lost(self: &Arc<Self>, pod: &Arc<Pod>, why: &str) -> Result<()> {
        for container in self.containers_of(&pod.id) {
            if let Err(error) = self.kill_container(&container).await {
                tracing::warn!(container = %container.id, error = %chain(&error), "end a container of a lost pod");
            }
        }
        pod.change(&self.config.root, |r| {
            if r.phase == PodPhase::Ready {
                r.message = why.to_owned();
            }
            r.phase = PodPhase::NotReady;
        })?;
        self.take_pod_down(pod).await
    }

    /// Removes what no record names. Every failure is reported and costs nothing else.
    async fn drop_orphans(self: &Arc<Self>) {
        let inner = self.clone();
        let swept = blocking(move || {
            inner.sweep_leaves();
            inner.sweep_pins();
            inner.sweep_state("containers", |id| {
                ContainerId::try_from(id.to_owned())
                    .is_ok_and(|id| inner.index().containers.contains_key(&id))
            });
            inner.sweep_state("pods", |id| {
                SandboxId::try_from(id.to_owned())
                    .is_ok_and(|id| inner.index().pods.contains_key(&id))
            });
            Ok(())
        })
        .await;
        if let Err(error) = swept {
            tracing::error!(error = %chain(&error), "sweep");
        }
        let attachments: Vec<_> = {
            let pods: Vec<_> = self.index().pods.values().cloned().collect();
            pods.iter()
                .filter_map(|p| p.record().attachment.clone())
                .collect()
        };
        let live: Vec<_> = attachments.iter().collect();
        if let Err(error) = self.network.gc(&live).await {
            tracing::warn!(error = %chain(&error), "collect stray network attachments");
        }
    }

    /// A leaf named by an id that no record knows is killed: its container would be
    /// invisible to everybody. Our own parent is ours alone; in a parent that the
    /// kubelet named another daemon may have leaves too, so there only those go whose
    /// record we had and could not read.
    fn sweep_leaves(&self) {
        let damaged = record::damaged_ids(&self.config.root);
        let (parents, known) = {
            let index = self.index();
            let mut parents: HashSet<String> = index
                .pods
                .values()
                .filter_map(|p| p.spec.cgroup_parent.clone())
                .collect();
            parents.insert(self.config.cgroup_parent.clone());
            let mut known = HashSet::new();
            for container in index.containers.values() {
                let record = container.record();
                let leaves = [Some(&record.leaf), record.shim_leaf.as_ref()];
                let names = leaves.into_iter().flatten();
                known.extend(names.map(|leaf| plain_name(&leaf.name).to_owned()));
            }
            let pods = index.pods.values();
            let leaves = pods.filter_map(|pod| self.init_leaf(&pod.record()));
            known.extend(leaves.map(|leaf| plain_name(&leaf.name).to_owned()));
            (parents, known)
        };
        for parent in parents {
            for name in self.host.cgroups.children(&parent).unwrap_or_default() {
                let plain = plain_name(&name);
                let id = id_in(plain);
                let ours = parent == self.config.cgroup_parent || damaged.contains(&id);
                if !ours || ContainerId::try_from(id).is_err() || known.contains(plain) {
                    continue;
                }
                tracing::warn!(
                    parent,
                    leaf = name,
                    "kill a cgroup leaf that no record names"
                );
                let deadline = super::tear_down::KILL_DEADLINE;
                let ended = self.host.cgroups.leaf(&parent, &name).and_then(|leaf| {
                    leaf.kill(deadline)?;
                    leaf.remove(deadline)
                });
                if let Err(error) = ended {
                    tracing::error!(leaf = name, error = %chain(&error), "remove a stray cgroup leaf");
                }
            }
        }
    }

    fn sweep_pins(&self) {
        let names = match self.host.pins.list() {
            Ok(names) => names,
            Err(error) => {
                tracing::error!(error = %chain(&error), "list namespace pins");
                return;
            }
        };
        for name in names {
            let known = SandboxId::try_from(name.clone())
                .is_ok_and(|id| self.index().pods.contains_key(&id));
            if known {
                continue;
            }
            if let Err(error) = self.host.pins.remove(&name) {
                tracing::error!(name, error = %chain(&error), "remove stray namespace pins");
            }
        }
    }

    fn sweep_state(&self, kind: &str, known: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(self.config.state.join(kind)) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_name().to_str().is_some_and(&known) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|e| Error::node(format!("create {}", path.display()), e))
}
