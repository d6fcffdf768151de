//! An IPv4 prefix: parsing, membership, overlap.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network such as `10.88.0.0/16`; host bits are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network in the form 10.88.0.0/16")]
pub struct BadSubnet(String);

impl Subnet {
    /// Host bits of `address` are cleared; a prefix over 32 counts as 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            network: Ipv4Addr::from(u32::from(address) & mask(prefix)),
            prefix,
        }
    }

    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The first address: the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(1))
    }

    /// The addresses that pods may have: all but network, gateway and broadcast.
    pub fn pod_addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let last = u32::from(self.network) | !mask(self.prefix);
        (
            Ipv4Addr::from(u32::from(self.network).wrapping_add(2)),
            Ipv4Addr::from(last.wrapping_sub(1)),
        )
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = BadSubnet;

    fn from_str(text: &str) -> Result<Self, BadSubnet> {
        let bad = || BadSubnet(text.to_owned());
        let (address, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
        let prefix = prefix
            .parse::<u8>()
            .ok()
            .filter(|p| *p <= 32)
            .ok_or_else(bad)?;
        Ok(Self::new(address.parse().map_err(|_| bad())?, prefix))
    }
}

impl TryFrom<String> for Subnet {
    type Error = BadSubnet;

    fn try_from(text: String) -> Result<Self, BadSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_reject() {
        for (text, shown) in [
            ("10.88.0.0/16", "10.88.0.0/16"),
            (" 10.1.2.3/24", "10.1.2.0/24"),
            ("1.2.3.4/32", "1.2.3.4/32"),
            ("9.9.9.9/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), shown);
        }
        for text in [
            "10.88.0.0",
            "10.88.0.0/33",
            "fd00::/64",
            "/16",
            "a/8",
            "10.88.0.0/-1",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn membership_overlap_and_range() {
        let net: Subnet = "10.88.0.0/16".parse().unwrap();
        for (other, want) in [
            ("10.88.4.0/24", true),
            ("10.0.0.0/8", true),
            ("10.89.0.0/16", false),
            ("0.0.0.0/0", true),
        ] {
            assert_eq!(net.overlaps(&other.parse().unwrap()), want, "{other}");
        }
        assert!(net.contains("10.88.255.255".parse().unwrap()));
        assert!(!net.contains("10.89.0.0".parse().unwrap()));
        assert_eq!(net.gateway().to_string(), "10.88.0.1");
        let (first, last) = net.pod_addresses();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("10.88.0.2".into(), "10.88.255.254".into())
        );
    }
}
