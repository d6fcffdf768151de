//! The thin built-in network: point-to-point veth pairs, IPv4.
//!
//! One /32 route per pod and no bridge, so that the thousandth pod costs what
//! the first does. Taking a pod down removes its route, ports and lease; the
//! veth pair goes with the pod's namespace, which the caller drops, because
//! deleting a link is 20 ms of waiting in the kernel.

mod choice;
mod lease;
pub(crate) mod link;
mod nft;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use crate::BuiltinConfig;
use crate::attachment::{Attachment, BuiltinRecord, Kind, RECORD_VERSION};
use crate::error::{NetError, NotReady};
use crate::netlink::Socket;
use crate::pod::{PodNetwork, PortMapping};
use crate::subnet::Subnet;
use choice::Choice;
use lease::Leases;

const INTERFACE: &str = "eth0";
const NETWORK: &str = "criw";
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

pub(crate) struct Builtin {
    config: BuiltinConfig,
    state_dir: PathBuf,
    /// The subnet of new pods, once the host is prepared.
    ready: Mutex<Option<Subnet>>,
    /// Queues those who would prepare the host.
    preparing: tokio::sync::Mutex<()>,
    leases: Mutex<Option<Leases>>,
}

impl Builtin {
    pub(crate) fn new(config: BuiltinConfig, state_dir: PathBuf) -> Result<Self, NetError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let name = &config.table;
        if name.len() > 64
            || !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || !name.chars().all(plain)
        {
            return Err(NetError::InvalidPod(format!(
                "{name:?} cannot be the name of an nft table"
            )));
        }
        if let Some(subnet) = config.subnet.filter(|s| s.prefix() > 30) {
            return Err(NetError::InvalidPod(format!(
                "[net] subnet {subnet} has no room for a gateway and a pod"
            )));
        }
        Ok(Self {
            config,
            state_dir,
            ready: Mutex::new(None),
            preparing: tokio::sync::Mutex::new(()),
            leases: Mutex::new(None),
        })
    }

    pub(crate) fn status(&self) -> Result<(), NotReady> {
        if nft::find().is_none() {
            return Err(NotReady {
                reason: "NftMissing",
                message: "the built-in network needs the nft tool for host ports and masquerade: install nftables".into(),
            });
        }
        Ok(())
    }

    pub(crate) fn plan(&self, pod: &PodNetwork) -> Result<Attachment, NetError> {
        if pod.id.is_empty() || pod.id.contains(['\n', '\r']) {
            return Err(NetError::InvalidPod(format!(
                "{:?} cannot be a pod id",
                pod.id
            )));
        }
        Ok(Attachment {
            version: RECORD_VERSION,
            pod_id: pod.id.clone(),
            interface: INTERFACE.into(),
            ips: Vec::new(),
            kind: Kind::Builtin(BuiltinRecord {
                host_interface: self.link_prefix() + &letters(&pod.id, 8),
                lease_dir: self.lease_dir(),
                table: self.config.table.clone(),
                ports: pod.mapped_ports(),
                ip: None,
            }),
        })
    }

    /// `criw` and three letters that tell daemons on one machine apart.
    fn link_prefix(&self) -> String {
        format!("criw{}", letters(&self.config.table, 3))
    }

    fn lease_dir(&self) -> PathBuf {
        self.config.lease_dir.join(NETWORK)
    }

    /// The subnet for a new pod; prepares the host at the first one.
    pub(crate) async fn prepare(&self) -> Result<Subnet, NetError> {
        if let Some(subnet) = *lock(&self.ready) {
            return Ok(subnet);
        }
        let _turn = self.preparing.lock().await;
        if let Some(subnet) = *lock(&self.ready) {
            return Ok(subnet);
        }
        let mut choice = Choice::load(&self.state_dir)?;
        if let Some(subnet) = self.config.subnet {
            choice.use_subnet(subnet);
        } else if choice.subnets.is_empty() {
            choice.use_subnet(choice::free_subnet(&link::routed_prefixes()?)?);
        }
        let forwards = fs::read_to_string(IP_FORWARD)
            .map_err(|e| NetError::path("read", Path::new(IP_FORWARD), e))?;
        if forwards.trim() == "0" {
            // Recorded before it is done, so that it can always be undone.
            choice.enabled_ip_forward = true;
            choice.store(&self.state_dir)?;
            fs::write(IP_FORWARD, "1")
                .map_err(|e| NetError::path("write 1 to", Path::new(IP_FORWARD), e))?;
            tracing::info!("enabled net.ipv4.ip_forward for the built-in pod network");
        } else {
            choice.store(&self.state_dir)?;
        }
        self.make_table(&choice).await?;
        let subnet = *choice
            .subnets
            .last()
            .expect("one was pushed above if there was none");
        *lock(&self.ready) = Some(subnet);
        Ok(subnet)
    }

    async fn make_table(&self, choice: &Choice) -> Result<(), NetError> {
        let script = nft::script(&self.config.table, &choice.subnets, &self.link_prefix());
        nft::apply(script, &format!("make table {}", self.config.table)).await
    }

    /// Blocking.
    pub(crate) fn attach(
        &self,
        subnet: Subnet,
        attachment: &mut Attachment,
        netns: &OwnedFd,
    ) -> Result<(), NetError> {
        let pod_id = attachment.pod_id.clone();
        let Kind::Builtin(record) = &mut attachment.kind else {
            return Err(NetError::InvalidPod(
                "its record is not one of the built-in network".into(),
            ));
        };
        let ip = self.with_leases(|leases| {
            if let Some(ip) = leases.of(&pod_id) {
                // Undoing this attempt would take the standing one down.
                return Err(NetError::InvalidPod(format!(
                    "it is attached already, as {ip}: detach it first"
                )));
            }
            leases.allocate(subnet, &pod_id, INTERFACE)
        })?;
        record.ip = Some(ip);
        match connect(record, ip, subnet.gateway(), netns) {
            Ok(()) => {
                attachment.ips = vec![IpAddr::V4(ip)];
                Ok(())
            }
            Err((attach, published)) => {
                let undo = self.undo(record, &pod_id, published);
                record.ip = None;
                match undo {
                    Ok(()) => Err(attach),
                    Err(undo) => Err(NetError::Undo {
                        attach: Box::new(attach),
                        undo: Box::new(undo),
                    }),
                }
            }
        }
    }

    fn undo(&self, record: &BuiltinRecord, pod_id: &str, published: bool) -> Result<(), NetError> {
        if let Some(ip) = record.ip {
            link::unroute(&record.host_interface, ip)?;
            if published {
                nft::withdraw(&record.table, ip, &record.ports)?;
            }
        }
        link::delete(&record.host_interface)?;
        self.with_leases(|leases| leases.release(pod_id))
    }

    /// Blocking. The lease goes last: as long as it is there, route and ports
    /// are this pod's; once it is gone, they may be another's and stay.
    pub(crate) fn detach(
        &self,
        attachment: &Attachment,
        record: &BuiltinRecord,
    ) -> Result<(), NetError> {
        if record.lease_dir == self.lease_dir() {
            self.with_leases(|leases| release(leases, attachment, record))
        } else {
            detach_foreign(attachment, record)
        }
    }

    fn with_leases<T>(
        &self,
        work: impl FnOnce(&mut Leases) -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        let mut slot = lock(&self.leases);
        let leases = match &mut *slot {
            Some(leases) => leases,
            none => none.insert(Leases::load(self.lease_dir())?),
        };
        work(leases)
    }

    /// Removes leases, ports and links of pods that are not in `live`.
    pub(crate) async fn gc(&self, live: &[&Attachment]) -> Result<(), NetError> {
        let pods: Vec<(&Attachment, &BuiltinRecord)> = live
            .iter()
            .filter_map(|a| match &a.kind {
                Kind::Builtin(record) if record.table == self.config.table => Some((*a, record)),
                _ => None,
            })
            .collect();
        let strays = link::list(&self.link_prefix())?;
        for name in strays
            .iter()
            .filter(|name| !pods.iter().any(|(_, r)| r.host_interface == **name))
        {
            link::delete(name)?;
        }
        Choice::clear_unfinished(&self.state_dir);
        // Without state no table was ever made here.
        let choice = Choice::load(&self.state_dir)?;
        if !choice.subnets.is_empty() {
            self.make_table(&choice).await?;
            nft::replace(
                &self.config.table,
                pods.iter()
                    .filter_map(|(_, r)| Some((r.ip?, r.ports.as_slice()))),
            )?;
        }
        self.with_leases(|leases| leases.retain(|id| pods.iter().any(|(a, _)| a.pod_id == id)))
    }

    /// The kubelet's pod CIDR replaces a subnet that we chose, never one that
    /// the configuration names.
    pub(crate) fn set_pod_cidr(&self, cidrs: &[Subnet]) -> Result<(), NetError> {
        let Some(&subnet) = cidrs.first() else {
            return Ok(());
        };
        if let Some(configured) = self.config.subnet {
            if configured != subnet {
                tracing::warn!(%configured, pod_cidr = %subnet, "[net] subnet differs from the node's pod CIDR and is kept");
            }
            return Ok(());
        }
        let mut choice = Choice::load(&self.state_dir)?;
        if choice.subnets.last() == Some(&subnet) {
            return Ok(());
        }
        choice.use_subnet(subnet);
        choice.from_pod_cidr = true;
        choice.store(&self.state_dir)?;
        // The next pod prepares the host for it.
        *lock(&self.ready) = None;
        Ok(())
    }

    pub(crate) async fn remove_all(&self) -> Result<(), NetError> {
        let _turn = self.preparing.lock().await;
        *lock(&self.ready) = None;
        let table = &self.config.table;
        // Named first, so that removing what is not there is no error.
        nft::apply(
            format!("table ip {table}\ndelete table ip {table}\n"),
            &format!("remove table {table}"),
        )
        .await?;
        for name in link::list(&self.link_prefix())? {
            link::delete(&name)?;
        }
        self.with_leases(|leases| leases.retain(|_| false))?;
        if Choice::load(&self.state_dir)?.enabled_ip_forward {
            tracing::info!(
                "net.ipv4.ip_forward was enabled by the built-in pod network and is left on: others may rely on it by now"
            );
        }
        Choice::forget(&self.state_dir)
    }

    /// The table was removed by somebody: it is made anew for the next pod.
    pub(crate) fn forget_table(&self) {
        *lock(&self.ready) = None;
    }
}

