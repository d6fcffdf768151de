//! Our own annotations, prefix `criw.dev/`: the container's, else the pod's with the
//! container's name behind a dot, else the pod's.
//!
//! The middle form is for pods that come through a kubelet: people can annotate only the
//! pod there, and two containers of it cannot listen on the same port.

use std::net::SocketAddr;
use std::path::Path;

use criw_engines::spec::{HttpSection, ServicesSection, StopMode, TlsFiles};
use criw_sandbox::model::Map;

use crate::error::{Invalid, invalid};

/// What they say, validated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// `criw.dev/listen`: TCP addresses to preopen, as `ip:port`.
    pub listen: Vec<String>,
    /// `criw.dev/stop-mode`
    pub stop: StopMode,
    /// `criw.dev/memory-grow: fail`
    pub memory_grow_fails: bool,
    /// `criw.dev/http-*`; its `cpus` is not an annotation's.
    pub http: HttpSection,
    /// `criw.dev/config-dir`, `criw.dev/keyvalue-dir`, `criw.dev/blobstore-dir`
    pub services: ServicesSection,
    /// `criw.dev/toolbox: off`
    pub no_toolbox: bool,
    /// `criw.dev/deadline`, in milliseconds
    pub deadline_ms: Option<u64>,
    /// `criw.dev/fuel`
    pub fuel: Option<u64>,
}

/// Addresses that one container may ask for.
const MAX_LISTEN: usize = 64;

/// Reads them for a Wasm container of that name.
pub fn wishes(name: &str, container: &Map, pod: &Map) -> Result<Wishes, Invalid> {
    let get = |key: &str| lookup(key, name, container, pod);
    let listen = match get("criw.dev/listen") {
        None | Some("") => Vec::new(),
        Some(list) => list.split(',').map(address).collect::<Result<_, _>>()?,
    };
    if listen.len() > MAX_LISTEN {
        return invalid(format!(
            "annotation criw.dev/listen names {} addresses, at most {MAX_LISTEN} are possible",
            listen.len()
        ));
    }
    let stop = match get("criw.dev/stop-mode") {
        None | Some("auto") => StopMode::Auto,
        Some("now") => StopMode::Now,
        Some("drain") => StopMode::Drain,
        Some("grace") => StopMode::Grace,
        Some(other) => {
            return invalid(format!(
                "annotation criw.dev/stop-mode is {other:?}; it can be auto, now, drain or grace"
            ));
        }
    };
    let memory_grow_fails = match get("criw.dev/memory-grow") {
        None | Some("kill") => false,
        Some("fail") => true,
        Some(other) => {
            return invalid(format!(
                "annotation criw.dev/memory-grow is {other:?}; it can be kill or fail"
            ));
        }
    };
    let http = HttpSection {
        request_timeout_ms: get("criw.dev/http-request-timeout")
            .map(|text| milliseconds("criw.dev/http-request-timeout", text))
            .transpose()?,
        request_deadline_ms: get("criw.dev/http-request-deadline")
            .map(|text| milliseconds("criw.dev/http-request-deadline", text))
            .transpose()?,
        tls: get("criw.dev/http-tls").map(tls_files).transpose()?,
        max_connections: number("criw.dev/http-max-connections", &get, MAX_CONNECTIONS)?,
        max_requests: number("criw.dev/http-max-requests", &get, MAX_REQUESTS)?,
        max_body: number("criw.dev/http-max-body", &get, u64::MAX)?,
        reuse: number("criw.dev/http-reuse", &get, u32::MAX)?,
        cpus: None,
    };
    let services = ServicesSection {
        config_dirs: match get("criw.dev/config-dir") {
            None | Some("") => Vec::new(),
            Some(list) => directories("criw.dev/config-dir", list)?,
        },
        keyvalue_dir: directory("criw.dev/keyvalue-dir", &get)?,
        blobstore_dir: directory("criw.dev/blobstore-dir", &get)?,
    };
    Ok(Wishes {
        listen,
        stop,
        memory_grow_fails,
        http,
        services,
        no_toolbox: no_toolbox(name, container, pod)?,
        deadline_ms: get("criw.dev/deadline")
            .map(|text| milliseconds("criw.dev/deadline", text))
            .transpose()?,
        fuel: number("criw.dev/fuel", &get, MAX_FUEL)?,
    })
}

/// Whether `criw.dev/toolbox` switches the toolbox off.
pub fn no_toolbox(name: &str, container: &Map, pod: &Map) -> Result<bool, Invalid> {
    match lookup("criw.dev/toolbox", name, container, pod) {
        None | Some("on") => Ok(false),
        Some("off") => Ok(true),
        Some(other) => invalid(format!(
            "annotation criw.dev/toolbox is {other:?}; it can be on or off"
        )),
    }
}

