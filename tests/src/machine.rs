//! What a test gets: a world with a daemon and a registry in it, and short names
//! for what every scenario does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use criw_proto::v1::*;
use tonic::Status;

use crate::client::{Client, image_spec};
use crate::config::{self, Network};
use crate::daemon::{self, Daemon};
use crate::image::Image;
use crate::leak::{self, Snapshot};
use crate::registry::Registry;
use crate::world::World;
use crate::{plan, wait};

/// A machine; dropped, it takes all its pods, processes and files away.
pub struct Machine {
    /// CRI client of the running daemon.
    pub client: Client,
    /// The daemon.
    pub daemon: Daemon,
    /// The registry.
    pub registry: Registry,
    /// The place; last, because the others live in it.
    pub world: World,
}

/// A pod that was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// Its configuration.
    pub config: PodSandboxConfig,
}

/// One line of a CRI log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// stdout or stderr
    pub stream: String,
    /// Whether the line ends here (`F`) or goes on (`P`).
    pub full: bool,
    /// The text.
    pub text: String,
}

impl Machine {
    /// With the built-in network.
    pub fn new() -> Result<Self> {
        Self::with(Network::Builtin, &[])
    }

    /// With any network, and environment for the daemon.
    pub fn with(network: Network, env: &[(&str, &str)]) -> Result<Self> {
        Self::inside(World::new()?, network, env)
    }

    /// In a world that was prepared for it.
    pub fn inside(world: World, network: Network, env: &[(&str, &str)]) -> Result<Self> {
        config::write(&world, network)?;
        let registry = Registry::start(&world, 5000)?;
        let (daemon, client) = Daemon::start(&world, env)?;
        Ok(Self {
            client,
            daemon,
            registry,
            world,
        })
    }

    /// Starts the daemon anew, after it has ended in whatever way.
    pub fn restart(&mut self, env: &[(&str, &str)]) -> Result<()> {
        let (daemon, client) = Daemon::start(&self.world, env)?;
        self.daemon = daemon;
        self.client = client;
        Ok(())
    }

    /// Pushes an image and pulls it; the reference.
    pub fn provide(&self, name: &str, image: &Image) -> Result<String> {
        self.registry.push(&self.world, name, image)?;
        let reference = self.registry.reference(name);
        self.pull(&reference)
            .with_context(|| format!("pull {reference}"))?;
        Ok(reference)
    }

