//! The terminal of a Wasm guest: a pseudo-terminal whose one end the guest has as its
//! three streams, and the threads between the other end and the client or the log.
//!
//! The kernel edits lines and echoes (canonical mode). It raises no signals, because a
//! guest has none: the interrupt character (Ctrl-C, 0x03) is taken out of the input here.
//! Where nobody wants it, it goes on and ends a line, so that a shell sees it there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use crate::pump::{Pump, STACK};
use crate::stdio::Output;

/// What Ctrl-C sends.
const INTERRUPT: u8 = 0x03;

/// What Ctrl-D sends: the end of the input, where a line begins.
const END: u8 = 0x04;

/// Bytes of input that may wait for the guest; the client waits beyond that.
const MAX_PENDING: usize = 64 * 1024;

/// Asked when the interrupt character comes; false leaves it to whoever reads the terminal.
pub(crate) type Interrupt = Box<dyn Fn() -> bool + Send>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    input: Option<Arc<OwnedFd>>,
    screen: Option<Pump>,
}

impl Terminal {
    /// Makes one; the second is the guest's end. Needs the host's /dev.
    pub(crate) fn open() -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // By the master: no path is looked up, whichever devpts this mount namespace has.
        let guest = ioctl_tiocgptpeer(&master, flags)?;
        let mut modes = tcgetattr(&guest)?;
        modes.local_modes.remove(LocalModes::ISIG);
        modes.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(&guest, OptionalActions::Now, &modes)?;
        // The guest may read less than is typed.
        rustix::io::ioctl_fionbio(&master, true)?;
        let terminal = Self {
            master,
            input: None,
            screen: None,
        };
        Ok((terminal, guest))
    }

    /// For its size.
    pub(crate) fn master(&self) -> io::Result<OwnedFd> {
        self.master.try_clone()
    }

    /// Where the client types; without it nobody does.
    pub(crate) fn set_input(&mut self, input: Option<Arc<OwnedFd>>) {
        self.input = input;
    }

    /// Begins to copy, both ways.
    pub(crate) fn begin(&mut self, screen: Output, interrupt: Interrupt) -> io::Result<()> {
        let from = self.master.try_clone()?;
        let pump = Pump::start("screen", from, move |bytes| screen.write(bytes))?;
        self.screen = Some(pump);
        if let Some(input) = self.input.take() {
            let master = self.master.try_clone()?;
            std::thread::Builder::new()
                .name("keyboard".to_owned())
                .stack_size(STACK)
                .spawn(move || drop(type_in(&input, &master, &interrupt)))?;
        }
        Ok(())
    }

    /// Waits until all is shown that the guest wrote, but no longer than `limit`.
    pub(crate) fn drain(&self, limit: Duration) {
        if let Some(screen) = &self.screen {
            screen.drain(limit);
        }
    }
}

/// Until the client closes, which is the end of the input for every later reader.
fn type_in(input: &OwnedFd, master: &OwnedFd, interrupt: &Interrupt) -> io::Result<()> {
    let mut pending = VecDeque::new();
    let mut open = true;
    let mut chunk = [0; 1024];
    while open || !pending.is_empty() {
        let room = open && pending.len() < MAX_PENDING;
        let flags = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let mut polled = [
            PollFd::new(master, flags(!pending.is_empty(), PollFlags::OUT)),
            PollFd::new(input, flags(room, PollFlags::IN)),
        ];
        // A closed pipe is told whether it is asked for or not.
        let asked = if room { 2 } else { 1 };
        rustix::io::retry_on_intr(|| poll(&mut polled[..asked], None))?;
        let (writable, readable) = (polled[0].revents(), polled[1].revents());
        if !readable.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(input, &mut chunk))?;
            if count == 0 {
                open = false;
                // One ends a line that was begun, the other is the end.
                pending.extend([END, END]);
            }
            take(&chunk[..count], &mut pending, interrupt);
        }
        if writable.contains(PollFlags::OUT) {
            let (piece, _) = pending.as_slices();
            match rustix::io::write(master, piece) {
                Ok(count) => drop(pending.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// An interrupt also takes away what nobody has read yet, as a terminal does.
fn take(bytes: &[u8], pending: &mut VecDeque<u8>, interrupt: &Interrupt) {
    for byte in bytes {
        if *byte == INTERRUPT && interrupt() {
            pending.clear();
        } else {
            pending.push_back(*byte);
        }
    }
}
