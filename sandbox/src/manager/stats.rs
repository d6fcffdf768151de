//! What pods and containers use, asked by id. These read files, so they are for threads that
//! may block; a caller that wants to know of many asks for all of them on one.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::{Container, Sandboxes};
use crate::detail::{self, Detail};
use crate::error::{Error, Result};
use crate::id::{ContainerId, SandboxId};
use crate::record::{self, ContainerRecord};
use crate::stats::{self, ContainerStats, Layer, PodStats};

impl Sandboxes {
    /// Usage of a running container. Blocks.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, `WrongState` when it does not run.
    pub fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        let container = self.running(id)?;
        let leaf = self.inner.leaf(&container.record().leaf)?;
        let layer = container.layer.get_or_init(|| {
            let id = container.id.as_str();
            let lasting = record::directory::<ContainerRecord>(&self.inner.config.root, id);
            Layer::new(lasting.join("upper"))
        });
        stats::container(&leaf, &container.cpu_rate, layer)
    }

    /// Everything that the cgroup of a running container counts, how often the kernel ended
    /// a process in it for want of memory, and its path below each hierarchy's root. Blocks.
    ///
    /// # Errors
    /// As [`Self::container_stats`].
    pub fn container_detail(&self, id: &ContainerId) -> Result<(Detail, u64, String)> {
        let container = self.running(id)?;
        let leaf = self.inner.leaf(&container.record().leaf)?;
        let detail = detail::read(&leaf.directories())?;
        Ok((detail, leaf.oom_kills()?, leaf.path().to_owned()))
    }

    fn running(&self, id: &ContainerId) -> Result<Arc<Container>> {
        let container = self.inner.container(id)?;
        if !container.state().is_running() {
            return Err(Error::WrongState(format!("container {id} is not running")));
        }
        Ok(container)
    }

    /// Usage of a pod and its network. Blocks.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    pub fn pod_stats(&self, id: &SandboxId) -> Result<PodStats> {
        let inner = &self.inner;
        let pod = inner.pod(id)?;
        let leaves = inner
            .containers_of(&pod.id)
            .iter()
            .filter(|container| container.state().is_running())
            .map(|container| inner.leaf(&container.record().leaf))
            .collect::<Result<Vec<_>>>()?;
        let parent = pod.spec.cgroup_parent.as_deref().unwrap_or_default();
        let own = stats::is_own_group(parent, &pod.spec.uid)
            .then(|| inner.host.cgroups.parent(parent))
            .transpose()?;
        let namespaces = pod.namespaces();
        let netns = namespaces.as_ref().and_then(|n| n.net.as_ref());
        let netns = netns.map(|netns| netns.as_fd());
        stats::pod(own.as_ref(), &leaves, &pod.cpu_rate, netns)
    }
}
