//! The control plane: etcd, API server, controller manager, scheduler and kube-proxy, each
//! the real program, on addresses that exist only in a world.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use criw_tests::https::Trust;
use criw_tests::kubelet::{NODE, NODE_IP};
use criw_tests::world::World;
use criw_tests::{binaries, http, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cluster::PATIENCE;

/// Where the API server listens.
pub(crate) const API_PORT: u16 = 6443;

/// Cluster addresses of Services.
const SERVICES: &str = "10.96.0.0/16";

/// Addresses of pods; the daemon's configuration names the same.
const PODS: &str = "10.87.0.0/16";

/// Where etcd listens.
const ETCD: &str = "127.0.0.1:2379";

/// Who may ask the API server for what: name, groups. A token is the name in front of
/// `-token`.
const USERS: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    (
        "controller-manager",
        "system:kube-controller-manager",
        "system:authenticated",
    ),
    ("scheduler", "system:kube-scheduler", "system:authenticated"),
    ("proxy", "system:kube-proxy", "system:authenticated"),
    ("kubelet", "system:node:node", "system:nodes"),
];

/// A program of the control plane; dropped, it ends.
struct Program {
    name: &'static str,
    process: Child,
}

impl Program {
    fn start(world: &World, name: &'static str, binary: PathBuf, args: &[String]) -> Result<Self> {
        let log = log(world, name)?;
        // It ends with this test, however that ends.
        let process = world
            .command("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name, process })
    }

    fn terminate(&mut self) -> Result<()> {
        let name = self.name;
        let pid = i32::try_from(self.process.id())?;
        let pid = Pid::from_raw(pid).with_context(|| format!("pid of {name}"))?;
        kill_process(pid, Signal::TERM).with_context(|| format!("send SIGTERM to {name}"))?;
        wait::until(&format!("{name} to end"), wait::PATIENCE, || {
            self.process.try_wait().ok()?
        })?;
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, tail(world, self.name));
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What runs besides the kubelet and the daemon. In the order of their ends.
pub(crate) struct ControlPlane {
    programs: Vec<Program>,
    trust: Trust,
}

impl ControlPlane {
    /// Starts all of it and waits until the API server is ready.
    pub(crate) fn start(world: &World) -> Result<Self> {
        let tokens: String = USERS
            .iter()
            .map(|(token, name, groups)| format!("{token}-token,{name},{token},\"{groups}\"\n"))
            .collect();
        std::fs::write(world.path("tokens.csv"), tokens)?;
        for (user, ..) in USERS {
            let config = kubeconfig(world, user);
            std::fs::write(world.path(format!("{user}.kubeconfig")), config.to_string())?;
        }
        let mut etcd = Program::start(world, "etcd", "etcd".into(), &etcd(world)?)?;
        let address: SocketAddr = ETCD.parse()?;
        wait::until("etcd to be healthy", PATIENCE, || {
            if let Err(error) = etcd.check(world) {
                return Some(Err(error));
            }
            let answer = world.enter(|| http::get(address, "/health")).ok()?;
            answer.contains("true").then_some(Ok(()))
        })??;
        let binary = binaries::kubernetes("kube-apiserver")?;
        let mut server = Program::start(world, "kube-apiserver", binary, &api_server(world)?)?;
        // It signs its own certificate.
        let certificate = world.path("api/apiserver.crt");
        let trust = wait::until("the API server to be ready", PATIENCE, || {
            if let Err(error) = server.check(world) {
                return Some(Err(error));
            }
            let trust = Trust::file(&certificate, &NODE_IP.to_string()).ok()?;
            let address = SocketAddr::from((NODE_IP, API_PORT));
            let answer = world
                .enter(|| trust.request(address, "GET", "/readyz", &[]))
                .ok()?;
            (answer.status == 200).then_some(Ok(trust))
        })??;
        let mut plane = Self {
            programs: Vec::new(),
            trust,
        };
        for (name, args) in [
            ("kube-proxy", proxy(world)),
            ("kube-scheduler", scheduler(world)),
            ("kube-controller-manager", controller_manager(world)),
        ] {
            let binary = binaries::kubernetes(name)?;
            plane
                .programs
                .push(Program::start(world, name, binary, &args)?);
        }
        plane.programs.extend([server, etcd]);
        Ok(plane)
    }

    /// A `GET` of the API as its administrator: status and body.
    pub(crate) fn get(&self, world: &World, target: &str) -> Result<(u16, String)> {
        let address = SocketAddr::from((NODE_IP, API_PORT));
        let headers = [
            ("authorization", "Bearer admin-token"),
            ("accept", "application/json"),
        ];
        let answer = world.enter(|| self.trust.request(address, "GET", target, &headers))?;
        Ok((answer.status, answer.text()))
    }

    /// An error if one of them has ended.
    pub(crate) fn check(&mut self, world: &World) -> Result<()> {
        self.programs
            .iter_mut()
            .try_for_each(|program| program.check(world))
    }

    /// Ends all of it, and has kube-proxy take its rules away.
    pub(crate) fn terminate(&mut self, world: &World) -> Result<()> {
        for program in &mut self.programs {
            program.terminate()?;
        }
        let binary = binaries::kubernetes("kube-proxy")?;
        let mut args = proxy(world);
        args.push("--cleanup".into());
        world.run(
            &binary.to_string_lossy(),
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
        )?;
        Ok(())
    }
}

/// Names of the logs of all of them.
pub(crate) const LOGS: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

fn log(world: &World, name: &str) -> Result<File> {
    let path = world.path(format!("{name}.log"));
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn tail(world: &World, name: &str) -> String {
    let path = world.path(format!("{name}.log"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn kubeconfig(world: &World, user: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "world", "cluster": {
            "server": format!("https://{}", SocketAddr::from((NODE_IP, API_PORT))),
            "certificate-authority": world.path("api/apiserver.crt"),
        }}],
        "users": [{"name": user, "user": {"token": format!("{user}-token")}}],
        "contexts": [{"name": user, "context": {"cluster": "world", "user": user}}],
        "current-context": user,
    })
}

fn flags<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

fn etcd(world: &World) -> Result<Vec<String>> {
    let clients = format!("http://{ETCD}");
    let peers = "http://127.0.0.1:2380";
    Ok(flags([
        ("data-dir", display(world.subdir("etcd")?)),
        ("listen-client-urls", clients.clone()),
        ("advertise-client-urls", clients),
        ("listen-peer-urls", peers.into()),
        ("initial-advertise-peer-urls", peers.into()),
        ("initial-cluster", format!("default={peers}")),
    ]))
}

fn api_server(world: &World) -> Result<Vec<String>> {
    let dir = display(world.subdir("api")?);
    // One key serves TLS and signs the tokens of service accounts.
    let key = format!("{dir}/apiserver.key");
    Ok(flags([
        ("etcd-servers", format!("http://{ETCD}")),
        ("advertise-address", NODE_IP.to_string()),
        ("bind-address", NODE_IP.to_string()),
        ("secure-port", API_PORT.to_string()),
        ("cert-dir", dir),
        ("service-cluster-ip-range", SERVICES.into()),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc".into(),
        ),
        ("service-account-key-file", key.clone()),
        ("service-account-signing-key-file", key),
        ("token-auth-file", display(world.path("tokens.csv"))),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("allow-privileged", "true".into()),
    ]))
}

fn controller_manager(world: &World) -> Vec<String> {
    flags([
        (
            "kubeconfig",
            display(world.path("controller-manager.kubeconfig")),
        ),
        ("leader-elect", "false".into()),
        ("use-service-account-credentials", "true".into()),
        (
            "service-account-private-key-file",
            display(world.path("api/apiserver.key")),
        ),
        ("root-ca-file", display(world.path("api/apiserver.crt"))),
        ("bind-address", "127.0.0.1".into()),
        ("cert-dir", display(world.path("controller-manager"))),
        // The node's part of it is what the kubelet tells the daemon.
        ("allocate-node-cidrs", "true".into()),
        ("cluster-cidr", PODS.into()),
    ])
}

fn scheduler(world: &World) -> Vec<String> {
    flags([
        ("kubeconfig", display(world.path("scheduler.kubeconfig"))),
        ("leader-elect", "false".into()),
        ("bind-address", "127.0.0.1".into()),
        ("cert-dir", display(world.path("scheduler"))),
    ])
}

fn proxy(world: &World) -> Vec<String> {
    flags([
        ("kubeconfig", display(world.path("proxy.kubeconfig"))),
        ("proxy-mode", "nftables".into()),
        ("hostname-override", NODE.into()),
        ("cluster-cidr", PODS.into()),
        ("healthz-bind-address", "127.0.0.1:10256".into()),
        ("metrics-bind-address", "127.0.0.1:10249".into()),
        // The size of that table is the whole machine's affair.
        ("conntrack-max-per-core", "0".into()),
        ("conntrack-min", "0".into()),
    ])
}

fn display(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
