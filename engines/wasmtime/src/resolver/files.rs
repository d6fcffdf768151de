//! The container's `/etc/hosts` and `/etc/resolv.conf`, read anew for each lookup:
//! both are small, and the kubelet may rewrite them. Parsing is pure and takes what
//! others take: unknown lines and options are skipped.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

/// Bytes that are read of either file.
const MAX_FILE: u64 = 1 << 20;

/// As in resolv.conf(5).
const MAX_SERVERS: usize = 3;
const MAX_NDOTS: usize = 15;
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u32 = 5;

/// Domains of the search list; Kubernetes allows as many.
const MAX_SEARCH: usize = 32;

const DNS_PORT: u16 = 53;

/// What resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
    /// A name with fewer dots is tried with the search list first.
    pub(crate) ndots: usize,
    /// For one question to one server.
    pub(crate) timeout: Duration,
    /// Rounds over all servers.
    pub(crate) attempts: u32,
    /// Ask by TCP only.
    pub(crate) tcp: bool,
}

/// Reads one of the two; a missing or odd file is empty.
pub(crate) fn read(path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()).map(File::from) else {
        return String::new();
    };
    let mut text = Vec::new();
    if file.metadata().is_ok_and(|stat| stat.is_file()) {
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Addresses that hosts gives to a name, in its order.
pub(crate) fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else {
            continue;
        };
        if words.any(|word| word.eq_ignore_ascii_case(name)) && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Parses resolv.conf.
pub(crate) fn config(text: &str) -> Config {
    let mut config = Config {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: 1,
        timeout: Duration::from_secs(5),
        attempts: 2,
        tcp: false,
    };
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if config.servers.len() < MAX_SERVERS => {
                config.servers.extend(words.next().and_then(server));
            }
            // The last line of either kind counts.
            Some("search" | "domain") => {
                config.search = words
                    .take(MAX_SEARCH)
                    .map(|domain| domain.trim_end_matches('.').to_owned())
                    .filter(|domain| !domain.is_empty())
                    .collect();
            }
            Some("options") => words.for_each(|option| set(&mut config, option)),
            _ => {}
        }
    }
    if config.servers.is_empty() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        config.servers.push(SocketAddr::new(local, DNS_PORT));
    }
    config
}

fn server(word: &str) -> Option<SocketAddr> {
    // A zone (fe80::1%eth0) names an interface, which guests do not have a name for.
    let address = word.parse().ok()?;
    Some(SocketAddr::new(address, DNS_PORT))
}

fn set(config: &mut Config, option: &str) {
    let (name, value) = option.split_once(':').unwrap_or((option, ""));
    match (name, value.parse::<u32>()) {
        ("ndots", Ok(n)) => config.ndots = (n as usize).min(MAX_NDOTS),
        ("timeout", Ok(n)) => {
            config.timeout = Duration::from_secs(u64::from(n).clamp(1, MAX_TIMEOUT));
        }
        ("attempts", Ok(n)) => config.attempts = n.clamp(1, MAX_ATTEMPTS),
        ("use-vc", _) => config.tcp = true,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let text = "# comment\n127.0.0.1\tlocalhost\n::1 localhost ip6 # one\n10.0.0.9 a b.c A\nbad x\n10.0.0.8 B.C\n10.0.0.9 a\n";
        for (name, expected) in [
            ("localhost", &["127.0.0.1", "::1"][..]),
            ("LOCALHOST.", &["127.0.0.1", "::1"]),
            ("a", &["10.0.0.9"]),
            ("b.c", &["10.0.0.9", "10.0.0.8"]),
            ("one", &[]),
            ("x", &[]),
            ("", &[]),
        ] {
            let found: Vec<_> = hosts(text, name).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn resolv_conf_is_read_as_others_read_it() {
        let empty = config("");
        assert_eq!(empty.servers, ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!((empty.ndots, empty.attempts, empty.tcp), (1, 2, false));
        let full = config(
            "nameserver 10.96.0.10 ; cluster\nnameserver fd00::1\nnameserver x\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n\
             domain old\nsearch ns.svc.cluster.local. svc.cluster.local\noptions ndots:5 timeout:0 attempts:99 use-vc what:7\n",
        );
        let expected = Config {
            servers: ["10.96.0.10:53", "[fd00::1]:53", "1.1.1.1:53"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            search: vec![
                "ns.svc.cluster.local".to_owned(),
                "svc.cluster.local".to_owned(),
            ],
            ndots: 5,
            timeout: Duration::from_secs(1),
            attempts: MAX_ATTEMPTS,
            tcp: true,
        };
        assert_eq!(full, expected);
    }
}