/// The second value of an error tells whether the pod's ports were published.
fn connect(
    record: &BuiltinRecord,
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
    netns: &OwnedFd,
) -> Result<(), (NetError, bool)> {
    let host = Socket::route().map_err(|e| (e, false))?;
    link::connect_host(&host, &record.host_interface, INTERFACE, netns, ip, gateway)
        .map_err(|e| (e, false))?;
    if !record.ports.is_empty() {
        allow_loopback_sources(&record.host_interface).map_err(|e| (e, false))?;
        nft::publish(&record.table, ip, &record.ports)
            .map_err(|e| (publish_error(e, record), false))?;
    }
    crate::netns::visit(std::os::fd::AsFd::as_fd(netns), || {
        link::connect_pod(INTERFACE, ip, gateway)
    })
    .map_err(|e| (e, !record.ports.is_empty()))
}

fn publish_error(error: nft::PublishError, record: &BuiltinRecord) -> NetError {
    match error {
        nft::PublishError::Taken(index) => match record.ports.get(index) {
            Some(PortMapping {
                host_port,
                protocol,
                ..
            }) => NetError::HostPortTaken {
                host_port: *host_port,
                protocol: protocol.as_str(),
            },
            None => NetError::InvalidPod("a host port is used twice".into()),
        },
        nft::PublishError::NoTable => NetError::NotReady(NotReady {
            reason: TABLE_GONE,
            message: format!(
                "somebody removed the nft table {}; it is made anew for the next pod",
                record.table
            ),
        }),
        nft::PublishError::Failed(error) => error,
    }
}

