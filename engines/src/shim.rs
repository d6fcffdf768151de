//! The main of every Wasm shim: from birth to the exit record, read from top to
//! bottom. [`run`] never returns to the engine's `main` once a container exists.

use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::confinement::Confinement;
use crate::descriptors::Descriptors;
use crate::drain::{Drain, Order};
use crate::engine::{Engine, Outcome, Surroundings};
use crate::facts::Facts;
use crate::guest::{Board, Ending, Guest};
use crate::jail;
use crate::log::Log;
use crate::protocol::{
    ExitReason, ExitRecord, Phase, REVISION, Reply, Request, SOCKET_FD, START_WAIT_MS, VERSION,
};
use crate::record::{chain, clip};
use crate::server::{Caller, Event, Server};
use crate::signal::{self, Action};
use crate::spawner::{self, Answer, Ask, Spawner};
use crate::spec::{EngineSection, MAX_SPEC, Spec, StopMode, WasmSection};
use crate::stdio::{Output, Stdio};
use crate::sys;
use crate::terminal::{Interrupt, Terminal};

/// A shim that nobody creates a container in ends by itself.
const CREATE_LIMIT: Duration = Duration::from_secs(30);

/// How long opening the guest's root may take before Create is answered anyway.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// How long the end waits for a writer that is stuck in the kernel.
const FINISH_LIMIT: Duration = Duration::from_millis(200);

/// How long the end waits for a client to take what its terminal shows last.
const TERMINAL_LIMIT: Duration = Duration::from_secs(5);

/// What a shell shows of a command that its terminal interrupted.
const INTERRUPTED: u8 = 130;

/// How long before the end of the grace a guest that drains gives up.
const DRAIN_MARGIN: Duration = Duration::from_millis(500);

/// Exit code of a shim with a bug, as abort() would have it; there is no exit record.
const PANICKED: u8 = 134;

/// How many may wait for one start.
const MAX_STARTING: usize = 16;

/// Command line of every shim, as [`crate::client::launch`] writes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `--id`: only to be seen in `ps`.
    pub id: String,
}

impl Arguments {
    /// Parses the words after the program's name.
    pub fn parse(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("{} needs a value", word.display()))?;
            match word.to_str() {
                Some("--id") => arguments.id = value.to_string_lossy().into_owned(),
                _ => return Err(format!("unknown argument {}", word.display())),
            }
        }
        Ok(arguments)
    }
}

/// The first act of every shim: takes the inherited socket.
/// Also the whole start of a shim with a control loop of its own (runc's).
pub fn begin() -> Result<Server, String> {
    Arguments::parse(std::env::args_os().skip(1))?;
    let listener = sys::inherited(SOCKET_FD)
        .map_err(|error| format!("take socket from descriptor {SOCKET_FD}: {error}"))?;
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| format!("mark the socket close-on-exec: {error}"))?;
    Server::new(listener).map_err(|error| format!("serve the socket: {error}"))
}

/// Waits for Create, answering State meanwhile. `None` when the time is over.
pub fn wait_for_create(server: &mut Server) -> io::Result<Option<(Caller, Spec, Descriptors)>> {
    let until = Instant::now() + CREATE_LIMIT;
    loop {
        match server.next(&[], Some(until))? {
            Event::Deadline => return Ok(None),
            Event::Wake(_) => {}
            Event::Request {
                caller,
                request:
                    Request::Create {
                        version,
                        fds: roles,
                    },
                fds,
            } => match read_create(version, &roles, fds) {
                Ok((spec, descriptors)) => return Ok(Some((caller, spec, descriptors))),
                Err(message) => server.reply(caller, &Reply::Failed { message }),
            },
            Event::Request {
                caller,
                request: Request::State,
                ..
            } => server.reply(
                caller,
                &Reply::State {
                    phase: Phase::Empty,
                    pid: None,
                    dropped_log_lines: 0,
                    revision: REVISION,
                    wasm: None,
                },
            ),
            Event::Request { caller, .. } => {
                let message = "this shim has no container yet".to_owned();
                server.reply(caller, &Reply::Failed { message });
            }
        }
    }
}

