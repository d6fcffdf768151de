//! Of 0.2.0-draft: numbers as cursors, increments of unsigned numbers.

use wasmtime::Result;
use wasmtime::component::{ComponentType, LinkerInstance, Lower};

use super::{add_store, method, page};
use crate::host::State;

#[derive(Debug, ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

pub(in crate::services) fn store(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    add_store(instance)?;
    method(
        instance,
        "[method]bucket.list-keys",
        |open, (cursor,): (Option<u64>,)| {
            let from = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
            let (keys, more) = page(&open.keys()?, from);
            let cursor = more.then_some((from + keys.len()) as u64);
            Ok(KeyResponse { keys, cursor })
        },
    )
}

pub(in crate::services) fn atomics(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    method(
        instance,
        "increment",
        |open, (key, delta): (String, u64)| open.add(&key, |number: u64| number.checked_add(delta)),
    )
}
