//! One container: a shim with a tmpfs root in private namespaces, torn down on drop.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criw_engines::client::{Child, Join, Launch, Namespaces, ShimSocket, launch};
use criw_engines::protocol::{ExitRecord, FdRole, Reply, Request, VERSION};
use criw_engines::spec::{EngineSection, Role, Section, Spec, WasmSection};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tempfile::TempDir;

/// Nothing here takes this long, not even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn binary(name: &str) -> PathBuf {
    let build = std::env::var_os("CRIW_BUILD_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../build")),
        PathBuf::from,
    );
    build.join("libexec/criw").join(name)
}

/// Says loudly that a test cannot run here. Use: `if skip("name") { return; }`
pub(crate) fn skip(test: &str) -> bool {
    let missing = ["criw-shim-wasmtime", "criw-compile"]
        .into_iter()
        .map(binary)
        .find(|path| !path.exists());
    if !rustix::process::geteuid().is_root() {
        skipped(test, "needs root");
    } else if let Some(path) = missing {
        skipped(test, &format!("{} is not built", path.display()));
    } else {
        return false;
    }
    true
}

pub(crate) fn skipped(test: &str, reason: &str) {
    println!("SKIP: {test}: {reason}");
    if let Some(path) = std::env::var_os("CRIW_SKIPS") {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

/// Runs the real compiler.
pub(crate) fn compile(module: &[u8]) -> Result<File, String> {
    compile_with(&[], module)
}

/// The same for code that counts its fuel.
pub(crate) fn compile_metered(module: &[u8]) -> Result<File, String> {
    compile_with(&["--fuel"], module)
}

fn compile_with(args: &[&str], module: &[u8]) -> Result<File, String> {
    let mut code = tempfile::tempfile().unwrap();
    let mut compiler = Command::new(binary("criw-compile"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(code.try_clone().unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A compiler that refuses early closes its end.
    let _ = compiler.stdin.take().unwrap().write_all(module);
    let output = compiler.wait_with_output().unwrap();
    code.rewind().unwrap();
    if output.status.success() {
        return Ok(code);
    }
    let text = String::from_utf8(output.stderr).unwrap();
    Err(format!("{:?}: {text}", output.status.code()))
}

/// What a test may choose.
pub(crate) struct Plan {
    pub(crate) wasm: WasmSection,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) uid: u32,
    /// Destinations and detached mounts.
    pub(crate) mounts: Vec<(String, OwnedFd)>,
    /// A network namespace other than the test's.
    pub(crate) network: Option<OwnedFd>,
    /// An exec in this container, with these standard streams.
    pub(crate) exec: Option<(OwnedFd, Vec<(FdRole, OwnedFd)>)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            wasm: WasmSection::default(),
            args: vec!["guest".to_owned()],
            env: Vec::new(),
            uid: 65_534,
            mounts: Vec::new(),
            network: None,
            exec: None,
        }
    }
}

pub(crate) struct Container {
    pub(crate) directory: TempDir,
    pub(crate) child: Child,
    pub(crate) socket: ShimSocket,
    /// How long the launch took.
    pub(crate) launched: Duration,
    record: File,
    reaped: bool,
}

/// A detached tmpfs with these files.
pub(crate) fn tmpfs(files: &[(&str, &str)]) -> OwnedFd {
    tmpfs_of("50%", files)
}

/// One of this size, that everybody may write to.
pub(crate) fn tmpfs_of(size: &str, files: &[(&str, &str)]) -> OwnedFd {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "size", size).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .unwrap();
    for (name, text) in files {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&mount, *name, flags, Mode::from_raw_mode(0o644)).unwrap();
        File::from(file).write_all(text.as_bytes()).unwrap();
    }
    mount
}

fn spec_file(plan: &Plan) -> File {
    let mounts: Vec<_> = plan
        .mounts
        .iter()
        .map(|(destination, _)| serde_json::json!({ "destination": destination }))
        .collect();
    let oci = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": plan.uid, "gid": plan.uid },
            "args": plan.args,
            "env": plan.env,
            "cwd": "/",
        },
        "mounts": mounts,
    });
    let spec = Spec {
        oci: serde_json::from_value(oci).unwrap(),
        criw: Section {
            version: VERSION,
            container: "c".repeat(64),
            sandbox: "5".repeat(64),
            role: if plan.exec.is_some() {
                Role::Exec
            } else {
                Role::Container
            },
            stdin: None,
            engine: EngineSection::Wasm(plan.wasm.clone()),
        },
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&spec.to_json().unwrap()).unwrap();
    file.rewind().unwrap();
    file
}