fn read_create(
    version: u32,
    roles: &[crate::protocol::FdRole],
    fds: Vec<OwnedFd>,
) -> Result<(Spec, Descriptors), String> {
    if version != VERSION {
        return Err(format!(
            "request has protocol version {version}, this shim speaks {VERSION}"
        ));
    }
    let mut descriptors = Descriptors::sort(roles, fds)?;
    let file = descriptors.spec.take().ok_or("Create carries no spec")?;
    let mut json = Vec::new();
    std::fs::File::from(file)
        .take(MAX_SPEC as u64 + 1)
        .read_to_end(&mut json)
        .map_err(|error| format!("read spec: {error}"))?;
    let spec = Spec::parse(&json).map_err(|error| chain(&error))?;
    Ok((spec, descriptors))
}

/// Runs a Wasm shim to its end.
pub fn run(engine: &impl Engine) -> ExitCode {
    sys::use_one_heap();
    // As the first process of its PID namespace a shim cannot be relied on to die of
    // its own SIGABRT.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        sys::exit_now(PANICKED);
    }));
    match serve(engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("shim: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve(engine: &impl Engine) -> Result<(), String> {
    let mut server = begin()?;
    let waited = wait_for_create(&mut server).map_err(|error| format!("wait: {error}"))?;
    let Some((caller, spec, mut descriptors)) = waited else {
        return Err(format!("nobody sent Create within {CREATE_LIMIT:?}"));
    };
    let exit_record = descriptors.exit_record.take();
    match create(engine, &spec, descriptors) {
        Ok(container) => {
            server.trust_like(caller);
            let mut control = Control {
                server,
                exit_record,
                container,
                phase: Phase::Created,
                starting: Vec::new(),
                start_until: Instant::now(),
                ends_at: None,
                draining: false,
            };
            control.await_settled();
            control.server.reply(caller, &Reply::Created { pid: None });
            control.run()
        }
        Err(message) => {
            // Half locked up there is no second try.
            let record = ExitRecord::now(128, ExitReason::StartError, message.clone());
            if let Some(file) = &exit_record {
                let _ = record.write(file.as_fd());
            }
            let reply = Reply::Failed {
                message: message.clone(),
            };
            server.reply(caller, &reply);
            Err(message)
        }
    }
}

/// What exists once Create is done.
struct Container {
    guest: Guest,
    streams: Streams,
    spawner: Option<Arc<Spawner>>,
    listeners: Arc<Vec<TcpListener>>,
    drain: Arc<Drain>,
    /// The guest can drain, by its listeners or by itself.
    drains: bool,
    stop: StopMode,
    /// How long it may run.
    deadline: Option<Duration>,
    facts: Option<Arc<Facts>>,
}

/// Builds everything up to "go".
fn create(
    engine: &impl Engine,
    spec: &Spec,
    mut descriptors: Descriptors,
) -> Result<Container, String> {
    let EngineSection::Wasm(wasm) = &spec.criw.engine else {
        return Err("the spec is not for a Wasm engine".to_owned());
    };
    let process = spec
        .oci
        .process()
        .as_ref()
        .ok_or("the spec has no process")?;
    let program = match (&wasm.start_error, descriptors.code.take()) {
        (Some(text), _) => Err(clip(text.clone())),
        (None, Some(code)) => engine.prepare(code, spec).map_err(clip),
        (None, None) => return Err("Create carries no code".to_owned()),
    };
    let spawner = wasm
        .spawner
        .then(|| Spawner::new(descriptors.spawner.take()));
    let board = Board::new().map_err(|error| format!("make the guest's board: {error}"))?;
    let ending = Ending::new(&board);
    let ends = wasm.broken_pipe_ends.then_some(&ending);
    let mut streams = Streams::new(spec, &mut descriptors, ends)?;
    let (program, listeners) = listen(program, wasm);
    let confinement = Confinement::of(process)?;
    jail::enter_root(spec, &mut descriptors)?;
    jail::lock_up(process, descriptors.user_namespace.take(), confinement)?;
    let drain = Arc::new(Drain::default());
    let drains = !listeners.is_empty() || program.as_ref().is_ok_and(|program| program.drains());
    let facts = program.as_ref().ok().and_then(|program| program.facts());
    let args = process.args().as_deref().unwrap_or_default();
    streams.begin(interrupt(args, ending, spawner.clone()))?;
    let surroundings = Surroundings {
        stdio: streams.stdio.clone(),
        listeners: Arc::clone(&listeners),
        drain: Arc::clone(&drain),
        spawner: spawner.clone(),
    };
    let guest = Guest::spawn(board, program, surroundings)
        .map_err(|error| format!("start the guest's thread: {error}"))?;
    Ok(Container {
        guest,
        streams,
        spawner,
        listeners,
        drain,
        drains,
        stop: wasm.stop,
        deadline: wasm.deadline_ms.map(Duration::from_millis),
        facts,
    })
}

/// What the interrupt character does: it ends commands, or else the guest, unless that is a
/// shell that waits for a line: it shall see the character at the line's end.
fn interrupt(args: &[String], ending: Ending, spawner: Option<Arc<Spawner>>) -> Interrupt {
    let shell = spawner.filter(|_| spawner::is_interactive(args, true));
    Box::new(move || match &shell {
        None => ending.end(INTERRUPTED),
        Some(spawner) => {
            let answer = spawner.ask(&Ask::Interrupt);
            matches!(answer, Ok(Answer::Interrupted { commands: 1.. }))
        }
    })
}

/// A port that is taken is the user's mistake: a start error, like a bad module.
fn listen<T>(
    program: Result<T, String>,
    wasm: &WasmSection,
) -> (Result<T, String>, Arc<Vec<TcpListener>>) {
    match jail::bind_listeners(&wasm.listen) {
        Ok(listeners) => (program, Arc::new(listeners)),
        Err(message) => (program.and(Err(message)), Arc::default()),
    }
}

/// The guest's streams, and what carries them.
struct Streams {
    log: Arc<Log>,
    stdio: Stdio,
    terminal: Option<Terminal>,
    /// What the terminal shows goes there.
    screen: Output,
}

impl Streams {
    /// Standard streams are the log, unless the daemon gave others (exec). Called before the
    /// root is entered, where no terminal can be made any more.
    fn new(
        spec: &Spec,
        descriptors: &mut Descriptors,
        ending: Option<&Ending>,
    ) -> Result<Self, String> {
        let log = Log::new(descriptors.log.take());
        let given = (
            descriptors.stdin.take(),
            descriptors.stdout.take(),
            descriptors.stderr.take(),
        );
        let mut stdio = match given {
            (None, None, None) => Stdio::to_log(&log),
            (stdin, stdout, stderr) => Stdio::to_descriptors(stdin, stdout, stderr, ending),
        };
        if let Some(mode) = spec.criw.stdin {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| format!("make a pipe for standard input: {error}"))?;
            stdio.stdin = Some(Arc::new(read));
            log.attach().set_input(write, mode);
        }
        let mut streams = Self {
            log,
            stdio,
            terminal: None,
            screen: Output::Null,
        };
        let process = spec.oci.process().as_ref();
        if process.and_then(|process| process.terminal()) == Some(true) {
            streams.add_terminal()?;
        }
        Ok(streams)
    }

    /// The guest gets a terminal, and what it had before is behind that.
    fn add_terminal(&mut self) -> Result<(), String> {
        let failed = |error: io::Error| format!("make a terminal: {error}");
        let (mut terminal, guest) = Terminal::open().map_err(failed)?;
        self.log
            .attach()
            .set_terminal(terminal.master().map_err(failed)?);
        let stdio = Stdio::to_terminal(guest).map_err(failed)?;
        let before = std::mem::replace(&mut self.stdio, stdio);
        terminal.set_input(before.stdin);
        self.screen = before.stdout;
        self.terminal = Some(terminal);
        Ok(())
    }

    /// Starts the threads, which inherit the lock-up of the caller.
    fn begin(&mut self, interrupt: Interrupt) -> Result<(), String> {
        match &mut self.terminal {
            None => Ok(()),
            Some(terminal) => terminal
                .begin(self.screen.clone(), interrupt)
                .map_err(|error| format!("start the terminal: {error}")),
        }
    }

    /// A last line where `kubectl logs` shows it, if that is possible without waiting for
    /// the guest, which may hold the stream.
    fn say(&self, line: &str) {
        let (stderr, line) = (self.stdio.stderr.clone(), format!("{line}\n"));
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().spawn(move || {
            stderr.write(line.as_bytes());
            let _ = done.send(());
        });
        if thread.is_ok() {
            let _ = wait.recv_timeout(FINISH_LIMIT);
        }
    }

    /// The last output.
    fn finish(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.drain(TERMINAL_LIMIT);
            self.screen.finish(FINISH_LIMIT);
        }
        self.stdio.stdout.finish(FINISH_LIMIT);
        self.stdio.stderr.finish(FINISH_LIMIT);
    }
}

