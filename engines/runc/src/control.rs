//! The control thread: answers the daemon, waits for nothing but its socket and the
//! driver's news, so that State, Signal and ReopenLog are answered while runc is slow.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use criw_engines::log::Log;
use criw_engines::protocol::{FdRole, Phase, REVISION, Reply, Request};
use criw_engines::server::{Caller, Event, Server};
use criw_engines::shim;
use criw_engines::spec::Role;
use rustix::process::Pid;

use crate::children::Children;
use crate::driver::{Life, Messenger, News, Order};
use crate::exec;
use crate::parts::Parts;

/// Code of a process whose container never ran, as its exit record would say.
const NEVER_RAN: u8 = 128;

/// How many may wait for one start.
const MAX_WAITING: usize = 16;

struct Control {
    server: Server,
    children: Arc<Children>,
    order: Sender<Order>,
    phase: Phase,
    role: Role,
    pid: Option<Pid>,
    log: Arc<Log>,
    /// To whom an answer to Create or Start is owed. More than one when a daemon was killed
    /// between its Start and the answer, and the next one asks again.
    waiting: Vec<Caller>,
}

/// Serves until the container or exec has ended.
pub(crate) fn serve() -> Result<ExitCode, String> {
    let mut server = shim::begin()?;
    let children = Children::adopt().map_err(|error| format!("become a subreaper: {error}"))?;
    let created = shim::wait_for_create(&mut server).map_err(socket_failed)?;
    let (caller, spec, descriptors) = created.ok_or("nobody sent Create in time")?;
    let begun = Parts::new(spec, descriptors).and_then(|parts| begin(&children, parts));
    let begun = match begun {
        Ok(begun) => begun,
        Err(message) => {
            server.reply(caller, &Reply::Failed { message });
            return Ok(ExitCode::from(NEVER_RAN));
        }
    };
    let mut control = Control {
        server,
        children,
        order: begun.order,
        phase: Phase::Empty,
        role: begun.role,
        pid: None,
        log: begun.log,
        waiting: vec![caller],
    };
    loop {
        let event = control.server.next(&[begun.wake.as_fd()], None);
        match event.map_err(socket_failed)? {
            Event::Request {
                caller,
                request,
                fds,
            } => {
                if let Some(reply) = control.answer(caller, request, fds) {
                    control.server.reply(caller, &reply);
                }
            }
            Event::Wake(_) => {
                let mut count = [0; 8];
                // Only the count is reset; the messages themselves say what happened.
                let _ = rustix::io::read(&begun.wake, &mut count);
                while let Ok(news) = begun.news.try_recv() {
                    if let Some(code) = control.hear(news) {
                        return Ok(code);
                    }
                }
            }
            Event::Deadline => {}
        }
    }
}

fn socket_failed(error: io::Error) -> String {
    format!("serve the socket: {error}")
}

/// A driver at work, and the ways to and from it.
struct Begun {
    order: Sender<Order>,
    news: Receiver<News>,
    wake: Arc<OwnedFd>,
    log: Arc<Log>,
    role: Role,
}

fn begin(children: &Arc<Children>, mut parts: Parts) -> Result<Begun, String> {
    let failed = |error: io::Error| format!("create: start driver thread: {error}");
    let (messenger, news, wake) = Messenger::new().map_err(failed)?;
    let (order, orders) = channel();
    let log = Log::new(parts.log.take());
    let role = parts.spec.criw.role;
    let life = Life {
        children: Arc::clone(children),
        log: Arc::clone(&log),
        news: messenger,
        orders,
        order: order.clone(),
    };
    std::thread::Builder::new()
        .name("driver".into())
        .stack_size(256 * 1024)
        .spawn(move || life.live(parts))
        .map_err(failed)?;
    Ok(Begun {
        order,
        news,
        wake,
        log,
        role,
    })
}

