//! Pod networks: attaches a pod's network namespace to CNI networks or to the
//! thin built-in one, and takes the attachment down again.
//!
//! The crate knows nothing of CRI, sandboxes or containers: it gets a namespace
//! and a [`PodNetwork`], and gives back an [`Attachment`], the record that the
//! caller keeps. The order is a law: `plan`, the caller writes the record,
//! `attach`, the caller writes it again, …, `detach`, the caller removes it.
//! `detach` works from the record alone, whatever the mode is by then.

mod attachment;
mod builtin;
mod cni;
mod counters;
mod error;
mod exec;
mod netlink;
mod netns;
mod pod;
mod subnet;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, Semaphore};

use builtin::Builtin;
use cni::Cni;

pub use attachment::{Attachment, BuiltinRecord, CniRecord, Kind, RECORD_VERSION};
pub use counters::{InterfaceCounters, interface_counters};
pub use error::{NetError, NotReady, PluginError, PluginFailure};
pub use pod::{Dns, PodNetwork, PortMapping, Protocol};
pub use subnet::{BadSubnet, Subnet};

/// Which network pods get.
#[derive(Debug, Clone)]
pub enum Mode {
    /// The first conflist of a directory, run with plugin binaries.
    Cni(CniConfig),
    /// veth pairs and routes made here by netlink.
    Builtin(BuiltinConfig),
}

#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Where conflists appear, often long after the daemon has started.
    pub conf_dir: PathBuf,
    /// Searched in order for plugin binaries.
    pub bin_dirs: Vec<PathBuf>,
    /// Bound for one run of one plugin.
    pub plugin_timeout: Duration,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            plugin_timeout: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, Clone)]
pub struct BuiltinConfig {
    /// `None`: the pod CIDR of the node if the kubelet sends one, else the
    /// first of a small list that overlaps no route of the host.
    pub subnet: Option<Subnet>,
    /// Leases are files `<lease_dir>/criw/<address>`, as host-local writes them.
    pub lease_dir: PathBuf,
    /// Name of the nft table: one per daemon on a machine.
    pub table: String,
}

/// A handle on the node's pod network; clones share state.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Driver,
    plugin_timeout: Duration,
    /// One queue per pod: ADD and DEL of one pod never overlap, those of
    /// different pods do.
    pods: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Bounds the threads that work on the built-in network at once.
    threads: Semaphore,
}

enum Driver {
    Cni(Cni),
    Builtin(Builtin),
}

const THREADS: usize = 16;

impl Network {
    /// `state_dir` is lasting: what the built-in network chose and changed is
    /// written there. Nothing on the host is touched before the first pod.
    pub fn new(mode: Mode, state_dir: PathBuf) -> Result<Self, NetError> {
        let (driver, plugin_timeout) = match mode {
            Mode::Cni(config) => {
                let timeout = config.plugin_timeout;
                (Driver::Cni(Cni::new(config)), timeout)
            }
            Mode::Builtin(config) => (
                Driver::Builtin(Builtin::new(config, state_dir)?),
                CniConfig::default().plugin_timeout,
            ),
        };
        let (pods, threads) = (Mutex::default(), Semaphore::new(THREADS));
        Ok(Self {
            inner: Arc::new(Inner {
                driver,
                plugin_timeout,
                pods,
                threads,
            }),
        })
    }

    /// Whether a pod could be attached now; looks anew at each call (the
    /// answers of plugins to STATUS are kept for ten seconds).
    pub async fn status(&self) -> Result<(), NotReady> {
        match &self.inner.driver {
            Driver::Cni(cni) => cni.status().await,
            Driver::Builtin(builtin) => builtin.status(),
        }
    }

    /// Chooses the network and writes down everything that DEL will need.
    /// Changes nothing; the caller writes the record down before `attach`.
    pub fn plan(&self, pod: &PodNetwork) -> Result<Attachment, NetError> {
        match &self.inner.driver {
            Driver::Cni(cni) => cni.plan(pod),
            Driver::Builtin(builtin) => builtin.plan(pod),
        }
    }

    /// Builds the attachment and brings `lo` up. On failure all of it has been
    /// taken down again, unless the error is [`NetError::Undo`]. If the future
    /// is dropped, plugins are killed and `detach` must follow.
    pub async fn attach(
        &self,
        attachment: &mut Attachment,
        netns: BorrowedFd<'_>,
    ) -> Result<(), NetError> {
        attachment.check_version()?;
        let netns = netns
            .try_clone_to_owned()
            .map_err(|e| NetError::io("duplicate the pod's network namespace", e))?;
        let turn = self.turn(&attachment.pod_id).await;
        match &self.inner.driver {
            Driver::Cni(_) => cni::attach(attachment, netns, self.inner.plugin_timeout).await,
            Driver::Builtin(_) => {
                self.attach_builtin(attachment, Arc::new(netns), Arc::new(turn))
                    .await
            }
        }
    }

