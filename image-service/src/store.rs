//! Content on disk: blobs and unpacked layers by digest, scratch space, leases that
//! keep content while it is in use, and the collection of what nobody needs.
//!
//! Everything is made in `tmp` and renamed into place; the index is committed last.
//! So what has no record, no hold and no lease is garbage, after a crash as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::compile;
use crate::digest::Digest;
use crate::error::{OpenError, StoreError};
use crate::image::FsUsage;
use crate::index::{Change, CodeRecord, Index, LayerRecord, State};

/// Compiled modules of volumes belong to no image; the oldest beyond this many go.
const MAX_VOLUME_CODE: usize = 64;

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    pub(crate) index: Index,
    /// Layers in place that no committed image names yet.
    fresh: Mutex<BTreeMap<Digest, LayerRecord>>,
    leases: Mutex<HashMap<Digest, usize>>,
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Directory of code that is kept; set once the compiler's fingerprint is known.
    fingerprint: Mutex<Option<String>>,
    collecting: Mutex<()>,
    collection_wanted: AtomicBool,
    runtime: tokio::runtime::Handle,
}

impl Store {
    /// Opens or creates the store. Blocks on disk; must run within a tokio runtime.
    pub(crate) fn open(root: &Path) -> Result<Store, OpenError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let make = |path: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                // Layers hold set-user-id files: nobody but root may reach them here.
                .mode(0o700)
                .create(path)
                .map_err(|error| io_error("create", path, error))
        };
        make(root)?;
        // Opening the index locks out a second daemon before anything is cleared.
        let index = Index::open(&root.join("index.redb"))?;
        let tmp = root.join("tmp");
        match std::fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &tmp, error).into());
            }
            _ => {}
        }
        for directory in ["tmp", "blobs/sha256", "layers", "code"] {
            make(&root.join(directory))?;
        }
        let store = Store {
            root: root.to_owned(),
            index,
            fresh: Mutex::default(),
            leases: Mutex::default(),
            turns: Mutex::default(),
            fingerprint: Mutex::default(),
            collecting: Mutex::new(()),
            collection_wanted: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
        };
        let mut blobs = BTreeMap::new();
        for (name, path) in entries(&store.root.join("blobs/sha256"))? {
            if let Ok(digest) = format!("sha256:{name}").parse::<Digest>()
                && let Ok(metadata) = path.metadata()
            {
                blobs.insert(digest, metadata.len());
            }
        }
        store.index.state().blobs = blobs;
        Ok(store)
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    pub(crate) fn code_path(&self, key: &str) -> PathBuf {
        self.root.join("code").join(format!("{key}.cwasm"))
    }

    pub(crate) fn keep_code_of(&self, fingerprint: &str) {
        *lock(&self.fingerprint) = Some(fingerprint.to_owned());
    }

    /// The file decides: a collection takes it away before it is counted out.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        let counted = self.index.state().blobs.contains_key(digest);
        counted && self.blob_path(digest).exists()
    }

    /// A small blob, verified; `None` if it is not there or damaged (then it is dropped).
    pub(crate) fn read_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = std::fs::read(&path).ok()?;
        if Digest::of(&bytes) == *digest {
            return Some(bytes);
        }
        tracing::warn!(path = %path.display(), "a damaged blob is fetched again");
        self.index.state().blobs.remove(digest);
        let _ = std::fs::remove_file(&path);
        None
    }

    /// Stores bytes that are in memory under their digest.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has_blob(&digest) {
            return Ok(digest);
        }
        let mut file = self.scratch_file()?;
        file.write_all(bytes)
            .map_err(|error| io_error("write", file.path(), error))?;
        self.keep_blob(file.into_temp_path(), &digest, bytes.len() as u64)?;
        Ok(digest)
    }

    pub(crate) fn scratch_file(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        let tmp = self.tmp();
        tempfile::NamedTempFile::new_in(&tmp)
            .map_err(|error| io_error("create a file in", &tmp, error))
    }

    /// Moves verified content into place.
    pub(crate) fn keep_blob(
        &self,
        file: tempfile::TempPath,
        digest: &Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        file.persist(&path)
            .map_err(|error| io_error("rename to", &path, error.error))?;
        self.index.state().blobs.insert(digest.clone(), size);
        Ok(())
    }

    /// The record of a layer that is in place.
    pub(crate) fn layer(&self, chain: &Digest) -> Option<LayerRecord> {
        let known = self.index.state().layers.get(chain).cloned();
        let record = known.or_else(|| lock(&self.fresh).get(chain).cloned())?;
        self.layer_path(chain).is_dir().then_some(record)
    }

    /// A layer in place that no commit has recorded yet.
    pub(crate) fn fresh_layer(&self, chain: &Digest) -> Option<LayerRecord> {
        lock(&self.fresh).get(chain).cloned()
    }

    /// These layers are recorded now.
    pub(crate) fn settle(&self, chains: &[Digest]) {
        let mut fresh = lock(&self.fresh);
        for chain in chains {
            fresh.remove(chain);
        }
    }

    /// Moves an unpacked directory into place.
    pub(crate) fn keep_layer(
        &self,
        directory: &Path,
        chain: &Digest,
        record: LayerRecord,
    ) -> Result<(), StoreError> {
        let path = self.layer_path(chain);
        std::fs::rename(directory, &path).map_err(|error| io_error("rename to", &path, error))?;
        lock(&self.fresh).insert(chain.clone(), record);
        Ok(())
    }

    /// Makes sure that what is in place survives a power cut.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let open = std::fs::File::open(&self.root);
        open.and_then(|root| rustix::fs::syncfs(root).map_err(Into::into))
            .map_err(|error| io_error("sync", &self.root, error))
    }

    /// A file that holds the module's bytes.
    pub(crate) fn module_path(&self, module: &Digest) -> Option<PathBuf> {
        let in_layers = |layers: &BTreeMap<Digest, LayerRecord>| {
            layers.iter().find_map(|(chain, layer)| {
                let (path, _) = layer
                    .modules
                    .iter()
                    .find(|(_, (digest, _))| digest == module)?;
                Some(self.layer_path(chain).join(path))
            })
        };
        let state = self.index.state();
        if state.blobs.contains_key(module) {
            return Some(self.blob_path(module));
        }
        in_layers(&state.layers).or_else(|| in_layers(&lock(&self.fresh)))
    }

    /// Queues for a piece of work, so that two do not do the same at once.
    pub(crate) async fn turn(&self, work: String) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&work).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                turns.insert(work, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// What the store takes: counted by the records, not by walking the disk.
    pub(crate) fn usage(&self) -> FsUsage {
        let state = self.index.state();
        let mut used_bytes: u64 = state.blobs.values().sum();
        let mut inodes_used = state.blobs.len() as u64;
        for layer in state.layers.values() {
            used_bytes += layer.bytes;
            inodes_used += layer.entries + 1;
        }
        for code in state.code.values() {
            if let CodeRecord::Compiled { size, .. } = code {
                used_bytes += size;
                inodes_used += 1;
            }
        }
        FsUsage {
            mountpoint: self.root.clone(),
            used_bytes,
            inodes_used,
        }
    }

    /// Collects garbage in the background; many wishes are one collection.
    pub(crate) fn collect_soon(self: &Arc<Self>) {
        if self.collection_wanted.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = self.clone();
        self.runtime.spawn_blocking(move || store.collect_and_log());
    }

    pub(crate) fn collect_and_log(&self) {
        if let Err(error) = self.collect() {
            tracing::warn!(%error, "images that are no longer needed could not be removed; tried again at the next change");
        }
    }

    /// Removes everything that no image, hold or lease needs. Blocks on disk.
    fn collect(&self) -> Result<(), StoreError> {
        let _one = lock(&self.collecting);
        self.collection_wanted.store(false, Ordering::Release);
        let trash = tempfile::tempdir_in(self.tmp())
            .map_err(|error| io_error("create", &self.tmp(), error))?;
        let mut count = 0;
        let mut discard = |path: &Path| {
            // A rename is quick and final: a pull that wants the same content now makes it anew.
            count += 1;
            std::fs::rename(path, trash.path().join(count.to_string()))
        };
        let layers = entries(&self.root.join("layers"))?;
        let blobs = entries(&self.root.join("blobs/sha256"))?;
        let mut code = Vec::new();
        for (fingerprint, directory) in entries(&self.root.join("code"))? {
            for (name, path) in entries(&directory)? {
                code.push((
                    format!("{fingerprint}/{}", name.trim_end_matches(".cwasm")),
                    path,
                ));
            }
        }
        self.index
            .change(|state| {
                // Held while names disappear: no lease can be taken in between.
                let leases = lock(&self.leases);
                let needed = Needed::of(state, &leases, lock(&self.fingerprint).as_deref());
                let mut changes = Vec::new();
                for (name, path) in layers {
                    let chain = format!("sha256:{name}").parse::<Digest>();
                    if chain.is_ok_and(|chain| needed.content.contains(&chain)) {
                        continue;
                    }
                    let _ = discard(&path);
                }
                for chain in state
                    .layers
                    .keys()
                    .filter(|chain| !needed.content.contains(*chain))
                {
                    changes.push(Change::Layer(chain.clone(), None));
                }
                lock(&self.fresh).retain(|chain, _| needed.content.contains(chain));
                let mut gone = Vec::new();
                for (name, path) in blobs {
                    let digest = format!("sha256:{name}").parse::<Digest>().ok();
                    if digest
                        .as_ref()
                        .is_some_and(|digest| needed.content.contains(digest))
                    {
                        continue;
                    }
                    if discard(&path).is_ok() {
                        gone.extend(digest);
                    }
                }
                for (key, path) in code {
                    if !needed.code.contains(&key) {
                        let _ = discard(&path);
                    }
                }
                for key in state.code.keys().filter(|key| !needed.code.contains(*key)) {
                    changes.push(Change::Code(key.clone(), None));
                }
                (changes, gone)
            })
            .map(|gone| {
                let mut state = self.index.state();
                for digest in gone {
                    // A new one may have come into place since.
                    if !self.blob_path(&digest).exists() {
                        state.blobs.remove(&digest);
                    }
                }
            })?;
        // Dropping the trash directory would hide the error.
        let path = trash.path().to_owned();
        trash
            .close()
            .map_err(|error| io_error("remove", &path, error))
    }

    /// Keeps content while the result lives.
    pub(crate) fn lease(self: &Arc<Self>, content: impl IntoIterator<Item = Digest>) -> Hold {
        let mut hold = Hold {
            store: self.clone(),
            content: BTreeSet::new(),
        };
        hold.extend(content);
        hold
    }
}

