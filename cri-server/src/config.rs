//! The configuration: every key has a default, every unknown key is refused with
//! the file it stands in. Files are merged key by key, later files win.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the configuration lies when `--config` is not given.
pub const DEFAULT_FILE: &str = "/etc/criw/config.toml";
const DEFAULT_DIRECTORY: &str = "/etc/criw/config.d";

/// All keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The CRI socket, 0660.
    pub socket: PathBuf,
    /// Lasting state: images, records.
    pub root: PathBuf,
    /// Per boot: pins, sockets, the lock. One daemon each.
    pub state: PathBuf,
    /// Where the shims and the compiler lie.
    pub libexec: PathBuf,
    /// Pod network.
    pub net: Net,
    /// Used with `net.mode = "cni"`.
    pub cni: Cni,
    /// Registries.
    pub registry: Registry,
    /// cgroups.
    pub cgroup: Cgroup,
    /// Linux containers.
    pub runc: Runc,
    /// Wasm containers.
    pub wasm: Wasm,
    /// Devices by the Container Device Interface.
    pub cdi: Cdi,
    /// What the daemon says of itself.
    pub log: Log,
    /// Prometheus.
    pub metrics: Metrics,
    /// For kubelets that take the numbers of pods from cAdvisor.
    pub cadvisor: Cadvisor,
    /// Exec, attach and port-forward.
    pub streaming: Streaming,
    /// Runtime handlers in addition to the built-in ones.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[net]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Net {
    /// Who attaches pods.
    pub mode: NetMode,
    /// Of the built-in network, such as `10.88.0.0/16`; "" = the node's pod CIDR, else a free one.
    pub subnet: String,
}

/// `net.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetMode {
    /// The node's CNI configuration.
    #[default]
    Cni,
    /// Point-to-point links made by the daemon.
    Builtin,
}

/// `[cni]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cni {
    /// Where conflists appear.
    pub conf_dir: PathBuf,
    /// Where plugin binaries are looked for, in order.
    pub bin_dirs: Vec<PathBuf>,
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// `<host>/hosts.toml` files; "" = `/etc/containerd/certs.d` if that is there.
    pub hosts_dir: PathBuf,
}

/// `[cgroup]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// Who makes cgroups.
    pub driver: CgroupDriver,
    /// Parent of the cgroups of pods that name none, and of the compilers'. It belongs to
    /// this daemon alone: what no record names below it is killed at start. "" = `/criw`, or
    /// `criw.slice` with systemd, with a hash of `root` behind it when that is not the usual one.
    pub parent: String,
}

/// `cgroup.driver`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd below parents that are slices, else this daemon. The kubelet is told to use
    /// systemd's where systemd is the init.
    #[default]
    Auto,
    /// This daemon, by file writes.
    Cgroupfs,
    /// systemd, asked by D-Bus.
    Systemd,
}

impl From<CgroupDriver> for criw_sandbox::host::cgroup::Driver {
    fn from(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Auto => Self::Auto,
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Systemd => Self::Systemd,
        }
    }
}

/// `[runc]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runc {
    /// A path, or a name that is looked up in PATH.
    pub path: PathBuf,
}

/// `[wasm]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wasm {
    /// Whether the toolbox answers to commands that an image lacks.
    pub toolbox: bool,
}

impl Default for Wasm {
    fn default() -> Self {
        Self { toolbox: true }
    }
}

/// `[cdi]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cdi {
    /// Where specs lie; a device in a later directory replaces that of an earlier one.
    pub dirs: Vec<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,criw_net=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// `ip:port` of the Prometheus endpoint, `GET /metrics`; "" = none. It has neither
    /// encryption nor a password.
    pub address: String,
}

impl Metrics {
    /// Where to listen, if at all.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.address.is_empty() {
            return Ok(None);
        }
        self.address.parse().map(Some).map_err(|_| {
            let text = format!(
                "metrics.address = {:?}: give ip:port, such as 0.0.0.0:9750, or \"\" for none",
                self.address
            );
            ConfigError::Invalid(text)
        })
    }
}

/// `[cadvisor]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cadvisor {
    /// Where its questions are answered, in containerd's words; "" = nowhere. Each pod then has
    /// a process of its own.
    socket: PathBuf,
}

