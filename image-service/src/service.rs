//! The door of the crate: what the daemon may ask of images.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Semaphore;

use crate::compile::{self, CodeVariant, Compiler};
use crate::digest::{Digest, is_hex64, is_lower_hex};
use crate::error::{AmbiguousId, CompileError, OpenError, PrepareError, PullError, StoreError};
use crate::image::{
    Code, Config, FsUsage, Image, ImageId, ImageUser, Kind, Library, Main, Prepared, PullRequest,
    Want,
};
use crate::import::Imported;
use crate::index::{Change, CodeRecord, HoldRecord, ImageRecord, State, Variant};
use crate::layer::Fault;
use crate::program::{self, Program};
use crate::pull::{Puller, is_wasm_platform};
use crate::reference::{Reference, Target};
use crate::registry::Clients;
use crate::store::{Store, io_error};
use crate::work::{Tally, Work};

/// Layers unpacked at once.
const UNPACK_AT_ONCE: usize = 2;

/// The store and its registry client; cheap to clone.
#[derive(Clone, Debug)]
pub struct ImageService {
    inner: Arc<Puller>,
}

impl ImageService {
    /// Opens or creates the store, and clears what a crash left behind.
    ///
    /// # Errors
    /// [`OpenError::Newer`] if a newer criw wrote it; everything else is the disk, or
    /// another daemon that has the store open.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        // Two TLS providers in one process make rustls refuse; ours is ring, whoever comes first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = config.root.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&root))
            .await
            .map_err(|error| OpenError::Client(error.to_string()))??;
        let store = Arc::new(store);
        let compiler = Compiler::new(&config);
        if config.compiler.is_some()
            && let Err(error) = compiler.fingerprint(&store).await
        {
            tracing::warn!(%error, "modules cannot be compiled until the compiler works");
        }
        let collecting = store.clone();
        tokio::task::spawn_blocking(move || collecting.collect_and_log())
            .await
            .map_err(|error| OpenError::Client(error.to_string()))?;
        Ok(ImageService {
            inner: Arc::new(Puller {
                config,
                store,
                compiler,
                clients: Clients::default(),
                unpacking: Arc::new(Semaphore::new(UNPACK_AT_ONCE)),
                work: Tally::default(),
            }),
        })
    }

    /// Fetches, verifies, unpacks and compiles an image, and records it at the end.
    /// Dropping the future abandons the pull and leaves nothing behind.
    ///
    /// # Errors
    /// By what the caller does next, see [`PullError`]; nothing of a failed pull is visible.
    pub async fn pull(&self, request: PullRequest) -> Result<ImageId, PullError> {
        self.inner.pull(request).await
    }

    /// Takes in the images of an archive (an OCI layout in a tar, or what `docker save`
    /// writes; also compressed), each as a pull would. `name` is for an archive of one image, and
    /// stands for what the archive calls it. A reader that fails, and dropping the future,
    /// leave nothing behind; when an image fails, those before it in the archive stay.
    ///
    /// # Errors
    /// As [`ImageService::pull`], without those of a registry.
    pub async fn import(
        &self,
        archive: impl std::io::Read + Send + 'static,
        name: Option<String>,
    ) -> Result<Vec<Imported>, PullError> {
        crate::import::import(&self.inner, archive, name).await
    }

    /// The image that a name stands for: id, id prefix, tag, digest, or un-normalised text.
    ///
    /// # Errors
    /// If an id prefix fits several images.
    pub fn find(&self, name: &str) -> Result<Option<Image>, AmbiguousId> {
        let state = self.store().index.state();
        Ok(find(&state, name)?.map(|(id, scope)| image(&state, &id, scope)))
    }

    /// The same for a kubelet, which asks by id and tells beside it what the pod says: if
    /// that names the same image, only the variants of that name count.
    ///
    /// # Errors
    /// If an id prefix fits several images.
    pub fn find_as(&self, name: &str, user_specified: &str) -> Result<Option<Image>, AmbiguousId> {
        let state = self.store().index.state();
        let Some((id, scope)) = find(&state, name)? else {
            return Ok(None);
        };
        let scope = scope.or_else(|| match find(&state, user_specified) {
            Ok(Some((same, scope))) if same == id => scope,
            _ => None,
        });
        Ok(Some(image(&state, &id, scope)))
    }

    /// All images, or those that a reference stands for; a name without tag means all its tags.
    pub fn list(&self, filter: Option<&str>) -> Vec<Image> {
        let state = self.store().index.state();
        let ids: Vec<Digest> = match filter {
            None | Some("") => state.images.keys().cloned().collect(),
            Some(filter) => {
                let mut ids: Vec<Digest> = state
                    .images
                    .iter()
                    .filter(|(_, record)| in_repository(record, filter))
                    .map(|(id, _)| id.clone())
                    .collect();
                if ids.is_empty() {
                    ids = match find(&state, filter) {
                        Ok(found) => found.into_iter().map(|(id, _)| id).collect(),
                        Err(_) => with_prefix(&state, filter),
                    };
                }
                ids
            }
        };
        ids.iter().map(|id| image(&state, id, None)).collect()
    }

    /// Removes the whole record with all its names; an unknown name is fine. Disk is freed
    /// in the background, except what containers hold.
    ///
    /// # Errors
    /// If the name is ambiguous or the index cannot be written.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.change(move |state| {
            let found = find(state, &name);
            let changes = match &found {
                Ok(Some((id, _))) => vec![Change::Image(id.clone(), None)],
                _ => Vec::new(),
            };
            (changes, found.map(|_| ()))
        })
        .await??;
        self.store().collect_soon();
        Ok(())
    }

    /// What the store takes of its file system; counted, not walked.
    pub fn usage(&self) -> FsUsage {
        self.store().usage()
    }

    /// Layers, config and modules for a container, of a variant that `scope` (see
    /// [`Image::scope`]) stands for; without one, of any.
    ///
    /// # Errors
    /// If the image is gone or has no variant for what is wanted.
    pub async fn prepare(
        &self,
        image_id: &ImageId,
        scope: Option<&str>,
        want: Want,
    ) -> Result<Prepared, PrepareError> {
        let state = self.store().index.state();
        let unknown = || PrepareError::Unknown(image_id.to_string());
        let record = state.images.get(&image_id.0).ok_or_else(unknown)?;
        let variants = record.variants_of(scope);
        let variant =
            choose(&variants, want).ok_or_else(|| no_variant(image_id, scope, record, want))?;
        let content = content_of(variant);
        Ok(Prepared {
            image: image(&state, &image_id.0, scope.map(str::to_owned)),
            lowers: variant
                .layers
                .iter()
                .map(|chain| self.store().layer_path(chain))
                .collect(),
            config: variant.process.clone(),
            kind: variant.kind,
            modules: variant.modules.clone(),
            hold: self.store().lease(content),
        })
    }

    /// Compiled code of a stored module; compiled now, within 60 s, if the cache lacks it.
    ///
    /// # Errors
    /// [`CompileError::Invalid`] carries the compiler's text for the user.
    pub async fn code(&self, module: &Digest, variant: CodeVariant) -> Result<Code, CompileError> {
        let compiler = &self.inner.compiler;
        compiler.stored(self.store(), module, variant, true).await
    }

    /// Compiled code of a module that is not of an image, such as one on a volume.
    ///
    /// # Errors
    /// As [`ImageService::code`].
    pub async fn compile_file(
        &self,
        module: File,
        variant: CodeVariant,
    ) -> Result<Code, CompileError> {
        let compiler = &self.inner.compiler;
        compiler.file(self.store(), module, variant).await
    }

    /// Code of a component linked with those of the libraries that export what it imports
    /// ([`Code::unmet`]), of which the first that fits is taken; made now, within 60 s, if
    /// the cache lacks it. What no library exports is still unmet.
    ///
    /// # Errors
    /// As [`ImageService::code`]; libraries that need each other in a circle, and an export
    /// of another type than the import, are [`CompileError::Invalid`].
    pub async fn link(
        &self,
        main: Main,
        libraries: &[Library],
        variant: CodeVariant,
    ) -> Result<Code, CompileError> {
        let (compiler, store) = (&self.inner.compiler, self.store());
        compiler.link(store, main, libraries, variant, true).await
    }

    /// The modules that are held for an owner: those of a container's image and of the
    /// images that it mounts.
    pub fn held_modules(&self, owner: &str) -> Vec<Digest> {
        let state = self.store().index.state();
        let hold = state.holds.get(owner);
        hold.map_or_else(Vec::new, |hold| hold.modules.iter().cloned().collect())
    }

    /// Keeps the content of these variants of images on disk for `owner` (a container
    /// id), over restarts of the daemon, until [`ImageService::release`]. What the owner
    /// held before is forgotten.
    ///
    /// # Errors
    /// If an image is gone or the index cannot be written.
    pub async fn hold(&self, owner: &str, images: &[(ImageId, Kind)]) -> Result<(), StoreError> {
        let (owner, images) = (owner.to_owned(), images.to_vec());
        self.change(move |state| {
            let mut variants = Vec::new();
            for (id, kind) in &images {
                let Some(record) = state.images.get(&id.0) else {
                    return (Vec::new(), Err(StoreError::UnknownImage(id.to_string())));
                };
                variants.extend(record.variants.iter().filter(|one| one.kind == *kind));
            }
            let modules = variants.iter().flat_map(|variant| &variant.modules);
            let hold = HoldRecord {
                layers: variants
                    .iter()
                    .flat_map(|variant| variant.layers.iter().cloned())
                    .collect(),
                modules: modules.map(|module| module.digest.clone()).collect(),
            };
            (vec![Change::Hold(owner, Some(hold))], Ok(()))
        })
        .await?
    }

    /// The file that holds the bytes of a stored module, while that is held.
    pub fn module_file(&self, module: &Digest) -> Option<std::path::PathBuf> {
        self.store().module_path(module)
    }

    /// Ends a hold; an unknown owner is fine.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub async fn release(&self, owner: &str) -> Result<(), StoreError> {
        let owner = owner.to_owned();
        let released = self
            .change(move |state| match state.holds.contains_key(&owner) {
                true => (vec![Change::Hold(owner, None)], true),
                false => (Vec::new(), false),
            })
            .await?;
        if released {
            self.store().collect_soon();
        }
        Ok(())
    }

    /// Owners that hold something, to be compared with the containers that exist.
    pub fn holders(&self) -> Vec<String> {
        self.store().index.state().holds.keys().cloned().collect()
    }

    /// Pulls since the service was opened.
    pub fn pulls(&self) -> Work {
        self.inner.work.read()
    }

    /// How often the cache had the code that a container needed, since the service was
    /// opened.
    pub fn code_cache_hits(&self) -> u64 {
        self.inner.compiler.hits.load(Ordering::Relaxed)
    }

    /// Runs of the compiler since the service was opened.
    pub fn compilations(&self) -> Work {
        self.inner.compiler.work.read()
    }

    fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    async fn change<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&State) -> (Vec<Change>, T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store().clone();
        tokio::task::spawn_blocking(move || store.index.change(decide))
            .await
            .map_err(|error| {
                io_error(
                    "change",
                    Path::new("the image index"),
                    std::io::Error::other(error),
                )
            })?
    }
}

