//! The control thread: answers the daemon, waits for nothing but its socket and the
//! driver's news, so that State, Signal and ReopenLog are answered while runc is slow.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use criw_engines::log::Log;
use criw_engines::protocol::{FdRole, Phase, Reply, Request, VERSION};
use criw_engines::server::{Caller, Event, Server};
use criw_engines::spec::Role;
use rustix::process::Pid;

use crate::children::Children;
use crate::driver::{Life, Messenger, News, Order};
use crate::exec;
use crate::parts;

/// Code of a process whose container never ran, as its exit record would say.
const NEVER_RAN: u8 = 128;

struct Control {
    server: Server,
    children: Arc<Children>,
    /// Given to the driver at Create.
    driver: Option<(Messenger, Receiver<Order>)>,
    order: Sender<Order>,
    phase: Phase,
    role: Role,
    pid: Option<Pid>,
    log: Arc<Log>,
    /// Whom Create or Start is owed an answer.
    waiting: Option<Caller>,
}

/// Serves until the container or exec has ended.
pub(crate) fn serve(listener: OwnedFd, children: Arc<Children>) -> io::Result<ExitCode> {
    let (messenger, news, wake) = Messenger::new()?;
    let (order, orders) = channel();
    let mut control = Control {
        server: Server::new(listener)?,
        children,
        driver: Some((messenger, orders)),
        order,
        phase: Phase::Empty,
        role: Role::Container,
        pid: None,
        log: Log::new(None),
        waiting: None,
    };
    loop {
        match control.server.next(&[wake.as_fd()], None)? {
            Event::Request {
                caller,
                request,
                fds,
            } => {
                if let Some(reply) = control.answer(caller, request, fds) {
                    let failed_create =
                        matches!(reply, Reply::Failed { .. }) && control.is_unusable();
                    control.server.reply(caller, &reply);
                    if failed_create {
                        return Ok(ExitCode::from(NEVER_RAN));
                    }
                }
            }
            Event::Wake(_) => {
                let mut count = [0; 8];
                // Only the count is reset; the messages themselves say what happened.
                let _ = rustix::io::read(&wake, &mut count);
                while let Ok(news) = news.try_recv() {
                    if let Some(code) = control.hear(news) {
                        return Ok(code);
                    }
                }
            }
            Event::Deadline => {}
        }
    }
}

impl Control {
    /// The answer, or `None` when it follows with the driver's news.
    fn answer(&mut self, caller: Caller, request: Request, fds: Vec<OwnedFd>) -> Option<Reply> {
        let result = match request {
            Request::Create {
                version,
                fds: roles,
            } => self.create(caller, version, roles, fds),
            Request::Start => self.start(caller),
            Request::Signal { signal, .. } => self.signal(signal).map(Some),
            Request::ReopenLog { fds: roles } => self.reopen(&roles, fds).map(Some),
            Request::State => Ok(Some(Reply::State {
                phase: self.phase,
                pid: self.pid.map(raw),
                dropped_log_lines: self.log.dropped(),
            })),
        };
        result.unwrap_or_else(|message| Some(Reply::Failed { message }))
    }

    fn create(
        &mut self,
        caller: Caller,
        version: u32,
        roles: Vec<FdRole>,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, String> {
        if self.driver.is_none() {
            return Err("create: this shim has its container already".into());
        }
        let (news, orders) = self.driver.take().ok_or("create: called twice")?;
        if version != VERSION {
            return Err(format!(
                "create: the daemon speaks version {version}, this shim {VERSION}: it is of another release"
            ));
        }
        let mut parts = parts::sort(roles, fds).map_err(|error| format!("create: {error}"))?;
        self.role = parts.spec.criw.role;
        self.log = Log::new(parts.log.take());
        let life = Life {
            children: Arc::clone(&self.children),
            log: Arc::clone(&self.log),
            news,
            orders,
            order: self.order.clone(),
        };
        std::thread::Builder::new()
            .name("driver".into())
            .stack_size(256 * 1024)
            .spawn(move || life.live(parts))
            .map_err(|error| format!("create: start driver thread: {error}"))?;
        self.waiting = Some(caller);
        Ok(None)
    }

    /// A Create that failed before there was a driver leaves nothing to serve for.
    fn is_unusable(&self) -> bool {
        self.driver.is_none() && self.phase == Phase::Empty && self.waiting.is_none()
    }

    fn start(&mut self, caller: Caller) -> Result<Option<Reply>, String> {
        match (self.phase, self.waiting) {
            (Phase::Created, None) => {
                self.waiting = Some(caller);
                // The driver lives as long as there is something to order.
                let _ = self.order.send(Order::Start);
                Ok(None)
            }
            (Phase::Created | Phase::Empty, Some(_)) => {
                Err("start: another create or start is under way".into())
            }
            (Phase::Empty, None) => Err("start: nothing was created".into()),
            (Phase::Running, _) => Err("start: it runs already".into()),
            (Phase::Exited, _) => Err("start: it has ended".into()),
        }
    }

    fn signal(&self, signal: i32) -> Result<Reply, String> {
        let Some(pid) = self.pid else {
            if self.phase == Phase::Created && signal == libc::SIGKILL && self.waiting.is_none() {
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
        if let (Some(caller), Some(reply)) = (self.waiting.take(), reply) {
            self.server.reply(caller, &reply);
        }
        end.map(ExitCode::from)
    }
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
