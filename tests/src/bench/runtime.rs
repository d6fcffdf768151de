//! A runtime that is measured: ours, or a peer beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use criw_proto::v1::*;

use crate::client::Client;
use crate::containerd::Containerd;
use crate::image::Image;
use crate::machine::Machine;
use crate::plan;
use crate::world::World;

/// One of them, in a world of its own.
pub enum Runtime {
    /// Ours.
    Criw(Box<Machine>),
    /// containerd with runc.
    Containerd(Box<Containerd>),
}

impl Runtime {
    /// Where it lives.
    pub fn world(&self) -> &World {
        match self {
            Self::Criw(machine) => &machine.world,
            Self::Containerd(containerd) => &containerd.world,
        }
    }

    /// CRI client of it.
    pub fn client(&self) -> &Client {
        match self {
            Self::Criw(machine) => &machine.client,
            Self::Containerd(containerd) => &containerd.client,
        }
    }

    /// Pid of its daemon.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Criw(machine) => machine.daemon.pid(),
            Self::Containerd(containerd) => containerd.pid(),
        }
    }

    /// Pushes an image and pulls it; the reference.
    ///
    /// # Errors
    /// What the registry or the runtime says.
    pub fn provide(&self, name: &str, image: &Image) -> Result<String> {
        match self {
            Self::Criw(machine) => machine.provide(name, image),
            Self::Containerd(containerd) => containerd.provide(name, image),
        }
    }

    /// A pod as a kubelet asks for it by default, each container with process ids of its
    /// own; its id and its configuration.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn run_pod(&self, name: &str) -> Result<(String, PodSandboxConfig)> {
        let world = self.world();
        let logs = world.path("logs");
        let mut config = plan::pod(name, &world.cgroup(), &logs);
        std::fs::create_dir_all(logs.join(name))
            .with_context(|| format!("create {}", logs.join(name).display()))?;
        if let Some(linux) = &mut config.linux {
            linux.security_context = Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let id = self.client().run_pod_sandbox(request)?.pod_sandbox_id;
        Ok((id, config))
    }

    /// Creates and starts a container; its id.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn run(
        &self,
        (pod, config): &(String, PodSandboxConfig),
        container: ContainerConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let container_id = self.client().create_container(request)?.container_id;
        self.client().start_container(StartContainerRequest {
            container_id: container_id.clone(),
        })?;
        Ok(container_id)
    }

    /// Stops and removes a pod.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        self.client().stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        })?;
        self.client().remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        })?;
        Ok(())
    }

    /// Pid of a container's first process.
    ///
    /// # Errors
    /// What the runtime says, or it says none.
    pub fn pid_of(&self, container: &str) -> Result<i32> {
        let request = ContainerStatusRequest {
            container_id: container.into(),
            verbose: true,
        };
        let info = self.client().container_status(request)?.info;
        let text = info.get("info").context("verbose status without info")?;
        let value: serde_json::Value = serde_json::from_str(text)?;
        Ok(i32::try_from(
            value["pid"].as_i64().context("info without pid")?,
        )?)
    }

    /// Counts CPU time from now on: of the daemon, which this moves to a group below the
    /// world's with all that it starts from then on, and of what else is there: its pods.
    ///
    /// # Errors
    /// There is no v1 `cpuacct` hierarchy.
    pub fn count_cpu(&self) -> Result<CpuCount> {
        let group = Path::new("/sys/fs/cgroup/cpuacct").join(&self.world().name);
        let daemon = group.join("daemon");
        let what = || format!("count CPU time in {}", daemon.display());
        std::fs::create_dir_all(&daemon)
            .and_then(|()| std::fs::write(daemon.join("cgroup.procs"), self.pid().to_string()))
            .with_context(what)?;
        Ok(CpuCount { group })
    }
}

/// A count of CPU time.
pub struct CpuCount {
    group: PathBuf,
}

impl CpuCount {
    /// So far.
    ///
    /// # Errors
    /// The group is gone.
    pub fn used(&self) -> Result<std::time::Duration> {
        let file = self.group.join("cpuacct.usage");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(std::time::Duration::from_nanos(text.trim().parse()?))
    }
}