impl Prepared {
    /// What the first word of a command stands for in this image, by the rules of execvp;
    /// files of volumes are not seen. Blocks on disk for some microseconds.
    ///
    /// # Errors
    /// If the layers cannot be read.
    pub fn program(
        &self,
        word: &str,
        working_dir: &str,
        search_path: Option<&str>,
    ) -> Result<Option<Program>, StoreError> {
        program::find(&self.lowers, &self.modules, word, working_dir, search_path).map_err(
            |fault| match fault {
                Fault::Io {
                    action,
                    path,
                    source,
                } => StoreError::Io {
                    action,
                    path,
                    source,
                },
                other => io_error(
                    "look up",
                    Path::new(word),
                    std::io::Error::other(other.to_string()),
                ),
            },
        )
    }
}

/// The image, and the one of its names by which it was found.
type Found = (Digest, Option<String>);

fn find(state: &State, name: &str) -> Result<Option<Found>, AmbiguousId> {
    if is_hex64(name) || (name.starts_with("sha256:") && name.len() == 71) {
        let hex = name.trim_start_matches("sha256:");
        return Ok(with_prefix(state, hex).pop().map(|id| (id, None)));
    }
    if let Ok(reference) = Reference::parse(name) {
        let full = reference.to_string();
        let names = |record: &ImageRecord| match reference.target {
            Target::Tag(_) => record.tags.contains(&full),
            Target::Digest(_) => record.digests.contains(&full),
        };
        if let Some((id, _)) = state.images.iter().find(|(_, record)| names(record)) {
            return Ok(Some((id.clone(), Some(full))));
        }
    }
    let mut ids = with_prefix(state, name);
    if ids.len() > 1 {
        return Err(AmbiguousId {
            prefix: name.to_owned(),
            count: ids.len(),
        });
    }
    Ok(ids.pop().map(|id| (id, None)))
}

