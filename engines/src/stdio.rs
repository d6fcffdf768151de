//! The guest's standard streams: the container's log, or the descriptors of an exec.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::guest::Ending;
use crate::log::{Log, LogWriter};
use crate::pump::Pump;

/// What a shell shows of a command that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

/// Where output goes. Cheap to clone; clones share half lines.
#[derive(Debug, Clone)]
pub enum Output {
    /// Lines in the container's log.
    Log(Arc<Logged>),
    /// Bytes to a descriptor (exec).
    Raw(Arc<Raw>),
    /// Thrown away.
    Null,
}

/// One stream of the log, and a way in for the commands that the guest starts.
#[derive(Debug)]
pub struct Logged {
    writer: Arc<LogWriter>,
    relay: OnceLock<Relay>,
}

/// A pipe that is copied into the log.
#[derive(Debug)]
struct Relay {
    way_in: OwnedFd,
    pump: Pump,
}

/// A descriptor of an exec and whether its reader left.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    closed: AtomicBool,
    /// A reader that leaves ends the guest.
    ending: Option<Ending>,
}

impl Output {
    /// Output to a descriptor. Who gives an `ending` gets the guest ended as by SIGPIPE
    /// when it writes and nobody reads any more.
    pub fn raw(fd: OwnedFd, ending: Option<Ending>) -> Self {
        Self::Raw(Arc::new(Raw {
            fd,
            closed: AtomicBool::new(false),
            ending,
        }))
    }

    /// Output to the log.
    pub fn log(writer: LogWriter) -> Self {
        Self::Log(Arc::new(Logged {
            writer: Arc::new(writer),
            relay: OnceLock::new(),
        }))
    }

    /// Takes all bytes. Never fails: a full log drops lines (see [`Log`]), a reader
    /// that left throws the rest away; a slow one slows the guest down, as a pipe does.
    pub fn write(&self, bytes: &[u8]) {
        match self {
            Self::Log(logged) => logged.write(bytes),
            Self::Raw(raw) => {
                if !raw.closed.load(Ordering::Relaxed) && write_all(&raw.fd, bytes).is_err() {
                    raw.closed.store(true, Ordering::Relaxed);
                    if let Some(ending) = &raw.ending {
                        ending.end(BROKEN_PIPE);
                    }
                }
            }
            Self::Null => {}
        }
    }

    /// A descriptor for another process that shall write to the same place; `None` when
    /// that is nowhere.
    pub fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        match self {
            Self::Log(logged) => logged.way_in().map(Some),
            Self::Raw(raw) => Ok(Some(raw.fd.as_fd())),
            Self::Null => Ok(None),
        }
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Raw(raw) => rustix::termios::isatty(&raw.fd),
            Self::Log(_) | Self::Null => false,
        }
    }

    /// The guest ended: writes what is on its way, and its half line. Bounded, see
    /// [`LogWriter::finish`].
    pub fn finish(&self, limit: Duration) {
        if let Self::Log(logged) = self {
            if let Some(relay) = logged.relay.get() {
                relay.pump.drain(limit);
            }
            logged.writer.finish(limit);
        }
    }
}

impl Logged {
    /// Through the relay once there is one: what the guest writes after a command has
    /// ended must stand behind what that wrote.
    fn write(&self, bytes: &[u8]) {
        match self.relay.get() {
            Some(relay) => drop(write_all(&relay.way_in, bytes)),
            None => self.writer.feed(bytes),
        }
    }

    /// Made at the first question; only the guest's thread asks.
    fn way_in(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(relay) = self.relay.get() {
            return Ok(relay.way_in.as_fd());
        }
        let (way_out, way_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let writer = Arc::clone(&self.writer);
        let pump = Pump::start("relay", way_out, move |bytes| writer.feed(bytes))?;
        let relay = self.relay.get_or_init(|| Relay { way_in, pump });
        Ok(relay.way_in.as_fd())
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // The other end may have made the pipe non-blocking.
            Err(Errno::AGAIN) => {
                rustix::event::poll(&mut [PollFd::new(fd, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The three streams.
#[derive(Debug, Clone)]
pub struct Stdio {
    /// `None` is an empty stream.
    pub stdin: Option<Arc<OwnedFd>>,
    /// See [`Output`].
    pub stdout: Output,
    /// See [`Output`].
    pub stderr: Output,
}

impl Stdio {
    /// The streams of a container: output to the log, no input.
    pub fn to_log(log: &Arc<Log>) -> Self {
        Self {
            stdin: None,
            stdout: Output::log(log.stdout()),
            stderr: Output::log(log.stderr()),
        }
    }

    /// The streams of an exec, see [`Output::raw`].
    pub fn to_descriptors(
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        ending: Option<&Ending>,
    ) -> Self {
        let output = |fd: Option<OwnedFd>| match fd {
            Some(fd) => Output::raw(fd, ending.cloned()),
            None => Output::Null,
        };
        Self {
            stdin: stdin.map(Arc::new),
            stdout: output(stdout),
            stderr: output(stderr),
        }
    }

    /// All three are a terminal.
    pub fn to_terminal(terminal: OwnedFd) -> io::Result<Self> {
        let output = Output::raw(terminal.try_clone()?, None);
        Ok(Self {
            stdin: Some(Arc::new(terminal)),
            stdout: output.clone(),
            stderr: output,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_leaves_costs_nothing() {
        let (mut read, write) = std::io::pipe().unwrap();
        let output = Output::raw(write.into(), None);
        output.write(b"hello");
        let mut bytes = [0; 5];
        read.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        drop(read);
        output.write(&vec![0; 1 << 20]);
        output.write(b"more");
    }

    #[test]
    fn a_slow_reader_gets_everything() {
        let (mut read, write) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            read.read_to_end(&mut all).unwrap();
            all.len()
        });
        let output = Output::raw(write.into(), None);
        output.write(&vec![7; 3 << 20]);
        drop(output);
        assert_eq!(reader.join().unwrap(), 3 << 20);
    }

    #[test]
    fn others_write_to_the_log_too() {
        let file = tempfile::tempfile().unwrap();
        let log = Log::new(Some(file.try_clone().unwrap().into()));
        let output = Stdio::to_log(&log).stdout;
        output.write(b"guest\n");
        let other = output.descriptor().unwrap().unwrap();
        rustix::io::write(other, b"command\nhalf").unwrap();
        output.finish(Duration::from_secs(10));
        let mut text = String::new();
        io::Seek::rewind(&mut &file).unwrap();
        (&file).read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.lines().map(|line| &line[31..]).collect();
        assert_eq!(
            lines,
            ["stdout F guest", "stdout F command", "stdout P half"]
        );
    }
}