struct Needed {
    content: BTreeSet<Digest>,
    code: BTreeSet<String>,
}

impl Needed {
    fn of(state: &State, leases: &HashMap<Digest, usize>, fingerprint: Option<&str>) -> Needed {
        let mut content: BTreeSet<Digest> = leases.keys().cloned().collect();
        for image in state.images.values() {
            content.extend(image.documents.iter().cloned());
            for variant in &image.variants {
                content.extend([variant.manifest.clone(), variant.config.clone()]);
                content.extend(variant.layers.iter().cloned());
                content.extend(variant.modules.iter().map(|module| module.digest.clone()));
            }
        }
        for hold in state.holds.values() {
            content.extend(hold.layers.iter().chain(&hold.modules).cloned());
        }
        let mut volumes: Vec<(u64, &String)> = Vec::new();
        let mut code = BTreeSet::new();
        for (key, record) in &state.code {
            let Some((made_by, hex)) = compile::parts(key) else {
                continue;
            };
            if fingerprint.is_some_and(|current| current != made_by) {
                continue;
            }
            let kept = match record {
                CodeRecord::Compiled { parts, .. } if !parts.is_empty() => {
                    parts.iter().all(|part| content.contains(part))
                }
                _ => format!("sha256:{hex}")
                    .parse()
                    .is_ok_and(|digest: Digest| content.contains(&digest)),
            };
            if kept {
                code.insert(key.clone());
            } else if let CodeRecord::Compiled {
                volume_since: since @ 1..,
                ..
            } = record
            {
                volumes.push((*since, key));
            }
        }
        volumes.sort();
        code.extend(
            volumes
                .iter()
                .rev()
                .take(MAX_VOLUME_CODE)
                .map(|(_, key)| (*key).clone()),
        );
        Needed { content, code }
    }
}

