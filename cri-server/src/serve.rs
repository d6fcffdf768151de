//! Opens the rooms, serves both services on one socket, and drains.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use criw_image_service::ImageService;
use criw_net::{BuiltinConfig, CniConfig, Mode, Network};
use criw_proto::admin::v1::images_server::ImagesServer;
use criw_proto::v1::image_service_server::ImageServiceServer;
use criw_proto::v1::runtime_service_server::RuntimeServiceServer;
use criw_sandbox::Sandboxes;
use criw_sandbox::host::cgroup::{self, Cgroups, Driver, Leaf};
use criw_sandbox::model::Resources;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::UnixListenerStream;

use crate::admin::Admin;
use crate::config::{Config, NetMode};
use crate::daemon::Daemon;
use crate::door::Door;
use crate::handlers::Handlers;
use crate::host::HostFacts;
use crate::image_rpc::Images;
use crate::prometheus::{self, Metrics};
use crate::runtime::Runtime;
use crate::streaming::{self, Streaming};
use crate::toolbox::Toolbox;
use crate::{socket, spawner};

/// Bytes of one message in either direction: what every CRI client accepts.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Loads AppArmor profiles.
pub const APPARMOR_PARSER: &str = "apparmor_parser";

/// How long running calls may go on after the signal to end. Workloads go on anyway.
const DRAIN: Duration = Duration::from_secs(10);

/// Bytes for all compilers together.
const COMPILE_MEMORY: i64 = 4 << 30;

/// An eighth of a container's default weight: pods come first.
const COMPILE_SHARES: i64 = 128;

/// For the compilers' cgroup to be gone at the end; nothing is in it.
const END_CGROUPS: Duration = Duration::from_secs(2);

/// One module; a large one of 50 MB needs 45 CPU seconds.
const COMPILE: Duration = Duration::from_secs(300);

/// Completes when the daemon shall end. Boxed, so that nothing here is generic: the
/// whole daemon would be compiled a second time in the crate that names the type.
pub type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The whole daemon.
pub async fn run(config: Config, end: End) -> anyhow::Result<()> {
    let _lock = socket::lock(&config.state)?;
    let path = config.socket.clone();
    let cadvisor = config.cadvisor.socket().map(Path::to_owned);
    let compilers = compilers(&config)?;
    let (ending, watched) = watch::channel(false);
    let address = config.streaming.address()?;
    let tls = config
        .streaming
        .tls()?
        .map(|(certificate, key)| streaming::wire::acceptor(certificate, key))
        .transpose()?;
    let (streaming, streams) = Streaming::bind(address, tls).await?;
    let scrapes = prometheus::bind(config.metrics.address()?).await?;
    let daemon = open(config, streaming, watched).await?;
    let metrics = Metrics::of(&daemon);
    let questions = cadvisor.as_deref().map(socket::bind).transpose()?;
    let listener = socket::bind(&path)?;
    tracing::info!(
        socket = %path.display(),
        version = env!("CARGO_PKG_VERSION"),
        pods = daemon.sandboxes.pods().len(),
        containers = daemon.sandboxes.containers().len(),
        handlers = ?daemon.usable_handlers,
        "criw serves"
    );
    crate::notify::ready();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let streaming = tokio::spawn(streaming::server::serve(daemon.clone(), streams));
    tokio::spawn(metrics.clone().watch(daemon.clone()));
    if let Some(scrapes) = scrapes {
        tokio::spawn(prometheus::serve(daemon.clone(), metrics.clone(), scrapes));
    }
    if let Some(questions) = questions {
        tokio::spawn(crate::cadvisor::serve(daemon.clone(), questions));
    }
    let stopped = Box::pin(async {
        let _ = stopped.await;
    });
    let mut serving = Box::pin(serve(daemon, &metrics, listener, stopped));
    tokio::select! {
        result = &mut serving => return result,
        () = crate::notify::watchdog() => {}
        () = end => {}
    }
    tracing::info!("ending; pods keep running");
    crate::notify::stopping();
    // No new client finds the socket; those that are connected finish their calls.
    for path in std::iter::once(&path).chain(&cadvisor) {
        let _ = std::fs::remove_file(path);
    }
    let _ = ending.send(true);
    let _ = stop.send(());
    let ended = match tokio::time::timeout(DRAIN, serving).await {
        Ok(result) => result,
        Err(_) => {
            tracing::warn!(deadline = ?DRAIN, "calls were still running at the end; they are abandoned");
            Ok(())
        }
    };
    // It bounds its own time.
    let _ = streaming.await;
    drop_empty_cgroups(&compilers);
    ended
}

