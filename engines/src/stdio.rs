//! The guest's standard streams: the container's log, or the descriptors of an exec.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::log::{Log, LogWriter};

/// Where output goes. Cheap to clone; clones share half lines.
#[derive(Debug, Clone)]
pub enum Output {
    /// Lines in the container's log.
    Log(Arc<LogWriter>),
    /// Bytes to a descriptor (exec).
    Raw(Arc<Raw>),
    /// Thrown away.
    Null,
}

/// A descriptor of an exec and whether its reader left.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    closed: AtomicBool,
}

impl Output {
    /// Output to a descriptor.
    pub fn raw(fd: OwnedFd) -> Self {
        Self::Raw(Arc::new(Raw {
            fd,
            closed: AtomicBool::new(false),
        }))
    }

    /// Takes all bytes. Never fails: a full log drops lines (see [`Log`]), a reader
    /// that left throws the rest away; a slow one slows the guest down, as a pipe does.
    pub fn write(&self, bytes: &[u8]) {
        match self {
            Self::Log(writer) => writer.feed(bytes),
            Self::Raw(raw) => {
                if !raw.closed.load(Ordering::Relaxed) && raw.write_all(bytes).is_err() {
                    raw.closed.store(true, Ordering::Relaxed);
                }
            }
            Self::Null => {}
        }
    }

    /// The guest ended: writes its half line. Bounded, see [`LogWriter::finish`].
    pub fn finish(&self, limit: Duration) {
        if let Self::Log(writer) = self {
            writer.finish(limit);
        }
    }
}

impl Raw {
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                // The other end may have made the pipe non-blocking.
                Err(Errno::AGAIN) => {
                    rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The three streams.
#[derive(Debug)]
pub struct Stdio {
    /// `None` is an empty stream.
    pub stdin: Option<OwnedFd>,
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
            stdout: Output::Log(Arc::new(log.stdout())),
            stderr: Output::Log(Arc::new(log.stderr())),
        }
    }

    /// The streams of an exec.
    pub fn to_descriptors(
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Self {
        Self {
            stdin,
            stdout: stdout.map_or(Output::Null, Output::raw),
            stderr: stderr.map_or(Output::Null, Output::raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_leaves_costs_nothing() {
        let (mut read, write) = std::io::pipe().unwrap();
        let output = Output::raw(write.into());
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
        let output = Output::raw(write.into());
        output.write(&vec![7; 3 << 20]);
        drop(output);
        assert_eq!(reader.join().unwrap(), 3 << 20);
    }
}
