//! One pull from reference to record: manifest, choice of variants, layers, modules,
//! compiled code, and one commit at the end that makes all of it visible.
//!
//! Whatever ends a pull early (an error, the caller going away) drops its lease, and
//! what it had stored so far is collected.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use sha2::Digest as _;
use tokio::sync::Semaphore;

use crate::compile::{CodeVariant, Compiler};
use crate::digest::Digest;
use crate::error::{CompileError, PullError, StoreError};
use crate::foreign::{self, Command};
use crate::image::{
    Config, ImageId, Kind, Library, Limits, Main, ProcessConfig, PullRequest, Want, WasmModule,
};
use crate::import::ArchivedImage;
use crate::index::{Change, LayerRecord, Variant};
use crate::layer::Fault;
use crate::layer::tree::Tree;
use crate::layer::unpack::{self, Bounds};
use crate::manifest::{self, Content, Descriptor, Document, ImageConfig, Manifest};
use crate::merge::{Pulled, merge};
use crate::reference::{Reference, Target};
use crate::registry::{Clients, Session, Sink};
use crate::store::{Hold, Store};
use crate::work::Tally;

/// Blobs that are fetched ahead of the layer that is being unpacked.
const FETCH_AHEAD: usize = 3;

/// What every pull of a service shares.
#[derive(Debug)]
pub(crate) struct Puller {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) compiler: Compiler,
    pub(crate) clients: Clients,
    /// Unpacking is blocking work: this many layers at once.
    pub(crate) unpacking: Arc<Semaphore>,
    pub(crate) work: Tally,
}

impl Puller {
    pub(crate) async fn pull(&self, request: PullRequest) -> Result<ImageId, PullError> {
        let reference = Reference::parse(&request.reference)?;
        // A second pull of the same name waits, then finds all content there and only
        // proves to the registry that its own credentials are good.
        let _turn = self.store.turn(format!("pull/{reference}")).await;
        let begin = Instant::now();
        let pulled = self.fetch_from_registry(&reference, &request).await;
        self.work.add(pulled.is_ok(), begin.elapsed());
        pulled
    }

    async fn fetch_from_registry(
        &self,
        reference: &Reference,
        request: &PullRequest,
    ) -> Result<ImageId, PullError> {
        let session = Session::open(
            &self.clients,
            &self.config.limits,
            self.config.hosts_dir.as_deref(),
            reference,
            request.auth.as_ref(),
        )?;
        Pull::new(self, Source::Registry(session), reference)
            .run(request.want)
            .await
    }

    /// The same with the content of an archive.
    pub(crate) async fn take_in(
        &self,
        reference: &Reference,
        image: ArchivedImage,
        want: Want,
    ) -> Result<ImageId, PullError> {
        let _turn = self.store.turn(format!("pull/{reference}")).await;
        Pull::new(self, Source::Archive(image), reference)
            .run(want)
            .await
    }
}

/// Where manifests and blobs come from, verified in either case.
enum Source<'a> {
    Registry(Session<'a>),
    Archive(ArchivedImage),
}

impl Source<'_> {
    async fn manifest(&self, target: &Target, limits: &Limits) -> Result<Vec<u8>, PullError> {
        match self {
            Source::Registry(session) => session.manifest(target, manifest::ACCEPT).await,
            Source::Archive(image) => image.manifest(target, limits.manifest_bytes),
        }
    }
}

struct Pull<'a> {
    service: &'a Puller,
    source: Source<'a>,
    reference: &'a Reference,
    lease: Hold,
    unpacked: u64,
    entries: u64,
}