    /// Pulls anonymously; the image id.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn pull(&self, reference: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(image_spec(reference)),
            ..Default::default()
        };
        Ok(self.client.pull_image(request)?.image_ref)
    }

    /// A pod configuration on this machine.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        plan::pod(name, &self.world.cgroup(), &self.world.path("logs"))
    }

    /// Runs a pod by name.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn pod(&self, name: &str) -> Result<Pod, Status> {
        self.run_pod(self.pod_config(name), "")
    }

    /// Runs a pod.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn run_pod(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        let id = self.client.run_pod_sandbox(request)?.pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Creates a container.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn create(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.client.create_container(request)?.container_id)
    }

    /// Starts a container.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: id.into(),
        };
        self.client.start_container(request).map(drop)
    }

    /// Creates and starts.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn run(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let id = self.create(pod, config)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Stops a container with a grace in seconds.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        self.client.stop_container(request).map(drop)
    }

    /// Removes a container.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: id.into(),
        };
        self.client.remove_container(request).map(drop)
    }

    /// Stops a pod.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.client.stop_pod_sandbox(request).map(drop)
    }

    /// Stops and removes a pod.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.stop_pod(id)?;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.client.remove_pod_sandbox(request).map(drop)
    }

    /// Removes every pod that is listed.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn remove_all_pods(&self) -> Result<(), Status> {
        for pod in self.pods()? {
            self.remove_pod(&pod.id)?;
        }
        Ok(())
    }

    /// All pods.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn pods(&self) -> Result<Vec<PodSandbox>, Status> {
        Ok(self
            .client
            .list_pod_sandbox(ListPodSandboxRequest::default())?
            .items)
    }

    /// All containers.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn containers(&self) -> Result<Vec<Container>, Status> {
        Ok(self
            .client
            .list_containers(ListContainersRequest::default())?
            .containers)
    }

    /// Status of a pod.
    pub fn pod_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        self.client
            .pod_sandbox_status(request)?
            .status
            .context("PodSandboxStatus without a status")
    }

    /// The pod's address.
    pub fn pod_ip(&self, id: &str) -> Result<std::net::IpAddr> {
        let network = self
            .pod_status(id)?
            .network
            .context("pod without network")?;
        network
            .ip
            .parse()
            .with_context(|| format!("pod ip {:?}", network.ip))
    }

    /// Status of a container.
    pub fn status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.client
            .container_status(request)?
            .status
            .context("ContainerStatus without a status")
    }

    /// Host pid of a container's main process, as `crictl inspect` shows it.
    pub fn pid(&self, id: &str) -> Result<i32> {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        };
        let info = self.client.container_status(request)?.info;
        let text = info.get("info").context("verbose status without info")?;
        let value: serde_json::Value = serde_json::from_str(text)?;
        let pid = value["pid"].as_i64().context("info without pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// Waits until a container has ended.
    pub fn ended(&self, id: &str) -> Result<ContainerStatus> {
        self.ended_within(id, wait::PATIENCE)
    }

    /// Waits so long until a container has ended.
    pub fn ended_within(&self, id: &str, patience: Duration) -> Result<ContainerStatus> {
        wait::until("a container to end", patience, || {
            let status = self.status(id).ok()?;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .with_context(|| format!("container {id}: {:?}", self.status(id)))
    }

    /// Runs a command to its end: status and whole log.
    pub fn outcome(&self, pod: &Pod, config: ContainerConfig) -> Result<(ContainerStatus, String)> {
        let id = self.run(pod, config)?;
        let status = self.ended(&id)?;
        let text = text(&self.log(&status)?);
        Ok((status, text))
    }

    /// A synchronous exec.
    #[allow(clippy::result_large_err, reason = "tonic's own type")]
    pub fn exec(&self, id: &str, argv: &[&str], timeout: i64) -> Result<ExecSyncResponse, Status> {
        self.client.exec_sync(ExecSyncRequest {
            container_id: id.into(),
            cmd: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            timeout,
        })
    }

    /// The parsed log of a container.
    pub fn log(&self, status: &ContainerStatus) -> Result<Vec<LogLine>> {
        let text = std::fs::read(&status.log_path)
            .with_context(|| format!("read log {}", status.log_path))?;
        parse_log(&String::from_utf8_lossy(&text))
    }

    /// A container's log as it is now.
    pub fn logged_now(&self, id: &str) -> Result<String> {
        let path = self.status(id)?.log_path;
        std::fs::read_to_string(&path).with_context(|| format!("read log {path}"))
    }

    /// Waits until a container's log contains a text.
    pub fn logged(&self, id: &str, wanted: &str) -> Result<()> {
        let path = PathBuf::from(self.status(id)?.log_path);
        wait::until(&format!("{wanted:?} in the log"), wait::PATIENCE, || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.contains(wanted).then_some(())
        })
        .with_context(|| format!("{:?}", self.status(id)))
    }

    /// What is there now, once the daemon has come to rest.
    pub fn snapshot(&self) -> Result<Snapshot> {
        leak::snapshot(&self.world, self.daemon.pid())
    }

    /// The same after a first pod has come and gone: what the node's network makes once
    /// and keeps (rules, a bridge) is there by then.
    pub fn baseline(&self) -> Result<Snapshot> {
        let pod = self.pod("first")?;
        self.remove_pod(&pod.id)?;
        // A link of that pod may still be on its way out.
        let mut last = self.snapshot()?;
        wait::until("the first pod to be gone", wait::PATIENCE, || {
            let now = self.snapshot().ok()?;
            let rest = std::mem::replace(&mut last, now) == last;
            let links = last.things.get(&leak::Kind::Link)?;
            (rest && !links.iter().any(|link| link.contains("criw"))).then_some(())
        })?;
        Ok(last)
    }

    /// Has the toolbox compiled by a container of a Wasm image that is in the registry: the
    /// code is kept, and is no leak of what uses it first.
    pub fn compile_toolbox(&self, image: &str) -> Result<()> {
        let id = self.pull(image).context("pull for the toolbox")?;
        let pod = self.pod("toolbox")?;
        let (status, log) = self.outcome(&pod, plan::command("true", image, &["true"]))?;
        ensure!(
            status.exit_code == 0,
            "the toolbox does not run: {status:?} {log}"
        );
        self.remove_pod(&pod.id)?;
        let image = Some(image_spec(&id));
        self.client.remove_image(RemoveImageRequest { image })?;
        Ok(())
    }

    /// Fails unless, within the deadline, nothing is there that was not there before.
    pub fn assert_nothing_left(&self, before: &Snapshot) -> Result<()> {
        leak::settle(&self.world, self.daemon.pid(), before, wait::PATIENCE)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- the daemon's log ends with ---\n{}",
                daemon::tail(&self.world)
            );
        }
        if self.daemon.is_alive() {
            // What stays behind is killed by cgroup when the world goes.
            let _ = self.remove_all_pods();
        }
    }
}

/// Parses CRI log lines, strictly.
pub fn parse_log(text: &str) -> Result<Vec<LogLine>> {
    text.split_terminator('\n')
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let mut next = || parts.next().with_context(|| format!("log line {line:?}"));
            let (time, stream, tag) = (next()?, next()?, next()?);
            anyhow::ensure!(
                time.len() >= 20 && time.as_bytes()[10] == b'T',
                "time in log line {line:?}"
            );
            anyhow::ensure!(
                matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P"),
                "log line {line:?}"
            );
            Ok(LogLine {
                time: time.into(),
                stream: stream.into(),
                full: tag == "F",
                text: parts.next().unwrap_or_default().into(),
            })
        })
        .collect()
}

/// What the container wrote: lines put together again, both streams.
pub fn text(lines: &[LogLine]) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.text);
        if line.full {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_parsed_strictly() {
        let lines = parse_log(
            "2026-11-22T18:00:00.000000001Z stdout P hel\n2026-11-22T18:00:00.000000002Z stdout F lo you\n2026-11-22T18:00:00.000000003Z stderr F \n",
        )
        .unwrap();
        assert_eq!(text(&lines), "hello you\n\n");
        for bad in [
            "hello",
            "2026-11-22T18:00:00Z both F x",
            "2026-11-22T18:00:00Z stdout X x",
        ] {
            assert!(parse_log(bad).is_err(), "{bad}");
        }
    }
}
