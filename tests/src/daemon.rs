//! The daemon as a process of its own: started in a world, killed, waited for.

use std::fs::{File, OpenOptions};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use criw_proto::v1::VersionRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::binaries;
use crate::client::Client;
use crate::wait;
use crate::world::World;

/// A running (or ended) daemon.
pub struct Daemon {
    process: Child,
}

impl Daemon {
    /// Starts it and waits until it answers Version.
    pub fn start(world: &World, env: &[(&str, &str)]) -> Result<(Self, Client)> {
        let mut daemon = Self::spawn(world, env)?;
        let client = daemon.ready(world)?;
        Ok((daemon, client))
    }

    /// Starts it without waiting for anything.
    pub fn spawn(world: &World, env: &[(&str, &str)]) -> Result<Self> {
        let log = log(world)?;
        let process = world
            .command(binaries::criw()?)
            .arg("serve")
            .arg("--config")
            .arg(world.path("config.toml"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start criw")?;
        Ok(Self { process })
    }

    /// Waits until it serves.
    pub fn ready(&mut self, world: &World) -> Result<Client> {
        let socket = world.path("s");
        let answer = wait::until("criw to answer Version", wait::PATIENCE, || {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(Err(status));
            }
            let client = Client::connect(&socket).ok()?;
            client.version(VersionRequest::default()).ok()?;
            Some(Ok(client))
        })?;
        match answer {
            Ok(client) => Ok(client),
            Err(status) => bail!("criw ended at its start: {status}\n{}", tail(world)),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill criw")?;
        self.process.wait().context("wait for criw")?;
        Ok(())
    }

    /// SIGTERM, and waits until it is gone.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("pid of criw")?;
        kill_process(pid, Signal::TERM).context("send SIGTERM to criw")?;
        self.ended(wait::PATIENCE)
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        wait::until("criw to end", patience, || self.process.try_wait().ok()?)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn log(world: &World) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(world.path("criw.log"))
        .context("open the daemon's log")
}

/// The end of the daemon's log, for a failing test.
pub fn tail(world: &World) -> String {
    let text = std::fs::read_to_string(world.path("criw.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
