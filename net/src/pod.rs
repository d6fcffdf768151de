//! A pod as its network sees it: our own small types, free of CRI.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that plugins and the built-in network want to know about a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The sandbox id, 64 hex digits: CNI's container id.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// A path at which the namespace is mounted. CNI plugins and agents open
    /// it, so it must be visible to other processes; the built-in network does
    /// not use it.
    pub netns_path: PathBuf,
    /// Entries with host port 0 are ignored.
    pub ports: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup, handed to plugins with the `cgroupPath` capability.
    pub cgroup_path: String,
    pub dns: Dns,
    pub hostname: String,
}

/// One `hostPort` of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// Only connections to this address of the host; `None` means all.
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Lower case, as CNI's portMappings want it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl PodNetwork {
    pub(crate) fn mapped_ports(&self) -> Vec<PortMapping> {
        self.ports
            .iter()
            .filter(|p| p.host_port != 0)
            .cloned()
            .collect()
    }
}
