//! The index: one embedded database of small JSON records and its mirror in memory,
//! from which everything is read. A change is committed first and shown then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{OpenError, StoreError};
use crate::image::{Kind, ProcessConfig, WasmModule};

/// Raised when older versions could not read what is written.
const FORMAT: u64 = 1;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Kind of record and key, separated by `/`, to JSON.
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");

/// One image with all its names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    /// Manifests and indexes that the digests name.
    pub(crate) documents: BTreeSet<Digest>,
    /// The host variant first.
    pub(crate) variants: Vec<Variant>,
    /// By tag and digest, in full. Records of older criws have none: all names stand for
    /// all variants there.
    #[serde(default)]
    pub(crate) scopes: BTreeMap<String, Scope>,
}

/// What one name of an image stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// The manifest or index that it led to when it was pulled.
    pub(crate) document: Digest,
    /// Those of the variants that were fetched by it.
    pub(crate) manifests: BTreeSet<Digest>,
}

impl ImageRecord {
    /// The variants that a name stands for; all of them for no name, and for one that is
    /// not noted.
    pub(crate) fn variants_of(&self, name: Option<&str>) -> Vec<&Variant> {
        let scope = name.and_then(|name| self.scopes.get(name));
        self.variants
            .iter()
            .filter(|variant| scope.is_none_or(|scope| scope.manifests.contains(&variant.manifest)))
            .collect()
    }
}

/// One platform's content of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) kind: Kind,
    /// `os/architecture` as its config says.
    pub(crate) platform: String,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Chain ids, bottom first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) modules: Vec<WasmModule>,
    pub(crate) process: ProcessConfig,
}

/// One unpacked layer, under its chain id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) modules: BTreeMap<PathBuf, (Digest, u64)>,
}

/// Content that a container needs although its image may be gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HoldRecord {
    pub(crate) layers: BTreeSet<Digest>,
    pub(crate) modules: BTreeSet<Digest>,
}

/// The outcome of compiling a module, under `<fingerprint>/<hex>` and the variant's suffix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CodeRecord {
    Compiled {
        size: u64,
        /// Of the compiled code.
        digest: Digest,
        /// Seconds since the epoch for modules that no image holds, else 0.
        volume_since: u64,
        /// Imports that the engine does not provide; of older criws there is no such list.
        #[serde(default)]
        unmet: Vec<String>,
        /// The stored modules that it is made of, if it is more than one: it is kept as
        /// long as all of them are.
        #[serde(default)]
        parts: Vec<Digest>,
    },
    /// The compiler's text.
    Invalid(String),
}

/// The mirror.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, ImageRecord>,
    pub(crate) layers: BTreeMap<Digest, LayerRecord>,
    pub(crate) holds: BTreeMap<String, HoldRecord>,
    pub(crate) code: BTreeMap<String, CodeRecord>,
    /// Not in the database: the directory itself tells. Size by digest.
    pub(crate) blobs: BTreeMap<Digest, u64>,
}

/// One step of a change; all steps of a commit show at once.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Image(Digest, Option<ImageRecord>),
    Layer(Digest, Option<LayerRecord>),
    Hold(String, Option<HoldRecord>),
    Code(String, Option<CodeRecord>),
}

#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    database: Database,
    /// Orders the changes; readers never wait for it.
    writer: Mutex<()>,
    state: Mutex<State>,
}

