//! A bundle with a small root, a shim started for it, and the search for leftovers.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use criw_engines::client::{Child, Launch, Namespaces, ShimSocket, launch};
use criw_engines::protocol::{ExitRecord, FdRole, Phase, Reply, Request, VERSION};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::{Value, json};

/// How long any state may take to come on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_criw-shim-runc");

/// The parts that are not ours, or `None` after saying what is missing.
pub(crate) fn parts() -> Option<(PathBuf, PathBuf)> {
    let find = |name: &str| {
        [
            "/usr/sbin",
            "/usr/bin",
            "/usr/local/sbin",
            "/usr/local/bin",
            "/bin",
        ]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
    };
    let (runc, busybox) = (find("runc"), find("busybox"));
    if !rustix::process::geteuid().is_root() || runc.is_none() || busybox.is_none() {
        eprintln!("skipped: needs root, runc ({runc:?}) and busybox-static ({busybox:?})");
        return None;
    }
    Some((runc?, busybox?))
}

/// One container's directory, as the daemon would make it.
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: Value,
}

pub(crate) fn bundle(args: &[&str]) -> Option<Bundle> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (runc, busybox) = parts()?;
    let id = format!(
        "criw-test-runc-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let directory = tempfile::Builder::new().prefix(&id).tempdir().unwrap();
    let path = directory.path();
    let image = path.join("image");
    for name in ["bin", "proc", "dev", "sys", "tmp", "data"] {
        fs::create_dir_all(image.join(name)).unwrap();
    }
    fs::copy(&busybox, image.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "echo", "mount", "ls", "tty"] {
        symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    for name in ["bundle", "runc"] {
        fs::create_dir(path.join(name)).unwrap();
    }
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
        },
        "criw": {
            "version": VERSION,
            "container": id,
            "sandbox": "s",
            "role": "container",
            "engine": {"runc": {
                "binary": runc,
                "root": path.join("runc"),
                "bundle": path.join("bundle"),
                "systemd_cgroup": false,
            }},
        },
    });
    Some(Bundle {
        id,
        directory,
        config,
    })
}

impl Bundle {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A script in place of runc.
    pub(crate) fn replace_runc(&mut self, script: &str) {
        let path = self.path("runc.sh");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.config["criw"]["engine"]["runc"]["binary"] = json!(path);
    }

    /// Starts the shim and lets it create the container.
    pub(crate) fn create(&self) -> (Shim, Reply) {
        let shim = Shim::start(self.directory.path(), &self.id);
        let reply = shim.create(&self.config, &[(FdRole::Rootfs, self.rootfs())]);
        (shim, reply)
    }

    pub(crate) fn rootfs(&self) -> OwnedFd {
        open_tree(
            CWD,
            self.path("image"),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap()
    }

    /// A running container.
    pub(crate) fn run(&self) -> Shim {
        let (shim, reply) = self.create();
        assert!(
            matches!(reply, Reply::Created { pid: Some(_) }),
            "{reply:?}"
        );
        assert_eq!(shim.call(&Request::Start), Reply::Started);
        shim
    }

    /// A shim for one more process in the running container.
    pub(crate) fn exec(&self, args: &[&str], streams: &[(FdRole, OwnedFd)]) -> Shim {
        let directory = tempfile::Builder::new()
            .prefix("exec")
            .tempdir_in(self.directory.path())
            .unwrap()
            .keep();
        let mut config = self.config.clone();
        config["process"]["args"] = json!(args);
        config["criw"]["role"] = json!("exec");
        let shim = Shim::start(&directory, &self.id);
        assert_eq!(
            shim.create_with(&config, streams),
            Reply::Created { pid: None }
        );
        shim
    }

    /// Nothing may be left once all shims have ended.
    pub(crate) fn assert_clean(&self) {
        let runc: Vec<_> = fs::read_dir(self.path("runc")).unwrap().collect();
        assert!(runc.is_empty(), "runc's state: {runc:?}");
        assert_eq!(cgroups(&self.id), Vec::<PathBuf>::new());
        // A kill takes its time to take effect.
        wait_until("no process of the container or its shims is left", || {
            processes(&self.id).is_empty()
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(&self.id))
            .collect();
        assert!(ours.is_empty(), "{ours:?}");
        let files: Vec<_> = fs::read_dir(self.path("bundle"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["config.json", "rootfs", "runc.log"].contains(&name.as_str()))
            .collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // For failed tests only; others have nothing left to end.
        for pid in processes(&self.id) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let end = Instant::now() + Duration::from_secs(5);
        for directory in cgroups(&self.id) {
            // Busy until the last process is reaped.
            while fs::remove_dir(&directory).is_err() && Instant::now() < end {
                std::thread::yield_now();
            }
        }
    }
}

fn cgroups(id: &str) -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap();
    roots
        .map(|root| root.unwrap().path().join(id))
        .chain([Path::new("/sys/fs/cgroup").join(id)])
        .filter(|path| path.exists())
        .collect()
}

/// Pids of live processes whose cgroup or command line names the container.
pub(crate) fn processes(id: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
            let command = fs::read(path.join("cmdline")).ok()?;
            let cgroup = fs::read_to_string(path.join("cgroup")).ok()?;
            let zombie = command.is_empty();
            let named = String::from_utf8_lossy(&command).contains(id) || cgroup.contains(id);
            (named && !zombie).then_some(pid)
        })
        .collect()
}

