//! The guest's limit on linear memory, all memories (and instances) together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use criw_engines::facts::Facts;
use wasmtime::{ResourceLimiter, Result};

/// Elements of one table; 8 bytes each, charged to the cgroup like everything.
const MAX_TABLE: usize = 10_000_000;

/// Counts linear memory and refuses growth past the limit.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    limit: Option<u64>,
    /// Growth past the limit returns -1 to the guest instead of ending it.
    fails: bool,
    /// Bytes of this store.
    mine: u64,
    /// Has the bytes of all stores.
    facts: Arc<Facts>,
}

/// Growth past the limit, when it shall end the guest.
#[derive(Debug)]
pub(crate) struct OutOfMemory {
    wanted: u64,
    limit: u64,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "out of memory: the guest asked for {} bytes of linear memory, its limit is {}",
            self.wanted, self.limit
        )
    }
}

impl std::error::Error for OutOfMemory {}

impl MemoryLimit {
    pub(crate) fn new(limit: Option<u64>, fails: bool) -> Self {
        Self {
            limit,
            fails,
            mine: 0,
            facts: Arc::default(),
        }
    }

    /// What all stores under this limit count.
    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// For one more store under the same limit.
    pub(crate) fn share(&self) -> Self {
        Self {
            mine: 0,
            facts: Arc::clone(&self.facts),
            ..*self
        }
    }

    /// Takes it if all together stay below the limit, else says what was wanted.
    fn take(&mut self, more: u64) -> std::result::Result<(), u64> {
        let used = &self.facts.memory;
        let wanted = used.fetch_add(more, Ordering::Relaxed) + more;
        if self.limit.is_some_and(|limit| wanted > limit) {
            used.fetch_sub(more, Ordering::Relaxed);
            return Err(wanted);
        }
        self.mine += more;
        Ok(())
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.facts.memory.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool> {
        // The guest's own maximum: the growth fails whatever we say.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        match (self.take((desired - current) as u64), self.limit) {
            (Err(wanted), Some(limit)) if !self.fails => Err(OutOfMemory { wanted, limit }.into()),
            (taken, _) => Ok(taken.is_ok()),
        }
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool> {
        Ok(desired <= MAX_TABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_together_stay_below_the_limit() {
        // (limit, fails, growths as (from, to, own maximum), the last one's answer)
        type Growth = (usize, usize, Option<usize>);
        type Case<'a> = (Option<u64>, bool, &'a [Growth], Option<bool>);
        let table: &[Case<'_>] = &[
            (None, false, &[(0, 1 << 32, None)], Some(true)),
            (Some(100), false, &[(0, 100, None)], Some(true)),
            (Some(100), false, &[(0, 101, None)], None),
            (Some(100), true, &[(0, 101, None)], Some(false)),
            (
                Some(100),
                false,
                &[(0, 60, None), (0, 40, None)],
                Some(true),
            ),
            (Some(100), false, &[(0, 60, None), (0, 41, None)], None),
            (
                Some(100),
                false,
                &[(0, 60, None), (60, 100, None)],
                Some(true),
            ),
            (Some(100), false, &[(0, 60, None), (60, 101, None)], None),
            (
                Some(100),
                false,
                &[(0, 60, Some(80)), (60, 101, Some(80))],
                Some(false),
            ),
        ];
        for (limit, fails, growths, expected) in table {
            let mut memory = MemoryLimit::new(*limit, *fails);
            let last = growths
                .iter()
                .map(|(from, to, maximum)| memory.memory_growing(*from, *to, *maximum).ok())
                .last()
                .unwrap();
            assert_eq!(last, *expected, "{limit:?} {fails} {growths:?}");
        }
    }

    #[test]
    fn stores_share_a_limit_and_give_back() {
        let mut first = MemoryLimit::new(Some(100), true);
        let mut second = first.share();
        assert!(first.memory_growing(0, 60, None).unwrap());
        assert!(!second.memory_growing(0, 60, None).unwrap());
        drop(first);
        assert!(second.memory_growing(0, 60, None).unwrap());
    }
}
