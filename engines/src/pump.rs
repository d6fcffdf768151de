//! A thread that copies what comes out of a descriptor, and can be told to come to an end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes of the thread's stack.
pub(crate) const STACK: usize = 128 * 1024;

/// Bytes that are copied at once.
const CHUNK: usize = 16 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pump {
    stop: OwnedFd,
    /// Disconnected when the thread has ended.
    done: Mutex<Receiver<()>>,
}

impl Pump {
    /// Copies until the other end is closed.
    pub(crate) fn start(
        name: &str,
        from: OwnedFd,
        mut to: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let (running, done) = channel::<()>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _running = running;
                copy(&from, &stopped, &mut to);
            })?;
        Ok(Self {
            stop,
            done: Mutex::new(done),
        })
    }

    /// Waits until what was written so far is copied, but no longer than `limit`; nothing is
    /// copied afterwards.
    pub(crate) fn drain(&self, limit: Duration) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent: an error either way, by the end or by the time.
        let _ = done.recv_timeout(limit);
    }
}

fn copy(from: &OwnedFd, stop: &OwnedFd, to: &mut dyn FnMut(&[u8])) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut polled = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        if rustix::io::retry_on_intr(|| poll(&mut polled, None)).is_err() {
            return;
        }
        if polled[0].revents().is_empty() {
            // Told to stop, and nothing is left.
            return;
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut chunk)) {
            // A terminal whose other end is closed says EIO.
            Err(Errno::AGAIN) => {}
            Ok(0) | Err(_) => return,
            Ok(count) => to(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use rustix::event::Timespec;

    use super::*;

    #[test]
    fn what_was_written_before_the_end_is_copied() {
        let copied = Arc::new(Mutex::new(Vec::new()));
        let (read, mut write) = io::pipe().unwrap();
        let target = copied.clone();
        let pump = Pump::start("test", read.into(), move |bytes| {
            target.lock().unwrap().extend_from_slice(bytes);
        })
        .unwrap();
        write.write_all(&[7; 50_000]).unwrap();
        // The other end is still open.
        pump.drain(Duration::from_secs(10));
        assert_eq!(copied.lock().unwrap().len(), 50_000);
        // Nobody reads any more, once what another test forks has become another program.
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let mut ends = [PollFd::new(&write, PollFlags::empty())];
        poll(&mut ends, Some(&limit)).unwrap();
        assert!(ends[0].revents().contains(PollFlags::ERR));
    }
}
