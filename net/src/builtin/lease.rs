//! Which pod has which address, in host-local's layout.
//!
//! `<dir>/<address>` holds `<id>\r\n<interface>`; `last_reserved_ip.0` the last
//! address given. Files are created exclusively, which is why host-local's lock
//! is not needed; they are written before the address is used, without fsync,
//! because a kill loses nothing and after a reboot no pod has an address.

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::NetError;
use crate::subnet::Subnet;

const LAST: &str = "last_reserved_ip.0";

pub(crate) struct Leases {
    dir: PathBuf,
    by_id: HashMap<String, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, String>,
    last: Option<Ipv4Addr>,
}

impl Leases {
    /// Reads what is on disk; the directory need not exist.
    pub(crate) fn load(dir: PathBuf) -> Result<Self, NetError> {
        let mut leases = Self {
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            last: None,
            dir,
        };
        let entries = match fs::read_dir(&leases.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(leases),
            Err(error) => return Err(NetError::path("list the leases in", &leases.dir, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| NetError::path("list the leases in", &leases.dir, e))?;
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|n| n.parse::<Ipv4Addr>().ok()) else {
                continue;
            };
            let text = fs::read_to_string(entry.path())
                .map_err(|e| NetError::path("read lease", &entry.path(), e))?;
            // An empty file is a lease cut off by a crash: it keeps the address
            // from being given away until gc.
            let id = text.lines().next().unwrap_or_default().trim().to_owned();
            leases.remember(id, address);
        }
        leases.last = fs::read_to_string(leases.dir.join(LAST))
            .ok()
            .and_then(|t| t.trim().parse().ok());
        Ok(leases)
    }

    fn remember(&mut self, id: String, address: Ipv4Addr) {
        self.by_id.insert(id.clone(), address);
        self.by_address.insert(address, id);
    }

    pub(crate) fn of(&self, id: &str) -> Option<Ipv4Addr> {
        self.by_id.get(id).copied()
    }

    /// The next free address after the last one given. A pod that has one keeps it.
    pub(crate) fn allocate(
        &mut self,
        subnet: Subnet,
        id: &str,
        interface: &str,
    ) -> Result<Ipv4Addr, NetError> {
        if let Some(address) = self.of(id) {
            return Ok(address);
        }
        let (first, end) = subnet.pod_addresses();
        let (first, end) = (u32::from(first), u32::from(end));
        let mut candidate = self
            .last
            .map_or(first, |last| u32::from(last).wrapping_add(1));
        let mut tried = 0u32;
        let size = (u64::from(end) + 1).saturating_sub(u64::from(first));
        while u64::from(tried) < size {
            if candidate < first || candidate > end {
                candidate = first;
            }
            let address = Ipv4Addr::from(candidate);
            if !self.by_address.contains_key(&address) && self.write(address, id, interface)? {
                self.remember(id.to_owned(), address);
                self.last = Some(address);
                let last = self.dir.join(LAST);
                fs::write(&last, address.to_string())
                    .map_err(|e| NetError::path("write", &last, e))?;
                return Ok(address);
            }
            candidate += 1;
            tried += 1;
        }
        Err(NetError::AddressesExhausted {
            subnet: subnet.to_string(),
            leased: self.by_address.len(),
            dir: self.dir.clone(),
        })
    }

    /// False if another program holds the address.
    fn write(&mut self, address: Ipv4Addr, id: &str, interface: &str) -> Result<bool, NetError> {
        let path = self.dir.join(address.to_string());
        let create = || {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
        };
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir)
                    .map_err(|e| NetError::path("create", &self.dir, e))?;
                create()
            }
            other => other,
        };
        if matches!(&file, Err(error) if error.kind() == ErrorKind::AlreadyExists) {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            self.by_address.insert(
                address,
                holder.lines().next().unwrap_or_default().trim().to_owned(),
            );
            return Ok(false);
        }
        let written = file
            .as_mut()
            .map_err(|e| std::io::Error::new(e.kind(), e.to_string()))
            .and_then(|f| write!(f, "{id}\r\n{interface}"));
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(NetError::path("write lease", &path, error));
        }
        Ok(true)
    }

    /// Gives the pod's address back; a pod without one is fine.
    pub(crate) fn release(&mut self, id: &str) -> Result<(), NetError> {
        let Some(address) = self.of(id) else {
            return Ok(());
        };
        remove(&self.dir.join(address.to_string()))?;
        self.by_id.remove(id);
        self.by_address.remove(&address);
        Ok(())
    }

    /// Removes leases, unreadable ones included, whose pod is not in `live`.
    pub(crate) fn retain(&mut self, live: impl Fn(&str) -> bool) -> Result<(), NetError> {
        let stray: Vec<Ipv4Addr> = self
            .by_address
            .iter()
            .filter(|(_, id)| !live(id))
            .map(|(a, _)| *a)
            .collect();
        for address in stray {
            remove(&self.dir.join(address.to_string()))?;
            if let Some(id) = self.by_address.remove(&address) {
                self.by_id.remove(&id);
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), NetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(NetError::path("remove lease", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robin_on_disk_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.1.2.0/29".parse().unwrap();
        let open = || Leases::load(dir.path().join("criw")).unwrap();
        let mut leases = open();
        let give = |leases: &mut Leases, id: &str| {
            leases.allocate(subnet, id, "eth0").unwrap().to_string()
        };
        assert_eq!(give(&mut leases, "a"), "10.1.2.2");
        assert_eq!(give(&mut leases, "b"), "10.1.2.3");
        assert_eq!(give(&mut leases, "a"), "10.1.2.2");
        leases.release("a").unwrap();
        leases.release("a").unwrap();
        assert_eq!(
            give(&mut leases, "c"),
            "10.1.2.4",
            "a released address rests until the round is over"
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("criw/10.1.2.4")).unwrap(),
            "c\r\neth0"
        );
        let mut leases = open();
        assert_eq!(leases.of("b").unwrap().to_string(), "10.1.2.3");
        assert_eq!(give(&mut leases, "d"), "10.1.2.5");
        fs::write(dir.path().join("criw/10.1.2.6"), "other\r\neth0").unwrap();
        assert_eq!(
            give(&mut leases, "e"),
            "10.1.2.2",
            "a foreign lease is stepped over"
        );
        let full = leases
            .allocate(subnet, "f", "eth0")
            .unwrap_err()
            .to_string();
        assert!(
            full.contains("no free address in 10.1.2.0/29: 5 leases"),
            "{full}"
        );
        leases.retain(|id| id == "e").unwrap();
        let left: Vec<String> = fs::read_dir(dir.path().join("criw"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != LAST)
            .collect();
        assert_eq!(left, ["10.1.2.2"]);
    }
}
