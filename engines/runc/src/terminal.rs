//! Connects an exec's terminal with the streams that the daemon gave.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A terminal's master and the streams to connect it with.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
}

/// A terminal whose output is being copied.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Disconnected when the output ended.
    done: Receiver<()>,
}

impl Terminal {
    pub(crate) fn connect(self) -> std::io::Result<Connected> {
        let (ends, done) = channel::<()>();
        if let Some(stdin) = self.stdin {
            let to = self.master.try_clone()?;
            // Ends with the process when the client never closes.
            thread("stdin", move || copy(stdin, to))?;
        }
        let (from, to) = (self.master, self.stdout);
        thread("stdout", move || {
            match to {
                Some(to) => copy(from, to),
                // A terminal that nobody reads stops its process.
                None => drop(std::io::copy(
                    &mut std::fs::File::from(from),
                    &mut std::io::sink(),
                )),
            }
            drop(ends);
        })?;
        Ok(Connected { done })
    }
}

impl Connected {
    /// Waits for the last output, but no longer than `limit`.
    pub(crate) fn drain(self, limit: Duration) {
        // Nothing is ever sent: an error either way, by the end or by the time.
        let _ = self.done.recv_timeout(limit);
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name(name.into());
    builder.stack_size(128 * 1024).spawn(work).map(drop)
}

/// Until one side ends; a terminal says so with EIO.
fn copy(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..count]).is_err() {
            return;
        }
    }
}
