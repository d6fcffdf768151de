//! Files that the runtime supplies to every container of a pod: hosts, hostname,
//! resolv.conf. A CRI mount at the same path wins; that is the caller's business.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::Context;
use crate::error::Result;
use crate::model::{Dns, PodSpec, Scope};

/// Writes the files into the pod's directory, which is made if need be.
pub fn write_pod_files(directory: &Path, spec: &PodSpec, ips: &[IpAddr]) -> Result<()> {
    std::fs::create_dir_all(directory).context(|| format!("create {}", directory.display()))?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))
    };
    let hostname = if spec.hostname.is_empty() {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    } else {
        spec.hostname.clone()
    };
    write("hostname", &format!("{hostname}\n"))?;
    let resolv = match &spec.dns {
        Some(dns) => resolv_conf(dns),
        None => read_of_node("/etc/resolv.conf")?,
    };
    write("resolv.conf", &resolv)?;
    let hosts = if spec.namespaces.network == Scope::Node {
        read_of_node("/etc/hosts")?
    } else {
        hosts(&hostname, ips)
    };
    write("hosts", &hosts)
}

/// A node without the file has nothing to say.
fn read_of_node(path: &str) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.context(|| format!("read {path}")),
    }
}

/// Search, nameserver, options; an empty message is an empty file.
fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_order_that_clients_compare() {
        let words = |text: &[&str]| text.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        for (dns, expected) in [
            (Dns::default(), ""),
            (
                Dns {
                    servers: words(&["10.96.0.10", "8.8.8.8"]),
                    searches: words(&["a.svc.cluster.local", "."]),
                    options: words(&["ndots:5", "edns0"]),
                },
                "search a.svc.cluster.local .\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:5 edns0\n",
            ),
        ] {
            assert_eq!(resolv_conf(&dns), expected);
        }
    }

    #[test]
    fn the_pod_finds_itself_in_hosts() {
        let text = hosts("web-0", &["10.1.2.3".parse().unwrap()]);
        assert!(text.contains("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.1.2.3\tweb-0\n"));
    }
}
