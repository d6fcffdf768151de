//! Starts a process that is born where it belongs: in its cgroups, in the namespaces of
//! the calling thread, with nothing of the daemon but the descriptors it is given.
//!
//! Moving a process into a cgroup afterwards makes the kernel wait for all CPUs: 4 to
//! 12 ms in each pod's start, measured. Two ways do not wait: cgroup v2 takes a new
//! process as part of clone(2), and in v1 a process of one thread may move itself.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys;

/// What is executed.
#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    /// A path in the mount namespace of the calling thread.
    Path(&'a CStr),
    /// An open file (`O_PATH` will do), for a program that is not in sight there.
    File(BorrowedFd<'a>),
}

/// A process to be.
#[derive(Debug)]
pub struct Birth<'a> {
    /// What is executed, with an empty environment, in a session of its own, with
    /// default signals.
    pub program: Program<'a>,
    /// Its arguments, the first is its name.
    pub argv: &'a [CString],
    /// Its descriptors from 0 on; it has no others.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Where it is born.
    pub cgroups: &'a Cgroups,
    /// Where it is root, and whom a new PID namespace belongs to; `None` is that of the
    /// calling thread.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// Make it pid 1 of a PID namespace of its own.
    pub new_pid_namespace: bool,
    /// Its SELinux label; `None` is what the policy says.
    pub label: Option<Label<'a>>,
}

/// A label for a process that executes no file of a container, by which the kernel would
/// know what it is: it changes to it by itself, before it executes.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// The label.
    pub text: &'a str,
    /// A procfs that shows the calling thread, for programs that have none in sight.
    pub proc: BorrowedFd<'a>,
}

/// The open cgroups of a process to be, one per hierarchy; none means those of the
/// calling thread. Open them where they are in sight, before a change of the mount namespace.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// Directory, and its `tasks` file.
    v1: Vec<(PathBuf, OwnedFd)>,
    /// Directory.
    v2: Option<(PathBuf, OwnedFd)>,
}

impl Cgroups {
    /// Opens existing directories. The error names the one that could not be opened.
    pub fn open(directories: &[PathBuf]) -> io::Result<Self> {
        let mut all = Self::default();
        for directory in directories {
            // The file that only v1 has.
            let tasks = directory.join("tasks");
            let opened = rustix::fs::open(&tasks, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            match opened {
                Ok(file) => all.v1.push((directory.clone(), file)),
                Err(Errno::NOENT) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let group = rustix::fs::open(directory, flags, Mode::empty())
                        .map_err(|error| cgroup_error(directory, &error.into()))?;
                    all.v2 = Some((directory.clone(), group));
                }
                Err(error) => return Err(cgroup_error(directory, &error.into())),
            }
        }
        Ok(all)
    }
}

impl Birth<'_> {
    /// Starts it; returns its pid and pidfd. It is a child of this process. On failure
    /// nothing is left, and the text names the cgroup that could not be joined.
    pub fn start(&self) -> io::Result<(i32, OwnedFd)> {
        let Cgroups { v1, v2 } = self.cgroups;
        let tasks: Vec<_> = v1.iter().map(|(_, file)| file.as_fd()).collect();
        let born = sys::clone_and_execute(&sys::Clone {
            program: match self.program {
                Program::Path(path) => (None, path),
                Program::File(file) => (Some(file), c""),
            },
            argv: self.argv,
            descriptors: self.descriptors,
            v1_tasks: &tasks,
            v2_group: v2.as_ref().map(|(_, group)| group.as_fd()),
            user_namespace: self.user_namespace,
            new_pid_namespace: self.new_pid_namespace,
            label: self.label.map(|label| (label.proc, label.text.as_bytes())),
        });
        born.map_err(|(step, source)| {
            let directory = match step {
                // The kernel says why, not whether it was the cgroup: EBUSY, EOPNOTSUPP are.
                sys::Step::Clone => v2.as_ref().map(|(directory, _)| directory),
                sys::Step::JoinV1(n) => v1.get(n).map(|(directory, _)| directory),
                sys::Step::EnterUsers => {
                    return io::Error::new(
                        source.kind(),
                        format!("become root of the pod's user namespace: {source}"),
                    );
                }
                sys::Step::Label => {
                    let label = self.label.map(|label| label.text).unwrap_or_default();
                    return io::Error::new(
                        source.kind(),
                        format!(
                            "take SELinux label {label}: {source}; the node's policy must let the daemon's domain change to it (dyntransition)"
                        ),
                    );
                }
                sys::Step::Execute => None,
            };
            match directory {
                Some(directory) => cgroup_error(directory, &source),
                None => source,
            }
        })
    }
}