/// What is in use stays: pods outlive the daemon.
fn drop_empty_cgroups(compilers: &Leaf) {
    if compilers.workload().is_ok_and(|running| running.is_empty())
        && let Err(error) = compilers.end_with_parent(END_CGROUPS)
    {
        tracing::warn!(error = %crate::error::chain(&error), "remove the compilers' cgroup");
    }
}

/// Opens every room. Recovery of pods ends before this returns.
pub async fn open(
    config: Config,
    streaming: Streaming,
    ending: watch::Receiver<bool>,
) -> anyhow::Result<Arc<Daemon>> {
    socket::make_directory(&config.root)?;
    socket::make_directory(&config.state)?;
    let compiler = config.libexec.join("criw-compile");
    let driver = Driver::from(config.cgroup.driver);
    let cgroup_parent = cgroup_parent(&config);
    driver
        .check(&cgroup_parent)
        .context("check cgroup.driver and cgroup.parent")?;
    let images = ImageService::open(criw_image_service::Config {
        root: config.root.join("images"),
        state: config.state.join("images"),
        hosts_dir: Some(config.registry.hosts_dir.clone()).filter(|d| !d.as_os_str().is_empty()),
        compiler: compiler.is_file().then_some(compiler),
        compile_timeout: COMPILE,
        compile_cgroup: compile_cgroup(&config)?,
        limits: criw_image_service::Limits::default(),
    })
    .await
    .context("open the image store")?;
    let net_state = config.root.join("net");
    let network = Network::new(network_mode(&config, &net_state)?, net_state)
        .context("set up the pod network")?;
    let sandboxes = Sandboxes::open(
        criw_sandbox::Config {
            root: config.root.clone(),
            state: config.state.clone(),
            libexec: config.libexec.clone(),
            runc: find_program(&config.runc.path),
            apparmor_parser: find_program(Path::new(APPARMOR_PARSER)),
            cgroup_driver: driver,
            cgroup_parent,
            pod_processes: config.cadvisor.socket().is_some(),
            unprivileged_ports: true,
            // Tests simulate a reboot with it.
            boot_id: std::env::var("CRIW_BOOT_ID").ok(),
        },
        network,
    )
    .await
    .context("recover pods and containers")?;
    release_unknown(&images, &sandboxes).await;
    let handlers = Handlers::new(&config);
    let root = config.root.clone();
    let host = tokio::task::spawn_blocking(move || HostFacts::read(&root)).await?;
    if let Err(reason) = &host.user_namespaces {
        tracing::warn!(%reason, "pods cannot have user namespaces (hostUsers: false) on this node");
    }
    let daemon = Arc::new(Daemon {
        usable_handlers: handlers.usable(),
        host,
        handlers,
        images,
        sandboxes,
        toolbox: Toolbox::new(&config),
        spawning: Semaphore::new(spawner::AT_ONCE),
        streaming,
        ending,
        config,
    });
    spawner::adopt(&daemon);
    Ok(daemon)
}

