//! The thread that lives a container's or an exec's life from Create to the exit
//! record. It may wait for runc; the control thread, which gives the orders and
//! gets the news, never does.
//!
//! ```text
//!   create --> Created --Start--> runc start --> Started --ended--> drain --> record --> delete
//!     |            \--ended or Cancel--------------------------------^
//!     v                               \--error--> record --> delete --> Started(error)
//!   Created(error): nothing is left
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use criw_engines::log::Log;
use criw_engines::protocol::{ExitReason, ExitRecord};
use criw_engines::slice;
use criw_engines::spec::Role;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;

use crate::call::Streams;
use crate::children::{Children, Tell};
use crate::container;
use crate::ended::code_and_reason;
use crate::exec::Exec;
use crate::memory;
use crate::parts::Parts;
use crate::pump::Pump;

/// How long the streams may stay open after the end of their process.
const DRAIN: Duration = Duration::from_secs(1);

/// What the driver waits for.
#[derive(Debug)]
pub(crate) enum Order {
    /// "go".
    Start,
    /// End with this signal's code, without having run.
    Cancel(i32),
    /// From the reaper: the first process ended.
    Ended(ExitStatus),
}

/// What the control thread hears; errors are texts for the user.
#[derive(Debug)]
pub(crate) enum News {
    /// The pid is told by now for a container, at Start for an exec.
    Created(Result<Option<Pid>, String>),
    Started(Result<Pid, String>),
    /// All is done: the process may end with this code.
    Ended(i32),
}

/// A channel whose messages wake a poll loop.
#[derive(Debug)]
pub(crate) struct Messenger {
    sender: Sender<News>,
    wake: Arc<OwnedFd>,
}

impl Messenger {
    /// With the descriptor that becomes readable for each message.
    pub(crate) fn new() -> std::io::Result<(Self, Receiver<News>, Arc<OwnedFd>)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, receiver) = std::sync::mpsc::channel();
        let messenger = Self {
            sender,
            wake: Arc::clone(&wake),
        };
        Ok((messenger, receiver, wake))
    }

    fn tell(&self, news: News) {
        // The control thread ends with the process only.
        let _ = self.sender.send(news);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Everything that the driver works with.
pub(crate) struct Life {
    pub(crate) children: Arc<Children>,
    pub(crate) log: Arc<Log>,
    pub(crate) news: Messenger,
    pub(crate) orders: Receiver<Order>,
    /// The other end of `orders`, for the reaper.
    pub(crate) order: Sender<Order>,
}

impl Life {
    /// From Create to the end.
    pub(crate) fn live(self, parts: Parts) {
        match parts.spec.criw.role {
            Role::Container => self.live_as_container(parts),
            Role::Exec => self.live_as_exec(parts),
        }
    }

    fn live_as_container(self, parts: Parts) {
        let record = parts.record;
        let pieces = container::Pieces {
            rootfs: parts.rootfs,
            mounts: parts.mounts,
            user_namespace: parts.user_namespace,
            stdin: parts.streams.stdin,
        };
        let created = container::create(
            &self.children,
            &parts.spec,
            &parts.section,
            pieces,
            self.ended(),
        );
        let (container, mut output) = match created {
            Ok(created) => created,
            Err(text) => return self.news.tell(News::Created(Err(text))),
        };
        if let (Some(stdin), Some(mode)) = (output.stdin.take(), parts.spec.criw.stdin) {
            self.log.attach().set_input(stdin, mode);
        }
        if let Some(terminal) = output.terminal.take() {
            self.log.attach().set_terminal(terminal);
        }
        let pump = match Pump::start(output, &self.log) {
            Ok(pump) => pump,
            Err(error) => {
                container.end();
                let text = format!("start thread for the container's output: {error}");
                return self.news.tell(News::Created(Err(text)));
            }
        };
        self.news.tell(News::Created(Ok(Some(container.init))));
        let linux = parts.spec.oci.linux().as_ref();
        let cgroup = linux
            .and_then(|linux| linux.cgroups_path().as_deref())
            .and_then(|path| slice::of_cgroups_path(&path.to_string_lossy()));
        let (code, reason) = loop {
            match self.next() {
                Order::Start => match container.start() {
                    Ok(()) => self.news.tell(News::Started(Ok(container.init))),
                    Err(text) => {
                        self.record(&record, 128, ExitReason::StartError, &text);
                        container.end();
                        return self.news.tell(News::Started(Err(text)));
                    }
                },
                Order::Ended(status) => break code_and_reason(status),
                // A container is ended by its process' end; that order follows.
                Order::Cancel(_) => {}
            }
        };
        // Before the rest is killed: systemd removes a scope, and the counter in it, at once.
        let (reason, text) = memory::judge(code, reason, cgroup.as_deref());
        if let Err(text) = container.kill_rest() {
            eprintln!("criw-shim-runc: {text}");
        }
        pump.drain(DRAIN);
        self.record(&record, code, reason, text);
        container.end();
        self.news.tell(News::Ended(code));
    }

    fn live_as_exec(self, parts: Parts) {
        let record = parts.record;
        let streams: Streams = parts.streams;
        let prepared = Exec::prepare(&self.children, &parts.spec, &parts.section, streams);
        let exec = match prepared {
            Ok(exec) => exec,
            Err(text) => return self.news.tell(News::Created(Err(text))),
        };
        self.news.tell(News::Created(Ok(None)));
        match self.next() {
            Order::Start | Order::Ended(_) => {}
            Order::Cancel(signal) => {
                let code = 128 + signal;
                self.record(
                    &record,
                    code,
                    ExitReason::Error,
                    "killed before it was started",
                );
                return self.news.tell(News::Ended(code));
            }
        }
        let running = match exec.start(self.ended()) {
            Ok(running) => running,
            Err(text) => {
                self.record(&record, 128, ExitReason::StartError, &text);
                return self.news.tell(News::Started(Err(text)));
            }
        };
        let terminal = running.terminal.map(|terminal| {
            self.log.attach().set_terminal(terminal.master.try_clone()?);
            terminal.connect()
        });
        self.news.tell(News::Started(Ok(running.process)));
        let (code, reason) = loop {
            if let Order::Ended(status) = self.next() {
                break code_and_reason(status);
            }
        };
        let mut message = String::new();
        match terminal {
            Some(Ok(terminal)) => terminal.drain(DRAIN),
            Some(Err(error)) => message = format!("connect terminal of exec: {error}"),
            None => {}
        }
        self.record(&record, code, reason, &message);
        self.news.tell(News::Ended(code));
    }

    fn next(&self) -> Order {
        self.orders
            .recv()
            .expect("one sender is in self, so the channel cannot close")
    }

    fn ended(&self) -> Tell {
        let order = self.order.clone();
        // The driver that does not listen any more has ended its container by force.
        Box::new(move |status| drop(order.send(Order::Ended(status))))
    }

    fn record(&self, file: &OwnedFd, code: i32, reason: ExitReason, message: &str) {
        let record = ExitRecord {
            dropped_log_lines: self.log.dropped(),
            ..ExitRecord::now(code, reason, message)
        };
        if let Err(error) = record.write(file.as_fd()) {
            // The daemon then takes the process' own exit code.
            eprintln!("criw-shim-runc: write exit record: {error}");
        }
    }
}
