//! `wasi:keyvalue`: buckets of values, by any name that the guest likes.
//!
//! ```text
//!   memory   as long as the container: the default
//!   volume   files in the directory that `criw.dev/keyvalue-dir` names
//!   draft1   store and atomics of 0.2.0-draft
//!   draft2   store and atomics of 0.2.0-draft2, with compare-and-swap
//! ```
//! Both places keep the same rules, so a guest that works with one works with the other.

use std::sync::Arc;

use wasmtime::component::{
    ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower, Resource,
};
use wasmtime::{Result, StoreContextMut};

use super::names;
use crate::host::State;

pub(super) mod draft1;
pub(super) mod draft2;
mod memory;
mod volume;

/// Bytes of a value.
const MAX_VALUE: usize = 1 << 20;

/// Keys of one answer to `list-keys`.
const PAGE: usize = 1000;

/// Keys that one call of `wasi:keyvalue/batch` may name, and bytes of its answer.
const MAX_BATCH: usize = 1000;
const MAX_BATCH_BYTES: usize = 64 << 20;

/// What becomes of a value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Keep,
    Set(Vec<u8>),
}

/// Decides by the value that there is.
pub(crate) type Decide<'a> =
    &'a mut dyn FnMut(Option<&[u8]>) -> std::result::Result<Change, String>;

/// A place for buckets. Names come as file names, already checked; a bucket that nothing was
/// ever put in is empty. Errors are texts for the guest.
pub(crate) trait Store: Send + Sync {
    fn get(&self, bucket: &str, key: &str) -> Told<Option<Vec<u8>>>;

    /// Sets or, with nothing, deletes.
    fn put(&self, bucket: &str, key: &str, value: Option<&[u8]>) -> Told<()>;

    /// Nobody else changes the value between the decision and its effect.
    fn change(&self, bucket: &str, key: &str, decide: Decide<'_>) -> Told<()>;

    /// The guest's names of all keys, in order.
    fn keys(&self, bucket: &str) -> Told<Vec<String>>;
}

type Told<T> = std::result::Result<T, String>;

/// The place: a directory, else memory.
pub(super) fn open(directory: Option<&str>) -> Box<dyn Store> {
    match directory {
        Some(path) => Box::new(volume::Volume::new(path)),
        None => Box::new(memory::Memory::default()),
    }
}

/// The interface's error. The other two cases have no room for a reason.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
pub(super) enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

type Answer<T> = std::result::Result<T, Error>;

/// A handle of the guest.
pub(super) struct Bucket {
    /// As a file's name.
    name: String,
}

/// One call's view of a bucket.
struct Open {
    services: Arc<super::Services>,
    bucket: String,
}

impl Open {
    fn new(store: &mut StoreContextMut<'_, State>, bucket: &Resource<Bucket>) -> Result<Self> {
        let bucket = store.data_mut().table().get(bucket)?.name.clone();
        let services = Arc::clone(&store.data().services);
        Ok(Self { services, bucket })
    }

    /// Runs with the store, the bucket and the file's name of a key.
    fn with<T>(
        &self,
        what: &str,
        key: &str,
        act: impl FnOnce(&dyn Store, &str, &str) -> Told<T>,
    ) -> Answer<T> {
        names::encode(key)
            .and_then(|file| act(&*self.services.keyvalue, &self.bucket, &file))
            .map_err(|text| Error::Other(format!("{what} key {key:?}: {text}")))
    }

    fn get(&self, key: &str) -> Answer<Option<Vec<u8>>> {
        self.with("get", key, |store, bucket, key| store.get(bucket, key))
    }

    fn set(&self, key: &str, value: &[u8]) -> Answer<()> {
        self.with("set", key, |store, bucket, key| {
            check(value)?;
            store.put(bucket, key, Some(value))
        })
    }

    fn delete(&self, key: &str) -> Answer<()> {
        self.with("delete", key, |store, bucket, key| {
            store.put(bucket, key, None)
        })
    }

    fn keys(&self) -> Answer<Vec<String>> {
        let keys = self.services.keyvalue.keys(&self.bucket);
        keys.map_err(|text| Error::Other(format!("list keys: {text}")))
    }