/// Serves all services until `end` completes and every call has been answered.
pub async fn serve(
    daemon: Arc<Daemon>,
    metrics: &Arc<Metrics>,
    listener: UnixListener,
    end: End,
) -> anyhow::Result<()> {
    let runtime = RuntimeServiceServer::new(Runtime(daemon.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let admin = ImagesServer::new(Admin(daemon.clone()));
    let images = ImageServiceServer::new(Images(daemon))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    tonic::transport::Server::builder()
        .add_service(Door::new(runtime, metrics))
        .add_service(Door::new(images, metrics))
        .add_service(Door::new(admin, metrics))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end)
        .await
        .context("serve the CRI")
}

fn network_mode(config: &Config, state: &Path) -> anyhow::Result<Mode> {
    Ok(match config.net.mode {
        NetMode::Cni => Mode::Cni(CniConfig {
            conf_dir: config.cni.conf_dir.clone(),
            bin_dirs: config.cni.bin_dirs.clone(),
            ..CniConfig::default()
        }),
        NetMode::Builtin => Mode::Builtin(BuiltinConfig {
            subnet: match config.net.subnet.as_str() {
                "" => None,
                subnet => Some(subnet.parse().context("parse net.subnet")?),
            },
            lease_dir: state.join("leases"),
            table: daemon_name(&config.root),
        }),
    })
}

/// Compilers share one cgroup beside the pods': a hostile module takes memory and time
/// from its own pull only. A large module (49 MB) needs 0.9 GB.
fn compile_cgroup(config: &Config) -> anyhow::Result<Vec<PathBuf>> {
    let leaf = compilers(config)?;
    let limits = Resources {
        memory_limit: COMPILE_MEMORY,
        cpu_shares: COMPILE_SHARES,
        ..Default::default()
    };
    // A scope is left by a daemon that was killed.
    let made = match leaf.is_scope() && leaf.exists() {
        true => leaf.apply(&limits),
        false => leaf.create(&limits).and_then(cgroup::Holder::stay),
    };
    made.context("make the compilers' cgroup")?;
    Ok(leaf.dirs())
}

fn compilers(config: &Config) -> anyhow::Result<Leaf> {
    let parent = cgroup_parent(config);
    let mut name = "compile".to_owned();
    if parent.ends_with(".slice") {
        // Names of scopes are unique on the machine.
        name = format!("{}-compile.scope", daemon_name(&config.root));
    }
    Cgroups::detect(
        Path::new("/sys/fs/cgroup"),
        &config.libexec.join("criw-init"),
    )
    .context("look at the cgroup hierarchies")?
    .leaf(&parent, &name)
    .context("name the compilers' cgroup")
}

/// Parent of the cgroups that belong to this daemon alone.
pub fn cgroup_parent(config: &Config) -> String {
    let systemd = Driver::from(config.cgroup.driver).prefers_systemd();
    match (config.cgroup.parent.as_str(), systemd) {
        ("", true) => format!("{}.slice", daemon_name(&config.root)),
        ("", false) => format!("/{}", daemon_name(&config.root)),
        (parent, _) => parent.to_owned(),
    }
}

/// What tells daemons on one machine apart, in the names of cgroups and nft tables:
/// `criw`, or with a hash of the root when that is not the usual one.
fn daemon_name(root: &Path) -> String {
    if root == Config::default().root {
        return "criw".to_owned();
    }
    // FNV-1a: the name must be the same after every restart and build.
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("criw_{hash:016x}")
}

/// A bare name is looked up in PATH, then in the directories of root's tools.
pub fn find_program(path: &Path) -> PathBuf {
    if path.components().count() != 1 || path.is_absolute() {
        return path.to_owned();
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search)
        .chain(["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(path))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| path.to_owned())
}

/// A daemon that was killed between the end of a container and the release of its
/// image's layers left a hold behind.
async fn release_unknown(images: &ImageService, sandboxes: &Sandboxes) {
    for owner in images.holders() {
        if matches!(sandboxes.find_container(&owner), Ok(None)) {
            tracing::info!(container = %owner, "release the image of a container that is gone");
            if let Err(error) = images.release(&owner).await {
                tracing::warn!(container = %owner, error = %crate::error::chain(&error), "release an image");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_with_other_roots_have_other_tables() {
        assert_eq!(daemon_name(Path::new("/var/lib/criw")), "criw");
        let (a, b) = (daemon_name(Path::new("/a")), daemon_name(Path::new("/b")));
        assert_ne!(a, b);
        assert_eq!(a, daemon_name(Path::new("/a")));
        assert_eq!(a.len(), "criw_".len() + 16);
    }

    #[test]
    fn bare_names_are_looked_up() {
        assert_eq!(find_program(Path::new("/x/runc")), Path::new("/x/runc"));
        assert_eq!(
            find_program(Path::new("no-such-tool")),
            Path::new("no-such-tool")
        );
        assert!(find_program(Path::new("sh")).is_absolute());
    }
}
