//! Where an image is fetched from: the registry itself and the mirrors that
//! containerd-style `hosts.toml` files name for it, in the order of the file.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `scheme://host[:port]/v2`, without a slash at the end.
    pub(crate) base: String,
    /// `host[:port]`, for texts and credentials.
    pub(crate) host: String,
    /// Set for mirrors: the registry they stand for, sent as `?ns=`.
    pub(crate) namespace: Option<String>,
    /// May answer which digest a tag stands for.
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: Vec<(String, String)>,
}

/// How the other side is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    pub(crate) plain_http: bool,
    /// On this machine: a proxy of the environment is not asked.
    pub(crate) direct: bool,
    pub(crate) skip_verify: bool,
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub(crate) client: Vec<PathBuf>,
}

/// containerd's directory, which nodes already have.
pub(crate) const FALLBACK_DIR: &str = "/etc/containerd/certs.d";

/// Reads what is configured for `registry`; the file is read at each pull, so that
/// a change needs no restart.
pub(crate) fn endpoints(hosts_dir: Option<&Path>, registry: &str) -> Result<Vec<Endpoint>, String> {
    let directory = hosts_dir.unwrap_or(Path::new(FALLBACK_DIR));
    let with_port = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some(format!("{host}_{port}_")),
        _ => None,
    };
    for name in [
        Some(registry.to_owned()),
        with_port,
        Some("_default".to_owned()),
    ]
    .into_iter()
    .flatten()
    {
        let file = directory.join(name).join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let base = file.parent().unwrap_or(directory);
                return parse(&text, base, registry).map_err(|reason| {
                    format!("read {}: {reason}; correct the file", file.display())
                });
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(format!("read {}: {error}", file.display())),
        }
    }
    Ok(vec![default_server(registry)])
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    header: Option<toml::map::Map<String, toml::Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Flat(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

fn parse(text: &str, directory: &Path, registry: &str) -> Result<Vec<Endpoint>, String> {
    #[derive(Deserialize)]
    struct File {
        server: Option<String>,
        host: Option<toml::map::Map<String, toml::Value>>,
        #[serde(flatten)]
        options: Options,
    }
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut endpoints = Vec::new();
    for (url, value) in file.host.unwrap_or_default() {
        let options: Options = value
            .try_into()
            .map_err(|error: toml::de::Error| format!("[host.{url:?}]: {}", error.message()))?;
        endpoints.extend(endpoint(&url, options, directory, registry)?);
    }
    match file.server {
        Some(server) if !server.is_empty() => {
            endpoints.extend(endpoint(&server, file.options, directory, registry)?);
        }
        _ => {
            let mut server = default_server(registry);
            let url = server.base.trim_end_matches("/v2").to_owned();
            if let Some(configured) = endpoint(&url, file.options, directory, registry)? {
                server.tls = configured.tls;
                server.headers = configured.headers;
            }
            endpoints.push(server);
        }
    }
    Ok(endpoints)
}

/// `None` if the host may not be pulled from.
fn endpoint(
    url: &str,
    options: Options,
    directory: &Path,
    registry: &str,
) -> Result<Option<Endpoint>, String> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else if is_loopback(url.split('/').next().unwrap_or_default()) {
        format!("http://{url}")
    } else {
        format!("https://{url}")
    };
    let parsed = reqwest::Url::parse(&with_scheme).map_err(|error| format!("{url:?}: {error}"))?;
    let plain_http = match parsed.scheme() {
        "http" => true,
        "https" => false,
        other => {
            return Err(format!(
                "{url:?}: the scheme {other} is neither http nor https"
            ));
        }
    };
    let host = authority(&parsed).ok_or_else(|| format!("{url:?} names no host"))?;
    let path = parsed.path().trim_end_matches('/');
    let path = match (
        options.override_path.unwrap_or(false),
        path.ends_with("/v2"),
    ) {
        (true, _) | (false, true) => path.to_owned(),
        (false, false) => format!("{path}/v2"),
    };
    let can = |what: &str| {
        options
            .capabilities
            .as_ref()
            .is_none_or(|list| list.iter().any(|item| item == what))
    };
    if !can("pull") {
        return Ok(None);
    }
    let absolute = |file: String| directory.join(file);
    let ca = match options.ca {
        None => Vec::new(),
        Some(OneOrMany::One(file)) => vec![absolute(file)],
        Some(OneOrMany::Many(files)) => files.into_iter().map(absolute).collect(),
    };
    let client: Vec<String> = match options.client {
        None => Vec::new(),
        Some(Client::One(file)) => vec![file],
        Some(Client::Flat(files)) => files,
        Some(Client::Pairs(pairs)) => pairs.into_iter().next().unwrap_or_default(),
    };
    let mut headers = Vec::new();
    for (name, value) in options.header.unwrap_or_default() {
        let values = match value {
            toml::Value::Array(values) => values,
            single => vec![single],
        };
        for value in values {
            let value = value
                .as_str()
                .ok_or_else(|| format!("header {name:?} of {url:?} is no text"))?;
            headers.push((name.clone(), value.to_owned()));
        }
    }
    let server = default_server(registry);
    let direct = is_loopback(&host);
    Ok(Some(Endpoint {
        base: format!("{}://{host}{path}", parsed.scheme()),
        namespace: (host != server.host && host != registry).then(|| registry.to_owned()),
        host,
        resolve: can("resolve"),
        tls: Tls {
            plain_http,
            direct,
            skip_verify: options.skip_verify.unwrap_or(false),
            ca,
            client: client.into_iter().map(absolute).collect(),
        },
        headers,
    }))
}