fn with_prefix(state: &State, prefix: &str) -> Vec<Digest> {
    let hex = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    if hex.is_empty() || !is_lower_hex(hex) {
        return Vec::new();
    }
    let matching = |id: &&Digest| id.hex().starts_with(hex);
    state.images.keys().filter(matching).cloned().collect()
}

/// Whether a name without tag or digest is the repository of one of the image's names.
fn in_repository(record: &ImageRecord, filter: &str) -> bool {
    let Ok(reference) = Reference::parse(filter) else {
        return false;
    };
    if reference.explicit {
        return false;
    }
    let name = reference.name();
    let after = |full: &String, separator| {
        full.strip_prefix(&name)
            .is_some_and(|rest| rest.starts_with(separator))
    };
    record.tags.iter().any(|tag| after(tag, ':'))
        || record.digests.iter().any(|digest| after(digest, '@'))
}

fn choose<'a>(variants: &[&'a Variant], want: Want) -> Option<&'a Variant> {
    let mut variants = variants.iter().copied();
    match want {
        Want::Any => variants.next(),
        Want::Host => {
            variants.find(|variant| !is_wasm_platform(&variant.platform) && !is_artifact(variant))
        }
        Want::Wasm => variants
            .clone()
            .find(|variant| variant.kind == Kind::Wasm)
            // The command of the pod may name a module that the image's own does not.
            .or_else(|| variants.find(|variant| !variant.modules.is_empty())),
    }
}