impl Cadvisor {
    /// `None` when there shall be none.
    pub fn socket(&self) -> Option<&Path> {
        Some(self.socket.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// `ip:port` that the URLs of exec, attach and port-forward point to; port 0 = any
    /// free one. Without TLS it must be a loopback address.
    pub address: String,
    /// PEM file with the certificate (and those that lead to its authority), read at start;
    /// "" = no TLS.
    pub tls_cert: PathBuf,
    /// PEM file with its key.
    pub tls_key: PathBuf,
}

impl Streaming {
    /// Where to listen.
    pub fn address(&self) -> Result<SocketAddr, ConfigError> {
        let invalid = |why: &str| {
            let text = format!("streaming.address = {:?}: {why}", self.address);
            ConfigError::Invalid(text)
        };
        let address: SocketAddr = self
            .address
            .parse()
            .map_err(|_| invalid("give ip:port, such as 127.0.0.1:0"))?;
        if address.ip().is_unspecified() {
            return Err(invalid(
                "it must be one address, because the URLs of streams are made of it",
            ));
        }
        if self.tls()?.is_none() && !address.ip().is_loopback() {
            return Err(invalid(
                "it must be a loopback address, or streaming.tls_cert and streaming.tls_key be set: the kubelet carries the streams on",
            ));
        }
        Ok(address)
    }

    /// Files of certificate and key, if streams are to be encrypted.
    pub fn tls(&self) -> Result<Option<(&Path, &Path)>, ConfigError> {
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        match (given(&self.tls_cert), given(&self.tls_key)) {
            (true, true) => Ok(Some((&self.tls_cert, &self.tls_key))),
            (false, false) => Ok(None),
            _ => Err(ConfigError::Invalid(
                "streaming.tls_cert and streaming.tls_key go together: give both or neither"
                    .to_owned(),
            )),
        }
    }
}

/// `[handlers.<name>]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    /// `runc`, `auto` (by image), or a Wasm engine: `wasmtime` is the shim `criw-shim-wasmtime`.
    pub engine: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/criw/criw.sock".into(),
            root: "/var/lib/criw".into(),
            state: "/run/criw".into(),
            libexec: "/usr/libexec/criw".into(),
            net: Net::default(),
            cni: Cni::default(),
            registry: Registry::default(),
            cgroup: Cgroup::default(),
            runc: Runc::default(),
            wasm: Wasm::default(),
            cdi: Cdi::default(),
            log: Log::default(),
            metrics: Metrics::default(),
            cadvisor: Cadvisor::default(),
            streaming: Streaming::default(),
            handlers: BTreeMap::new(),
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

impl Default for Cdi {
    fn default() -> Self {
        Self {
            dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

impl Default for Runc {
    fn default() -> Self {
        Self {
            path: "runc".into(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".to_owned(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML, or has unknown keys or wrong values; the text names the key and line.
    #[error("configuration {}: {message}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// Values that do not go together.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Reads `file` alone, or the files of /etc/criw when it is `None`.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => default_files()?,
    };
    let mut texts = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        texts.push((path, text));
    }
    merge(&texts)
}

fn default_files() -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    if Path::new(DEFAULT_FILE).exists() {
        files.push(PathBuf::from(DEFAULT_FILE));
    }
    let directory = Path::new(DEFAULT_DIRECTORY);
    let read = |source| ConfigError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut extra = Vec::new();
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(read)?.path();
                if path.extension().is_some_and(|e| e == "toml") {
                    extra.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(read(error)),
    }
    extra.sort();
    files.extend(extra);
    Ok(files)
}

/// Later texts win key by key; each is checked alone first, so that an error names its file.
fn merge(texts: &[(PathBuf, String)]) -> Result<Config, ConfigError> {
    let mut whole = toml::Table::new();
    for (path, text) in texts {
        let parse = |error: toml::de::Error| ConfigError::Parse {
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        };
        toml::from_str::<Config>(text).map_err(parse)?;
        overlay(&mut whole, toml::from_str(text).map_err(parse)?);
    }
    let config: Config = whole
        .try_into()
        .map_err(|error: toml::de::Error| ConfigError::Invalid(error.to_string()))?;
    config.check()?;
    Ok(config)
}

fn overlay(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        for (key, path) in [
            ("socket", &self.socket),
            ("root", &self.root),
            ("state", &self.state),
            ("libexec", &self.libexec),
            ("cni.conf_dir", &self.cni.conf_dir),
        ] {
            if !path.is_absolute() {
                return Err(ConfigError::Invalid(format!(
                    "{key} = {path:?} is not an absolute path"
                )));
            }
        }
        if !self.net.subnet.is_empty() {
            self.net
                .subnet
                .parse::<criw_net::Subnet>()
                .map_err(|error| ConfigError::Invalid(format!("net.subnet: {error}")))?;
        }
        if let Some(path) = self.cadvisor.socket()
            && !path.is_absolute()
        {
            return Err(ConfigError::Invalid(format!(
                "cadvisor.socket = {path:?} is not an absolute path"
            )));
        }
        self.streaming.address()?;
        self.metrics.address()?;
        for (name, handler) in &self.handlers {
            if name.is_empty() {
                return Err(ConfigError::Invalid(
                    "the handler \"\" always chooses by image and cannot be configured".to_owned(),
                ));
            }
            let word = &handler.engine;
            if word.is_empty()
                || !word
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            {
                return Err(ConfigError::Invalid(format!(
                    "handlers.{name}.engine = {word:?} is no engine name"
                )));
            }
        }
        Ok(())
    }

    /// The text of `criw config default`.
    pub fn default_text() -> String {
        let text = toml::to_string_pretty(&Self::default())
            .expect("a struct of strings, lists and tables is always TOML");
        format!(
            "# Every key of criw with its default. Files in {DEFAULT_DIRECTORY}/*.toml override {DEFAULT_FILE}.\n{text}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<(PathBuf, String)> {
        texts
            .iter()
            .enumerate()
            .map(|(n, text)| (PathBuf::from(format!("/etc/{n}.toml")), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn no_file_is_needed_and_the_printed_default_is_the_default() {
        assert_eq!(merge(&[]).unwrap(), Config::default());
        assert_eq!(
            merge(&texts(&[&Config::default_text()])).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn the_example_names_every_key_with_its_default() {
        let example = include_str!("../../systemd/config.toml");
        assert_eq!(merge(&texts(&[example])).unwrap(), Config::default());
        let keys = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            let mut keys: Vec<String> = Vec::new();
            for (name, value) in table {
                match value {
                    toml::Value::Table(table) => {
                        keys.extend(table.keys().map(|key| format!("{name}.{key}")));
                    }
                    _ => keys.push(name),
                }
            }
            keys.sort();
            keys
        };
        assert_eq!(keys(example), keys(&Config::default_text()));
    }

    #[test]
    fn later_files_win_key_by_key() {
        let config = merge(&texts(&[
            "socket = '/a'\n[cni]\nconf_dir = '/conf'\n[handlers.x]\nengine = 'wasmedge'",
            "[cni]\nbin_dirs = ['/bin1']\n[net]\nmode = 'builtin'\nsubnet = '10.1.0.0/16'\n[handlers.y]\nengine = 'runc'",
            "socket = '/b'",
        ]))
        .unwrap();
        assert_eq!(config.socket, Path::new("/b"));
        assert_eq!(config.cni.conf_dir, Path::new("/conf"));
        assert_eq!(config.cni.bin_dirs, [PathBuf::from("/bin1")]);
        assert_eq!(config.net.mode, NetMode::Builtin);
        assert_eq!(config.handlers.len(), 2);
        assert_eq!(config.state, Config::default().state);
    }

    #[test]
    fn bad_files_are_refused_with_their_name_and_the_key() {
        for (text, words) in [
            ("sokcet = '/a'", &["/etc/1.toml", "sokcet"][..]),
            ("[cni]\nconfdir = '/a'", &["/etc/1.toml", "confdir"]),
            ("[net]\nmode = 'bridge'", &["/etc/1.toml", "bridge"]),
            (
                "[cgroup]\ndriver = 'systemctl'",
                &["/etc/1.toml", "systemctl"],
            ),
            ("socket = 3", &["/etc/1.toml", "socket"]),
            ("socket = ", &["/etc/1.toml"]),
            ("socket = 'run/x'", &["socket", "absolute"]),
            (
                "[cadvisor]\nsocket = 'run/x'",
                &["cadvisor.socket", "absolute"],
            ),
            ("[net]\nsubnet = 'fd00::/64'", &["net.subnet", "fd00::/64"]),
            (
                "[metrics]\naddress = 'all:1'",
                &["metrics.address", "all:1"],
            ),
            (
                "[streaming]\naddress = '10.0.0.1:0'",
                &["streaming.address", "tls_cert"],
            ),
            (
                "[streaming]\naddress = '0.0.0.0:9'\ntls_cert = '/c'\ntls_key = '/k'",
                &["streaming.address", "one address"],
            ),
            ("[streaming]\ntls_cert = '/c'", &["streaming.tls_key"]),
            ("[handlers.x]\nengine = '../x'", &["handlers.x.engine"]),
            ("[handlers.x]", &["/etc/1.toml", "engine"]),
            ("[handlers.'']\nengine = 'runc'", &["handler \"\""]),
        ] {
            let error = merge(&texts(&["", text])).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text:?}: no {word:?} in {error:?}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Some(Path::new("/no/such/file.toml"))).unwrap_err();
        assert!(error.to_string().contains("/no/such/file.toml"), "{error}");
    }
}
