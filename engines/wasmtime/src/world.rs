//! What a guest sees of its container, in either world: arguments, environment,
//! the root directory, standard streams, the pod's network.
//!
//! The one preopened directory is `/`. The working directory is not a second one
//! (`.`): wasi-libc strips `/` and `.` from preopen names alike, and the second
//! would hide the first. It is told by `PWD` (which Go's runtime reads) and, to
//! components, by `initial-cwd`; wasi-libc starts in `/`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::input::Input;
use bytes::Bytes;
use criw_engines::stdio::{Output, Stdio};
use oci_spec::runtime::{Process, User};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{FsPerms, HostMonotonicClock, WasiCtx, WasiCtxBuilder, async_trait};

/// Arguments and environment, kept from the spec until the root is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    args: Vec<String>,
    env: Arc<Vec<(String, String)>>,
    cwd: String,
    ids: String,
}

impl World {
    pub(crate) fn new(process: Option<&Process>) -> Self {
        let Some(process) = process else {
            return Self::default();
        };
        let cwd = process.cwd().to_string_lossy().into_owned();
        let mut env: Vec<(String, String)> = process
            .env()
            .iter()
            .flatten()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        if cwd != "/" && !env.iter().any(|(name, _)| name == "PWD") {
            env.push(("PWD".to_owned(), cwd.clone()));
        }
        Self {
            args: process.args().clone().unwrap_or_default(),
            env: Arc::new(env),
            cwd,
            ids: ids(process.user()),
        }
    }

    /// User, group and supplementary groups, as numbers with spaces between.
    pub(crate) fn ids(&self) -> String {
        self.ids.clone()
    }

    /// Opens the root and the streams. Must be called inside the root and a tokio
    /// runtime. `directories` is how often `/` is preopened, see [`crate::overlay`].
    pub(crate) fn builder(
        &self,
        stdio: Stdio,
        directories: usize,
    ) -> Result<WasiCtxBuilder, String> {
        let mut builder = self.outputs(stdio.stdout, stdio.stderr);
        if let Some(fd) = stdio.stdin {
            let input = Input::new(fd).map_err(|error| format!("use standard input: {error}"))?;
            builder.stdin(input);
        }
        for _ in 0..directories {
            open_root(&mut builder)?;
        }
        Ok(builder)
    }

    /// For one request: no input, the outputs of all, and its number as `REQUEST_ID`.
    /// `root` is one descriptor for all requests, see [`World::root`].
    pub(crate) fn for_request(
        &self,
        id: u64,
        stdout: Output,
        stderr: Output,
        root: &WasiFilesystemCtx,
    ) -> WasiCtx {
        let mut wasi = self
            .outputs(stdout, stderr)
            .env("REQUEST_ID", id.to_string())
            .build();
        wasi.filesystem().clone_from(root);
        wasi
    }

    /// The root, opened. It is a place and has no state that guests could change.
    pub(crate) fn root(&self) -> Result<WasiFilesystemCtx, String> {
        let mut builder = self.outputs(Output::Null, Output::Null);
        open_root(&mut builder)?;
        Ok(builder.build().filesystem().clone())
    }

    /// All but the root and the input.
    fn outputs(&self, stdout: Output, stderr: Output) -> WasiCtxBuilder {
        let mut builder = WasiCtxBuilder::new();
        builder
            .args(&self.args)
            .envs(self.env.as_slice())
            .initial_cwd(&self.cwd)
            .inherit_network()
            .allow_tcp(true)
            .allow_udp(true)
            // Never by wasmtime-wasi, which asks libc; see `lookup`.
            .allow_ip_name_lookup(false)
            // One guest, one thread: another thread for each file operation only costs.
            .allow_blocking_current_thread(true)
            .monotonic_clock(Monotonic)
            .stdout(Stream::new(stdout))
            .stderr(Stream::new(stderr));
        builder
    }

    /// The value of a variable.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Takes a variable that is meant for the engine away from the guest.
    pub(crate) fn take_variable(&mut self, name: &str) -> Option<String> {
        let index = self.env.iter().position(|(key, _)| key == name)?;
        Some(Arc::make_mut(&mut self.env).remove(index).1)
    }

    /// All variables.
    pub(crate) fn env(&self) -> Arc<Vec<(String, String)>> {
        Arc::clone(&self.env)
    }
}

/// The groups in order: the kernel sorts those of a process, and tools show them as it does.
fn ids(user: &User) -> String {
    let groups = user.additional_gids().iter().flatten();
    let others: BTreeSet<u32> = groups.copied().filter(|id| *id != user.gid()).collect();
    [user.uid(), user.gid()]
        .iter()
        .chain(&others)
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn open_root(builder: &mut WasiCtxBuilder) -> Result<(), String> {
    builder
        .preopened_dir("/", "/", FsPerms::ReadWrite)
        .map(drop)
        .map_err(|error| format!("open the guest's root: {error:#}"))
}

/// An output that is always ready: it goes to the log, or blocks the guest as a
/// full pipe does.
#[derive(Debug, Clone)]
struct Stream {
    output: Output,
    terminal: bool,
}

impl Stream {
    fn new(output: Output) -> Self {
        let terminal = output.is_terminal();
        Self { output, terminal }
    }
}

/// Bytes that a guest may hand over at once.
const MAX_WRITE: usize = 1 << 20;

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.output.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE)
    }
}

#[async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.output.write(bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// The kernel's monotonic clock as it is: sockets are waited for by the same one.
#[derive(Debug)]
struct Monotonic;

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

/// The guest's thread drives all its I/O.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| format!("start the event loop: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_becomes_a_world() {
        let json = r#"{"user":{"uid":7,"gid":8,"additionalGids":[90,8,9]},"args":["/a","b"],"cwd":"/data",
            "env":["A=1","B=x=y","C","D="]}"#;
        let process: Process = serde_json::from_str(json).unwrap();
        let world = World::new(Some(&process));
        assert_eq!(world.args, ["/a", "b"]);
        assert_eq!(world.ids(), "7 8 9 90");
        let env: Vec<_> = world
            .env
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        assert_eq!(env, ["A:1", "B:x=y", "D:", "PWD:/data"]);
    }
}