fn is_artifact(variant: &Variant) -> bool {
    variant.layers.is_empty() && !variant.modules.is_empty()
}

fn no_variant(id: &ImageId, scope: Option<&str>, record: &ImageRecord, want: Want) -> PrepareError {
    let any_name = || record.tags.iter().chain(&record.digests).next().cloned();
    let name = scope.map(str::to_owned).or_else(any_name);
    let present: BTreeSet<&str> = record
        .variants_of(scope)
        .iter()
        .map(|variant| variant.platform.as_str())
        .collect();
    let (wanted, hint) = match want {
        Want::Host => (
            "Linux",
            "use a Wasm runtime class, or pull the image again if it has such a variant",
        ),
        _ => (
            "Wasm",
            "it holds no Wasm module; use a runtime class for Linux containers, or pull it again if it has such a variant",
        ),
    };
    PrepareError::NoVariant {
        image: name.unwrap_or_else(|| id.to_string()),
        wanted,
        present: present.into_iter().collect::<Vec<_>>().join(", "),
        hint,
    }
}

fn content_of(variant: &Variant) -> BTreeSet<Digest> {
    let modules = variant.modules.iter().map(|module| &module.digest);
    variant.layers.iter().chain(modules).cloned().collect()
}

fn image(state: &State, id: &Digest, scope: Option<String>) -> Image {
    let record = &state.images[id];
    let variants = record.variants_of(scope.as_deref());
    let first = variants.first();
    Image {
        id: ImageId(id.clone()),
        repo_tags: record.tags.iter().cloned().collect(),
        repo_digests: record.digests.iter().cloned().collect(),
        size: size(state, record),
        user: first.and_then(|variant| user(&variant.process.user)),
        pinned: false,
        kinds: variants.iter().map(|variant| variant.kind).collect(),
        labels: first
            .map(|variant| variant.process.labels.clone())
            .unwrap_or_default(),
        scope,
    }
}