    async fn attach_builtin(
        &self,
        attachment: &mut Attachment,
        netns: Arc<OwnedFd>,
        turn: Arc<OwnedMutexGuard<()>>,
    ) -> Result<(), NetError> {
        let mut second_try = false;
        loop {
            let Driver::Builtin(builtin) = &self.inner.driver else {
                return Err(NetError::InvalidPod(
                    "the built-in network is not in use".into(),
                ));
            };
            let subnet = builtin.prepare().await?;
            let mut work = attachment.clone();
            let (netns, turn) = (Arc::clone(&netns), Arc::clone(&turn));
            let (result, done) = self
                .on_thread(move |builtin| {
                    let result = builtin.attach(subnet, &mut work, &netns);
                    drop(turn);
                    Ok((result, work))
                })
                .await?;
            match result {
                Err(NetError::NotReady(NotReady {
                    reason: builtin::TABLE_GONE,
                    ..
                })) if !second_try => {
                    builtin.forget_table();
                    second_try = true;
                }
                result => {
                    *attachment = done;
                    return result;
                }
            }
        }
    }

    /// Runs blocking work on the built-in network on a thread of its own. It
    /// goes on when the caller's future is dropped, with whatever it owns.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Builtin) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        let _permit = self.inner.threads.acquire().await;
        let inner = Arc::clone(&self.inner);
        netns::on_fresh_thread(move || match &inner.driver {
            Driver::Builtin(builtin) => work(builtin),
            Driver::Cni(_) => Err(NetError::InvalidPod(
                "the built-in network is not in use".into(),
            )),
        })
        .await
    }

    /// Takes an attachment down. Idempotent, and works from the record whatever
    /// the mode is by now. `netns_alive` false (after a reboot), or a namespace
    /// path that is gone, hands plugins an empty CNI_NETNS.
    pub async fn detach(&self, attachment: &Attachment, netns_alive: bool) -> Result<(), NetError> {
        attachment.check_version()?;
        let turn = self.turn(&attachment.pod_id).await;
        match &attachment.kind {
            Kind::Cni(record) => {
                cni::detach(attachment, record, netns_alive, self.inner.plugin_timeout).await
            }
            Kind::Builtin(_) => {
                let (inner, attachment) = (Arc::clone(&self.inner), attachment.clone());
                let _permit = self.inner.threads.acquire().await;
                netns::on_fresh_thread(move || {
                    let _turn = turn;
                    let Kind::Builtin(record) = &attachment.kind else {
                        return Ok(());
                    };
                    match &inner.driver {
                        Driver::Builtin(builtin) => builtin.detach(&attachment, record),
                        Driver::Cni(_) => builtin::detach_foreign(&attachment, record),
                    }
                })
                .await
            }
        }
    }

    /// CNI's CHECK; the built-in network has nothing to check.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), NetError> {
        attachment.check_version()?;
        match &attachment.kind {
            Kind::Cni(record) => cni::check(attachment, record, self.inner.plugin_timeout).await,
            Kind::Builtin(_) => Ok(()),
        }
    }

    /// Removes whatever belongs to none of the `live` attachments. For the
    /// start of the daemon: no `attach` may run meanwhile.
    pub async fn gc(&self, live: &[&Attachment]) -> Result<(), NetError> {
        match &self.inner.driver {
            Driver::Cni(cni) => cni.gc(live).await,
            Driver::Builtin(builtin) => builtin.gc(live).await,
        }
    }

    /// The node's pod CIDRs, as the kubelet announces them (UpdateRuntimeConfig).
    /// With CNI they are the plugins' business, so that nothing is done.
    pub fn set_pod_cidr(&self, cidrs: &[String]) -> Result<(), NetError> {
        let Driver::Builtin(builtin) = &self.inner.driver else {
            return Ok(());
        };
        let mut subnets = Vec::new();
        for cidr in cidrs
            .iter()
            .map(|c| c.trim())
            .filter(|c| !c.is_empty() && !c.contains(':'))
        {
            let subnet: Subnet = cidr
                .parse()
                .map_err(|e: BadSubnet| NetError::InvalidPod(e.to_string()))?;
            if subnet.prefix() > 30 {
                return Err(NetError::InvalidPod(format!(
                    "pod CIDR {subnet} has no room for a gateway and a pod"
                )));
            }
            subnets.push(subnet);
        }
        builtin.set_pod_cidr(&subnets)
    }

    /// Uninstalls what the built-in network left on the host: nft table, links,
    /// leases, recorded choices. For tests and removal; pods lose their network.
    pub async fn remove_all(&self) -> Result<(), NetError> {
        match &self.inner.driver {
            Driver::Cni(_) => Ok(()),
            Driver::Builtin(builtin) => builtin.remove_all().await,
        }
    }

    async fn turn(&self, pod_id: &str) -> OwnedMutexGuard<()> {
        let queue = {
            let mut pods = self
                .inner
                .pods
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match pods.get(pod_id).and_then(Weak::upgrade) {
                Some(queue) => queue,
                None => {
                    pods.retain(|_, queue| queue.strong_count() > 0);
                    let queue = Arc::default();
                    pods.insert(pod_id.to_owned(), Arc::downgrade(&queue));
                    queue
                }
            }
        };
        queue.lock_owned().await
    }
}
