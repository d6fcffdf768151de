//! RunPodSandbox, StopPodSandbox, RemovePodSandbox.
//!
//! Building up writes the record before each thing that would outlive the daemon;
//! its failure path is the same tear-down that Stop and Remove use.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use criw_net::{Attachment, Kind, PodNetwork};
use futures_util::future::join_all;

use super::tear_down::{KILL_DEADLINE, end_process};
use super::{Inner, Pod, Sandboxes, blocking, chain, now};
use crate::error::{Error, Result};
use crate::fault;
use crate::host::{self, cgroup, pins::Want, template::mount_template};
use crate::id::SandboxId;
use crate::laps::Laps;
use crate::model::{PidMode, PodSpec, Resources, Scope};
use crate::record::{self, LeafName, PodPhase, PodRecord};
use crate::view::Event;

impl Sandboxes {
    /// Builds a pod and returns when it is READY: namespaces made, network attached, address known.
    ///
    /// # Errors
    /// `AlreadyExists` when the same name, namespace, uid and attempt is taken;
    /// `Unavailable` when the network is not ready; `Invalid` for a sysctl that no
    /// namespace holds. Nothing is left behind, unless taking down fails too: then
    /// the pod stays listed NOTREADY, so that a later Stop or Remove tries again.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<SandboxId> {
        let inner = self.inner.clone();
        let this = self.clone();
        self.whole_or_undone(
            async move { inner.build_pod(spec).await },
            move |id| async move { this.remove_pod(&id).await },
        )
        .await
    }

    /// Ends every container at once, detaches the network, drops the namespaces.
    /// Idempotent; repeats a failed detach; unknown ids are success.
    pub async fn stop_pod(&self, id: &SandboxId) -> Result<()> {
        let inner = self.inner.clone();
        let Ok(pod) = inner.pod(id) else {
            return Ok(());
        };
        self.whole(async move {
            let _life = pod.life.lock().await;
            inner.stop_pod(&pod).await
        })
        .await
    }

    /// Stops the pod and forgets it and its containers. Idempotent; unknown ids are success.
    pub async fn remove_pod(&self, id: &SandboxId) -> Result<()> {
        let inner = self.inner.clone();
        let Ok(pod) = inner.pod(id) else {
            return Ok(());
        };
        self.whole(async move {
            let _life = pod.life.lock().await;
            inner.stop_pod(&pod).await?;
            fault::point("remove-pod/stopped");
            let containers = inner.containers_of(&pod.id);
            let removals = containers.iter().map(|c| inner.remove_container(c));
            for removed in join_all(removals).await {
                removed?;
            }
            inner.forget_record_of(&pod).await?;
            fault::point("remove-pod/files-gone");
            inner.publish(Event::PodRemoved(pod.id.clone()));
            tracing::info!(pod = %pod.id, "pod removed");
            Ok(())
        })
        .await
    }

    /// Notes the sums that the kubelet announces before it resizes the pod's own cgroup.
    pub async fn update_pod(
        &self,
        id: &SandboxId,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let pod = self.inner.pod(id)?;
        let _life = pod.life.lock().await;
        pod.change(&self.inner.config.root, |record| {
            let mut spec = (*record.spec).clone();
            spec.overhead = overhead.or(spec.overhead);
            spec.resources = resources.or(spec.resources);
            record.spec = Arc::new(spec);
        })
    }
}

impl Inner {
    async fn build_pod(self: &Arc<Self>, spec: PodSpec) -> Result<SandboxId> {
        let parent = spec.cgroup_parent.as_ref();
        self.config
            .cgroup_driver
            .check(parent.unwrap_or(&self.config.cgroup_parent))?;
        let id = SandboxId::random();
        let init_leaf = self.leaf_for_init(&id, &spec);
        let mut record = PodRecord {
            version: record::VERSION,
            boot_id: self.boot_id.clone(),
            id: id.clone(),
            spec: Arc::new(spec),
            created_at: now(),
            phase: PodPhase::Creating,
            attachment: None,
            init: None,
            init_leaf,
            message: String::new(),
            labels: None,
        };
        let pod = self.insert_labelled(&mut record)?;
        let mut laps = Laps::start();
        let built = self.pod_steps(&pod, &record, &mut laps).await;
        let Err(error) = built else {
            self.publish(Event::PodReady(id.clone()));
            tracing::info!(pod = %id, name = %pod.spec.name, namespace = %pod.spec.namespace, took = %laps, "pod ready");
            return Ok(id);
        };
        if let Err(undo) = self.take_pod_down(&pod).await {
            tracing::error!(pod = %id, error = %chain(&undo), "take down a pod that could not be built; it stays listed as NOTREADY");
            let why = format!("{}; taking it down failed: {}", chain(&error), chain(&undo));
            if pod
                .change(&self.config.root, |r| {
                    r.phase = PodPhase::NotReady;
                    r.message = why;
                })
                .is_ok()
            {
                return Err(error);
            }
        }
        self.forget_record_of(&pod).await?;
        Err(error)
    }

