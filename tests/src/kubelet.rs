//! A real kubelet, in the namespaces of a world, and with all that it would write on the
//! host kept away from it: alone with static pods from a directory, or as a node of an API
//! server.

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::https::{Door, Trust};
use crate::world::World;
use crate::{binaries, leak, wait};

/// The node's address: it may not be a loopback one.
pub const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The node's name; a kubelet appends it to the name of each static pod.
pub const NODE: &str = "node";

/// The name server that a kubelet with an API server tells pods; nobody serves there.
pub const CLUSTER_DNS: &str = "10.96.0.10";

const PORT: u16 = 10250;

/// Kernel settings that a kubelet insists on. It would write them to the whole machine
/// unless it finds them set.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Directories whose paths are built into the kubelet (device plugins, links to logs).
const BUILT_IN: [&str; 2] = ["/var/lib", "/var/log"];

/// A running (or ended) kubelet.
pub struct Kubelet {
    process: Child,
    trust: Trust,
}

/// Makes the world one that a kubelet can live in without changing the host.
pub fn prepare(world: &World) -> Result<()> {
    for dir in BUILT_IN {
        world.run("mount", &["-t", "tmpfs", "kubelet", dir])?;
    }
    for (name, value) in TUNABLES {
        let file = world.subdir("tunables")?.join(name.replace('/', "."));
        std::fs::write(&file, value)?;
        let target = format!("/proc/sys/{name}");
        world.run("mount", &["--bind", &file.to_string_lossy(), &target])?;
    }
    world.run("ip", &["link", "add", "node0", "type", "bridge"])?;
    world.run(
        "ip",
        &["addr", "add", &format!("{NODE_IP}/24"), "dev", "node0"],
    )?;
    world.run("ip", &["link", "set", "node0", "up"])?;
    for root in leak::cgroup::roots() {
        let group = root.join(&world.name);
        std::fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
    }
    world.subdir("manifests")?;
    // As the kubelet would do, and leave behind.
    world.subdir("kubelet")?;
    let root = root(world).to_string_lossy().into_owned();
    world.run("mount", &["--bind", &root, &root])?;
    world.run("mount", &["--make-rshared", &root])?;
    std::fs::write(world.path("resolv.conf"), "nameserver 127.0.0.1\n")?;
    Ok(())
}

/// The kubelet's configuration file: what `docs/kubelet.md` recommends, and what makes
/// it fit into a world.
fn configuration(world: &World, gates: &Value, joins: bool) -> Value {
    let path = |name: &str| world.path(name).to_string_lossy().into_owned();
    let mut text = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", path("s")),
        "cgroupDriver": "cgroupfs",
        "featureGates": gates,
        "staticPodPath": path("manifests"),
        "podLogsDir": path("pods"),
        "volumePluginDir": path("volume-plugins"),
        "resolvConf": path("resolv.conf"),
        "cgroupRoot": world.cgroup(),
        "address": NODE_IP,
        "port": PORT,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "registerNode": joins,
        "clusterDomain": "cluster.local",
        "registryPullQPS": 0,
        // How full the disk of the machine is must not matter.
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        // A test waits for each of these.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "fileCheckFrequency": "1s",
        "nodeStatusUpdateFrequency": "2s",
        "volumeStatsAggPeriod": "2s",
        "containerLogMaxSize": "64Ki",
        "containerLogMonitorInterval": "3s",
    });
    if joins {
        text["clusterDNS"] = json!([CLUSTER_DNS]);
        // How late a changed ConfigMap is seen in a volume.
        text["syncFrequency"] = json!("3s");
    }
    text
}

impl Kubelet {
    /// Starts it without an API server and waits until it is healthy.
    pub fn start(world: &World, gates: &Value) -> Result<Self> {
        Self::launch(world, gates, &[])
    }

    /// The same with a socket that its cAdvisor asks whose a cgroup is.
    pub fn start_beside(world: &World, gates: &Value, cadvisor: &Path) -> Result<Self> {
        Self::launch(world, gates, &[("--containerd", cadvisor)])
    }

    /// Starts it as a node of the API server that a kubeconfig names, and waits until it
    /// is healthy.
    pub fn join(world: &World, gates: &Value, kubeconfig: &Path) -> Result<Self> {
        Self::launch(world, gates, &[("--kubeconfig", kubeconfig)])
    }

    fn launch(world: &World, gates: &Value, files: &[(&str, &Path)]) -> Result<Self> {
        let config = world.path("kubelet.json");
        let joins = files.iter().any(|(flag, _)| *flag == "--kubeconfig");
        let text = configuration(world, gates, joins).to_string();
        std::fs::write(&config, text)?;
        let log = log(world)?;
        let certificates = world.path("kubelet-pki");
        let mut command = world.command(binaries::kubelet()?);
        for (flag, file) in files {
            command.arg(flag).arg(file);
        }
        let mut process = command
            .arg("--config")
            .arg(&config)
            .arg("--root-dir")
            .arg(root(world))
            .arg("--cert-dir")
            .arg(&certificates)
            .args(["--hostname-override", NODE])
            .args(["--node-ip", &NODE_IP.to_string()])
            .args(["-v", "2"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start kubelet")?;
        // It signs its own at its first start.
        let certificate = certificates.join("kubelet.crt");
        let trust = wait::until("kubelet to be healthy", wait::PATIENCE, || {
            if let Ok(Some(status)) = process.try_wait() {
                return Some(Err(status));
            }
            let trust = Trust::file(&certificate, NODE).ok()?;
            let answer = ask(world, &trust, "/healthz").ok()?;
            (answer == "ok").then_some(Ok(trust))
        });
        match trust {
            Ok(Ok(trust)) => Ok(Self { process, trust }),
            Ok(Err(status)) => bail!("kubelet ended at its start: {status}\n{}", tail(world)),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error.context(tail(world)))
            }
        }
    }

    /// A `GET` of its API; any status but 200 is an error with what it said.
    pub fn get(&self, world: &World, target: &str) -> Result<String> {
        ask(world, &self.trust, target)
    }

    /// A way to its API without TLS, for clients that upgrade their connection.
    pub fn door(&self, world: &World) -> Result<Door> {
        world.enter(|| Door::open(&self.trust, SocketAddr::from((NODE_IP, PORT))))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGTERM, and waits until it is gone.
    pub fn terminate(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("pid of kubelet")?;
        kill_process(pid, Signal::TERM).context("send SIGTERM to kubelet")?;
        wait::until("kubelet to end", wait::PATIENCE, || {
            self.process.try_wait().ok()?
        })?;
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(world: &World, trust: &Trust, target: &str) -> Result<String> {
    let address = SocketAddr::from((NODE_IP, PORT));
    let answer = world.enter(|| trust.request(address, "GET", target, &[]))?;
    if answer.status != 200 {
        bail!("GET {target}: {} {}", answer.status, answer.text().trim());
    }
    Ok(answer.text())
}

/// Where it keeps the volumes of pods.
pub fn root(world: &World) -> PathBuf {
    world.path("kubelet")
}

/// What it mounted below its root and has not unmounted: nothing, once all pods are gone.
pub fn mounts_left(world: &World) -> Result<Vec<String>> {
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", world.holder()))?;
    let root = format!("{}/", root(world).display());
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|target| target.starts_with(&root))
        .map(str::to_owned)
        .collect())
}

fn log(world: &World) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(world.path("kubelet.log"))
        .context("open the kubelet's log")
}

/// The end of its log, for a failing test.
pub fn tail(world: &World) -> String {
    let text = std::fs::read_to_string(world.path("kubelet.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
