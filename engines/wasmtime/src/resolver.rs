//! Names to addresses without libc, whose resolver would load code from the image.
//! The order is everybody's: hosts, then DNS with the search list of resolv.conf.
//! Answers are not cached, as in the C libraries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};

mod exchange;
mod files;

use exchange::{Answer, ask};
use files::Config;

/// For one lookup, all servers and domains together.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// It is no name.
    Invalid,
    /// Nobody has this name, or it has no address.
    NotFound,
    /// No server answered, or none could.
    Temporary,
}

/// Addresses of a name or of an address as text; those that can be reached first.
pub(crate) async fn lookup(name: &str) -> Result<Vec<IpAddr>, LookupError> {
    if let Some(address) = literal(name) {
        return Ok(vec![address]);
    }
    // Also turns names of other scripts into what DNS knows.
    let wanted = Name::from_utf8(name).map_err(|_| LookupError::Invalid)?;
    let ascii = wanted.to_ascii();
    if ascii.is_empty() || ascii == "." {
        return Err(LookupError::Invalid);
    }
    let found = files::hosts(&files::read("/etc/hosts"), &ascii);
    if !found.is_empty() {
        return Ok(found);
    }
    if is_localhost(&ascii) {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let config = files::config(&files::read("/etc/resolv.conf"));
    match tokio::time::timeout(LIMIT, search(&config, &ascii)).await {
        Ok(found) => found.map(by_reachability),
        Err(_) => Err(LookupError::Temporary),
    }
}

fn literal(name: &str) -> Option<IpAddr> {
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    bare.parse().ok()
}

/// The name never leaves the machine (RFC 6761).
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// The names to ask for, in order.
fn candidates(config: &Config, name: &str) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let absolute = format!("{name}.");
    let searched = config
        .search
        .iter()
        .map(|domain| format!("{name}.{domain}."));
    if name.matches('.').count() >= config.ndots {
        std::iter::once(absolute.clone()).chain(searched).collect()
    } else {
        searched.chain([absolute]).collect()
    }
}

async fn search(config: &Config, name: &str) -> Result<Vec<IpAddr>, LookupError> {
    let mut failed = false;
    for candidate in candidates(config, name) {
        // Too long with this domain behind it.
        let Ok(candidate) = Name::from_ascii(&candidate) else {
            continue;
        };
        let (v6, v4) = tokio::join!(
            ask(config, &candidate, RecordType::AAAA),
            ask(config, &candidate, RecordType::A)
        );
        let mut found = Vec::new();
        for answer in [v6, v4] {
            match answer {
                Answer::Addresses(addresses) => found.extend(addresses),
                Answer::Nothing => {}
                Answer::NoServer => failed = true,
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(if failed {
        LookupError::Temporary
    } else {
        LookupError::NotFound
    })
}

/// Addresses without a route come last (the first rule of RFC 6724): guests take
/// them in order, and most pods have one family only.
fn by_reachability(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_by_key(|address| !is_routed(*address));
    addresses
}

/// Connecting a datagram socket sends nothing.
fn is_routed(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    StdUdpSocket::bind(any).is_ok_and(|socket| socket.connect((address, 9)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_is_tried_by_dots() {
        let mut config = files::config("search a.b c\noptions ndots:2\n");
        for (name, expected) in [
            ("x", &["x.a.b.", "x.c.", "x."][..]),
            ("x.y", &["x.y.a.b.", "x.y.c.", "x.y."]),
            ("x.y.z", &["x.y.z.", "x.y.z.a.b.", "x.y.z.c."]),
            ("x.", &["x."]),
        ] {
            assert_eq!(candidates(&config, name), expected, "{name}");
        }
        config.search.clear();
        assert_eq!(candidates(&config, "x"), ["x."]);
    }

    #[test]
    fn addresses_and_localhost_need_no_server() {
        let runtime = crate::world::runtime().unwrap();
        let find = |name| runtime.block_on(lookup(name));
        for (name, expected) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::1", "::1"),
            ("[fd00::2]", "fd00::2"),
        ] {
            assert_eq!(find(name).unwrap(), [expected.parse::<IpAddr>().unwrap()]);
        }
        assert!(!find("deep.LocalHost").unwrap().is_empty());
        for name in ["", ".", "a..b", "a b\0.", &"x".repeat(64)] {
            assert_eq!(find(name), Err(LookupError::Invalid), "{name:?}");
        }
    }
}
