//! The pods and containers of one daemon: an index in memory, a record on disk for
//! each, and the life-cycle calls that change both.
//!
//! ```text
//!   reads  --> index (std mutex, held for a copy)          never wait for a life-cycle call
//!   calls  --> one tokio mutex per pod / container ("life") order calls on the same thing
//!   exits  --> one task per shim waits on its pidfd and is the only one to record an exit
//! ```
//!
//! A call runs in a task of its own to its end or its tear-down, whatever becomes of
//! the client that asked; what an abandoned call built is taken down again.

mod attach;
mod connect;
mod containers;
mod entry;
mod exec;
mod exit;
mod facts;
mod labels;
mod node;
mod owner;
mod pods;
mod processes;
mod recover;
mod shim;
mod stats;
mod stop;
mod streams;
mod tear_down;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use criw_net::Network;
use tokio::sync::{broadcast, oneshot};

use crate::error::{Error, Result};
use crate::host::cgroup::Driver;
use crate::id::{ContainerId, SandboxId};
use crate::record::PodPhase;
use crate::view::{ContainerView, Event, PodView};
use node::Host;

pub use criw_engines::record::chain;
pub(crate) use entry::{Container, Pod};
pub use exec::{Exec, ExecPlace, ExecSpec, Signals};
pub use facts::{AllTold, Told};
pub use owner::Owner;
pub use processes::ProcessView;
pub use streams::{Pipes, Streams};

/// Events that a slow subscriber may lag behind before it loses some.
const EVENT_QUEUE: usize = 4096;

/// Where pods live and what runs them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Lasting state, `/var/lib/criw`.
    pub root: PathBuf,
    /// Sockets, pins and bundles of this boot, `/run/criw`.
    pub state: PathBuf,
    /// Shims and init.
    pub libexec: PathBuf,
    /// The runc binary.
    pub runc: PathBuf,
    /// apparmor_parser, which loads the default profile where the node has AppArmor.
    pub apparmor_parser: PathBuf,
    /// Who makes cgroups.
    pub cgroup_driver: Driver,
    /// cgroup parent of pods that name none, "/criw" or "criw.slice".
    pub cgroup_parent: String,
    /// Give each pod a process of its own in its network, in a leaf named by the pod's id: what
    /// cAdvisor takes a pod's traffic from.
    pub pod_processes: bool,
    /// Let non-root containers bind ports below 1024 (a sysctl of the pod's network namespace).
    pub unprivileged_ports: bool,
    /// Overrides the kernel's boot id (tests simulate a reboot with it).
    pub boot_id: Option<String>,
}

/// The manager. Clones share everything.
#[derive(Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) network: Network,
    pub(crate) host: Host,
    pub(crate) boot_id: String,
    index: Mutex<Index>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Index {
    pods: HashMap<SandboxId, Arc<Pod>>,
    containers: HashMap<ContainerId, Arc<Container>>,
    /// (namespace, name, uid, attempt): one pod each.
    pod_names: HashMap<PodName, SandboxId>,
    /// (pod, name, attempt): one container each.
    container_names: HashMap<ContainerName, ContainerId>,
}

type PodName = (String, String, String, u32);
type ContainerName = (SandboxId, String, u32);

impl Sandboxes {
    /// News from now on. A subscriber that lags more than a few thousand events loses some.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The pods' network.
    pub fn network(&self) -> &Network {
        &self.inner.network
    }

    /// Whether a pod could be attached to the network now; looks anew at each call.
    pub async fn network_status(&self) -> std::result::Result<(), criw_net::NotReady> {
        self.inner.network.status().await
    }

    /// Every pod but those that are still being created.
    pub fn pods(&self) -> Vec<PodView> {
        let pods: Vec<_> = self.inner.index().pods.values().cloned().collect();
        pods.iter().filter_map(|pod| pod.view()).collect()
    }

    /// Every container but those that are still being created.
    pub fn containers(&self) -> Vec<ContainerView> {
        let containers: Vec<_> = self.inner.index().containers.values().cloned().collect();
        let state = &self.inner.config.state;
        containers.iter().filter_map(|c| c.view(state)).collect()
    }

    /// The pod with this id, or the only one whose id begins so.
    pub fn find_pod(&self, id: &str) -> Result<Option<PodView>> {
        let pod = {
            let index = self.inner.index();
            by_prefix(&index.pods, id, SandboxId::as_str, "pod sandbox")?.cloned()
        };
        Ok(pod.and_then(|pod| pod.view()))
    }

