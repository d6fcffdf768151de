//! Of 0.2.0-draft2: the last key as cursor, increments of signed numbers, compare-and-swap.

use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource};
use wasmtime::{Result, StoreContextMut};

use super::{Answer, Change, Error, Open, add_store, method, page};
use crate::host::State;

#[derive(Debug, ComponentType, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<String>,
}

pub(in crate::services) fn store(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    add_store(instance)?;
    method(
        instance,
        "[method]bucket.list-keys",
        |open, (cursor,): (Option<String>,)| {
            let all = open.keys()?;
            let from = cursor.map_or(0, |last| all.partition_point(|key| *key <= last));
            let (keys, more) = page(&all, from);
            let cursor = keys.last().filter(|_| more).cloned();
            Ok(KeyResponse { keys, cursor })
        },
    )
}

/// A value that is remembered, to be replaced only if it is still there.
struct Cas {
    open: Open,
    key: String,
    seen: Option<Vec<u8>>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    StoreError(Error),
    #[component(name = "cas-failed")]
    CasFailed(Resource<Cas>),
}

impl Cas {
    /// Whether the value was replaced.
    fn swap(&mut self, value: Vec<u8>) -> Answer<bool> {
        let Self { open, key, seen } = self;
        let mut swapped = false;
        let mut value = Some(value);
        open.with("swap", key, |store, bucket, key| {
            super::check(value.as_deref().unwrap_or_default())?;
            store.change(bucket, key, &mut |current| {
                if current == seen.as_deref() {
                    swapped = true;
                    return Ok(value.take().map_or(Change::Keep, Change::Set));
                }
                *seen = current.map(<[u8]>::to_vec);
                Ok(Change::Keep)
            })
        })?;
        Ok(swapped)
    }
}

pub(in crate::services) fn atomics(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    crate::services::resource::<Cas>(instance, "cas")?;
    method(
        instance,
        "increment",
        |open, (key, delta): (String, i64)| open.add(&key, |number: i64| number.checked_add(delta)),
    )?;
    type New = (Resource<super::Bucket>, String);
    instance.func_wrap(
        "[static]cas.new",
        |mut store: StoreContextMut<'_, State>, (bucket, key): New| {
            let open = Open::new(&mut store, &bucket)?;
            let seen = match open.get(&key) {
                Ok(seen) => seen,
                Err(error) => return Ok((Err(error),)),
            };
            let cas = Cas { open, key, seen };
            Ok((Ok::<_, Error>(store.data_mut().table().push(cas)?),))
        },
    )?;
    instance.func_wrap(
        "[method]cas.current",
        |mut store: StoreContextMut<'_, State>, (cas,): (Resource<Cas>,)| {
            let seen = store.data_mut().table().get(&cas)?.seen.clone();
            Ok((Ok::<_, Error>(seen),))
        },
    )?;
    instance.func_wrap(
        "swap",
        |mut store: StoreContextMut<'_, State>, (cas, value): (Resource<Cas>, Vec<u8>)| {
            let mut cas = store.data_mut().table().delete(cas)?;
            let answer = match cas.swap(value) {
                Ok(true) => Ok(()),
                // With the value that it has now, for the next try.
                Ok(false) => Err(CasError::CasFailed(store.data_mut().table().push(cas)?)),
                Err(error) => Err(CasError::StoreError(error)),
            };
            Ok((answer,))
        },
    )
}
