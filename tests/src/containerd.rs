//! containerd as a peer to compare with, in a world of its own: the user names the
//! directory with its programs, none of them is built here.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use criw_proto::v1::{PullImageRequest, VersionRequest};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Client, image_spec};
use crate::image::{Entry, Image, Settings, file, rootfs};
use crate::registry::Registry;
use crate::world::World;
use crate::{binaries, config, wait};

/// A running containerd with a registry beside it.
pub struct Containerd {
    /// CRI client of it.
    pub client: Client,
    process: Child,
    registry: Registry,
    /// The place; last, because the others live in it.
    pub world: World,
}

impl Containerd {
    /// Starts the one in `programs` (with `containerd-shim-runc-v2` beside it) on the
    /// machine's runc and CNI plugins, with the conflist that [`config::Network::Cni`] has.
    pub fn start(programs: &Path) -> Result<Self> {
        let world = World::new()?;
        // The directory of its shims' sockets is built in.
        world.run("mount", &["-t", "tmpfs", "containerd", "/run"])?;
        config::conflist(&world, "bridge")?;
        let registry = Registry::start(&world, 5000)?;
        registry.push(&world, "pause:1", &pause()?)?;
        let file = world.path("containerd.toml");
        std::fs::write(&file, configuration(&world, &registry)?)?;
        let log = File::create(world.path("containerd.log"))?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::iter::once(programs.to_owned()).chain(std::env::split_paths(&search)),
        )?;
        let program = programs.join("containerd");
        let mut process = world
            .command(&program)
            .arg("--config")
            .arg(&file)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let socket = world.path("s");
        let client = wait::until("containerd to answer Version", wait::PATIENCE, || {
            if let Ok(Some(status)) = process.try_wait() {
                return Some(Err(status));
            }
            let client = Client::connect(&socket).ok()?;
            client.version(VersionRequest::default()).ok()?;
            Some(Ok(client))
        });
        match client {
            Ok(Ok(client)) => Ok(Self {
                client,
                process,
                registry,
                world,
            }),
            Ok(Err(status)) => bail!("containerd ended at its start: {status}\n{}", tail(&world)),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error.context(tail(&world)))
            }
        }
    }

    /// Pushes an image and pulls it; the reference.
    pub fn provide(&self, name: &str, image: &Image) -> Result<String> {
        self.registry.push(&self.world, name, image)?;
        let reference = self.registry.reference(name);
        let request = PullImageRequest {
            image: Some(image_spec(&reference)),
            ..Default::default()
        };
        self.client
            .pull_image(request)
            .with_context(|| format!("pull {reference}"))?;
        Ok(reference)
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it calls itself.
    pub fn version(&self) -> Result<String> {
        let version = self.client.version(VersionRequest::default())?;
        Ok(version.runtime_version)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = wait::until("containerd to end", wait::PATIENCE, || {
            self.process.try_wait().ok()?
        });
        if ended.is_err() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Its defaults, but for what keeps it in its world and what the test machines need:
/// without CAP_SYS_RESOURCE no oom_score_adj can be lowered.
fn configuration(world: &World, registry: &Registry) -> Result<String> {
    let dir = |name: &str| -> Result<String> { Ok(world.subdir(name)?.display().to_string()) };
    Ok(format!(
        r#"version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{conflists}"
"#,
        root = dir("containerd")?,
        state = dir("containerd-run")?,
        socket = world.path("s").display(),
        opt = dir("opt")?,
        pause = registry.reference("pause:1"),
        plugins = config::PLUGINS,
        conflists = dir("cni")?,
    ))
}

/// The image of its pause containers: our own init, which waits and does no more.
fn pause() -> Result<Image> {
    let path = binaries::libexec()?.join("criw-init");
    let program = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let layer = vec![
        Entry::Directory("dev".into(), 0o755),
        file("pause", 0o755, program),
    ];
    rootfs("linux/amd64", &[layer], &Settings::entrypoint(&["/pause"]))
}

fn tail(world: &World) -> String {
    let text = std::fs::read_to_string(world.path("containerd.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
