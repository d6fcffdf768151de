//! All children of this process: one thread reaps them, everybody else asks here.
//!
//! As a child subreaper the shim gets processes that it never started: the
//! container's init when `runc create` ends, and orphans of a container in the
//! host's PID namespace. A wait for any of them must not take the status of a
//! child that somebody else waits for, so there is one place that reaps. It does
//! so under the same lock that guards signals: a pid known here is never one that
//! the kernel has given to another process.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions};

use crate::sys;

/// See the module.
#[derive(Default)]
pub(crate) struct Children {
    table: Mutex<Table>,
    spawned: Condvar,
}

/// Told once, on the reaper's thread and under the lock: it must neither wait nor ask here.
pub(crate) type Tell = Box<dyn FnOnce(ExitStatus) + Send>;

#[derive(Default)]
struct Table {
    waiters: HashMap<i32, Tell>,
    /// What ended before anybody claimed it. Kept while a claim may follow only;
    /// a pid occurs once, so `pid_max` bounds it.
    strays: Option<HashMap<i32, ExitStatus>>,
    /// Counts calls of spawn: the reaper sleeps while there is no child.
    generation: u64,
}

/// A child and the place where its end is told, once.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) ended: Receiver<ExitStatus>,
}

impl Children {
    /// Makes this process a child subreaper and starts the thread that reaps.
    pub(crate) fn adopt() -> io::Result<Arc<Self>> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let children = Arc::new(Self::default());
        let reaper = Arc::clone(&children);
        std::thread::Builder::new()
            .name("reaper".into())
            .stack_size(64 * 1024)
            .spawn(move || reaper.reap())?;
        Ok(children)
    }

    /// Starts a process.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held over the spawn: where the program cannot be executed, std reaps the
        // child itself and relies on that nobody did it before.
        let mut table = self.lock();
        let child = command.spawn()?;
        table.generation += 1;
        self.spawned.notify_all();
        let pid = Pid::from_child(&child);
        let (sender, ended) = sync_channel(1);
        // Whoever does not listen any more needs nothing.
        let tell = move |status| {
            let _ = sender.try_send(status);
        };
        table.waiters.insert(raw(pid), Box::new(tell));
        Ok(Child { pid, ended })
    }

    /// Remembers from now on how children end that nobody waits for; see [`Self::claim`].
    pub(crate) fn expect_adoption(&self) {
        self.lock().strays = Some(HashMap::new());
    }

    /// Takes over a process that was adopted since [`Self::expect_adoption`], and
    /// stops remembering the others. `tell` is called at its end, or now when that
    /// has come. False when it is no child of this process.
    pub(crate) fn claim(&self, pid: Pid, tell: Tell) -> bool {
        let mut table = self.lock();
        match table
            .strays
            .take()
            .and_then(|mut ones| ones.remove(&raw(pid)))
        {
            Some(status) => tell(status),
            None if sys::is_child(pid) => drop(table.waiters.insert(raw(pid), tell)),
            None => return false,
        }
        true
    }

    /// Stops remembering, when no claim follows.
    pub(crate) fn expect_no_adoption(&self) {
        self.lock().strays = None;
    }

    /// Sends a signal to a child that was spawned or claimed. `ESRCH` once it is reaped.
    pub(crate) fn signal(&self, pid: Pid, signal: i32) -> io::Result<()> {
        let table = self.lock();
        table.alive(pid)?;
        sys::kill(raw(pid), signal)
    }

    /// The same for a child's whole process group, which the child must lead.
    pub(crate) fn signal_group(&self, pid: Pid, signal: i32) -> io::Result<()> {
        let table = self.lock();
        table.alive(pid)?;
        sys::kill(-raw(pid), signal)
    }

    fn reap(&self) {
        loop {
            let generation = self.lock().generation;
            match sys::wait_for_any_ended_child() {
                Ok(pid) => self.reap_one(pid),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    let table = self.lock();
                    drop(
                        self.spawned
                            .wait_while(table, |table| table.generation == generation),
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn reap_one(&self, pid: Pid) {
        let mut table = self.lock();
        let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) else {
            return;
        };
        let status = ExitStatus::from_raw(status.as_raw());
        match table.waiters.remove(&raw(pid)) {
            Some(tell) => tell(status),
            None => {
                if let Some(strays) = &mut table.strays {
                    strays.insert(raw(pid), status);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn alive(&self, pid: Pid) -> io::Result<()> {
        if self.waiters.contains_key(&raw(pid)) {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