    async fn pod_steps(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        record: &PodRecord,
        laps: &mut Laps,
    ) -> Result<()> {
        record::write(&self.config.root, record)?;
        laps.lap("record");
        fault::point("run-pod/recorded");
        let inner = self.clone();
        let building = pod.clone();
        let namespaces = blocking(move || inner.make_namespaces(&building)).await?;
        pod.set_namespaces(Some(namespaces));
        laps.lap("namespaces");
        fault::point("run-pod/namespaces");
        self.attach_network(pod).await?;
        laps.lap("network");
        let inner = self.clone();
        let building = pod.clone();
        blocking(move || inner.finish_pod(&building)).await?;
        laps.lap("files");
        fault::point("run-pod/files");
        pod.change(&self.config.root, |r| r.phase = PodPhase::Ready)?;
        fault::point("run-pod/ready");
        Ok(())
    }

    fn make_namespaces(&self, pod: &Pod) -> Result<host::pins::PodNamespaces> {
        let modes = &pod.spec.namespaces;
        let own_network = modes.network == Scope::Pod;
        let namespaces = self.host.pins.create(
            pod.id.as_str(),
            Want {
                user: pod.spec.user_namespace,
                net: own_network,
                ipc: modes.ipc == Scope::Pod,
                // The host name is the node's exactly when the network is.
                uts: own_network,
            },
        )?;
        host::sysctl::apply(
            &namespaces,
            &pod.spec.hostname,
            &pod.spec.sysctls,
            self.config.unprivileged_ports,
            pod.spec.user_namespace.map_or(0, |ids| ids.uids.host),
        )?;
        Ok(namespaces)
    }

    async fn attach_network(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let Some(namespaces) = pod.namespaces() else {
            return Ok(());
        };
        let Some(netns) = &namespaces.net else {
            return Ok(());
        };
        let mut attachment = self.network.plan(&self.pod_network(pod)).map_err(|e| {
            Error::Unavailable(format!("{}: {}", on_network("plan", pod), chain(&e)))
        })?;
        pod.change(&self.config.root, |r| {
            r.attachment = Some(attachment.clone());
        })?;
        fault::point("run-pod/network-planned");
        if let Some(path) = visible_netns(&attachment) {
            host::pins::host::pin_netns_at(netns.as_fd(), &path)?;
        }
        self.network
            .attach(&mut attachment, netns.as_fd())
            .await
            .map_err(|e| Error::node(on_network("attach", pod), e))?;
        pod.change(&self.config.root, |r| {
            r.attachment = Some(attachment.clone());
        })?;
        fault::point("run-pod/network-attached");
        Ok(())
    }

    fn pod_network(&self, pod: &Pod) -> PodNetwork {
        let spec = &pod.spec;
        PodNetwork {
            id: pod.id.as_str().to_owned(),
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            uid: spec.uid.clone(),
            netns_path: PathBuf::from(format!("/run/netns/criw-{}", pod.id)),
            ports: spec
                .ports
                .iter()
                .map(|p| criw_net::PortMapping {
                    protocol: match p.protocol.as_str() {
                        "udp" => criw_net::Protocol::Udp,
                        "sctp" => criw_net::Protocol::Sctp,
                        _ => criw_net::Protocol::Tcp,
                    },
                    container_port: p.container_port,
                    host_port: p.host_port,
                    host_ip: p.host_ip.parse().ok(),
                })
                .collect(),
            annotations: spec.annotations.clone(),
            cgroup_path: spec.cgroup_parent.clone().unwrap_or_default(),
            dns: spec
                .dns
                .as_ref()
                .map(|d| criw_net::Dns {
                    servers: d.servers.clone(),
                    searches: d.searches.clone(),
                    options: d.options.clone(),
                })
                .unwrap_or_default(),
            hostname: spec.hostname.clone(),
        }
    }

    /// Which leaf its own process will have, if it gets one.
    fn leaf_for_init(&self, id: &SandboxId, spec: &PodSpec) -> Option<LeafName> {
        let plain = match self.config.pod_processes {
            true => id.as_str().to_owned(),
            false if spec.namespaces.pid == PidMode::Pod => cgroup::beside(id.as_str(), "init"),
            false => return None,
        };
        Some(self.leaf_name(spec, &plain))
    }

    /// Leaf of a pod's own process, beside the containers' leaves.
    pub(crate) fn init_leaf(&self, record: &PodRecord) -> Option<LeafName> {
        let shared_pid = record.spec.namespaces.pid == PidMode::Pod;
        record.init_leaf.clone().or_else(|| {
            // Of a daemon that did not note it yet.
            shared_pid.then(|| self.leaf_name(&record.spec, &format!("{}.init", record.id)))
        })
    }

