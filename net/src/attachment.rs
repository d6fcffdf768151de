//! The record of one pod's attachment.
//!
//! It holds all that DEL needs, so that a daemon with another configuration,
//! after a crash or a reboot, can still take the attachment down. The caller
//! writes it before `attach`, again after, and removes it after `detach`
//! succeeded.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::NetError;
use crate::pod::PortMapping;

/// The newest record format that this program writes and reads.
pub const RECORD_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    pub version: u32,
    /// The pod's id: CNI's container id.
    pub pod_id: String,
    /// The interface inside the pod.
    pub interface: String,
    /// The pod's addresses, the main one (IPv4 if there is one) first; empty
    /// until `attach` has succeeded.
    pub ips: Vec<IpAddr>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Cni(CniRecord),
    Builtin(BuiltinRecord),
}

/// A CNI network as it was used for ADD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CniRecord {
    /// The file that the list came from, for messages.
    pub conflist_file: PathBuf,
    pub network: String,
    pub cni_version: String,
    #[serde(default)]
    pub disable_check: bool,
    pub plugins: Vec<Map<String, Value>>,
    pub bin_dirs: Vec<PathBuf>,
    pub netns_path: PathBuf,
    /// CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// What is offered to plugins that declare the capability.
    pub capabilities: Map<String, Value>,
    /// The last plugin's result, for CHECK and DEL.
    #[serde(default)]
    pub prev_result: Option<Value>,
}

/// The built-in network's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltinRecord {
    /// The host end of the veth pair.
    pub host_interface: String,
    pub lease_dir: PathBuf,
    pub table: String,
    pub ports: Vec<PortMapping>,
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
}

impl Attachment {
    /// The pod's addresses, main one first.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    pub(crate) fn check_version(&self) -> Result<(), NetError> {
        if self.version == 0 || self.version > RECORD_VERSION {
            return Err(NetError::UnknownRecord {
                found: self.version,
                known: RECORD_VERSION,
            });
        }
        Ok(())
    }
}
