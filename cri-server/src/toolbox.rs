//! The toolbox: our own Wasm module that answers to the commands an image lacks, so that
//! every Wasm container has a shell. It names its applets in a custom section, because the
//! daemon runs no guest code; it is compiled at its first use and cached like any module.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use criw_image_service::{Code, CodeVariant, CompileError, ImageService};

use crate::config::Config;

/// The module, beside the shims.
const FILE: &str = "criw-toolbox.wasm";

/// The custom section with the names, a white space between any two.
const SECTION: &str = "criw.applets";

/// Bytes of the module; it has one or two MB.
const MAX_MODULE: u64 = 64 << 20;

/// The toolbox of this node.
#[derive(Debug)]
pub struct Toolbox {
    path: PathBuf,
    enabled: bool,
    known: Mutex<Option<(Stamp, Arc<Applets>)>>,
    compiled: Mutex<Option<(Stamp, Stamp, File, u64)>>,
    compiler: PathBuf,
}

/// Names of the commands.
type Applets = BTreeSet<String>;

/// Tells a replaced file from the one that was read.
type Stamp = (u64, u64, i64, i64, u64);

/// What the toolbox offers to one container. Its text goes on behind "is not found; ".
#[derive(Debug, Clone)]
pub struct Offer(Result<Arc<Applets>, String>);

impl Offer {
    /// Whether the last component of a command's path is one of its names.
    pub fn has(&self, word: &str) -> bool {
        let name = word.rsplit('/').next().unwrap_or(word);
        self.0.as_ref().is_ok_and(|applets| applets.contains(name))
    }

    /// For tests: offers these.
    #[cfg(test)]
    pub(crate) fn of(names: &[&str]) -> Self {
        Self(Ok(Arc::new(
            names.iter().map(|name| (*name).to_owned()).collect(),
        )))
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(_) => f.write_str("the toolbox has no such command either"),
            Err(why) => f.write_str(why),
        }
    }
}

impl Toolbox {
    /// Looks at nothing yet.
    pub fn new(config: &Config) -> Self {
        Self {
            path: config.libexec.join(FILE),
            compiler: config.libexec.join("criw-compile"),
            enabled: config.wasm.toolbox,
            known: Mutex::default(),
            compiled: Mutex::default(),
        }
    }

    /// How many commands it has, or why it has none, with what to do.
    pub fn commands(&self) -> Result<usize, String> {
        self.offer(false).0.map(|applets| applets.len())
    }

    /// What a container may use; `off` when its annotations refuse. Reads a small file when
    /// that has changed.
    pub fn offer(&self, off: bool) -> Offer {
        Offer(match (off, self.enabled) {
            (true, _) => Err("the toolbox is off (annotation criw.dev/toolbox)".to_owned()),
            (_, false) => Err("the toolbox is off (wasm.toolbox in the configuration)".to_owned()),
            _ => self.applets(),
        })
    }