impl Control {
    /// The answer, or `None` when it follows with the driver's news.
    fn answer(&mut self, caller: Caller, request: Request, fds: Vec<OwnedFd>) -> Option<Reply> {
        let result = match request {
            Request::Create { .. } => Err("create: this shim has its container already".into()),
            Request::Start => self.start(caller),
            Request::Signal { signal, .. } => self.signal(signal).map(Some),
            Request::ReopenLog { fds: roles } => self.reopen(&roles, fds).map(Some),
            Request::State => Ok(Some(Reply::State {
                phase: self.phase,
                pid: self.pid.map(raw),
                dropped_log_lines: self.log.dropped(),
                revision: REVISION,
                wasm: None,
            })),
            Request::Attach { fds: roles } => {
                let added = self.log.attach().add(&roles, fds);
                added.map(|()| Some(Reply::Done))
            }
            Request::Spawner { .. } => {
                Err("spawner: a Linux container starts its own processes".into())
            }
            Request::Resize { width, height } => {
                let resized = self.log.attach().resize(width, height);
                resized.map(|()| Some(Reply::Done))
            }
        };
        result.unwrap_or_else(|message| Some(Reply::Failed { message }))
    }

    fn start(&mut self, caller: Caller) -> Result<Option<Reply>, String> {
        match self.phase {
            Phase::Created if self.waiting.len() < MAX_WAITING => {
                if self.waiting.is_empty() {
                    // The driver lives as long as there is something to order.
                    let _ = self.order.send(Order::Start);
                }
                self.waiting.push(caller);
                Ok(None)
            }
            Phase::Created => Err("start: too many wait for it already".into()),
            Phase::Empty => Err("start: create is under way".into()),
            // Asked for by a daemon that was killed before it could note the answer; the
            // next one found the container not yet started, and asks again.
            Phase::Running => Ok(Some(Reply::Started)),
            Phase::Exited => Err("start: it has ended".into()),
        }
    }

    fn signal(&self, signal: i32) -> Result<Reply, String> {
        let Some(pid) = self.pid else {
            if self.phase == Phase::Created && signal == libc::SIGKILL && self.waiting.is_empty() {
                let _ = self.order.send(Order::Cancel(signal));
                return Ok(Reply::Done);
            }
            return Err(format!(
                "signal {signal}: there is no process to send it to"
            ));
        };
        let sent = if self.role == Role::Exec && signal == libc::SIGKILL {
            self.kill_exec(pid)
        } else {
            self.children.signal(pid, signal)
        };
        match sent {
            Ok(()) => Ok(Reply::Done),
            // It has ended, which is what signals are for.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Reply::Done),
            Err(error) => Err(format!("send signal {signal} to pid {}: {error}", raw(pid))),
        }
    }

    /// It may take some rounds until all children are dead: not on this thread.
    fn kill_exec(&self, pid: Pid) -> io::Result<()> {
        let children = Arc::clone(&self.children);
        std::thread::Builder::new()
            .name("kill".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                // An error means that it has ended.
                let _ = exec::kill(&children, pid);
            })
            .map(drop)
    }

    fn reopen(&self, roles: &[FdRole], mut fds: Vec<OwnedFd>) -> Result<Reply, String> {
        match (roles, fds.pop()) {
            ([FdRole::Log], Some(fd)) => self
                .log
                .reopen(fd)
                .map(|()| Reply::Done)
                .map_err(|error| format!("reopen log: {error}")),
            _ => Err("reopen log: send one descriptor, the log".into()),
        }
    }

    /// The code to end with, when it is time.
    fn hear(&mut self, news: News) -> Option<ExitCode> {
        let (reply, end) = match news {
            News::Created(Ok(pid)) => {
                (self.phase, self.pid) = (Phase::Created, pid);
                (Some(Reply::Created { pid: pid.map(raw) }), None)
            }
            News::Created(Err(message)) => (Some(Reply::Failed { message }), Some(NEVER_RAN)),
            News::Started(Ok(pid)) => {
                (self.phase, self.pid) = (Phase::Running, Some(pid));
                (Some(Reply::Started), None)
            }
            News::Started(Err(message)) => {
                self.phase = Phase::Exited;
                (Some(Reply::StartFailed { message }), Some(NEVER_RAN))
            }
            News::Ended(code) => {
                self.phase = Phase::Exited;
                // A Start that came too late to be carried out.
                let message = "start: it has ended before it was started".to_owned();
                (
                    Some(Reply::Failed { message }),
                    Some(u8::try_from(code).unwrap_or(u8::MAX)),
                )
            }
        };
        // Without a reply nobody waits: the driver has news of its own accord only at the end.
        if let Some(reply) = reply {
            for caller in std::mem::take(&mut self.waiting) {
                self.server.reply(caller, &reply);
            }
        }
        end.map(ExitCode::from)
    }
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