    /// Adds to a number, which is decimal text as other stores keep it.
    fn add<N>(&self, key: &str, sum: impl Fn(N) -> Option<N>) -> Answer<N>
    where
        N: std::str::FromStr + std::fmt::Display + Default + Copy,
    {
        let mut result = N::default();
        self.with("increment", key, |store, bucket, key| {
            store.change(bucket, key, &mut |value| {
                let number = match value {
                    None => N::default(),
                    Some(bytes) => std::str::from_utf8(bytes)
                        .ok()
                        .and_then(|text| text.trim().parse().ok())
                        .ok_or("its value is no decimal number of 64 bits")?,
                };
                result = sum(number).ok_or("the sum has no room in 64 bits")?;
                Ok(Change::Set(result.to_string().into_bytes()))
            })
        })?;
        Ok(result)
    }
}

fn check(value: &[u8]) -> Told<()> {
    if value.len() > MAX_VALUE {
        return Err(format!(
            "the value has {} bytes, at most {MAX_VALUE} are possible; wasi:blobstore takes more",
            value.len()
        ));
    }
    Ok(())
}

/// What both drafts have of `store`.
fn add_store(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    super::resource::<Bucket>(instance, "bucket")?;
    instance.func_wrap(
        "open",
        |mut store: StoreContextMut<'_, State>, (identifier,): (String,)| {
            let name = match names::encode(&identifier) {
                Ok(name) => name,
                Err(text) => {
                    let text = format!("open bucket {identifier:?}: {text}");
                    return Ok((Err(Error::Other(text)),));
                }
            };
            let bucket = store.data_mut().table().push(Bucket { name })?;
            Ok((Ok::<_, Error>(bucket),))
        },
    )?;
    method(instance, "[method]bucket.get", |open, (key,): (String,)| {
        open.get(&key)
    })?;
    type Pair = (String, Vec<u8>);
    method(
        instance,
        "[method]bucket.set",
        |open, (key, value): Pair| open.set(&key, &value),
    )?;
    method(
        instance,
        "[method]bucket.delete",
        |open, (key,): (String,)| open.delete(&key),
    )?;
    method(
        instance,
        "[method]bucket.exists",
        |open, (key,): (String,)| Ok(open.get(&key)?.is_some()),
    )
}

/// A function whose first parameter is a bucket, and that may fail.
fn method<P, R>(
    instance: &mut LinkerInstance<'_, State>,
    name: &str,
    act: impl Fn(&Open, P) -> Answer<R> + Send + Sync + 'static,
) -> Result<()>
where
    P: Behind,
    P::Whole: ComponentNamedList + Lift + 'static,
    R: ComponentType + Lower + Send + Sync + 'static,
{
    instance.func_wrap(
        name,
        move |mut store: StoreContextMut<'_, State>, all: P::Whole| {
            let (bucket, rest) = P::split(all);
            let open = Open::new(&mut store, &bucket)?;
            Ok((act(&open, rest),))
        },
    )
}

/// Parameters behind the bucket.
trait Behind: Sized {
    /// All parameters.
    type Whole;
    fn split(whole: Self::Whole) -> (Resource<Bucket>, Self);
}

impl<A> Behind for (A,) {
    type Whole = (Resource<Bucket>, A);
    fn split((bucket, a): Self::Whole) -> (Resource<Bucket>, Self) {
        (bucket, (a,))
    }
}

impl<A, B> Behind for (A, B) {
    type Whole = (Resource<Bucket>, A, B);
    fn split((bucket, a, b): Self::Whole) -> (Resource<Bucket>, Self) {
        (bucket, (a, b))
    }
}

/// `batch`, the same in both drafts. Its calls are no transactions, here as elsewhere.
pub(super) fn batch(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    method(instance, "get-many", |open, (keys,): (Vec<String>,)| {
        check_batch(keys.len())?;
        let mut size = 0;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value = open.get(&key)?;
            size += value.as_ref().map_or(0, Vec::len);
            if size > MAX_BATCH_BYTES {
                return Err(Error::Other(format!(
                    "get-many: the values have more than {MAX_BATCH_BYTES} bytes; ask for fewer keys"
                )));
            }
            found.push(value.map(|value| (key, value)));
        }
        Ok(found)
    })?;
    type Pairs = Vec<(String, Vec<u8>)>;
    method(instance, "set-many", |open, (pairs,): (Pairs,)| {
        check_batch(pairs.len())?;
        pairs
            .iter()
            .try_for_each(|(key, value)| open.set(key, value))
    })?;
    method(instance, "delete-many", |open, (keys,): (Vec<String>,)| {
        check_batch(keys.len())?;
        keys.iter().try_for_each(|key| open.delete(key))
    })
}

fn check_batch(keys: usize) -> Answer<()> {
    if keys > MAX_BATCH {
        return Err(Error::Other(format!(
            "the call names {keys} keys, at most {MAX_BATCH} are possible"
        )));
    }
    Ok(())
}

/// A page of keys and whether there are more.
fn page(keys: &[String], from: usize) -> (Vec<String>, bool) {
    let rest = keys.get(from..).unwrap_or_default();
    let page = rest.get(..PAGE).unwrap_or(rest);
    (page.to_vec(), page.len() < rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_an_end() {
        let keys: Vec<_> = (0..2500).map(|n| format!("{n:05}")).collect();
        let mut seen = Vec::new();
        let mut from = 0;
        loop {
            let (mut some, more) = page(&keys, from);
            from += some.len();
            seen.append(&mut some);
            if !more {
                break;
            }
        }
        assert_eq!(seen, keys);
        assert_eq!(page(&keys, 2500), (Vec::new(), false));
        assert_eq!(page(&keys, usize::MAX), (Vec::new(), false));
    }
}