    fn applets(&self) -> Result<Arc<Applets>, String> {
        let what = || format!("there is no toolbox: {}", self.path.display());
        let stamp = stamp(&self.path).map_err(|error| format!("{}: {error}", what()))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, applets)) = &*known
            && *read == stamp
        {
            return Ok(applets.clone());
        }
        let mut module = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(MAX_MODULE).read_to_end(&mut module))
            .map_err(|error| format!("{}: {error}", what()))?;
        let names = custom_section(&module, SECTION)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .ok_or_else(|| format!("{}: it does not name its commands", what()))?;
        let applets: Applets = names.split_whitespace().map(str::to_owned).collect();
        let applets = Arc::new(applets);
        *known = Some((stamp, applets.clone()));
        Ok(applets)
    }

    /// Its compiled code.
    ///
    /// # Errors
    /// As [`ImageService::compile_file`].
    pub async fn code(&self, images: &ImageService) -> Result<Code, CompileError> {
        let gone = |path: &Path, error: std::io::Error| {
            CompileError::Unavailable(format!("the toolbox needs {}: {error}", path.display()))
        };
        // Which code fits depends on both; to hash the module each time costs milliseconds.
        let module = stamp(&self.path).map_err(|error| gone(&self.path, error))?;
        let compiler = stamp(&self.compiler).map_err(|error| gone(&self.compiler, error))?;
        if let Some((of, by, file, size)) = &*self.lock_compiled()
            && (*of, *by) == (module, compiler)
            && let Ok(file) = file.try_clone()
        {
            return Ok(Code {
                file,
                size: *size,
                unmet: Vec::new(),
            });
        }
        let file = File::open(&self.path).map_err(|error| gone(&self.path, error))?;
        let code = images.compile_file(file, CodeVariant::Plain).await?;
        // Open it stays, whatever becomes of the cache.
        if let Ok(file) = code.file.try_clone() {
            *self.lock_compiled() = Some((module, compiler, file, code.size));
        }
        Ok(code)
    }

    fn lock_compiled(&self) -> std::sync::MutexGuard<'_, Option<(Stamp, Stamp, File, u64)>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok((
        metadata.dev(),
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    ))
}

/// Contents of a module's custom section; `None` without one, or when it is no module.
fn custom_section<'a>(module: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = module.strip_prefix(b"\0asm\x01\0\0\0")?;
    while let Some((id, after)) = rest.split_first() {
        let (length, after) = leb128(after)?;
        let (section, after) = after.split_at_checked(length)?;
        rest = after;
        if *id != 0 {
            continue;
        }
        let (length, section) = leb128(section)?;
        let (found, contents) = section.split_at_checked(length)?;
        if found == name.as_bytes() {
            return Some(contents);
        }
    }
    None
}

/// An unsigned number of at most 32 bits, and what follows it.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (n, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).ok()?;
            return Some((value as usize, &bytes[n + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_section_is_found() {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.extend([1, 2, 9, 9]);
        module.extend([0, 3, 2, b'x', b'y']);
        module.extend([0, 0x85, 0x00, 2, b'a', b'b', 7, 8]);
        assert_eq!(custom_section(&module, "xy"), Some(&[][..]));
        assert_eq!(custom_section(&module, "ab"), Some(&[7, 8][..]));
        assert_eq!(custom_section(&module, "no"), None);
        for length in 0..module.len() {
            let _ = custom_section(&module[..length], "no");
        }
        let huge = [&module[..8], &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
        assert_eq!(custom_section(&huge, "x"), None);
        let endless = [&module[..8], &[0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]].concat();
        assert_eq!(custom_section(&endless, "x"), None);
        assert_eq!(custom_section(b"\x7fELF", "x"), None);
    }

    #[test]
    fn what_is_offered_and_why_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            libexec: directory.path().to_owned(),
            ..Config::default()
        };
        let toolbox = Toolbox::new(&config);
        let text = toolbox.offer(false).to_string();
        assert!(text.contains("criw-toolbox.wasm"), "{text}");
        let mut module = b"\0asm\x01\0\0\0\0\x13\x0ccriw.applets".to_vec();
        module.extend(b"sh\nls\n");
        std::fs::write(directory.path().join(FILE), &module).unwrap();
        let offer = toolbox.offer(false);
        assert!(offer.has("sh") && offer.has("/bin/ls") && offer.has("./ls"));
        assert!(!offer.has("l") && !offer.has("sh/") && !offer.has(""));
        // A new one is seen.
        std::fs::write(directory.path().join(FILE), &module[..8]).unwrap();
        let text = toolbox.offer(false).to_string();
        assert!(text.contains("does not name its commands"), "{text}");
        let text = toolbox.offer(true).to_string();
        assert!(text.contains("criw.dev/toolbox"), "{text}");
        config.wasm.toolbox = false;
        let text = Toolbox::new(&config).offer(false).to_string();
        assert!(text.contains("wasm.toolbox"), "{text}");
    }
}
