//! Advances the epoch while requests are inside the guest, so that one that computes
//! gives way to the others, and can be given up, every few milliseconds. Without
//! requests it sleeps: an idle container costs nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::Engine;

/// How long a guest computes without giving way.
const TICK: Duration = Duration::from_millis(10);

const STACK: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ticker {
    /// Requests inside the guest.
    busy: Arc<AtomicUsize>,
    thread: OnceLock<Option<Thread>>,
}

/// One request inside the guest.
pub(super) struct Busy(Arc<AtomicUsize>);

impl Ticker {
    /// Ticks until the last of these is dropped. Without a thread (the container's limit
    /// of processes is reached) nothing gives way, but requests are served.
    pub(super) fn enter(&self, engine: &Engine) -> Busy {
        let first = self.busy.fetch_add(1, Ordering::SeqCst) == 0;
        let thread = self.thread.get_or_init(|| self.spawn(engine.clone()));
        if let (true, Some(thread)) = (first, thread) {
            thread.unpark();
        }
        Busy(Arc::clone(&self.busy))
    }

    fn spawn(&self, engine: Engine) -> Option<Thread> {
        let busy = Arc::clone(&self.busy);
        let thread = std::thread::Builder::new()
            .name("ticker".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                loop {
                    while busy.load(Ordering::SeqCst) == 0 {
                        std::thread::park();
                    }
                    std::thread::sleep(TICK);
                    engine.increment_epoch();
                }
            });
        Some(thread.ok()?.thread().clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
