//! What the built-in network chose and changed on this host, kept over restarts.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{NetError, NotReady};
use crate::subnet::Subnet;

const VERSION: u32 = 1;

/// Tried in this order when neither the configuration nor the kubelet names one.
const CANDIDATES: [(u8, u8); 6] = [
    (10, 88),
    (10, 89),
    (172, 29),
    (10, 120),
    (10, 212),
    (192, 168),
];

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    version: u32,
    /// All subnets that pods may still have addresses of; new pods use the last.
    pub(crate) subnets: Vec<Subnet>,
    /// The kubelet named the last one.
    #[serde(default)]
    pub(crate) from_pod_cidr: bool,
    /// `net.ipv4.ip_forward` was 0 and we set it.
    #[serde(default)]
    pub(crate) enabled_ip_forward: bool,
}

impl Choice {
    pub(crate) fn load(state_dir: &Path) -> Result<Self, NetError> {
        let path = file(state_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self {
                    version: VERSION,
                    ..Self::default()
                });
            }
            Err(error) => return Err(NetError::path("read", &path, error)),
        };
        let choice: Self =
            serde_json::from_slice(&text).map_err(|e| NetError::path("read", &path, e.into()))?;
        if choice.version > VERSION {
            return Err(NetError::UnknownRecord {
                found: choice.version,
                known: VERSION,
            });
        }
        Ok(choice)
    }

    pub(crate) fn store(&self, state_dir: &Path) -> Result<(), NetError> {
        let path = file(state_dir);
        let temporary = path.with_extension("tmp");
        let text = serde_json::to_vec(self).expect("numbers and strings always serialize");
        std::fs::create_dir_all(state_dir)
            .and_then(|()| std::fs::write(&temporary, text))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| NetError::path("write", &path, e))
    }

    /// Makes `subnet` the one for new pods.
    pub(crate) fn use_subnet(&mut self, subnet: Subnet) {
        // Overlapping ones would be refused by nft's interval sets.
        self.subnets.retain(|old| !old.overlaps(&subnet));
        self.subnets.push(subnet);
    }

    /// Removes what a daemon left that was killed while it stored. Nobody may be storing.
    pub(crate) fn clear_unfinished(state_dir: &Path) {
        let _ = std::fs::remove_file(file(state_dir).with_extension("tmp"));
    }

    pub(crate) fn forget(state_dir: &Path) -> Result<(), NetError> {
        let path = file(state_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NetError::path("remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("builtin-network.json")
}

/// The first candidate that no route of the host overlaps.
pub(crate) fn free_subnet(routed: &[Subnet]) -> Result<Subnet, NotReady> {
    CANDIDATES
        .map(|(a, b)| Subnet::new(Ipv4Addr::new(a, b, 0, 0), 16))
        .into_iter()
        .find(|candidate| !routed.iter().any(|r| r.overlaps(candidate)))
        .ok_or_else(|| NotReady {
            reason: "NoFreeSubnet",
            message: format!(
                "the host has routes into all of {}; set [net] subnet to a free IPv4 network",
                CANDIDATES
                    .map(|(a, b)| format!("{a}.{b}.0.0/16"))
                    .join(", ")
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_are_avoided() {
        let subnet = |s: &str| s.parse::<Subnet>().unwrap();
        for (routed, want) in [
            (vec![], "10.88.0.0/16"),
            (vec!["192.0.2.0/24"], "10.88.0.0/16"),
            (vec!["10.88.0.7/32"], "10.89.0.0/16"),
            (vec!["10.0.0.0/8"], "172.29.0.0/16"),
            (vec!["10.0.0.0/8", "172.16.0.0/12"], "192.168.0.0/16"),
        ] {
            let routed: Vec<Subnet> = routed.into_iter().map(subnet).collect();
            assert_eq!(free_subnet(&routed).unwrap(), subnet(want));
        }
        let all = free_subnet(&["10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24"].map(subnet))
            .unwrap_err();
        assert!(all.message.contains("[net] subnet"), "{all}");
    }

    #[test]
    fn kept_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut choice = Choice::load(dir.path()).unwrap();
        choice.use_subnet("10.1.0.0/24".parse().unwrap());
        choice.use_subnet("10.2.0.0/24".parse().unwrap());
        choice.use_subnet("10.1.0.0/16".parse().unwrap());
        choice.store(dir.path()).unwrap();
        // A daemon was killed while it stored, and nothing stores again.
        std::fs::write(dir.path().join("builtin-network.tmp"), "{").unwrap();
        Choice::clear_unfinished(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let again = Choice::load(dir.path()).unwrap();
        assert_eq!(again, choice);
        assert_eq!(
            again
                .subnets
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["10.2.0.0/24", "10.1.0.0/16"]
        );
    }
}