fn cgroup_error(directory: &Path, source: &io::Error) -> io::Error {
    io::Error::new(
        source.kind(),
        format!("start in cgroup {}: {source}", directory.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    fn words(words: &[&str]) -> Vec<CString> {
        words
            .iter()
            .map(|word| CString::new(*word).unwrap())
            .collect()
    }

    /// What a shell script says on its standard output, and its exit code.
    fn run(script: &str, cgroup_dirs: &[PathBuf], new_pid_namespace: bool) -> (String, i32) {
        let (mut out, stdout) = pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let (_, pidfd) = Birth {
            program: Program::Path(c"/bin/sh"),
            argv: &words(&["sh", "-c", script]),
            descriptors: &[null.as_fd(), stdout.as_fd(), null.as_fd()],
            cgroups: &Cgroups::open(cgroup_dirs).unwrap(),
            user_namespace: None,
            new_pid_namespace,
            label: None,
        }
        .start()
        .unwrap();
        drop(stdout);
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        (text, status.unwrap().exit_status().unwrap())
    }

    #[test]
    fn nothing_of_the_parent_is_inherited() {
        let leaked = std::fs::File::open("/dev/zero").unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let script = "echo /proc/$$/fd/*; cat /proc/$$/environ; \
            grep -E '^Sig(Blk|Ign)' /proc/self/status; [ $(cut -d' ' -f6 /proc/$$/stat) = $$ ]";
        let (text, code) = run(script, &[], false);
        assert_eq!(code, 0, "it leads no session: {text}");
        let mut lines = text.lines();
        let fds = lines.next().unwrap();
        let numbers: Vec<_> = fds
            .split(' ')
            .filter_map(|fd| fd.rsplit('/').next())
            .collect();
        // The shell opens the directory that it lists.
        assert!(numbers.starts_with(&["0", "1", "2"]), "{fds}");
        assert!(numbers.len() <= 4, "{fds}");
        let signals: Vec<_> = lines.collect();
        assert_eq!(
            signals,
            ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]
        );
    }

    #[test]
    fn a_missing_program_and_a_missing_cgroup_are_errors_that_leave_nothing() {
        let missing = Birth {
            program: Program::Path(c"/no/such/program"),
            argv: &words(&["x"]),
            descriptors: &[],
            cgroups: &Cgroups::default(),
            user_namespace: None,
            new_pid_namespace: false,
            label: None,
        };
        let error = missing.start().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = Cgroups::open(&["/no/such/group".into()]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("start in cgroup /no/such/group: "),
            "{error}"
        );
    }

    #[test]
    fn a_label_that_the_kernel_does_not_take_is_named() {
        let proc = std::fs::File::open("/proc").unwrap();
        let labelled = Birth {
            program: Program::Path(c"/bin/sh"),
            argv: &words(&["sh", "-c", "true"]),
            descriptors: &[],
            cgroups: &Cgroups::default(),
            user_namespace: None,
            new_pid_namespace: false,
            label: Some(Label {
                text: "criw-no-such-label",
                proc: proc.as_fd(),
            }),
        };
        let error = labelled.start().unwrap_err().to_string();
        assert!(
            error.starts_with("take SELinux label criw-no-such-label: "),
            "{error}"
        );
    }

    #[test]
    fn pid_one_of_its_own_namespace() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a PID namespace needs root");
            return;
        }
        assert_eq!(run("echo $$", &[], true), ("1\n".to_owned(), 0));
    }

    /// Moved into its cgroup after its start, a process waited for a grace period of the kernel.
    #[test]
    fn born_in_its_cgroups_of_every_kind() {
        let name = format!("criw-birth-{}", std::process::id());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let groups: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let point = left.split(' ').nth(4)?;
                (right.starts_with("cgroup ") || right.starts_with("cgroup2 "))
                    // Not without cpus and memory of its own.
                    .then(|| Path::new(point).join(&name))
                    .filter(|group| !group.starts_with("/sys/fs/cgroup/cpuset"))
            })
            .filter(|group| std::fs::create_dir(group).is_ok())
            .collect();
        if groups.is_empty() {
            eprintln!("skipped: no cgroup can be made here");
            return;
        }
        let (text, code) = run("cat /proc/self/cgroup", &groups, false);
        let member = text.lines().filter(|line| line.ends_with(&name)).count();
        for group in &groups {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while std::fs::remove_dir(group).is_err() {
                assert!(
                    std::time::Instant::now() < end,
                    "{} is busy",
                    group.display()
                );
                std::thread::yield_now();
            }
        }
        assert_eq!((member, code), (groups.len(), 0), "{text}");
    }
}
