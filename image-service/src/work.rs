//! What the service has done since the daemon started, for those who watch it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one kind of work. Plain numbers that are read together now and then: a
/// reader in between may see one that is ahead of another.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    succeeded: AtomicU64,
    failed: AtomicU64,
    microseconds: AtomicU64,
}

impl Tally {
    /// One more, and how long it took.
    pub(crate) fn add(&self, succeeded: bool, time: Duration) {
        let counter = if succeeded {
            &self.succeeded
        } else {
            &self.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(time, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Work {
        Work {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            time: Duration::from_micros(self.microseconds.load(Ordering::Relaxed)),
        }
    }
}

/// One kind of work since the service was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// How often it succeeded.
    pub succeeded: u64,
    /// How often it failed. A pull that its caller gave up is neither.
    pub failed: u64,
    /// How long all of it took.
    pub time: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_with_its_time() {
        let tally = Tally::default();
        tally.add(true, Duration::from_millis(3));
        tally.add(false, Duration::from_millis(4));
        tally.add(true, Duration::ZERO);
        let expected = Work {
            succeeded: 2,
            failed: 1,
            time: Duration::from_millis(7),
        };
        assert_eq!(tally.read(), expected);
    }
}