fn default_server(registry: &str) -> Endpoint {
    let host = match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let plain_http = is_loopback(host);
    let scheme = if plain_http { "http" } else { "https" };
    Endpoint {
        base: format!("{scheme}://{host}/v2"),
        host: host.to_owned(),
        namespace: None,
        resolve: true,
        tls: Tls {
            plain_http,
            direct: plain_http,
            ..Tls::default()
        },
        headers: Vec::new(),
    }
}

/// `host[:port]` of a URL.
pub(crate) fn authority(url: &reqwest::Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Registries on this machine speak plain HTTP unless a hosts.toml says otherwise.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(registry: &str, text: &str) -> Vec<String> {
        parse(text, Path::new("/d"), registry)
            .unwrap()
            .into_iter()
            .map(|endpoint| endpoint.base)
            .collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("ghcr.io", "https://ghcr.io/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2"),
        ] {
            let empty = tempfile::tempdir().unwrap();
            let found = endpoints(Some(empty.path()), registry).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].base, base);
            assert_eq!(found[0].namespace, None);
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_then_the_server() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            [host."http://a.example:8080/cache"]
            [host."https://b.example/own/path"]
            override_path = true
            [host."https://c.example/v2"]
            [host."https://push.example"]
            capabilities = ["push"]
        "#;
        assert_eq!(
            bases("docker.io", text),
            [
                "https://z.example/v2",
                "http://a.example:8080/cache/v2",
                "https://b.example/own/path",
                "https://c.example/v2",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert_eq!(bases("ghcr.io", ""), ["https://ghcr.io/v2"]);
    }

    #[test]
    fn options_reach_their_host() {
        let text = r#"
            skip_verify = true
            [host."https://m.example"]
            capabilities = ["pull"]
            ca = "m.crt"
            client = [["c.crt", "/k.key"]]
            [host."https://m.example".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#;
        let found = parse(text, Path::new("/d"), "r.example").unwrap();
        assert_eq!(found[0].namespace.as_deref(), Some("r.example"));
        assert!(!found[0].resolve && !found[0].tls.skip_verify);
        assert_eq!(found[0].tls.ca, [PathBuf::from("/d/m.crt")]);
        assert_eq!(
            found[0].tls.client,
            [PathBuf::from("/d/c.crt"), "/k.key".into()]
        );
        assert_eq!(found[0].headers.len(), 3);
        assert!(found[1].tls.skip_verify && found[1].namespace.is_none());
    }

    #[test]
    fn a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("r.example_5000_");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("hosts.toml"), "server = [").unwrap();
        let text = endpoints(Some(directory.path()), "r.example:5000").unwrap_err();
        assert!(
            text.contains("hosts.toml") && text.contains("correct the file"),
            "{text}"
        );
        for bad in ["[host.\"ftp://x\"]", "[host.\"https://x\"]\nca = 3"] {
            assert!(parse(bad, Path::new("/"), "r").is_err(), "{bad}");
        }
        // The default applies where nothing more exact is there.
        let default = directory.path().join("_default");
        std::fs::create_dir(&default).unwrap();
        std::fs::write(default.join("hosts.toml"), "[host.\"http://m.example\"]").unwrap();
        assert_eq!(
            endpoints(Some(directory.path()), "o.example")
                .unwrap()
                .len(),
            2
        );
    }
}