/// The value of an annotation for a container of that name.
pub fn lookup<'a>(key: &str, name: &str, container: &'a Map, pod: &'a Map) -> Option<&'a str> {
    container
        .get(key)
        .or_else(|| pod.get(&format!("{key}.{name}")))
        .or_else(|| pod.get(key))
        .map(|value| value.trim())
}

/// More than a process may have descriptors, and than has room in an address space.
const MAX_CONNECTIONS: u32 = 1_000_000;
const MAX_REQUESTS: u32 = 10_000;

/// The engine counts with a sign.
const MAX_FUEL: u64 = i64::MAX as u64;

/// A day; a longer request has no use for a bound.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

fn number<'a, N>(
    key: &str,
    get: &impl Fn(&str) -> Option<&'a str>,
    max: N,
) -> Result<Option<N>, Invalid>
where
    N: std::str::FromStr + PartialOrd + From<u8> + std::fmt::Display,
{
    let Some(text) = get(key) else {
        return Ok(None);
    };
    match text.parse::<N>() {
        Ok(number) if number >= N::from(1) && number <= max => Ok(Some(number)),
        _ => invalid(format!(
            "annotation {key} is {text:?}; it can be a number from 1 to {max}"
        )),
    }
}

/// `500ms`, `30s`, `5m`, `1h`, as durations are written in Kubernetes.
fn milliseconds(key: &str, text: &str) -> Result<u64, Invalid> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let value = digits.parse::<u64>().ok();
    match value.zip(unit).and_then(|(n, unit)| n.checked_mul(unit)) {
        Some(ms) if (1..=MAX_TIMEOUT_MS).contains(&ms) => Ok(ms),
        _ => invalid(format!(
            "annotation {key} is {text:?}; it can be a time such as 500ms, 30s or 5m, at most 24h"
        )),
    }
}

/// Directories that one container may name for its configuration.
const MAX_DIRECTORIES: usize = 16;

fn directories(key: &str, list: &str) -> Result<Vec<String>, Invalid> {
    let all: Vec<_> = list
        .split(',')
        .map(|path| absolute(key, path))
        .collect::<Result<_, _>>()?;
    if all.len() > MAX_DIRECTORIES {
        return invalid(format!(
            "annotation {key} names {} directories, at most {MAX_DIRECTORIES} are possible",
            all.len()
        ));
    }
    Ok(all)
}

fn directory<'a>(
    key: &str,
    get: &impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<String>, Invalid> {
    get(key)
        .filter(|path| !path.is_empty())
        .map(|path| absolute(key, path))
        .transpose()
}

/// A path in the container's root; what it leads to is the container's own affair.
fn absolute(key: &str, path: &str) -> Result<String, Invalid> {
    let path = path.trim();
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4000 {
        return invalid(format!(
            "annotation {key}: {path:?} is no absolute path such as /data"
        ));
    }
    Ok(path.to_owned())
}

/// What a Secret of the type kubernetes.io/tls has.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// `/directory` with files as a Secret has them, or `/certificate,/key`.
fn tls_files(text: &str) -> Result<TlsFiles, Invalid> {
    let paths: Vec<_> = text.split(',').map(|part| Path::new(part.trim())).collect();
    let absolute = paths.iter().all(|path| path.is_absolute());
    match paths[..] {
        [directory] if absolute => Ok(TlsFiles {
            certificate: directory.join(CERTIFICATE),
            key: directory.join(KEY),
        }),
        [certificate, key] if absolute => Ok(TlsFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        }),
        _ => invalid(format!(
            "annotation criw.dev/http-tls is {text:?}; it can be an absolute directory with {CERTIFICATE} and {KEY}, or \"/certificate,/key\""
        )),
    }
}