/// The reason with which `attach` asks for the table to be made anew.
pub(crate) const TABLE_GONE: &str = "NftTableGone";

/// Connections from the host to 127.0.0.1 and a host port leave through the
/// veth with a loopback source until masquerade replaces it.
fn allow_loopback_sources(host_end: &str) -> Result<(), NetError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{host_end}/route_localnet"));
    fs::write(&path, "1").map_err(|e| NetError::path("write 1 to", &path, e))
}

/// Takes down what a daemon with another configuration attached.
pub(crate) fn detach_foreign(
    attachment: &Attachment,
    record: &BuiltinRecord,
) -> Result<(), NetError> {
    release(
        &mut Leases::load(record.lease_dir.clone())?,
        attachment,
        record,
    )
}

fn release(
    leases: &mut Leases,
    attachment: &Attachment,
    record: &BuiltinRecord,
) -> Result<(), NetError> {
    let Some(ip) = leases.of(&attachment.pod_id) else {
        return Ok(());
    };
    link::unroute(&record.host_interface, ip)?;
    nft::withdraw(&record.table, ip, &record.ports)?;
    leases.release(&attachment.pod_id)
}

/// `count` letters and digits from a hash, five bits each.
fn letters(text: &str, count: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    Sha256::digest(text)
        .iter()
        .take(count)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is consistent after each statement, so a panic elsewhere
    // does not make it wrong.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
