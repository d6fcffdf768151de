//! The code cache and the compiler process that fills it.
//!
//! The compiler reads the module on stdin, writes code on stdout and one text on
//! stderr: 0 done (the text has the imports that are not met, a line each), 1 the module is
//! at fault, else its own fault. It gets no environment and waits in its cgroup before the
//! first byte is handed to it. With `--link` it reads several components and links the first
//! with those of the others that it needs.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use sha2::Digest as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::{CompileError, StoreError};
use crate::image::{Code, Config, Library, Main};
use crate::index::{Change, CodeRecord};
use crate::store::{Store, io_error};
use crate::work::Tally;

/// A container waits for it: the bound of code that is not there yet.
pub(crate) const AT_FIRST_USE: Duration = Duration::from_secs(60);
const FINGERPRINT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TEXT: usize = 4096;
/// Compiling takes a core each.
const AT_ONCE: usize = 2;
/// Components that one may be linked with.
const MAX_LIBRARIES: usize = 64;
/// What a component begins with; a core module has another layer.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

/// One compilation, and what is noted of it.
struct Job {
    /// For error texts.
    what: String,
    /// Names the entry beside those of its fingerprint.
    hex: String,
    variant: CodeVariant,
    timeout: Duration,
    volume_since: u64,
    /// The stored modules that are linked; none for a module alone.
    parts: Vec<Digest>,
}

/// A module to be handed over, and what it must turn out to be.
struct Input {
    name: String,
    digest: Digest,
    file: File,
}

impl Input {
    fn stored(store: &Store, name: String, digest: &Digest) -> Result<Self, CompileError> {
        let path = store
            .module_path(digest)
            .ok_or_else(|| CompileError::UnknownModule(digest.to_string()))?;
        // Layers are written by us only and the path was free of links when it was recorded.
        let file = File::open(&path).map_err(|error| io_error("open", &path, error))?;
        Ok(Self {
            name,
            digest: digest.clone(),
            file,
        })
    }

    fn is_component(&self) -> bool {
        use std::os::unix::fs::FileExt as _;
        let mut head = [0; COMPONENT.len()];
        self.file.read_exact_at(&mut head, 0).is_ok() && head == COMPONENT
    }
}

#[derive(Debug)]
pub(crate) struct Compiler {
    binary: Option<PathBuf>,
    timeout: Duration,
    cgroups: Vec<PathBuf>,
    max_module: u64,
    max_code: u64,
    slots: Semaphore,
    /// The fingerprint of the binary that is there now.
    known: Mutex<Option<(Stamp, String)>>,
    verified: Mutex<HashSet<String>>,
    pub(crate) work: Tally,
    /// How often the cache had the code.
    pub(crate) hits: AtomicU64,
}

/// How code is made from a module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CodeVariant {
    /// As fast as it can be.
    #[default]
    Plain,
    /// With a meter that a bound on fuel needs: it costs about half of the speed, so it is
    /// made at its first use, for those who ask.
    Metered,
}

impl CodeVariant {
    /// Behind the module's digest in the key of an entry.
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Metered => METERED,
        }
    }

    /// For the compiler.
    fn argument(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Metered => Some("--fuel"),
        }
    }
}

const METERED: &str = ".fuel";

/// The fingerprint and the module's digest (in hex) of an entry's key.
pub(crate) fn parts(key: &str) -> Option<(&str, &str)> {
    let (fingerprint, name) = key.split_once('/')?;
    Some((fingerprint, name.strip_suffix(METERED).unwrap_or(name)))
}

/// Tells a replaced binary from the one that was asked.
type Stamp = (u64, u64, i64, i64, u64);

impl Compiler {
    pub(crate) fn new(config: &Config) -> Compiler {
        Compiler {
            binary: config.compiler.clone(),
            timeout: config.compile_timeout,
            cgroups: config.compile_cgroup.clone(),
            max_module: config.limits.module_bytes,
            max_code: config.limits.code_bytes,
            slots: Semaphore::new(AT_ONCE),
            known: Mutex::default(),
            verified: Mutex::default(),
            work: Tally::default(),
            hits: AtomicU64::new(0),
        }
    }

