//! The files that a pod's containers share: `/etc/hostname`, `/etc/hosts`,
//! `/etc/resolv.conf`. The kubelet mounts a hosts file of its own over ours.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Context;
use crate::error::{Error, Result};
use crate::model::{Dns, PodSpec, Scope};

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFiles {
    /// `/etc/hostname`
    pub hostname: PathBuf,
    /// `/etc/hosts`
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`
    pub resolv_conf: PathBuf,
}

/// Bytes that are copied of a file of the node; real ones have a few lines.
const MAX_FILE: u64 = 1024 * 1024;

/// Writes the files of a pod into `directory`, which is made when missing.
pub fn write_pod_files(directory: &Path, pod: &PodSpec, ips: &[IpAddr]) -> Result<PodFiles> {
    std::fs::create_dir_all(directory).context(|| format!("create {}", directory.display()))?;
    let hostname = pod_hostname(&pod.hostname);
    let resolv_conf = match &pod.dns {
        Some(dns) => resolv_conf(dns)?,
        None => of_the_node("/etc/resolv.conf")?,
    };
    let hosts = match pod.namespaces.network {
        Scope::Node => of_the_node("/etc/hosts")?,
        Scope::Pod => hosts(&hostname, ips),
    };
    let put = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        if let Some(ids) = pod.user_namespace {
            // The pod's root may change them, as in any other pod.
            std::os::unix::fs::chown(&path, Some(ids.uids.host), Some(ids.gids.host))
                .context(|| format!("give {} to the pod's root", path.display()))?;
        }
        Ok(path)
    };
    Ok(PodFiles {
        hosts: put("hosts", hosts)?,
        hostname: put("hostname", format!("{hostname}\n"))?,
        resolv_conf: put("resolv.conf", resolv_conf)?,
    })
}

/// A pod without a name of its own has the node's.
fn pod_hostname(asked: &str) -> String {
    match asked {
        "" => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        name => name.to_owned(),
    }
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    text
}

/// In the order search, nameserver, options; nothing asked is an empty file.
fn resolv_conf(dns: &Dns) -> Result<String> {
    let all = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    for word in all {
        // A line break would be a line of somebody else's choice.
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::Invalid(format!(
                "DNS setting {word:?} is empty or has blanks in it"
            )));
        }
    }
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
    Ok(text)
}

fn of_the_node(path: &str) -> Result<String> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => {
            file.take(MAX_FILE)
                .read_to_string(&mut text)
                .context(|| format!("read {path}"))?;
        }
        // A node without the file has nothing to say, and so have its pods.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::node(format!("open {path}"), error)),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Dns {
            servers: own(servers),
            searches: own(searches),
            options: own(options),
        }
    }

    #[test]
    fn resolv_conf_has_its_order() {
        for (dns, expected) in [
            (dns(&[], &[], &[]), Some("")),
            (
                dns(
                    &["10.0.0.10", "fd00::a"],
                    &["a.b", "."],
                    &["ndots:5", "rotate"],
                ),
                Some(
                    "search a.b .\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5 rotate\n",
                ),
            ),
            (dns(&["1.1.1.1"], &[], &[]), Some("nameserver 1.1.1.1\n")),
            (dns(&["1.1.1.1\nsearch evil"], &[], &[]), None),
            (dns(&[], &[""], &[]), None),
        ] {
            assert_eq!(resolv_conf(&dns).ok().as_deref(), expected, "{dns:?}");
        }
    }

    #[test]
    fn hosts_name_the_pod_at_each_address() {
        let ips = ["10.1.2.3".parse().unwrap(), "fd00::5".parse().unwrap()];
        let text = hosts("web-0", &ips);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with("10.1.2.3\tweb-0\nfd00::5\tweb-0\n"),
            "{text}"
        );
        assert!(!hosts("web-0", &[]).contains("web-0"));
        assert!(!pod_hostname("").is_empty());
    }
}