fn size(state: &State, record: &ImageRecord) -> u64 {
    let mut content: BTreeSet<&Digest> = record.documents.iter().collect();
    let mut modules = BTreeSet::new();
    for variant in &record.variants {
        content.extend([&variant.manifest, &variant.config]);
        content.extend(&variant.layers);
        modules.extend(variant.modules.iter().map(|module| module.digest.hex()));
        content.extend(variant.modules.iter().map(|module| &module.digest));
    }
    let stored: u64 = content
        .iter()
        .map(|digest| {
            let layer = state.layers.get(*digest).map_or(0, |layer| layer.bytes);
            layer + state.blobs.get(*digest).copied().unwrap_or(0)
        })
        .sum();
    let code: u64 = state
        .code
        .iter()
        .filter(|(key, code)| match code {
            CodeRecord::Compiled { parts, .. } if !parts.is_empty() => {
                parts.iter().all(|part| modules.contains(part.hex()))
            }
            _ => compile::parts(key).is_some_and(|(_, hex)| modules.contains(hex)),
        })
        .map(|(_, code)| match code {
            CodeRecord::Compiled { size, .. } => *size,
            CodeRecord::Invalid(_) => 0,
        })
        .sum();
    // The manifest alone is more than nothing; clients refuse images of size 0.
    (stored + code).max(1)
}

fn user(text: &str) -> Option<ImageUser> {
    let name = text.split(':').next().unwrap_or_default();
    match name.parse() {
        _ if name.is_empty() => None,
        Ok(uid) => Some(ImageUser::Uid(uid)),
        Err(_) => Some(ImageUser::Name(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RPC handlers run on any thread: this does not compile otherwise.
    #[test]
    fn all_futures_are_send() {
        fn is_send<T: Send>(_: impl FnOnce(&'static ImageService, PullRequest) -> T) {}
        is_send(|service, request| service.pull(request));
        is_send(|service, _| service.remove(""));
        is_send(|service, request| async move {
            let id = service.pull(request).await.map_err(|_| ())?;
            let prepared = service
                .prepare(&id, None, Want::Any)
                .await
                .map_err(|_| ())?;
            service
                .hold("", &[(id.clone(), prepared.kind)])
                .await
                .map_err(|_| ())?;
            service.release("").await.map_err(|_| ())?;
            let code = service
                .code(&id.0, CodeVariant::Plain)
                .await
                .map_err(|_| ())?;
            service
                .compile_file(code.file, CodeVariant::Plain)
                .await
                .map_err(|_| ())
        });
    }

    #[test]
    fn users_are_numbers_or_names() {
        for (text, expected) in [
            ("", None),
            (":5", None),
            ("0", Some(ImageUser::Uid(0))),
            ("1000:1000", Some(ImageUser::Uid(1000))),
            ("www-data:www", Some(ImageUser::Name("www-data".into()))),
        ] {
            assert_eq!(user(text), expected, "{text}");
        }
    }

    #[test]
    fn images_are_found_by_every_kind_of_name() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let record = |tag: &str, manifest: &[u8]| ImageRecord {
            tags: BTreeSet::from([format!("docker.io/library/{tag}")]),
            digests: BTreeSet::from([format!("docker.io/library/app@{}", Digest::of(manifest))]),
            ..ImageRecord::default()
        };
        let mut state = State::default();
        state
            .images
            .insert(one.clone(), record("app:latest", b"m1"));
        state.images.insert(two.clone(), record("app:v2", b"m2"));
        let by_digest = format!("app@{}", Digest::of(b"m2"));
        for (name, expected) in [
            ("app", Some(&one)),
            ("docker.io/library/app:latest", Some(&one)),
            ("library/app:v2", Some(&two)),
            (by_digest.as_str(), Some(&two)),
            (one.as_str(), Some(&one)),
            (one.hex(), Some(&one)),
            (&one.hex()[..12], Some(&one)),
            (&one.as_str()[..20], Some(&one)),
            ("app:v3", None),
            ("", None),
            ("sha256:", None),
        ] {
            let found = find(&state, name).unwrap().map(|(id, _)| id);
            assert_eq!(found.as_ref(), expected, "{name}");
        }
        for seed in 0..40u8 {
            state
                .images
                .insert(Digest::of(&[seed]), record("x:y", b"x"));
        }
        let busy = (b'0'..=b'9')
            .chain(b'a'..=b'f')
            .map(|digit| (digit as char).to_string())
            .find(|digit| with_prefix(&state, digit).len() > 1)
            .unwrap();
        assert!(
            find(&state, &busy)
                .unwrap_err()
                .to_string()
                .contains("give more digits")
        );
    }
}
