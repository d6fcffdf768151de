//! The guest's thread, and what the control thread sees of it.
//!
//! ```text
//!   control  --spawn-->  settle  --settled-->  waits for "go"
//!   control  --go----->  run     --started-->  ...  --outcome-->  thread ends
//! ```
//! News travel as a state behind a mutex and a wake-up by eventfd; the control
//! thread never waits for the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;

use crate::engine::{Outcome, Program, Surroundings};
use crate::record::clip;

/// Bytes of the guest thread's native stack; only touched pages cost memory. Wasm
/// frames of most engines lie elsewhere.
const STACK: usize = 4 << 20;

/// What the guest has told so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    /// It is ready for "go".
    pub(crate) settled: bool,
    /// It is instantiated and runs.
    pub(crate) started: bool,
    /// It ended.
    pub(crate) outcome: Option<Outcome>,
}

/// Where the news stand.
#[derive(Debug)]
pub(crate) struct Board {
    news: Mutex<News>,
    wake: OwnedFd,
}

impl Board {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            news: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.lock());
        // A full counter means that a wake-up is waiting already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Ends the guest from any thread, whatever it does.
#[derive(Debug, Clone)]
pub struct Ending(Arc<Board>);

impl Ending {
    pub(crate) fn new(board: &Arc<Board>) -> Self {
        Self(Arc::clone(board))
    }

    /// As if it had ended by itself with this code; the process follows at once.
    pub fn end(&self, code: u8) -> ! {
        self.0.tell(|news| {
            news.outcome.get_or_insert(Outcome::exit(code));
        });
        loop {
            std::thread::park();
        }
    }
}

/// The control thread's handle.
#[derive(Debug)]
pub(crate) struct Guest {
    board: Arc<Board>,
    go: SyncSender<()>,
}

impl Guest {
    /// Starts the thread; `program` is the linked code or the text for Start. The
    /// thread inherits the lock-up of the caller.
    pub(crate) fn spawn(
        board: Arc<Board>,
        program: Result<Box<dyn Program>, String>,
        surroundings: Surroundings,
    ) -> io::Result<Self> {
        let (go, wait) = sync_channel(1);
        let thread_board = Arc::clone(&board);
        std::thread::Builder::new()
            .name("guest".to_owned())
            .stack_size(STACK)
            .spawn(move || life(program, surroundings, &thread_board, &wait))?;
        Ok(Self { board, go })
    }

    /// Says "go"; a second time does nothing.
    pub(crate) fn go(&self) {
        let _ = self.go.try_send(());
    }

    /// Readable when there is news.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.board.wake.as_fd()
    }

    /// Takes the wake-up and reads the news.
    pub(crate) fn news(&self) -> News {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.board.wake, &mut counter);
        self.board.lock().clone()
    }
}

fn life(
    program: Result<Box<dyn Program>, String>,
    surroundings: Surroundings,
    board: &Board,
    go: &Receiver<()>,
) {
    let stderr = surroundings.stdio.stderr.clone();
    let settled = program.and_then(|mut program| {
        program.settle(surroundings)?;
        Ok(program)
    });
    board.tell(|news| news.settled = true);
    if go.recv().is_err() {
        return;
    }
    let mut outcome = match settled {
        Ok(program) => program.run(&|| board.tell(|news| news.started = true)),
        Err(message) => Outcome::start_error(message),
    };
    outcome.message = clip(outcome.message);
    if !outcome.message.is_empty() {
        // Also where `kubectl logs` shows it, and here, because a full pipe may block.
        stderr.write(format!("{}\n", outcome.message.trim_end()).as_bytes());
    }
    board.tell(|news| {
        news.outcome.get_or_insert(outcome);
    });
}
