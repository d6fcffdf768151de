//! Pod networks: attaches a pod's network namespace to CNI networks or to the
//! thin built-in one, and takes the attachment down again.
//!
//! The crate knows nothing of CRI, sandboxes or containers: it gets a namespace
//! and a [`PodNetwork`], and gives back an [`Attachment`], the record that the
//! caller keeps. The order is a law: `plan`, the caller writes the record,
//! `attach`, the caller writes it again, …, `detach`, the caller removes it.
//! `detach` works from the record alone, whatever the mode is by then.

mod attachment;
mod error;
mod pod;
mod subnet;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use attachment::{Attachment, BuiltinRecord, CniRecord, Kind, RECORD_VERSION};
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
    mode: Mode,
    state_dir: PathBuf,
}

impl Network {
    /// `state_dir` is lasting: what the built-in network chose and changed is written there.
    pub fn new(mode: Mode, state_dir: PathBuf) -> Result<Self, NetError> {
        todo!()
    }

    /// Whether a pod could be attached now; looks anew at each call.
    pub async fn status(&self) -> Result<(), NotReady> {
        todo!()
    }

    /// Chooses the network and writes down everything that DEL will need. Changes nothing.
    pub fn plan(&self, pod: &PodNetwork) -> Result<Attachment, NetError> {
        todo!()
    }

    /// Builds the attachment and brings `lo` up. On failure all of it has been
    /// taken down again, unless the error is [`NetError::Undo`].
    pub async fn attach(
        &self,
        attachment: &mut Attachment,
        netns: BorrowedFd<'_>,
    ) -> Result<(), NetError> {
        todo!()
    }

    /// Takes an attachment down. Idempotent; `netns_alive` false (after a
    /// reboot) hands plugins an empty CNI_NETNS.
    pub async fn detach(&self, attachment: &Attachment, netns_alive: bool) -> Result<(), NetError> {
        todo!()
    }

    /// Removes whatever belongs to none of the `live` attachments.
    pub async fn gc(&self, live: &[&Attachment]) -> Result<(), NetError> {
        todo!()
    }

    /// The node's pod CIDRs, as the kubelet announces them.
    pub fn set_pod_cidr(&self, cidrs: &[String]) -> Result<(), NetError> {
        todo!()
    }

    /// Uninstalls what outlives pods: the nft table of the built-in network.
    pub async fn remove_all(&self) -> Result<(), NetError> {
        todo!()
    }
}

/// Traffic of one interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceCounters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads the counters of every interface of a namespace. Blocks for well under a millisecond.
pub fn interface_counters(netns: BorrowedFd<'_>) -> Result<Vec<InterfaceCounters>, NetError> {
    todo!()
}