    fn leaf_name(&self, spec: &PodSpec, plain: &str) -> LeafName {
        let parent = spec.cgroup_parent.clone();
        let parent = parent.unwrap_or_else(|| self.config.cgroup_parent.clone());
        LeafName {
            name: cgroup::own_name(&parent, plain),
            parent,
        }
    }

    fn finish_pod(&self, pod: &Pod) -> Result<()> {
        let ips = pod
            .record()
            .attachment
            .as_ref()
            .map(|a| a.ips().to_vec())
            .unwrap_or_default();
        host::files::write_pod_files(&self.pod_state(&pod.id), &pod.spec, &ips)?;
        let init_leaf = pod.record().init_leaf.clone();
        if let Some(name) = init_leaf {
            let leaf = self.leaf(&name)?;
            // Until the init is there.
            let _holder = leaf.create(&Resources::default())?;
            let program = self.config.libexec.join("criw-init");
            let namespaces = pod.namespaces().unwrap_or_default();
            let labels = pod.record().labels.clone();
            // Its root has the label of the pod's files, which is not that of all pods.
            let own = labels
                .as_ref()
                .map(|labels| mount_template(Some(&labels.files)));
            let own = own.transpose()?;
            let template = AsFd::as_fd(own.as_ref().unwrap_or(&self.host.template));
            let label = labels.as_ref().map(|labels| labels.process.as_str());
            let dirs = leaf.dirs();
            let init = host::init::start(&program, template, &namespaces, &dirs, label)?;
            pod.change(&self.config.root, |r| r.init = Some(init.identity))?;
        }
        Ok(())
    }

    /// Per-boot files of a pod: hosts, resolv.conf, hostname.
    pub(crate) fn pod_state(&self, id: &SandboxId) -> PathBuf {
        self.config.state.join("pods").join(id.as_str())
    }

    async fn stop_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let containers = self.containers_of(&pod.id);
        for ended in join_all(containers.iter().map(|c| self.kill_container(c))).await {
            ended?;
        }
        fault::point("stop-pod/containers-ended");
        // NOTREADY stands before the first thing goes: there is no way back, and a pod
        // that says READY must have all its parts.
        let was_ready = pod.record().phase == PodPhase::Ready;
        if was_ready {
            pod.change(&self.config.root, |r| {
                r.phase = PodPhase::NotReady;
                r.message = "stopped".to_owned();
            })?;
            fault::point("stop-pod/recorded");
        }
        self.take_pod_down(pod).await?;
        if was_ready {
            self.publish(Event::PodStopped(pod.id.clone()));
            tracing::info!(pod = %pod.id, "pod stopped");
        }
        Ok(())
    }

    /// Takes down all that a pod holds of the node; idempotent, from any half-built state.
    pub(crate) async fn take_pod_down(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let (attachment, init, init_leaf) = {
            let record = pod.record();
            // After a reboot the pid belongs to somebody else.
            let init = record.init.filter(|_| record.boot_id == self.boot_id);
            (record.attachment.clone(), init, self.init_leaf(&record))
        };
        if let Some(attachment) = attachment {
            let alive = pod.namespaces().is_some_and(|n| n.net.is_some());
            self.network
                .detach(&attachment, alive)
                .await
                .map_err(|e| Error::node(on_network("detach", pod), e))?;
            let netns = visible_netns(&attachment);
            blocking(move || match netns {
                Some(path) => host::pins::host::unpin(&path),
                None => Ok(()),
            })
            .await?;
            pod.change(&self.config.root, |r| r.attachment = None)?;
            fault::point("stop-pod/network-detached");
        }
        pod.set_namespaces(None);
        let inner = self.clone();
        let id = pod.id.clone();
        blocking(move || {
            if let Some(identity) = init {
                end_process(identity, KILL_DEADLINE);
            }
            if let Some(leaf) = init_leaf {
                inner.end_leaf(&leaf)?;
            }
            inner.host.pins.remove(id.as_str())?;
            let files = inner.pod_state(&id);
            match std::fs::remove_dir_all(&files) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::node(format!("remove {}", files.display()), e))
                }
                _ => Ok(()),
            }
        })
        .await?;
        fault::point("stop-pod/namespaces-gone");
        Ok(())
    }

    async fn forget_record_of(&self, pod: &Pod) -> Result<()> {
        let root = self.config.root.clone();
        let id = pod.id.clone();
        blocking(move || record::remove::<PodRecord>(&root, id.as_str())).await?;
        self.forget_pod(pod);
        Ok(())
    }
}

/// Path at which agents of an external CNI see the pod's network namespace; the
/// built-in network needs none.
pub(crate) fn visible_netns(attachment: &Attachment) -> Option<PathBuf> {
    match &attachment.kind {
        Kind::Cni(record) => Some(record.netns_path.clone()),
        Kind::Builtin(_) => None,
    }
}

fn on_network(verb: &str, pod: &Pod) -> String {
    format!(
        "{verb} the network of pod {}/{} ({})",
        pod.spec.namespace, pod.spec.name, pod.id
    )
}