/// The control thread: owns socket, timers and exit record, never waits for the guest.
struct Control {
    server: Server,
    exit_record: Option<OwnedFd>,
    container: Container,
    phase: Phase,
    /// Who waits for the answer to Start. More than one when a daemon was killed between its
    /// Start and the answer, and the next one asks again.
    starting: Vec<Caller>,
    /// Until when they wait.
    start_until: Instant,
    /// When the container has run for as long as it may.
    ends_at: Option<Instant>,
    draining: bool,
}

impl Control {
    /// Waits until the guest's thread is ready for "go", so that Start is quick.
    fn await_settled(&mut self) {
        let end = Instant::now() + SETTLE_LIMIT;
        while !self.container.guest.news().settled {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(left) = rustix::event::Timespec::try_from(left) else {
                return;
            };
            let wake = self.container.guest.wake();
            let mut polled = [rustix::event::PollFd::from_borrowed_fd(
                wake,
                rustix::event::PollFlags::IN,
            )];
            match rustix::event::poll(&mut polled, Some(&left)) {
                Ok(0) => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn run(&mut self) -> Result<(), String> {
        loop {
            let start = (!self.starting.is_empty()).then_some(self.start_until);
            let until = start.into_iter().chain(self.ends_at).min();
            let event = self
                .server
                .next(&[self.container.guest.wake()], until)
                .map_err(|error| format!("wait for requests: {error}"))?;
            match event {
                Event::Wake(_) => self.hear_guest(),
                Event::Deadline => self.look_at_clock(),
                Event::Request {
                    caller,
                    request,
                    fds,
                } => self.answer(caller, request, fds),
            }
        }
    }

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if self.ends_at.is_some_and(|end| end <= now) {
            let deadline = self.container.deadline.unwrap_or_default();
            let outcome = Outcome::exceeded(format!(
                "deadline exceeded: the container may run for {deadline:?} (annotation criw.dev/deadline)"
            ));
            self.container.streams.say(&outcome.message);
            self.end_with_outcome(&outcome);
        }
        if self.start_until <= now {
            self.answer_start();
        }
    }

    fn hear_guest(&mut self) {
        let news = self.container.guest.news();
        if news.started {
            self.answer_start();
        }
        if let Some(outcome) = news.outcome {
            self.end_with_outcome(&outcome);
        }
    }

    /// The guest runs, or its start section took the whole time: both are Started.
    fn answer_start(&mut self) {
        self.reply_start(&Reply::Started);
    }

    fn reply_start(&mut self, reply: &Reply) {
        for caller in std::mem::take(&mut self.starting) {
            self.server.reply(caller, reply);
        }
    }

    fn answer(&mut self, caller: Caller, request: Request, fds: Vec<OwnedFd>) {
        let reply = match request {
            Request::Start if self.phase == Phase::Created => {
                self.phase = Phase::Running;
                let now = Instant::now();
                self.start_until = now + Duration::from_millis(START_WAIT_MS);
                self.ends_at = self
                    .container
                    .deadline
                    .and_then(|deadline| now.checked_add(deadline));
                self.starting.push(caller);
                self.container.guest.go();
                return;
            }
            Request::Start if (1..MAX_STARTING).contains(&self.starting.len()) => {
                self.starting.push(caller);
                return;
            }
            Request::Start if self.phase == Phase::Running => Reply::Started,
            Request::Start => failed("the guest has ended"),
            Request::Create { .. } => failed("this shim has a container already"),
            Request::State => Reply::State {
                phase: self.phase,
                pid: None,
                dropped_log_lines: self.container.streams.log.dropped(),
                revision: REVISION,
                wasm: self.container.facts.as_ref().map(|facts| facts.read()),
            },
            Request::Attach { fds: roles } => {
                done(self.container.streams.log.attach().add(&roles, fds))
            }
            Request::Resize { width, height } => {
                done(self.container.streams.log.attach().resize(width, height))
            }
            Request::Spawner { .. } => done(self.replace_spawner(fds)),
            Request::ReopenLog { .. } => match self.reopen(fds) {
                Ok(()) => Reply::Done,
                Err(error) => failed(&format!("reopen log: {error}")),
            },
            Request::Signal {
                signal,
                stop,
                grace_ms,
            } => match signal::decide(signal, stop, self.container.stop, self.container.drains) {
                Action::Invalid => failed(&format!("there is no signal {signal}")),
                Action::Ignore => Reply::Done,
                Action::Drain => {
                    self.drain(signal, Duration::from_millis(grace_ms));
                    Reply::Done
                }
                Action::End => {
                    let record = signal::ended_by(signal);
                    self.end(record, vec![(caller, Reply::Done)])
                }
            },
        };
        self.server.reply(caller, &reply);
    }

    fn replace_spawner(&self, fds: Vec<OwnedFd>) -> Result<(), String> {
        match (&self.container.spawner, fds.into_iter().next()) {
            (Some(spawner), Some(socket)) => {
                spawner.replace(socket);
                Ok(())
            }
            _ => Err("spawner: this program starts no commands".to_owned()),
        }
    }

    fn reopen(&self, fds: Vec<OwnedFd>) -> io::Result<()> {
        let file = fds
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::other("no descriptor came with the request"))?;
        self.container.streams.log.reopen(file)
    }

    /// A listener that is shut down wakes whoever waits in accept or poll.
    fn drain(&mut self, signal: i32, grace: Duration) {
        // A little earlier, so that the end is told and not cut off by SIGKILL.
        let margin = (grace / 10).min(DRAIN_MARGIN);
        let now = Instant::now();
        self.container.drain.begin(Order {
            signal,
            until: now.checked_add(grace - margin).unwrap_or(now),
        });
        if !std::mem::replace(&mut self.draining, true) {
            for listener in self.container.listeners.iter() {
                let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
            }
        }
    }

    fn end_with_outcome(&mut self, outcome: &Outcome) -> ! {
        let record = ExitRecord::now(
            i32::from(outcome.code),
            outcome.reason,
            outcome.message.clone(),
        );
        let reply = match outcome.reason {
            ExitReason::StartError => Reply::StartFailed {
                message: outcome.message.clone(),
            },
            // It ran; that it is over already is told by the exit record.
            _ => Reply::Started,
        };
        let owed = std::mem::take(&mut self.starting);
        self.end(
            record,
            owed.into_iter()
                .map(|caller| (caller, reply.clone()))
                .collect(),
        )
    }

    /// The last act: half lines, record, the answer that is owed, and out.
    fn end(&mut self, mut record: ExitRecord, owed: Vec<(Caller, Reply)>) -> ! {
        self.phase = Phase::Exited;
        self.container.streams.finish();
        record.dropped_log_lines = self.container.streams.log.dropped();
        if let Some(file) = &self.exit_record {
            let _ = record.write(file.as_fd());
        }
        self.answer_start();
        for (caller, reply) in owed {
            self.server.reply(caller, &reply);
        }
        sys::exit_now(u8::try_from(record.code & 0xff).unwrap_or(u8::MAX))
    }
}

fn done(result: Result<(), String>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(message) => Reply::Failed { message },
    }
}

fn failed(message: &str) -> Reply {
    Reply::Failed {
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_parsed() {
        let parse = |words: &[&str]| Arguments::parse(words.iter().map(|word| (*word).into()));
        assert_eq!(parse(&[]).unwrap(), Arguments::default());
        assert_eq!(parse(&["--id", "x"]).unwrap().id, "x");
        for bad in [&["--id"][..], &["--what", "x"], &["x"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn create_is_checked_before_anything_is_done() {
        use crate::protocol::FdRole;
        let fd = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            OwnedFd::from(file)
        };
        for (version, roles, text, expected) in [
            (VERSION + 1, vec![FdRole::Spec], "{}", "protocol version"),
            (VERSION, vec![FdRole::Log], "{}", "no spec"),
            (VERSION, vec![FdRole::Spec], "{", "parse spec"),
            (VERSION, vec![FdRole::Spec], "{}", "parse spec"),
        ] {
            let error = read_create(version, &roles, vec![fd(text)]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