impl Container {
    /// Launches a shim; nothing was said to it yet.
    pub(crate) fn launch(network: Option<OwnedFd>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stderr = File::create(directory.path().join("stderr")).unwrap();
        let listener = ShimSocket::bind(directory.path()).unwrap();
        let begin = Instant::now();
        let child = launch(Launch {
            program: binary("criw-shim-wasmtime"),
            id: "test".to_owned(),
            listener,
            cgroup_dirs: Vec::new(),
            namespaces: Namespaces {
                join: network.into_iter().map(Join::Namespace).collect(),
                new_pid: true,
            },
            stderr: Some(stderr.into()),
        })
        .unwrap();
        let launched = begin.elapsed();
        Self {
            launched,
            socket: ShimSocket::at(directory.path()),
            record: File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(directory.path().join("exit"))
                .unwrap(),
            directory,
            child,
            reaped: false,
        }
    }

    /// Launches and creates.
    pub(crate) fn create(code: &File, mut plan: Plan) -> Result<Self, String> {
        let container = Self::launch(plan.network.take());
        let spec = spec_file(&plan);
        let rootfs = tmpfs(&[("greeting", "hello from the root\n")]);
        let log = container.open_log();
        let mut fds = vec![
            (FdRole::Spec, spec.as_fd()),
            (FdRole::ExitRecord, container.record.as_fd()),
            (FdRole::Code, code.as_fd()),
        ];
        match &plan.exec {
            Some((mounts, streams)) => {
                fds.push((FdRole::ContainerMounts, mounts.as_fd()));
                fds.extend(streams.iter().map(|(role, fd)| (*role, fd.as_fd())));
            }
            None => {
                fds.push((FdRole::Rootfs, rootfs.as_fd()));
                fds.push((FdRole::Log, log.as_fd()));
            }
        }
        for (n, (_, mount)) in (0..).zip(&plan.mounts) {
            fds.push((FdRole::Mount(n), mount.as_fd()));
        }
        let request = Request::Create {
            version: VERSION,
            fds: fds.iter().map(|(role, _)| *role).collect(),
        };
        let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(|(_, fd)| fd).collect();
        match container.socket.call(&request, &fds, DEADLINE).unwrap() {
            Reply::Created { pid: None } => Ok(container),
            Reply::Failed { message } => Err(message),
            other => panic!("{other:?}"),
        }
    }

    /// A running container from WAT.
    pub(crate) fn run(wat: &str, plan: Plan) -> Self {
        let container = Self::create(&compile(wat.as_bytes()).unwrap(), plan).unwrap();
        assert_eq!(container.call(&Request::Start), Reply::Started);
        container
    }

    pub(crate) fn call(&self, request: &Request) -> Reply {
        self.socket.call(request, &[], DEADLINE).unwrap()
    }

    pub(crate) fn stop(&self) -> Reply {
        self.call(&Request::Signal {
            signal: libc::SIGTERM,
            stop: true,
            grace_ms: 30_000,
        })
    }

    pub(crate) fn open_log(&self) -> File {
        File::options()
            .append(true)
            .create(true)
            .open(self.directory.path().join("log"))
            .unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Text of the log's lines: (stream, tag, text).
    pub(crate) fn lines(&self) -> Vec<(String, String, String)> {
        self.log()
            .lines()
            .map(|line| {
                let mut words = line.splitn(4, ' ').skip(1).map(str::to_owned);
                let mut word = || words.next().unwrap();
                (word(), word(), word())
            })
            .collect()
    }

    /// Waits for the end: the kernel's exit code and the shim's record.
    pub(crate) fn wait(&mut self) -> (i32, Option<ExitRecord>) {
        let deadline = Timespec::try_from(DEADLINE).unwrap();
        let mut polled = [PollFd::new(&self.child.pidfd, PollFlags::IN)];
        let ready = rustix::event::poll(&mut polled, Some(&deadline)).unwrap();
        assert_eq!(ready, 1, "the shim did not end in time");
        let code = self.child.reap().unwrap().unwrap();
        self.reaped = true;
        (code, ExitRecord::read(self.record.as_fd()).unwrap())
    }

    /// What the shim said before it could speak.
    pub(crate) fn stderr(&self) -> String {
        let mut text = String::new();
        File::open(self.directory.path().join("stderr"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    /// The container's mount namespace, for an exec.
    pub(crate) fn mounts(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/mnt", self.child.pid))
            .unwrap()
            .into()
    }

    /// Waits until the log says so.
    pub(crate) fn await_log(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = rustix::process::pidfd_send_signal(
                &self.child.pidfd,
                rustix::process::Signal::KILL,
            );
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(self.child.pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
        }
    }
}
