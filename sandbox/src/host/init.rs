//! Starts `criw-init`, pid 1 of a pod whose containers share one PID namespace, or of a PID
//! namespace of its own, as the pod's one process that cAdvisor can count the pod's traffic by.
//! It ends by SIGKILL only, and everything in the namespace with it. Born in its cgroup,
//! it is found by that if the daemon dies before it has noted whom it started.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use criw_engines::birth::{Birth, Cgroups, Label, Program};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::pins::PodNamespaces;
use super::{Context, boot, on_fresh_thread, template};
use crate::container_state::ProcessIdentity;
use crate::error::{Error, Result};
use crate::fault;

/// A running init. It is a child of this process: [`boot::exit_status`] reaps it.
#[derive(Debug)]
pub struct Init {
    /// What records keep.
    pub identity: ProcessIdentity,
    /// Readable when it ended.
    pub pidfd: OwnedFd,
}

impl Init {
    /// The PID namespace, for shims to join.
    pub fn namespace(&self) -> Result<OwnedFd> {
        pid_namespace(self.identity.pid)
    }
}

/// The PID namespace of an init that was found again by [`boot::open_if_same`].
pub fn pid_namespace(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/pid");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).context(|| format!("open {path}"))
}

/// Starts `program` (static: the mount namespace of `template` has no library) in
/// these cgroup directories. It sees no file of the host, because containers of
/// the pod might reach its root through procfs. It is in the pod's network. With a user
/// namespace it and its PID namespace belong to that: only then may its containers mount a procfs.
/// `label` is its SELinux label.
pub fn start(
    program: &Path,
    template: BorrowedFd<'_>,
    pod: &PodNamespaces,
    cgroup_dirs: &[PathBuf],
    label: Option<&str>,
) -> Result<Init> {
    let open = |path: &Path, flags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {}", path.display()))
    };
    let binary = open(program, OFlags::PATH)?;
    let null = open(Path::new("/dev/null"), OFlags::RDWR)?;
    let cgroups = Cgroups::open(cgroup_dirs).context(|| format!("start {}", program.display()))?;
    let proc = label.map(|_| template::open_proc()).transpose()?;
    let label = label.zip(proc.as_ref()).map(|(text, proc)| Label {
        text,
        proc: proc.as_fd(),
    });
    let (pid, pidfd) = on_fresh_thread(|| {
        template::enter(template)?;
        if let Some(network) = &pod.net {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .context(|| "enter a pod's network namespace")?;
        }
        Birth {
            program: Program::File(binary.as_fd()),
            argv: &[c"criw-init".to_owned()],
            descriptors: &[null.as_fd(); 3],
            cgroups: &cgroups,
            user_namespace: pod.user.as_ref().map(AsFd::as_fd),
            new_pid_namespace: true,
            label,
        }
        .start()
        .context(|| format!("start {}", program.display()))
    })?;
    fault::point("run-pod/init-started");
    match watch(pid) {
        Ok(identity) => Ok(Init { identity, pidfd }),
        Err(error) => {
            // Our own child, not yet reaped: the pidfd is certainly it.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let id = WaitId::PidFd(pidfd.as_fd());
            let _ = rustix::process::waitid(id, WaitIdOptions::EXITED);
            Err(error)
        }
    }
}

fn watch(pid: i32) -> Result<ProcessIdentity> {
    boot::identity(pid)?.ok_or_else(|| {
        Error::node(
            format!("watch the init of a pod (pid {pid})"),
            std::io::Error::from(std::io::ErrorKind::NotFound),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::boot::WaitStatus;
    use super::*;

    /// Any static binary will do as init here; what criw-init does is tested beside it.
    fn static_sleeper(directory: &Path) -> Option<PathBuf> {
        let (source, binary) = (directory.join("init.c"), directory.join("init"));
        std::fs::write(
            &source,
            "#include <unistd.h>\nint main(void) { return pause(); }\n",
        )
        .ok()?;
        let compiled = std::process::Command::new("cc")
            .args(["-static", "-o"])
            .args([&binary, &source])
            .status();
        compiled
            .is_ok_and(|status| status.success())
            .then_some(binary)
    }

    #[test]
    fn an_init_is_pid_1_of_a_namespace_and_sees_only_the_template() {
        let directory = tempfile::tempdir().unwrap();
        let Some(program) = static_sleeper(directory.path()) else {
            eprintln!("skipped: no C compiler to make a static binary");
            return;
        };
        let template = template::mount_template(None).unwrap();
        let begin = Instant::now();
        let pod = PodNamespaces::default();
        let init = start(&program, template.as_fd(), &pod, &[], None).unwrap();
        eprintln!("start of a pod's init: {:?}", begin.elapsed());
        let pid = init.identity.pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let pids = status
            .lines()
            .find(|line| line.starts_with("NSpid:"))
            .unwrap();
        assert!(pids.ends_with("\t1"), "{pids}");
        init.namespace().unwrap();
        let root = std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
        let mut names: Vec<_> = root.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["empty", "root"]);
        assert!(boot::open_if_same(init.identity).unwrap().is_some());
        rustix::process::pidfd_send_signal(&init.pidfd, Signal::KILL).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match boot::exit_status(init.pidfd.as_fd()).unwrap() {
                Some(status) => break assert_eq!(status, WaitStatus::Signal(9)),
                None => assert!(Instant::now() < end, "the init does not end"),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failed_start_leaves_no_process() {
        let template = template::mount_template(None).unwrap();
        let absent = [PathBuf::from("/sys/fs/cgroup/no-such-group")];
        let pod = PodNamespaces::default();
        assert!(
            start(
                Path::new("/bin/sleep"),
                template.as_fd(),
                &pod,
                &absent,
                None
            )
            .is_err()
        );
        assert!(
            start(
                Path::new("/no/such/init"),
                template.as_fd(),
                &pod,
                &[],
                None
            )
            .is_err()
        );
    }
}
