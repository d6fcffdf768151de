//! Where and within what bounds requests are served.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use criw_engines::spec::{HttpSection, TlsFiles};

use crate::world::World;

/// Variables that name the address, first found wins. They are other runtimes' own.
const ADDRESS: [&str; 2] = ["WASMTIME_HTTP_PROXY_SOCKET_ADDR", "SPIN_HTTP_LISTEN_ADDR"];

/// Variables that bound the kernel's queue of connections: the code and the
/// documentation of the runtime that they come from differ.
const BACKLOG: [&str; 2] = ["WASMTIME_HTTP_PROXY_BACKLOG", "WASMTIME_HTTP_BACKLOG"];

/// Port without a variable.
const DEFAULT_PORT: u16 = 8080;

const DEFAULT_BACKLOG: u32 = 100;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_CONNECTIONS: u32 = 1024;
const DEFAULT_REQUESTS: u32 = 128;

/// Descriptors that serving leaves to the guest's own files and sockets.
const SPARE_DESCRIPTORS: u64 = 64;

/// Threads that serve at most.
const MAX_THREADS: usize = 64;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Tried in turn; the second is for kernels without IPv6.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) backlog: i32,
    /// How long a request may stand still.
    pub(super) timeout: Duration,
    /// How long all of it may take.
    pub(super) deadline: Option<Duration>,
    pub(super) max_connections: usize,
    /// Instances at the same time.
    pub(super) max_requests: usize,
    /// Requests that an instance serves, one after the other.
    pub(super) reuse: u32,
    /// Bytes of a request's body.
    pub(super) max_body: Option<u64>,
    pub(super) threads: usize,
    pub(super) tls: Option<TlsFiles>,
}

impl Settings {
    /// Takes its variables out of the guest's environment.
    pub(super) fn new(world: &mut World, http: &HttpSection) -> Result<Self, String> {
        let mut take = |names: [&'static str; 2]| {
            // All go, the first counts.
            let [first, second] = names.map(|name| Some((name, world.take_variable(name)?)));
            first.or(second)
        };
        let addresses = match take(ADDRESS) {
            None => vec![
                (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into(),
                (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(),
            ],
            Some((name, text)) => vec![text.trim().parse().map_err(|error| {
                format!("listen on {name}={text:?}: {error}; give ip:port, such as 0.0.0.0:8080")
            })?],
        };
        let backlog = match take(BACKLOG) {
            None => DEFAULT_BACKLOG,
            Some((name, text)) => text
                .trim()
                .parse()
                .ok()
                .filter(|backlog| (1..=65_535).contains(backlog))
                .ok_or_else(|| format!("{name}={text:?} is no number from 1 to 65535"))?,
        };
        let connections = http.max_connections.unwrap_or(DEFAULT_CONNECTIONS).max(1);
        Ok(Self {
            addresses,
            backlog: backlog as i32,
            timeout: http
                .request_timeout_ms
                .map_or(DEFAULT_TIMEOUT, Duration::from_millis),
            deadline: http.request_deadline_ms.map(Duration::from_millis),
            max_connections: (connections as usize).min(descriptors()),
            max_requests: max_requests(http) as usize,
            reuse: http.reuse.unwrap_or(1),
            max_body: http.max_body,
            threads: threads(http.cpus),
            tls: http.tls.clone(),
        })
    }
}

/// Instances at the same time.
pub(crate) fn max_requests(http: &HttpSection) -> u32 {
    http.max_requests.unwrap_or(DEFAULT_REQUESTS).max(1)
}

/// How many of this process's descriptors connections may have.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(SPARE_DESCRIPTORS));
    usize::try_from(room.max(16)).unwrap_or(usize::MAX)
}

/// min(CPU limit, CPUs that this process may run on).
fn threads(limit: Option<u32>) -> usize {
    let cpus = rustix::thread::sched_getaffinity(None)
        .map_or(1, |set| set.count() as usize)
        .clamp(1, MAX_THREADS);
    limit.map_or(cpus, |limit| (limit.max(1) as usize).min(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(env: &[&str]) -> World {
        let json = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": env});
        World::new(Some(&serde_json::from_value(json).unwrap()))
    }

    #[test]
    fn the_environment_names_the_address_and_keeps_the_rest() {
        for (env, address, backlog) in [
            (&[][..], "[::]:8080", 100),
            (
                &["WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:80"],
                "127.0.0.1:80",
                100,
            ),
            (&["SPIN_HTTP_LISTEN_ADDR= [::1]:81 "], "[::1]:81", 100),
            (
                &[
                    "SPIN_HTTP_LISTEN_ADDR=0.0.0.0:1",
                    "WASMTIME_HTTP_PROXY_SOCKET_ADDR=0.0.0.0:2",
                    "WASMTIME_HTTP_BACKLOG=7",
                ],
                "0.0.0.0:2",
                7,
            ),
            (
                &["WASMTIME_HTTP_BACKLOG=7", "WASMTIME_HTTP_PROXY_BACKLOG=9"],
                "[::]:8080",
                9,
            ),
        ] {
            let mut world = world(&[env, &["KEPT=1"]].concat());
            let settings = Settings::new(&mut world, &HttpSection::default()).unwrap();
            assert_eq!(settings.addresses[0], address.parse().unwrap());
            assert_eq!(settings.backlog, backlog);
            for name in ADDRESS.iter().chain(&BACKLOG) {
                assert_eq!(world.variable(name), None);
            }
            assert_eq!(world.variable("KEPT"), Some("1"));
        }
    }

    #[test]
    fn bad_variables_are_named() {
        for bad in [
            "WASMTIME_HTTP_PROXY_SOCKET_ADDR=8080",
            "SPIN_HTTP_LISTEN_ADDR=localhost:80",
            "WASMTIME_HTTP_BACKLOG=0",
            "WASMTIME_HTTP_PROXY_BACKLOG=many",
        ] {
            let name = bad.split('=').next().unwrap();
            let text = Settings::new(&mut world(&[bad]), &HttpSection::default()).unwrap_err();
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn the_spec_sets_bounds() {
        let http = HttpSection {
            request_timeout_ms: Some(250),
            max_connections: Some(5),
            max_requests: Some(0),
            max_body: Some(9),
            cpus: Some(1),
            request_deadline_ms: Some(900),
            reuse: Some(7),
            tls: None,
        };
        let settings = Settings::new(&mut world(&[]), &http).unwrap();
        assert_eq!(settings.timeout, Duration::from_millis(250));
        assert_eq!(settings.deadline, Some(Duration::from_millis(900)));
        assert_eq!((settings.max_connections, settings.max_requests), (5, 1));
        assert_eq!((settings.max_body, settings.threads), (Some(9), 1));
        assert_eq!(settings.reuse, 7);
    }
}