    /// The container with this id, or the only one whose id begins so.
    pub fn find_container(&self, id: &str) -> Result<Option<ContainerView>> {
        let container = {
            let index = self.inner.index();
            by_prefix(&index.containers, id, ContainerId::as_str, "container")?.cloned()
        };
        Ok(container.and_then(|c| c.view(&self.inner.config.state)))
    }

    /// Runs a life-cycle call to its end whatever becomes of the caller.
    async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        tokio::spawn(work)
            .await
            .map_err(|e| Error::node("run a life-cycle call", e))?
    }

    /// Like [`Self::whole`]; what was built for a caller that has gone is taken down again.
    async fn whole_or_undone<T, F>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        undo: impl FnOnce(T) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<()>> + Send,
    {
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let result = work.await;
            if let Err(Ok(built)) = answer.send(result) {
                tracing::info!("the caller has gone; take down what was built for it");
                if let Err(error) = undo(built).await {
                    tracing::warn!(error = %chain(&error), "take down after an abandoned call");
                }
            }
        });
        answered
            .await
            .map_err(|e| Error::node("run a life-cycle call", e))?
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// Tells subscribers; nobody listening is fine.
    pub(crate) fn publish(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub(crate) fn pod(&self, id: &SandboxId) -> Result<Arc<Pod>> {
        self.index()
            .pods
            .get(id)
            .filter(|pod| pod.record().phase != PodPhase::Creating)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("no pod sandbox has the id {id}")))
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>> {
        self.index()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("no container has the id {id}")))
    }

    pub(crate) fn containers_of(&self, pod: &SandboxId) -> Vec<Arc<Container>> {
        self.index()
            .containers
            .values()
            .filter(|c| &c.sandbox == pod)
            .cloned()
            .collect()
    }

    /// Takes the pod's name and makes it findable; refuses a name that is taken.
    fn insert_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let mut index = self.index();
        let name = pod.name();
        if let Some(other) = index.pod_names.get(&name) {
            return Err(Error::AlreadyExists(format!(
                "pod {}/{} (uid {}, attempt {}) already has the sandbox {other}; remove it or use another attempt",
                name.0, name.1, name.2, name.3
            )));
        }
        index.pod_names.insert(name, pod.id.clone());
        index.pods.insert(pod.id.clone(), pod.clone());
        Ok(())
    }

    fn forget_pod(&self, pod: &Pod) {
        let mut index = self.index();
        index.pods.remove(&pod.id);
        let name = pod.name();
        if index.pod_names.get(&name) == Some(&pod.id) {
            index.pod_names.remove(&name);
        }
    }

    fn insert_container(&self, container: &Arc<Container>) -> Result<()> {
        let mut index = self.index();
        let name = container.name();
        if let Some(other) = index.container_names.get(&name) {
            return Err(Error::AlreadyExists(format!(
                "pod sandbox {} already has the container {} attempt {} with the id {other}",
                name.0, name.1, name.2
            )));
        }
        index.container_names.insert(name, container.id.clone());
        index
            .containers
            .insert(container.id.clone(), container.clone());
        Ok(())
    }

    fn forget_container(&self, container: &Container) {
        let mut index = self.index();
        index.containers.remove(&container.id);
        let name = container.name();
        if index.container_names.get(&name) == Some(&container.id) {
            index.container_names.remove(&name);
        }
    }
}

/// Every id-taking RPC accepts a unique prefix, because crictl passes on what the user typed.
fn by_prefix<'a, K, V>(
    map: &'a HashMap<K, V>,
    prefix: &str,
    text: impl Fn(&K) -> &str,
    what: &str,
) -> Result<Option<&'a V>>
where
    K: std::hash::Hash + Eq,
{
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut found = map.iter().filter(|(id, _)| text(id).starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(Error::Invalid(format!(
            "{what} id {prefix} is ambiguous: give more digits"
        ))),
        (first, _) => Ok(first.map(|(_, value)| value)),
    }
}

/// A poisoned lock means that a holder panicked between two plain assignments; the data is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Blocking host work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::node("run blocking work", e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_finds_one_none_or_is_ambiguous() {
        let map: HashMap<String, u8> = [("abc1".into(), 1), ("abd2".into(), 2)]
            .into_iter()
            .collect();
        let find =
            |p: &str| by_prefix(&map, p, |k: &String| k.as_str(), "thing").map(|v| v.copied());
        assert_eq!(find("abc").unwrap(), Some(1));
        assert_eq!(find("abd2").unwrap(), Some(2));
        assert_eq!(find("x").unwrap(), None);
        assert_eq!(find("").unwrap(), None);
        assert!(find("ab").unwrap_err().to_string().contains("ambiguous"));
    }
}
