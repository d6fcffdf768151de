//! Buckets in the shim's memory: they end with the container, and the cgroup counts them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Change, Decide, Store, Told};
use crate::services::names;

/// Bytes of all keys and values.
const MAX_BYTES: usize = 64 << 20;

/// Bytes that one entry takes beside its own.
const OVERHEAD: usize = 128;

#[derive(Debug, Default)]
struct Buckets {
    /// By bucket and key.
    values: BTreeMap<(String, String), Vec<u8>>,
    size: usize,
}

#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Buckets>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    fn put(&mut self, bucket: &str, key: &str, value: Option<&[u8]>) -> Told<()> {
        let place = (bucket.to_owned(), key.to_owned());
        let cost = |value: &[u8]| bucket.len() + key.len() + value.len() + OVERHEAD;
        let freed = self.values.get(&place).map_or(0, |old| cost(old));
        let Some(value) = value else {
            self.values.remove(&place);
            self.size -= freed;
            return Ok(());
        };
        let size = self.size - freed + cost(value);
        if size > MAX_BYTES {
            return Err(format!(
                "the buckets in memory are full ({MAX_BYTES} bytes); annotation criw.dev/keyvalue-dir puts them on a volume"
            ));
        }
        self.values.insert(place, value.to_vec());
        self.size = size;
        Ok(())
    }
}

impl Store for Memory {
    fn get(&self, bucket: &str, key: &str) -> Told<Option<Vec<u8>>> {
        let place = (bucket.to_owned(), key.to_owned());
        Ok(self.lock().values.get(&place).cloned())
    }

    fn put(&self, bucket: &str, key: &str, value: Option<&[u8]>) -> Told<()> {
        self.lock().put(bucket, key, value)
    }

    fn change(&self, bucket: &str, key: &str, decide: Decide<'_>) -> Told<()> {
        let mut buckets = self.lock();
        let place = (bucket.to_owned(), key.to_owned());
        match decide(buckets.values.get(&place).map(Vec::as_slice))? {
            Change::Keep => Ok(()),
            Change::Set(value) => buckets.put(bucket, key, Some(&value)),
        }
    }

    fn keys(&self, bucket: &str) -> Told<Vec<String>> {
        let buckets = self.lock();
        let from = (bucket.to_owned(), String::new());
        let mut keys: Vec<_> = buckets
            .values
            .range(from..)
            .take_while(|((name, _), _)| name == bucket)
            .filter_map(|((_, key), _)| names::decode(key))
            .collect();
        keys.sort_unstable();
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_given_back() {
        let memory = Memory::default();
        let value = vec![0; 1 << 20];
        let mut count = 0;
        while memory.put("b", &count.to_string(), Some(&value)).is_ok() {
            count += 1;
            assert!(count <= 64);
        }
        assert_eq!(count, 63);
        // Replacing one by its like needs no room; deleting all gives all back.
        memory.put("b", "0", Some(&value)).unwrap();
        for n in 0..count {
            memory.put("b", &n.to_string(), None).unwrap();
            memory.put("b", &n.to_string(), None).unwrap();
        }
        assert_eq!(memory.lock().size, 0);
        assert!(memory.keys("b").unwrap().is_empty());
    }
}