fn address(text: &str) -> Result<String, Invalid> {
    let text = text.trim();
    let bare = text.strip_prefix("tcp://").unwrap_or(text);
    // `:8080` is how many people write "all addresses".
    let whole = if bare.starts_with(':') {
        format!("0.0.0.0{bare}")
    } else {
        bare.to_owned()
    };
    match whole.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address.to_string()),
        _ => invalid(format!(
            "annotation criw.dev/listen: {text:?} is no address such as 0.0.0.0:8080"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs
            .iter()
            .map(|(key, value)| (format!("criw.dev/{key}"), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let pod = map(&[
            ("listen", "0.0.0.0:80"),
            ("stop-mode", "now"),
            ("memory-grow", "fail"),
        ]);
        let container = map(&[
            ("listen", " tcp://127.0.0.1:1, [::]:2,:3"),
            ("stop-mode", "drain"),
            ("http-request-timeout", "2m"),
            ("http-max-connections", "10"),
            ("http-max-requests", "3"),
            ("http-max-body", "1048576"),
            ("config-dir", "/config, /secret"),
            ("keyvalue-dir", " /data/kv "),
            ("http-request-deadline", "1500ms"),
            ("http-tls", " /tls "),
            ("http-reuse", "1000"),
            ("deadline", "1h"),
            ("fuel", "9223372036854775807"),
        ]);
        let expected = Wishes {
            listen: ["127.0.0.1:1", "[::]:2", "0.0.0.0:3"]
                .map(str::to_owned)
                .to_vec(),
            stop: StopMode::Drain,
            memory_grow_fails: true,
            http: HttpSection {
                request_timeout_ms: Some(120_000),
                max_connections: Some(10),
                max_requests: Some(3),
                max_body: Some(1 << 20),
                cpus: None,
                request_deadline_ms: Some(1500),
                reuse: Some(1000),
                tls: Some(TlsFiles {
                    certificate: "/tls/tls.crt".into(),
                    key: "/tls/tls.key".into(),
                }),
            },
            services: ServicesSection {
                config_dirs: vec!["/config".to_owned(), "/secret".to_owned()],
                keyvalue_dir: Some("/data/kv".to_owned()),
                blobstore_dir: None,
            },
            no_toolbox: false,
            deadline_ms: Some(3_600_000),
            fuel: Some(i64::MAX as u64),
        };
        assert_eq!(wishes("c", &container, &pod), Ok(expected));
        assert_eq!(wishes("c", &Map::new(), &Map::new()), Ok(Wishes::default()));
        assert_eq!(
            wishes("c", &map(&[("listen", "")]), &pod).unwrap().listen,
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_pod_speaks_to_one_container_by_name() {
        let pod = map(&[
            ("listen", ":1"),
            ("listen.web", ":2"),
            ("stop-mode.db", "now"),
            ("toolbox", "off"),
            ("toolbox.db", "on"),
        ]);
        let toolbox = |name| no_toolbox(name, &Map::new(), &pod);
        assert_eq!((toolbox("web"), toolbox("db")), (Ok(true), Ok(false)));
        let seen = |name: &str, container: &[(&str, &str)]| {
            let wishes = wishes(name, &map(container), &pod).unwrap();
            (wishes.listen.join(","), wishes.stop)
        };
        assert_eq!(seen("web", &[]), ("0.0.0.0:2".into(), StopMode::Auto));
        assert_eq!(seen("db", &[]), ("0.0.0.0:1".into(), StopMode::Now));
        assert_eq!(
            seen("web", &[("listen", ":3")]),
            ("0.0.0.0:3".into(), StopMode::Auto)
        );
    }

    #[test]
    fn bad_values_are_named() {
        let many = vec![":1"; 65].join(",");
        let directories = vec!["/a"; 17].join(",");
        for (key, value) in [
            ("listen", "8080"),
            ("listen", "0.0.0.0:0"),
            ("listen", "udp://0.0.0.0:1"),
            ("listen", "0.0.0.0:1,,"),
            ("listen", many.as_str()),
            ("stop-mode", "slow"),
            ("memory-grow", "yes"),
            ("http-request-timeout", "5"),
            ("http-request-timeout", "0s"),
            ("http-request-timeout", "-1s"),
            ("http-request-timeout", "25h"),
            ("http-request-timeout", "s"),
            ("http-max-connections", "0"),
            ("http-max-requests", "10001"),
            ("http-max-body", "1Mi"),
            ("http-request-deadline", "0ms"),
            ("http-request-deadline", "99999999999999999999s"),
            ("http-reuse", "0"),
            ("http-reuse", "always"),
            ("http-tls", ""),
            ("http-tls", "tls"),
            ("http-tls", "/a,b"),
            ("http-tls", "/a,/b,/c"),
            ("deadline", "forever"),
            ("deadline", "25h"),
            ("fuel", "0"),
            ("fuel", "1e9"),
            ("fuel", "9223372036854775808"),
            ("fuel", "-1"),
            ("toolbox", "no"),
            ("config-dir", "/a,,/b"),
            ("config-dir", directories.as_str()),
            ("keyvalue-dir", "data"),
            ("blobstore-dir", "./data"),
        ] {
            let error = wishes("c", &map(&[(key, value)]), &Map::new()).unwrap_err();
            assert!(error.0.contains(&format!("criw.dev/{key}")), "{error}");
        }
    }
}