pub(crate) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !reached() {
        assert!(Instant::now() < end, "not reached in {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A started shim, as the daemon holds it.
pub(crate) struct Shim {
    socket: ShimSocket,
    pub(crate) child: Child,
    record: File,
    pub(crate) log: PathBuf,
}

impl Shim {
    fn start(directory: &Path, id: &str) -> Self {
        let listener = ShimSocket::bind(directory).unwrap();
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(directory.join("shim.stderr"))
            .unwrap();
        let child = launch(Launch {
            program: SHIM.into(),
            id: id.to_owned(),
            listener,
            cgroup_dirs: Vec::new(),
            namespaces: Namespaces::default(),
            stderr: Some(stderr.into()),
        })
        .unwrap();
        let record = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(directory.join("exit.json"))
            .unwrap();
        Self {
            socket: ShimSocket::at(directory),
            child,
            record,
            log: directory.join("log"),
        }
    }

    pub(crate) fn create(&self, config: &Value, fds: &[(FdRole, OwnedFd)]) -> Reply {
        let path = config["criw"]["engine"]["runc"]["bundle"].as_str().unwrap();
        fs::write(Path::new(path).join("config.json"), config.to_string()).unwrap();
        let log = open_log(&self.log);
        let mut all = vec![(FdRole::Log, log.as_fd())];
        all.extend(fds.iter().map(|(role, fd)| (*role, fd.as_fd())));
        self.create_message(config, &all)
    }

    fn create_with(&self, config: &Value, fds: &[(FdRole, OwnedFd)]) -> Reply {
        let all: Vec<_> = fds.iter().map(|(role, fd)| (*role, fd.as_fd())).collect();
        self.create_message(config, &all)
    }

    fn create_message(&self, config: &Value, fds: &[(FdRole, BorrowedFd<'_>)]) -> Reply {
        let mut spec = tempfile::tempfile().unwrap();
        spec.write_all(config.to_string().as_bytes()).unwrap();
        spec.rewind().unwrap();
        let mut all = vec![
            (FdRole::Spec, spec.as_fd()),
            (FdRole::ExitRecord, self.record.as_fd()),
        ];
        all.extend(fds);
        let (roles, fds): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let request = Request::Create {
            version: VERSION,
            fds: roles,
        };
        self.socket.call(&request, &fds, LIMIT).unwrap()
    }

    pub(crate) fn call(&self, request: &Request) -> Reply {
        self.socket.call(request, &[], LIMIT).unwrap()
    }

    pub(crate) fn signal(&self, signal: i32) {
        let request = Request::Signal {
            signal,
            stop: false,
            grace_ms: 0,
        };
        assert_eq!(self.call(&request), Reply::Done);
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.call(&Request::State) {
            Reply::State { phase, .. } => phase,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn reopen(&self, path: &Path) -> Reply {
        let log = open_log(path);
        let request = Request::ReopenLog {
            fds: vec![FdRole::Log],
        };
        self.socket.call(&request, &[log.as_fd()], LIMIT).unwrap()
    }

    /// Waits for the process' end and returns its code and the record.
    pub(crate) fn wait(&self) -> (i32, Option<ExitRecord>) {
        let mut code = None;
        wait_until("the shim ends", || {
            code = self.child.reap().unwrap();
            code.is_some()
        });
        (
            code.unwrap(),
            ExitRecord::read(self.record.as_fd()).unwrap(),
        )
    }

    /// Code, reason and message; the process' own code must agree.
    pub(crate) fn ended(&self) -> (i32, String, String) {
        let (own, record) = self.wait();
        let record = record.expect("an exit record");
        assert_eq!(own, record.code);
        (record.code, record.reason.to_string(), record.message)
    }

    /// Stream, tag and text of the lines in the log.
    pub(crate) fn lines(&self) -> Vec<String> {
        log_lines(&self.log)
    }
}

pub(crate) fn log_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

fn open_log(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// The read end of a pipe, and the write end for an exec.
pub(crate) fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

pub(crate) fn text(mut reader: File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// The sub-command, for a container whose shim is dead.
pub(crate) fn delete(bundle: &Bundle) -> std::process::Output {
    let section = &bundle.config["criw"]["engine"]["runc"];
    Command::new(SHIM)
        .arg("delete")
        .args(["--root", section["root"].as_str().unwrap()])
        .args(["--binary", section["binary"].as_str().unwrap()])
        .arg(&bundle.id)
        .output()
        .unwrap()
}
