//! From the container's pipes or terminal to its log, on one thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use criw_engines::log::{Log, LogWriter};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::container::Output;

/// Bytes of one read; a pipe holds four times as many.
const CHUNK: usize = 16 * 1024;

/// A running pump.
#[derive(Debug)]
pub(crate) struct Pump {
    writers: Vec<Arc<LogWriter>>,
    /// Disconnected when the thread ended.
    done: Receiver<()>,
}

impl Pump {
    pub(crate) fn start(output: Output, log: &Arc<Log>) -> io::Result<Self> {
        let mut sources = vec![(output.stdout, Arc::new(log.stdout()))];
        if let Some(stderr) = output.stderr {
            sources.push((stderr, Arc::new(log.stderr())));
        }
        let writers = sources.iter().map(|(_, to)| Arc::clone(to)).collect();
        let (ends, done) = channel::<()>();
        std::thread::Builder::new()
            .name("pump".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                run(sources);
                drop(ends);
            })?;
        Ok(Self { writers, done })
    }

    /// Waits until all that was written is in the log, but no longer than `limit`:
    /// whoever outlives the container may hold its pipes for ever.
    pub(crate) fn drain(self, limit: Duration) {
        // Nothing is ever sent: an error either way, by the end or by the time.
        let _ = self.done.recv_timeout(limit);
        for writer in self.writers {
            writer.finish(limit);
        }
    }
}

fn run(mut sources: Vec<(OwnedFd, Arc<LogWriter>)>) {
    let mut chunk = vec![0; CHUNK];
    while !sources.is_empty() {
        let ready: Vec<bool> = {
            let mut fds: Vec<_> = sources
                .iter()
                .map(|(from, _)| PollFd::new(from, PollFlags::IN))
                .collect();
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let mut ready = ready.into_iter();
        sources.retain(|(from, to)| {
            if ready.next() != Some(true) {
                return true;
            }
            match rustix::io::read(from, &mut chunk) {
                Ok(count @ 1..) => {
                    to.feed(&chunk[..count]);
                    true
                }
                Err(Errno::INTR | Errno::AGAIN) => true,
                // A terminal ends with EIO.
                Ok(0) | Err(_) => {
                    to.finish(Duration::from_secs(1));
                    false
                }
            }
        });
    }
}
