//! How many CPUs something used lately, from two looks at its counter. The kubelet
//! computes this for containers itself, for pods it shows what the runtime says.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Two looks that are closer say more about the scheduler's ticks than about the load.
const SHORTEST: Duration = Duration::from_secs(1);

/// The last look at one counter.
#[derive(Debug, Default)]
pub(crate) struct CpuRate {
    last: Mutex<Option<Look>>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    counter: u64,
    rate: Option<u64>,
}

impl CpuRate {
    /// Nanoseconds of CPU time per second since the last look that was at least a second
    /// ago; `None` at the first look, and when the counter has begun anew.
    pub(crate) fn look(&self, counter_ns: u64) -> Option<u64> {
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = next(*last, Instant::now(), counter_ns);
        *last = Some(now);
        now.rate
    }
}

fn next(last: Option<Look>, at: Instant, counter: u64) -> Look {
    let rate = match last {
        Some(last) if counter >= last.counter => {
            let elapsed = at.saturating_duration_since(last.at);
            if elapsed < SHORTEST {
                return last;
            }
            let used = u128::from(counter - last.counter) * 1_000_000_000;
            u64::try_from(used / elapsed.as_nanos()).ok()
        }
        _ => None,
    };
    Look { at, counter, rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rates() {
        let begin = Instant::now();
        let after = |ms: u64| begin + Duration::from_millis(ms);
        let mut last = None;
        // ms, counter in ns, expected
        for (ms, counter, expected) in [
            (0, 500, None),
            // Too early: what was known, which is nothing.
            (200, 300_000_500, None),
            (2_000, 1_000_000_500, Some(500_000_000)),
            (2_500, 9_000_000_500, Some(500_000_000)),
            (4_000, 1_000_000_500, Some(0)),
            // A counter that begins anew.
            (6_000, 7, None),
            (7_000, 2_000_000_007, Some(2_000_000_000)),
        ] {
            let look = next(last, after(ms), counter);
            assert_eq!(look.rate, expected, "{ms}");
            last = Some(look);
        }
    }

    #[test]
    fn the_first_look_knows_nothing() {
        let rate = CpuRate::default();
        assert_eq!(rate.look(7), None);
        assert_eq!(rate.look(8), None);
    }
}