/// Keeps content on disk while it lives.
#[derive(Debug)]
pub struct Hold {
    store: Arc<Store>,
    content: BTreeSet<Digest>,
}

impl Hold {
    pub(crate) fn extend(&mut self, content: impl IntoIterator<Item = Digest>) {
        let mut leases = lock(&self.store.leases);
        for digest in content {
            if self.content.insert(digest.clone()) {
                *leases.entry(digest).or_default() += 1;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut leases = lock(&self.store.leases);
        let mut last = false;
        for digest in &self.content {
            if let Some(count) = leases.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    leases.remove(digest);
                    last = true;
                }
            }
        }
        drop(leases);
        if last && !self.store.all_needed(&self.content) {
            self.store.collect_soon();
        }
    }
}

impl Store {
    /// Whether images and holds keep all of it, which spares a collection after each pull.
    fn all_needed(&self, content: &BTreeSet<Digest>) -> bool {
        let state = self.index.state();
        let needed = Needed::of(&state, &HashMap::new(), None);
        content.is_subset(&needed.content)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The data is plain maps that are changed in single steps: a panic elsewhere breaks none.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let fail = |error| io_error("list", directory, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_that_is_being_collected_is_stored_anew() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let digest = store.write_blob(b"config").unwrap();
        let path = store.blob_path(&digest);
        // Where a collection stands between its renames and its commit.
        std::fs::remove_file(&path).unwrap();
        assert!(!store.has_blob(&digest));
        store.write_blob(b"config").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"config");
    }
}