impl<'a> Pull<'a> {
    fn new(service: &'a Puller, source: Source<'a>, reference: &'a Reference) -> Pull<'a> {
        Pull {
            service,
            source,
            reference,
            lease: service.store.lease([]),
            unpacked: 0,
            entries: 0,
        }
    }

    async fn run(&mut self, want: Want) -> Result<ImageId, PullError> {
        let store = &self.service.store;
        let bytes = self
            .source
            .manifest(&self.reference.target, &self.service.config.limits)
            .await?;
        let top = Digest::of(&bytes);
        self.lease.extend([top.clone()]);
        let chosen: Vec<(Digest, Manifest)> = match self.parse(&bytes)? {
            Document::Manifest(manifest) => vec![(top.clone(), *manifest)],
            Document::Index(entries) => {
                let chosen =
                    manifest::choose(&entries, want).map_err(|reason| self.refused(reason))?;
                let mut manifests = Vec::new();
                for entry in chosen {
                    let digest = entry.digest.clone();
                    manifests.push((digest.clone(), self.variant_manifest(&digest).await?));
                }
                manifests
            }
        };
        store.write_blob(&bytes)?;
        let mut variants = Vec::new();
        let mut id = None;
        for (digest, manifest) in &chosen {
            let (variant, identity) = self.variant(digest, manifest).await?;
            id.get_or_insert(identity);
            variants.push(variant);
        }
        let id = id.ok_or_else(|| self.refused("it has no content".to_owned()))?;
        for variant in &variants {
            // Until the commit nothing else keeps their code.
            self.lease
                .extend(variant.modules.iter().map(|module| module.digest.clone()));
            self.compile(variant, want).await;
        }
        self.commit(id, top, variants).await
    }

    fn parse(&self, bytes: &[u8]) -> Result<Document, PullError> {
        manifest::parse(bytes).map_err(|reason| self.refused(reason))
    }

    fn refused(&self, reason: String) -> PullError {
        PullError::Refused(format!("image {} cannot be used: {reason}", self.reference))
    }

    async fn variant_manifest(&mut self, digest: &Digest) -> Result<Manifest, PullError> {
        self.lease.extend([digest.clone()]);
        let store = &self.service.store;
        let bytes = match store.read_blob(digest) {
            Some(bytes) => bytes,
            None => {
                let bytes = self
                    .source
                    .manifest(&Target::Digest(digest.clone()), &self.service.config.limits)
                    .await?;
                store.write_blob(&bytes)?;
                bytes
            }
        };
        match self.parse(&bytes)? {
            Document::Manifest(manifest) => Ok(*manifest),
            Document::Index(_) => Err(self.refused("its index names another index".to_owned())),
        }
    }

    /// Fetches all content of one variant; also the digest that identifies the image.
    async fn variant(
        &mut self,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(Variant, Digest), PullError> {
        let content = manifest::classify(manifest).map_err(|reason| self.refused(reason))?;
        let config = self.config(manifest, content).await?;
        if config.is_spin {
            return Err(self.refused(foreign::SPIN.to_owned()));
        }
        let (layers, modules) = match content {
            Content::Modules => (Vec::new(), self.modules(manifest).await?),
            Content::RootFs => {
                let layers = self.layers(manifest, &config).await?;
                let modules = self.visible_modules(&layers).await?;
                (layers, modules)
            }
        };
        let mut process = config.process.clone();
        process.annotations = manifest.annotations.clone().unwrap_or_default();
        let mut kind = manifest::kind_by_platform(&config.platform, content);
        if kind == Kind::Wasm || !modules.is_empty() {
            match self.command(&layers, &modules, &process).await? {
                Command::Foreign(sentence) => return Err(self.refused(sentence.to_owned())),
                Command::Module => kind = Kind::Wasm,
                Command::Other => {}
            }
        }
        // The empty config of many Wasm artifacts is the same blob for all of them.
        let identity = if config.identifies_content || manifest.layers.is_empty() {
            manifest.config.digest.clone()
        } else {
            digest.clone()
        };
        let variant = Variant {
            kind,
            platform: config.platform.to_string(),
            manifest: digest.clone(),
            config: manifest.config.digest.clone(),
            layers,
            modules,
            process,
        };
        Ok((variant, identity))
    }

    async fn config(
        &mut self,
        manifest: &Manifest,
        content: Content,
    ) -> Result<ImageConfig, PullError> {
        let descriptor = &manifest.config;
        if descriptor.size > self.service.config.limits.manifest_bytes {
            return Err(self.refused(format!("its config has {} bytes", descriptor.size)));
        }
        self.lease.extend([descriptor.digest.clone()]);
        let store = &self.service.store;
        let bytes = match store.read_blob(&descriptor.digest) {
            Some(bytes) => bytes,
            None => {
                self.fetch(descriptor).await?;
                store.read_blob(&descriptor.digest).ok_or_else(|| {
                    PullError::BadContent(format!(
                        "the config {} was damaged on this disk",
                        descriptor.digest
                    ))
                })?
            }
        };
        match (manifest::parse_config(&bytes), content) {
            (Ok(config), _) => Ok(config),
            // Artifact tools put anything there.
            (Err(_), Content::Modules) => Ok(ImageConfig::default()),
            (Err(reason), Content::RootFs) => Err(self.refused(reason)),
        }
    }

    /// Fetches a blob that is kept as it is.
    async fn fetch(&self, descriptor: &Descriptor) -> Result<(), PullError> {
        let store = &self.service.store;
        let _turn = store.turn(format!("blob/{}", descriptor.digest)).await;
        if store.has_blob(&descriptor.digest) {
            return Ok(());
        }
        let file = self.download(descriptor).await?;
        store.keep_blob(file.into_temp_path(), &descriptor.digest, descriptor.size)?;
        Ok(())
    }

    async fn download(
        &self,
        descriptor: &Descriptor,
    ) -> Result<tempfile::NamedTempFile, PullError> {
        let session = match &self.source {
            Source::Registry(session) => session,
            Source::Archive(image) => return image.blob(descriptor, &self.service.store.tmp()),
        };
        let mut sink = FileSink {
            file: self.service.store.scratch_file()?,
            position: 0,
            hasher: sha2::Sha256::new(),
        };
        session
            .blob(&descriptor.digest, descriptor.size, &mut sink)
            .await?;
        Ok(sink.file)
    }

    async fn modules(&mut self, manifest: &Manifest) -> Result<Vec<WasmModule>, PullError> {
        let mut modules = Vec::new();
        for layer in &manifest.layers {
            if layer.size > self.service.config.limits.module_bytes {
                return Err(self.refused(format!(
                    "its Wasm module has {} bytes, more than the {} that are allowed",
                    layer.size, self.service.config.limits.module_bytes
                )));
            }
            self.lease.extend([layer.digest.clone()]);
            self.fetch(layer).await?;
            modules.push(WasmModule {
                path: None,
                digest: layer.digest.clone(),
                size: layer.size,
            });
        }
        Ok(modules)
    }

    /// Fetches and unpacks the layers that are not there; returns their chain ids.
    async fn layers(
        &mut self,
        manifest: &Manifest,
        config: &ImageConfig,
    ) -> Result<Vec<Digest>, PullError> {
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(self.refused(format!(
                "its config names {} layers, its manifest {}",
                config.diff_ids.len(),
                manifest.layers.len()
            )));
        }
        let chains = chain_ids(&config.diff_ids);
        self.lease.extend(chains.iter().cloned());
        let store = self.service.store.clone();
        // A layer's turn is taken before it is fetched and given back when it is in place,
        // in the order of the chain, so two pulls never wait for each other.
        let this = &*self;
        // Boxed one by one: rustc cannot prove a stream of borrowing closures to be Send.
        let mut fetches: Vec<BoxFuture<'_, Result<_, PullError>>> = Vec::new();
        for (layer, chain) in manifest.layers.iter().zip(&chains) {
            let store = &store;
            fetches.push(Box::pin(async move {
                let turn = store.turn(format!("layer/{chain}")).await;
                if store.layer(chain).is_some() {
                    return Ok((turn, None));
                }
                Ok((turn, Some(this.download(layer).await?)))
            }));
        }
        let mut fetched = futures::stream::iter(fetches).buffered(FETCH_AHEAD);
        let (mut unpacked, mut entries) = (self.unpacked, self.entries);
        let mut position = 0;
        while let Some(outcome) = fetched.next().await {
            let (_turn, blob) = outcome?;
            let chain = &chains[position];
            if let Some(blob) = blob {
                let lowers: Vec<PathBuf> = chains[..position]
                    .iter()
                    .map(|chain| store.layer_path(chain))
                    .collect();
                let limits = &self.service.config.limits;
                let bounds = Bounds {
                    bytes: limits.unpacked_bytes.saturating_sub(unpacked),
                    entries: limits.entries.saturating_sub(entries),
                    module_bytes: limits.module_bytes,
                };
                self.unpack(blob, lowers, chain, &config.diff_ids[position], bounds)
                    .await?;
            }
            let record = store.layer(chain).ok_or_else(|| {
                PullError::BadContent(format!("layer {chain} disappeared while it was pulled"))
            })?;
            unpacked += record.bytes;
            entries += record.entries;
            position += 1;
        }
        drop(fetched);
        (self.unpacked, self.entries) = (unpacked, entries);
        Ok(chains)
    }

    async fn unpack(
        &self,
        blob: tempfile::NamedTempFile,
        lowers: Vec<PathBuf>,
        chain: &Digest,
        diff_id: &Digest,
        bounds: Bounds,
    ) -> Result<(), PullError> {
        let slot = self
            .service
            .unpacking
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let store = self.service.store.clone();
        // Lives as long as the work, which may outlive this future for a moment.
        let lease = store.lease([chain.clone()]);
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(cancelled.clone());
        let (chain, diff_id) = (chain.clone(), diff_id.clone());
        let root = store.root().to_owned();
        let work = move || -> Result<(), PullError> {
            let scratch = tempfile::tempdir_in(store.tmp()).map_err(|error| PullError::Io {
                action: "create a directory in",
                path: store.tmp(),
                source: error,
            })?;
            let target = scratch.path().join("layer");
            std::fs::create_dir(&target).map_err(|error| PullError::Io {
                action: "create",
                path: target.clone(),
                source: error,
            })?;
            let done = unpack::unpack(&unpack::Job {
                blob: blob.as_file(),
                lowers: &lowers,
                target: &target,
                diff_id: &diff_id,
                bounds,
                cancelled: &cancelled,
            })
            .map_err(|fault| pull_error(fault, &root))?;
            let record = LayerRecord {
                bytes: done.bytes,
                entries: done.entries,
                modules: done.modules,
            };
            store.keep_layer(&target, &chain, record)?;
            drop((blob, scratch, lease, slot));
            Ok(())
        };
        blocking(work).await
    }

    /// The modules that no upper layer hides.
    async fn visible_modules(&self, layers: &[Digest]) -> Result<Vec<WasmModule>, PullError> {
        let store = self.service.store.clone();
        let layers = layers.to_vec();
        blocking(move || {
            let root = store.root().to_owned();
            visible_modules(&store, &layers).map_err(|fault| pull_error(fault, &root))
        })
        .await
    }

    /// What the image's own command is.
    async fn command(
        &self,
        layers: &[Digest],
        modules: &[WasmModule],
        process: &ProcessConfig,
    ) -> Result<Command, PullError> {
        let lowers: Vec<PathBuf> = layers
            .iter()
            .map(|chain| self.service.store.layer_path(chain))
            .collect();
        let (modules, process) = (modules.to_vec(), process.clone());
        let root = self.service.store.root().to_owned();
        blocking(move || {
            foreign::command(&lowers, &modules, &process).map_err(|fault| pull_error(fault, &root))
        })
        .await
    }

    /// Fills the code cache. A module that cannot be compiled fails its container's start, not the pull.
    async fn compile(&self, variant: &Variant, want: Want) {
        if want == Want::Host && variant.kind == Kind::Linux {
            return;
        }
        let mut compile: Vec<BoxFuture<'_, ()>> = Vec::new();
        for module in &variant.modules {
            compile.push(Box::pin(async move {
                match self.compile_one(variant, module).await {
                    Ok(()) => {}
                    Err(CompileError::Invalid(reason)) => {
                        tracing::info!(image = %self.reference, module = %module.digest, reason, "a module is invalid");
                    }
                    Err(error) => {
                        tracing::warn!(image = %self.reference, %error, "a module is compiled at its first start instead");
                    }
                }
            }));
        }
        futures::stream::iter(compile)
            .buffer_unordered(2)
            .collect::<()>()
            .await;
    }

    /// With the image's other modules, if they may have what it imports.
    async fn compile_one(
        &self,
        variant: &Variant,
        module: &WasmModule,
    ) -> Result<(), CompileError> {
        let service = self.service;
        let (compiler, store) = (&service.compiler, &service.store);
        let alone = compiler
            .stored(store, &module.digest, CodeVariant::Plain, false)
            .await?;
        if !alone.unmet.is_empty() && variant.modules.len() > 1 {
            let libraries: Vec<Library> = variant.modules.iter().map(Library::from).collect();
            let main = Main::Stored(module.digest.clone());
            compiler
                .link(store, main, &libraries, CodeVariant::Plain, false)
                .await?;
        }
        Ok(())
    }

    async fn commit(
        &self,
        id: Digest,
        top: Digest,
        variants: Vec<Variant>,
    ) -> Result<ImageId, PullError> {
        let store = self.service.store.clone();
        let reference = self.reference.clone();
        blocking(move || {
            store.sync()?;
            let chains: Vec<Digest> = variants
                .iter()
                .flat_map(|variant| variant.layers.clone())
                .collect();
            let pulled = Pulled {
                reference: &reference,
                id,
                top,
                variants,
            };
            let id = store.index.change(|state| {
                let (mut changes, id) = merge(&state.images, pulled);
                let fresh = chains.iter().filter_map(|chain| {
                    let layer = store.fresh_layer(chain)?;
                    Some(Change::Layer(chain.clone(), Some(layer)))
                });
                changes.extend(fresh);
                (changes, id)
            })?;
            store.settle(&chains);
            Ok(ImageId(id))
        })
        .await
    }
}

/// `os/architecture` as recorded.
pub(crate) fn is_wasm_platform(platform: &str) -> bool {
    let mut parts = platform.split('/').map(str::to_owned);
    manifest::Platform {
        os: parts.next().unwrap_or_default(),
        architecture: parts.next().unwrap_or_default(),
        variant: String::new(),
    }
    .is_wasm()
}

fn visible_modules(store: &Store, layers: &[Digest]) -> Result<Vec<WasmModule>, Fault> {
    let paths: Vec<PathBuf> = layers
        .iter()
        .rev()
        .map(|chain| store.layer_path(chain))
        .collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let tree = Tree::open(&paths)?;
    let mut visible = Vec::new();
    for (index, chain) in layers.iter().rev().enumerate() {
        let Some(record) = store.layer(chain) else {
            continue;
        };
        for (path, (digest, size)) in record.modules {
            if tree.shows(&path, index)? {
                visible.push(WasmModule {
                    path: Some(Path::new("/").join(path)),
                    digest,
                    size,
                });
            }
        }
    }
    visible.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(visible)
}

/// Each layer's identity together with all below it, as the image spec defines it.
fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        chains.push(match chains.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chains
}

fn pull_error(fault: Fault, root: &Path) -> PullError {
    match fault {
        Fault::Content(text) => {
            PullError::BadContent(format!("a layer of the image cannot be unpacked: {text}"))
        }
        Fault::Limit(text) => PullError::Refused(format!(
            "a layer of the image is refused: {text}; raise the limit or make the image smaller"
        )),
        Fault::Io {
            action,
            path,
            source,
        } => PullError::Io {
            action,
            path: if path.is_absolute() {
                path
            } else {
                root.join("tmp").join(path)
            },
            source,
        },
        Fault::Cancelled => PullError::Transport("the pull was abandoned".into()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| PullError::Io {
            action: "work on",
            path: PathBuf::from("the image"),
            source: std::io::Error::other(error),
        })?
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A scratch file; it is removed unless it is taken.
struct FileSink {
    file: tempfile::NamedTempFile,
    position: u64,
    hasher: sha2::Sha256,
}

impl FileSink {
    fn error(&self, source: std::io::Error) -> PullError {
        StoreError::Io {
            action: "write",
            path: self.file.path().to_owned(),
            source,
        }
        .into()
    }
}

impl Sink for FileSink {
    fn position(&self) -> u64 {
        self.position
    }

    fn digest(&self) -> Digest {
        Digest::from_hasher(self.hasher.clone())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.hasher.update(bytes);
        // A chunk is some kilobytes into the page cache: shorter than a trip to another thread.
        let written = self.file.as_file_mut().write_all(bytes);
        written.map_err(|error| self.error(error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), PullError> {
        use std::io::Seek as _;
        let file = self.file.as_file_mut();
        let emptied = file.set_len(0).and_then(|()| file.rewind());
        emptied.map_err(|error| self.error(error))?;
        self.position = 0;
        self.hasher = sha2::Sha256::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chains = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(
            chains,
            [a.clone(), Digest::of(format!("{a} {b}").as_bytes())]
        );
        assert!(chain_ids(&[]).is_empty());
    }
}
