//! The daemon's configuration file for one machine.

use anyhow::{Context, Result};

use crate::binaries;
use crate::world::World;

/// Which network pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The daemon's own.
    Builtin,
    /// A bridge by the real plugins of the machine.
    Cni,
    /// CNI with an empty configuration directory.
    NoConflist,
    /// CNI with a plugin that does not exist.
    MissingPlugin,
}

/// Where the daemon tells Prometheus; each machine has a network namespace of its own.
pub const METRICS: &str = "127.0.0.1:9750";

/// Directory of the real plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Writes the file, and what it points to.
pub fn write(world: &World, network: Network) -> Result<()> {
    let dir = |name: &str| -> Result<String> { Ok(world.subdir(name)?.display().to_string()) };
    let network_text = match network {
        Network::Builtin => "[net]\nmode = \"builtin\"\nsubnet = \"10.87.0.0/16\"\n".to_owned(),
        _ => format!(
            "[net]\nmode = \"cni\"\n\n[cni]\nconf_dir = \"{}\"\nbin_dirs = [\"{PLUGINS}\"]\n",
            dir("cni")?
        ),
    };
    let text = format!(
        "socket = \"{}\"\nroot = \"{}\"\nstate = \"{}\"\nlibexec = \"{}\"\n\n{network_text}\n[cgroup]\ndriver = \"cgroupfs\"\nparent = \"{}/own\"\n\n[registry]\nhosts_dir = \"{}\"\n\n[cdi]\ndirs = [\"{cdi}/etc\", \"{cdi}/run\"]\n\n[metrics]\naddress = \"{METRICS}\"\n\n[log]\nlevel = \"info,criw_server=debug,criw_sandbox=debug,criw_net=debug,criw_image_service=debug\"\n",
        world.path("s").display(),
        dir("root")?,
        dir("run")?,
        binaries::libexec()?.display(),
        world.cgroup(),
        dir("hosts.d")?,
        cdi = world.path("cdi").display(),
    );
    let path = world.path("config.toml");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    match network {
        Network::Cni => conflist(world, "bridge"),
        Network::MissingPlugin => conflist(world, "no-such-plugin"),
        Network::Builtin | Network::NoConflist => Ok(()),
    }
}

/// Adds to the file; a daemon reads it when it starts.
pub fn append(world: &World, text: &str) -> Result<()> {
    let path = world.path("config.toml");
    let before = std::fs::read_to_string(&path);
    let before = before.with_context(|| format!("read {}", path.display()))?;
    std::fs::write(&path, format!("{before}\n{text}"))
        .with_context(|| format!("write {}", path.display()))
}

/// A conflist of bridge (or another first plugin) and portmap, with leases of our own.
pub fn conflist(world: &World, first: &str) -> Result<()> {
    let text = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [
            {
                "type": first,
                "bridge": "cni-test0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": world.subdir("leases")?,
                    "ranges": [[{"subnet": "10.88.0.0/24"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let path = world.subdir("cni")?.join("10-test.conflist");
    std::fs::write(&path, text.to_string()).with_context(|| format!("write {}", path.display()))
}
