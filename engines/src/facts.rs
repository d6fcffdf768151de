//! What a Wasm guest has done so far, counted where it happens and told by State. Plain
//! numbers: who reads in between may see one that is ahead of another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::WasmFacts;

/// How a request to a component that serves HTTP ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEnd {
    /// The guest began a response.
    Answered,
    /// The guest trapped, exited, answered with an error or not at all.
    Failed,
    /// Nothing moved for too long, or all of it took too long.
    TimedOut,
    /// It used up its fuel.
    OutOfFuel,
    /// There was no place inside the guest.
    Refused,
    /// One that was counted as answered, whose response broke off later.
    BrokenOff,
}

impl RequestEnd {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Answered,
        Self::Failed,
        Self::TimedOut,
        Self::OutOfFuel,
        Self::Refused,
        Self::BrokenOff,
    ];

    /// The word in [`WasmFacts::requests`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
            Self::OutOfFuel => "fuel",
            Self::Refused => "refused",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Facts {
    /// Bytes of linear memory of all instances.
    pub memory: AtomicU64,
    instances: AtomicU64,
    requests: [AtomicU64; RequestEnd::ALL.len()],
    traps: Mutex<BTreeMap<&'static str, u64>>,
}

/// An instance that lives until this is dropped.
#[derive(Debug)]
pub struct Instance(Arc<Facts>);

impl Facts {
    /// One more instance.
    pub fn instance(self: &Arc<Self>) -> Instance {
        self.instances.fetch_add(1, Ordering::Relaxed);
        Instance(Arc::clone(self))
    }

    /// A request ended.
    pub fn request(&self, end: RequestEnd) {
        self.requests[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The guest trapped; `kind` is one of few words.
    pub fn trap(&self, kind: &'static str) {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        *traps.entry(kind).or_default() += 1;
    }

    /// All of it now.
    pub fn read(&self) -> WasmFacts {
        let traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = RequestEnd::ALL.map(|end| {
            let count = self.requests[end as usize].load(Ordering::Relaxed);
            (end.as_str().to_owned(), count)
        });
        WasmFacts {
            memory_bytes: self.memory.load(Ordering::Relaxed),
            instances: self.instances.load(Ordering::Relaxed),
            // A guest without requests says nothing of them.
            requests: requests.into_iter().filter(|(_, n)| *n > 0).collect(),
            traps: traps
                .iter()
                .map(|(kind, n)| ((*kind).to_owned(), *n))
                .collect(),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let facts = Arc::new(Facts::default());
        let instance = facts.instance();
        drop(facts.instance());
        for end in RequestEnd::ALL {
            facts.request(end);
        }
        facts.request(RequestEnd::BrokenOff);
        facts.trap("unreachable");
        facts.trap("unreachable");
        facts.memory.store(65_536, Ordering::Relaxed);
        let read = facts.read();
        assert_eq!((read.memory_bytes, read.instances), (65_536, 1));
        assert_eq!(read.requests.len(), RequestEnd::ALL.len());
        assert_eq!(
            (read.requests["answered"], read.requests["broken_off"]),
            (1, 2)
        );
        assert_eq!(read.traps["unreachable"], 2);
        drop(instance);
        assert_eq!(facts.read().instances, 0);
    }
}