impl Index {
    pub(crate) fn open(path: &Path) -> Result<Index, OpenError> {
        let fail = |action, source: redb::Error| failure(action, path, source);
        let database = Database::builder()
            // The mirror serves all reads.
            .set_cache_size(1 << 20)
            .create(path)
            .map_err(|error| fail("open", error.into()))?;
        let index = Index {
            path: path.to_owned(),
            database,
            writer: Mutex::new(()),
            state: Mutex::new(State::default()),
        };
        index.check_format()?;
        let state = index.load()?;
        *index.state() = state;
        Ok(index)
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let run = || -> Result<Option<u64>, redb::Error> {
            let transaction = self.database.begin_write()?;
            let found = {
                let mut meta = transaction.open_table(META)?;
                transaction.open_table(RECORDS)?;
                let found = meta.get("format")?.map(|value| value.value());
                if found.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                found
            };
            if found.is_none() {
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(found)
        };
        match run().map_err(|error| failure("open", &self.path, error))? {
            Some(found) if found > FORMAT => Err(OpenError::Newer {
                path: self.path.clone(),
                found,
                known: FORMAT,
            }),
            _ => Ok(()),
        }
    }

    /// A record that cannot be read costs itself only.
    fn load(&self) -> Result<State, StoreError> {
        let run = || -> Result<State, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(RECORDS)?;
            let mut state = State::default();
            for row in table.iter()? {
                let (key, value) = row?;
                match read_record(key.value(), value.value()) {
                    Ok(change) => state.apply(change),
                    Err(reason) => {
                        tracing::warn!(
                            key = key.value(),
                            reason,
                            "an unreadable image record is left out"
                        );
                    }
                }
            }
            Ok(state)
        };
        run().map_err(|error| failure("read", &self.path, error))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Decides on a change by the current state, commits and shows it. Blocks on disk.
    pub(crate) fn change<T>(
        &self,
        decide: impl FnOnce(&State) -> (Vec<Change>, T),
    ) -> Result<T, StoreError> {
        let _order = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        let (changes, result) = decide(&self.state());
        if changes.is_empty() {
            return Ok(result);
        }
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(RECORDS)?;
                for change in &changes {
                    let (key, value) = write_record(change);
                    match value {
                        Some(value) => table.insert(key.as_str(), value.as_slice())?,
                        None => table.remove(key.as_str())?,
                    };
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| failure("write", &self.path, error))?;
        let mut state = self.state();
        for change in changes {
            state.apply(change);
        }
        Ok(result)
    }
}

impl State {
    fn apply(&mut self, change: Change) {
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match change {
            Change::Image(key, value) => set(&mut self.images, key, value),
            Change::Layer(key, value) => set(&mut self.layers, key, value),
            Change::Hold(key, value) => set(&mut self.holds, key, value),
            Change::Code(key, value) => set(&mut self.code, key, value),
        }
    }
}

fn write_record(change: &Change) -> (String, Option<Vec<u8>>) {
    fn json<T: Serialize>(value: &Option<T>) -> Option<Vec<u8>> {
        value
            .as_ref()
            .map(|value| serde_json::to_vec(value).expect("records have text keys only"))
    }
    match change {
        Change::Image(key, value) => (format!("image/{key}"), json(value)),
        Change::Layer(key, value) => (format!("layer/{key}"), json(value)),
        Change::Hold(key, value) => (format!("hold/{key}"), json(value)),
        Change::Code(key, value) => (format!("code/{key}"), json(value)),
    }
}

fn read_record(key: &str, value: &[u8]) -> Result<Change, String> {
    fn json<T: for<'a> Deserialize<'a>>(value: &[u8]) -> Result<Option<T>, String> {
        serde_json::from_slice(value)
            .map(Some)
            .map_err(|error| error.to_string())
    }
    let digest = |text: &str| text.parse::<Digest>().map_err(|error| error.to_string());
    match key.split_once('/') {
        Some(("image", key)) => Ok(Change::Image(digest(key)?, json(value)?)),
        Some(("layer", key)) => Ok(Change::Layer(digest(key)?, json(value)?)),
        Some(("hold", key)) => Ok(Change::Hold(key.to_owned(), json(value)?)),
        Some(("code", key)) => Ok(Change::Code(key.to_owned(), json(value)?)),
        _ => Err("unknown kind of record".to_owned()),
    }
}

fn failure(action: &'static str, path: &Path, source: redb::Error) -> StoreError {
    StoreError::Index {
        action,
        path: path.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_a_newer_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.redb");
        let hold = HoldRecord {
            layers: BTreeSet::from([Digest::of(b"1")]),
            modules: BTreeSet::new(),
        };
        let index = Index::open(&path).unwrap();
        index
            .change(|_| (vec![Change::Hold("c1".into(), Some(hold))], ()))
            .unwrap();
        drop(index);
        let index = Index::open(&path).unwrap();
        assert!(index.state().holds["c1"].layers.contains(&Digest::of(b"1")));
        index
            .change(|_| (vec![Change::Hold("c1".into(), None)], ()))
            .unwrap();
        assert!(index.state().holds.is_empty());
        let write = index.database.begin_write().unwrap();
        write
            .open_table(META)
            .unwrap()
            .insert("format", FORMAT + 1)
            .unwrap();
        write
            .open_table(RECORDS)
            .unwrap()
            .insert("hold/c2", &b"broken"[..])
            .unwrap();
        write.commit().unwrap();
        drop(index);
        let text = Index::open(&path).unwrap_err().to_string();
        assert!(
            text.contains("has format 2, this criw knows up to 1"),
            "{text}"
        );
    }
}