    fn binary(&self) -> Result<&Path, CompileError> {
        self.binary
            .as_deref()
            .ok_or_else(|| CompileError::Unavailable("none is configured".into()))
    }

    /// Names engine version, settings and CPU features: the directory of matching code.
    pub(crate) async fn fingerprint(&self, store: &Store) -> Result<String, CompileError> {
        let binary = self.binary()?;
        let unavailable =
            |reason: String| CompileError::Unavailable(format!("{}: {reason}", binary.display()));
        let metadata = std::fs::metadata(binary).map_err(|error| unavailable(error.to_string()))?;
        let stamp = (
            metadata.dev(),
            metadata.ino(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.len(),
        );
        if let Some((known, fingerprint)) = &*lock(&self.known)
            && *known == stamp
        {
            return Ok(fingerprint.clone());
        }
        let run = Command::new(binary)
            .arg("--fingerprint")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(FINGERPRINT_TIMEOUT, run)
            .await
            .map_err(|_| unavailable("--fingerprint did not end".into()))?
            .map_err(|error| unavailable(format!("cannot be started: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default().trim();
        if !output.status.success() || line.is_empty() {
            return Err(unavailable(format!(
                "--fingerprint failed ({})",
                output.status
            )));
        }
        let fingerprint = directory_name(line);
        *lock(&self.known) = Some((stamp, fingerprint.clone()));
        store.keep_code_of(&fingerprint);
        Ok(fingerprint)
    }

    fn patience(&self, at_first_use: bool) -> Duration {
        if at_first_use {
            AT_FIRST_USE.min(self.timeout)
        } else {
            self.timeout
        }
    }

    /// Code of a stored module, compiled now if it is not there.
    pub(crate) async fn stored(
        &self,
        store: &Arc<Store>,
        module: &Digest,
        variant: CodeVariant,
        at_first_use: bool,
    ) -> Result<Code, CompileError> {
        let lease = store.lease([module.clone()]);
        let job = Job {
            what: module.to_string(),
            hex: module.hex().to_owned(),
            variant,
            timeout: self.patience(at_first_use),
            volume_since: 0,
            parts: Vec::new(),
        };
        let open = || Ok(vec![Input::stored(store, String::new(), module)?]);
        let code = self.ensure(store, job, open).await;
        drop(lease);
        code
    }

    /// Code of a module that lies elsewhere.
    pub(crate) async fn file(
        &self,
        store: &Arc<Store>,
        module: File,
        variant: CodeVariant,
    ) -> Result<Code, CompileError> {
        self.binary()?;
        let input = self.hashed(module).await?;
        let job = Job {
            what: input.digest.to_string(),
            hex: input.digest.hex().to_owned(),
            variant,
            timeout: self.patience(true),
            volume_since: now(),
            parts: Vec::new(),
        };
        self.ensure(store, job, move || Ok(vec![input])).await
    }

    async fn hashed(&self, mut file: File) -> Result<Input, CompileError> {
        let max = self.max_module;
        blocking(move || {
            let digest = hash(&mut file, max)?;
            Ok(Input {
                name: String::new(),
                digest,
                file,
            })
        })
        .await
    }

    /// Code of a component linked with those of the libraries that it needs, of which the
    /// first that fits is taken.
    pub(crate) async fn link(
        &self,
        store: &Arc<Store>,
        main: Main,
        libraries: &[Library],
        variant: CodeVariant,
        at_first_use: bool,
    ) -> Result<Code, CompileError> {
        self.binary()?;
        let mut content: Vec<Digest> = libraries.iter().map(|one| one.digest.clone()).collect();
        let (mut main, volume_since) = match main {
            Main::Stored(digest) => {
                content.push(digest.clone());
                (Input::stored(store, String::new(), &digest)?, 0)
            }
            Main::File(file) => (self.hashed(file).await?, now()),
        };
        let lease = store.lease(content);
        main.name = "the component".to_owned();
        let (source, wanted) = (store.clone(), libraries.to_vec());
        let inputs = blocking(move || components(&source, main, wanted)).await?;
        let what = format!("{} with {} others", inputs[0].digest, inputs.len() - 1);
        let parts: Vec<Digest> = inputs.iter().map(|input| input.digest.clone()).collect();
        let (hex, parts) = match parts.as_slice() {
            // Linked with nothing it is what it is alone.
            [alone] => (alone.hex().to_owned(), Vec::new()),
            several => {
                let names: Vec<String> = several.iter().map(Digest::to_string).collect();
                let hex = Digest::of(names.join("\n").as_bytes()).hex().to_owned();
                (hex, parts)
            }
        };
        let job = Job {
            what,
            hex,
            variant,
            timeout: self.patience(at_first_use),
            volume_since,
            parts: if volume_since == 0 { parts } else { Vec::new() },
        };
        let code = self.ensure(store, job, move || Ok(inputs)).await;
        drop(lease);
        code
    }

    async fn ensure(
        &self,
        store: &Arc<Store>,
        job: Job,
        open: impl FnOnce() -> Result<Vec<Input>, CompileError>,
    ) -> Result<Code, CompileError> {
        let fingerprint = self.fingerprint(store).await?;
        let key = format!("{fingerprint}/{}{}", job.hex, job.variant.suffix());
        let _turn = store.turn(format!("code/{key}")).await;
        let known = store.index.state().code.get(&key).cloned();
        match known {
            Some(CodeRecord::Invalid(text)) => return Err(CompileError::Invalid(text)),
            Some(CodeRecord::Compiled {
                size,
                digest,
                unmet,
                ..
            }) => match self.cached(store, &key, size, digest, unmet).await {
                Ok(code) => {
                    self.hits.fetch_add(1, Ordering::Relaxed);
                    return Ok(code);
                }
                Err(reason) => {
                    tracing::warn!(module = job.what, reason, "compiled code is made anew");
                }
            },
            None => {}
        }
        let inputs = open()?;
        let _slot = self
            .slots
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let begin = Instant::now();
        let made = tokio::time::timeout(job.timeout, self.compile(store, inputs, &job)).await;
        self.work.add(matches!(made, Ok(Ok(_))), begin.elapsed());
        let made = made.map_err(|_| CompileError::TimedOut {
            module: job.what.clone(),
            seconds: job.timeout.as_secs(),
        })?;
        let record = match made {
            Ok(made) => {
                let path = store.code_path(&key);
                keep(made.file, path).await?;
                CodeRecord::Compiled {
                    size: made.size,
                    digest: made.digest,
                    volume_since: job.volume_since,
                    unmet: made.unmet,
                    parts: job.parts,
                }
            }
            Err(CompileError::Invalid(text)) => CodeRecord::Invalid(text),
            Err(error) => return Err(error),
        };
        let change = Change::Code(key.clone(), Some(record.clone()));
        let writer = store.clone();
        blocking(move || Ok(writer.index.change(|_| (vec![change], ()))?)).await?;
        match record {
            CodeRecord::Invalid(text) => Err(CompileError::Invalid(text)),
            CodeRecord::Compiled { size, unmet, .. } => {
                lock(&self.verified).insert(key.clone());
                let path = store.code_path(&key);
                let file = File::open(&path).map_err(|error| io_error("open", &path, error))?;
                Ok(Code { file, size, unmet })
            }
        }
    }

    /// A cache entry, verified once in this process.
    async fn cached(
        &self,
        store: &Store,
        key: &str,
        size: u64,
        digest: Digest,
        unmet: Vec<String>,
    ) -> Result<Code, String> {
        let path = store.code_path(key);
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if lock(&self.verified).contains(key) {
            return Ok(Code { file, size, unmet });
        }
        let (file, found) = blocking(move || {
            let mut file = file;
            let found = hash(&mut file, u64::MAX)?;
            Ok((file, found))
        })
        .await
        .map_err(|error| error.to_string())?;
        if found != digest {
            return Err(format!("{} is damaged", path.display()));
        }
        lock(&self.verified).insert(key.to_owned());
        Ok(Code { file, size, unmet })
    }

    /// One run of the compiler; dropping it kills the process.
    async fn compile(
        &self,
        store: &Store,
        inputs: Vec<Input>,
        job: &Job,
    ) -> Result<Made, CompileError> {
        let failed = |reason: String| CompileError::Failed {
            module: job.what.clone(),
            reason,
        };
        let binary = self.binary()?;
        let linked = inputs.len() > 1;
        let mut child = Command::new(binary)
            .args(job.variant.argument())
            .args(linked.then_some("--link"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                CompileError::Unavailable(format!("start {}: {error}", binary.display()))
            })?;
        if let Some(pid) = child.id() {
            for cgroup in &self.cgroups {
                let procs = cgroup.join("cgroup.procs");
                // Unbounded is not an option: what is not in its cgroup does not get the module.
                std::fs::write(&procs, pid.to_string())
                    .map_err(|error| failed(format!("put it in {}: {error}", procs.display())))?;
            }
        }
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("its pipes are missing".into()));
        };
        let scratch = store.scratch_file()?;
        let output = scratch
            .reopen()
            .map_err(|error| io_error("open", scratch.path(), error))?;
        let (fed, received, text) = tokio::join!(
            feed(inputs, linked, stdin, self.max_module),
            receive(stdout, output, self.max_code),
            read_text(stderr),
        );
        // A compiler that writes without end was cut off by the closed pipe.
        if received.is_err() {
            let _ = child.start_kill();
        }
        let status = child
            .wait()
            .await
            .map_err(|error| failed(format!("wait for it: {error}")))?;
        match status.code() {
            Some(1) => {
                let text = if text.is_empty() {
                    "the module is invalid".to_owned()
                } else {
                    text
                };
                return Err(CompileError::Invalid(text));
            }
            Some(0) => {}
            _ if received.is_ok() => {
                return Err(failed(match text.as_str() {
                    "" => format!("it ended by {status}"),
                    text => format!("it ended by {status}: {text}"),
                }));
            }
            _ => {}
        }
        match fed {
            Ok(true) => {}
            Ok(false) => return Err(failed("a module changed while it was read".into())),
            Err(error) => return Err(failed(format!("hand over the module: {error}"))),
        }
        let (size, digest) = received.map_err(|error| {
            if error.raw_os_error().is_some() {
                CompileError::Store(io_error("write", scratch.path(), error))
            } else {
                failed(error.to_string())
            }
        })?;
        if size == 0 {
            return Err(failed("it wrote no code".into()));
        }
        Ok(Made {
            file: scratch,
            size,
            digest,
            unmet: text.lines().map(str::to_owned).collect(),
        })
    }
}

/// What one run of the compiler brought.
struct Made {
    file: tempfile::NamedTempFile,
    size: u64,
    digest: Digest,
    unmet: Vec<String>,
}

/// What is linked: the first, and the libraries that are components, each once.
fn components(
    store: &Store,
    main: Input,
    libraries: Vec<Library>,
) -> Result<Vec<Input>, CompileError> {
    let mut inputs = vec![main];
    for library in libraries {
        if inputs.iter().any(|input| input.digest == library.digest) {
            continue;
        }
        match Input::stored(store, library.name, &library.digest) {
            Ok(input) if input.is_component() => inputs.push(input),
            // Another container's, which is gone by now.
            Ok(_) | Err(CompileError::UnknownModule(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if inputs.len() > MAX_LIBRARIES + 1 {
        return Err(CompileError::Invalid(format!(
            "its imports could come from {} components, and at most {MAX_LIBRARIES} are looked at; link them when the image is built",
            inputs.len() - 1
        )));
    }
    Ok(inputs)
}

/// Hands the modules over; false if one is not what it must be. To be linked they are framed:
/// the length of the name, the name, the length of the module, the module.
async fn feed(
    inputs: Vec<Input>,
    framed: bool,
    stdin: tokio::process::ChildStdin,
    max: u64,
) -> io::Result<bool> {
    // A compiler that has seen enough tells by its exit code.
    let mut listener = Some(stdin);
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    let mut same = true;
    for input in inputs {
        if framed {
            let size = input.file.metadata()?.len();
            let mut head = (input.name.len() as u64).to_le_bytes().to_vec();
            head.extend(input.name.as_bytes());
            head.extend(size.to_le_bytes());
            tell(&mut listener, &head).await;
        }
        let mut source = tokio::fs::File::from_std(input.file);
        let mut hasher = sha2::Sha256::new();
        loop {
            let count = source.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            total += count as u64;
            if total > max {
                return Err(io::Error::other(format!("it has more than {max} bytes")));
            }
            hasher.update(&buffer[..count]);
            tell(&mut listener, &buffer[..count]).await;
        }
        same &= Digest::from_hasher(hasher) == input.digest;
    }
    Ok(same)
}

async fn tell(listener: &mut Option<tokio::process::ChildStdin>, bytes: &[u8]) {
    if let Some(stdin) = listener
        && stdin.write_all(bytes).await.is_err()
    {
        *listener = None;
    }
}

/// Seconds since the epoch, never 0.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(1, |time| time.as_secs().max(1))
}

async fn receive(
    mut stdout: impl AsyncRead + Unpin,
    output: File,
    max: u64,
) -> io::Result<(u64, Digest)> {
    let mut output = tokio::fs::File::from_std(output);
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let count = stdout.read(&mut buffer).await?;
        if count == 0 {
            output.flush().await?;
            return Ok((total, Digest::from_hasher(hasher)));
        }
        total += count as u64;
        if total > max {
            return Err(io::Error::other(format!(
                "it wrote more than {max} bytes of code"
            )));
        }
        hasher.update(&buffer[..count]);
        output.write_all(&buffer[..count]).await?;
    }
}

/// The first bytes of the text; the rest is read away so that the writer never blocks.
async fn read_text(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let room = MAX_TEXT.saturating_sub(text.len());
        text.extend_from_slice(&buffer[..count.min(room)]);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

async fn keep(file: tempfile::NamedTempFile, path: PathBuf) -> Result<(), CompileError> {
    blocking(move || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|error| io_error("create", directory, error))?;
        }
        file.as_file()
            .sync_all()
            .map_err(|error| io_error("sync", file.path(), error))?;
        file.persist(&path)
            .map_err(|error| io_error("rename to", &path, error.error))?;
        Ok(())
    })
    .await
}

/// The digest of a whole file, which is left at its start.
fn hash(file: &mut File, max: u64) -> Result<Digest, CompileError> {
    let fail = |error| StoreError::Io {
        action: "read",
        path: "the module".into(),
        source: error,
    };
    file.rewind().map_err(fail)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).map_err(fail)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        if total > max {
            return Err(CompileError::Invalid(format!(
                "the module has more than {max} bytes"
            )));
        }
        hasher.update(&buffer[..count]);
    }
    file.rewind().map_err(fail)?;
    Ok(Digest::from_hasher(hasher))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompileError> + Send + 'static,
) -> Result<T, CompileError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CompileError::Failed {
            module: "a module".into(),
            reason: error.to_string(),
        })?
}

/// The line itself where it can be a file name, else its hash.
fn directory_name(line: &str) -> String {
    let plain = line.len() <= 128
        && !line.starts_with('.')
        && line
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if plain {
        line.to_owned()
    } else {
        Digest::of(line.as_bytes()).hex().to_owned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Sets and options changed in single steps: a panic elsewhere leaves them whole.
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_variants_name_their_module() {
        for variant in [CodeVariant::Plain, CodeVariant::Metered] {
            let key = format!("wasmtime-1.2/ab12{}", variant.suffix());
            assert_eq!(parts(&key), Some(("wasmtime-1.2", "ab12")), "{variant:?}");
        }
        assert_eq!(parts("nothing"), None);
    }

    #[test]
    fn a_fingerprint_is_always_a_safe_file_name() {
        assert_eq!(
            directory_name("wasmtime-48.0.1-ab12"),
            "wasmtime-48.0.1-ab12"
        );
        for line in ["../x", ".hidden", "a/b", "two words", &"x".repeat(200)] {
            let name = directory_name(line);
            assert!(name.len() == 64 && !name.contains('/'), "{line}: {name}");
        }
    }
}
