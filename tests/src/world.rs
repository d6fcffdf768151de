//! A private place on the machine: a directory with a short name (unix socket
//! paths end at 108 bytes), and a network and mount namespace held open by a
//! process of ours, so that neither links, rules nor mounts of the host are touched.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The place; dropped, it takes everything in it away.
pub struct World {
    /// Private directory.
    pub dir: PathBuf,
    /// Unique name, also of our cgroup parent.
    pub name: String,
    holder: Child,
}

impl World {
    /// Makes one. `lo` is up in it, no mount propagates.
    pub fn new() -> Result<Self> {
        Self::with(&[], "true")
    }

    /// Makes one in which mounts propagate, as they do on a node, and whose System V
    /// objects are its own.
    pub fn like_a_node() -> Result<Self> {
        // Private first: peers of the host's mounts would propagate to the host.
        Self::with(&["--ipc"], "mount --make-rshared /")
    }

    fn with(namespaces: &[&str], first: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "cw{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // cat ends with our end of its pipe: no process outlives a killed test.
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(namespaces)
            .args(["sh", "-c"])
            .arg(format!(
                "{first} && ip link set lo up && echo up && exec cat"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare a network and a mount namespace")?;
        let stdout = holder.stdout.take().context("stdout of the holder")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == "up", "the namespace holder did not come up");
        Ok(Self { dir, name, holder })
    }

    /// Pid of the process that holds the namespaces.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Absolute cgroup path that everything of this world lies below.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name)
    }

    /// A path in the private directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in the private directory, made when missing.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// A command that runs inside; its pid is that of the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder()))
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder()))
            .arg(format!("--ipc=/proc/{}/ns/ipc", self.holder()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a command inside to its end; its output, or an error with what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(args)
            .output()
            .with_context(|| format!("run {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {}: {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs code in the network namespace, on a thread that ends with it.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/proc/{}/ns/net", self.holder());
        let netns = File::open(&path).with_context(|| format!("open {path}"))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    move_into_link_name_space(
                        std::os::fd::AsFd::as_fd(&netns),
                        Some(LinkNameSpaceType::Network),
                    )
                    .context("enter the network namespace")?;
                    inside()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        remove_cgroups(&self.name);
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("remove {}: {error}", self.dir.display());
        }
    }
}

/// Kills what is left in cgroups of that name, in every hierarchy, and removes them.
fn remove_cgroups(name: &str) {
    let deepest_first = |mut groups: Vec<PathBuf>| {
        groups.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        groups
    };
    let _ = crate::wait::until("cgroups to go", crate::wait::PATIENCE, || {
        let groups = deepest_first(crate::leak::cgroup::directories(name));
        for group in &groups {
            for pid in crate::leak::cgroup::members(group) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            let _ = std::fs::remove_dir(group);
        }
        groups.is_empty().then_some(())
    });
}
