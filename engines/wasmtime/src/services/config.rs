//! `wasi:config`: what a pod's `env` and its ConfigMaps and Secrets say.
//!
//! A key is the name of a file in one of the directories (as the kubelet mounts a ConfigMap,
//! one file for each key), else the name of an environment variable. Files come first because
//! they are newer: the kubelet changes them in a running pod, and they are read at each call.
//! It does so by a symbolic link `..data` that it points elsewhere in one step, so the files of
//! one directory are read through one opening of that, and are of one state.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use wasmtime::component::{ComponentType, LinkerInstance, Lower};
use wasmtime::{Result, StoreContextMut};

use crate::host::State;

/// Where examples of Kubernetes mount a ConfigMap; looked at when no annotation names another.
const DEFAULT_DIRECTORY: &str = "/etc/config";

/// Bytes of a value: what a whole ConfigMap may have.
const MAX_VALUE: u64 = 1 << 20;

/// Bytes of all keys and values together.
const MAX_ALL: usize = 8 << 20;

/// Bytes of a key; no file has a longer name, and no sensible variable.
const MAX_KEY: usize = 255;

/// How often a directory is read anew because the kubelet replaced it meanwhile.
const ATTEMPTS: usize = 5;

type Variables = Arc<Vec<(String, String)>>;

/// Where values come from.
#[derive(Debug)]
pub(super) struct Source {
    directories: Vec<String>,
    env: Variables,
}

/// The interface's error.
#[derive(Debug, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "upstream")]
    #[allow(dead_code, reason = "no source here is upstream, but the type has it")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

type Answer<T> = std::result::Result<T, Error>;

pub(super) fn add(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    instance.func_wrap(
        "get",
        |store: StoreContextMut<'_, State>, (key,): (String,)| {
            Ok((store.data().services.config.get(&key),))
        },
    )?;
    instance.func_wrap("get-all", |store: StoreContextMut<'_, State>, (): ()| {
        Ok((store.data().services.config.all(),))
    })
}

impl Source {
    pub(super) fn new(directories: &[String], env: Variables) -> Self {
        let directories = match directories {
            [] => vec![DEFAULT_DIRECTORY.to_owned()],
            named => named.to_vec(),
        };
        Self { directories, env }
    }

    fn get(&self, key: &str) -> Answer<Option<String>> {
        if is_file_name(key) {
            for directory in &self.directories {
                if let Some(value) = self.in_file(directory, key)? {
                    return Ok(Some(value));
                }
            }
        }
        let variable = self.env.iter().find(|(name, _)| name == key);
        Ok(variable.map(|(_, value)| value.clone()))
    }

    fn in_file(&self, directory: &str, key: &str) -> Answer<Option<String>> {
        let told = |error: std::io::Error| io(&format!("{directory}/{key}"), &error);
        let opened = match open_state(directory) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) => return Err(io(directory, &error)),
        };
        match read(&opened, key).map_err(told)? {
            Some(bytes) => match String::from_utf8(bytes) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::Io(format!(
                    "read {directory}/{key}: it is not UTF-8 text; read it as a file"
                ))),
            },
            None => Ok(None),
        }
    }

    /// All files and variables by their names. What is no text is left out: no value of this
    /// interface can hold it.
    fn all(&self) -> Answer<Vec<(String, String)>> {
        let mut all: Vec<(String, String)> = Vec::new();
        for directory in &self.directories {
            let found = state(directory).map_err(|error| io(directory, &error))?;
            all.extend(found);
        }
        all.extend(self.env.iter().cloned());
        // Sorting keeps the order of equals: who comes first in `get` stays.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|later, first| later.0 == first.0);
        let size: usize = all.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > MAX_ALL {
            return Err(Error::Io(format!(
                "read all of the configuration: it has {size} bytes, at most {MAX_ALL} are possible; ask for single keys"
            )));
        }
        Ok(all)
    }
}

fn io(what: &str, error: &std::io::Error) -> Error {
    Error::Io(format!("read {what}: {error}"))
}

/// Names with two points in front are the kubelet's own.
fn is_file_name(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= MAX_KEY
        && key != "."
        && !key.starts_with("..")
        && !key.contains(['/', '\0'])
}

/// The directory as it is now; `None` if there is none.
fn open_state(directory: &str) -> std::io::Result<Option<File>> {
    for path in [&*format!("{directory}/..data"), directory] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(opened) => return Ok(Some(opened.into())),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// A regular file's bytes; `None` for what is not there or is none.
fn read(directory: &File, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    // A FIFO would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let length = match file.metadata()? {
        metadata if metadata.is_file() => metadata.len(),
        _ => return Ok(None),
    };
    let too_large = || {
        let text = format!("it has more than {MAX_VALUE} bytes; read it as a file");
        std::io::Error::new(ErrorKind::FileTooLarge, text)
    };
    if length > MAX_VALUE {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(MAX_VALUE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_VALUE {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// All text files of a directory, of one moment.
fn state(directory: &str) -> std::io::Result<Vec<(String, String)>> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let Some(opened) = open_state(directory)? else {
            return Ok(Vec::new());
        };
        let found = read_all(&opened)?;
        // The kubelet deletes the old state once the new one is in place: what is whole
        // afterwards was whole.
        if attempts >= ATTEMPTS || is_linked(&opened)? {
            return Ok(found);
        }
    }
}

fn is_linked(directory: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(directory.metadata()?.nlink() > 0)
}

fn read_all(directory: &File) -> std::io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut size = 0;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if !is_file_name(name) || entry.file_type() == FileType::Directory {
            continue;
        }
        let Some(bytes) = read(directory, name)? else {
            continue;
        };
        let Ok(value) = String::from_utf8(bytes) else {
            continue;
        };
        size += name.len() + value.len();
        found.push((name.to_owned(), value));
        // The sum is told by the caller.
        if size > MAX_ALL {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn source(directories: &[&std::path::Path], env: &[(&str, &str)]) -> Source {
        let directories: Vec<_> = directories
            .iter()
            .map(|path| path.to_str().unwrap().to_owned())
            .collect();
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Source::new(&directories, Arc::new(env))
    }

    #[test]
    fn files_come_before_variables_and_change() {
        let root = tempfile::tempdir().unwrap();
        let mounted = root.path();
        // As the kubelet lays a volume out.
        for (state, colour) in [("..one", "blue"), ("..two", "green")] {
            std::fs::create_dir(mounted.join(state)).unwrap();
            std::fs::write(mounted.join(state).join("colour"), colour).unwrap();
        }
        std::fs::write(mounted.join("..one/binary"), [0xff]).unwrap();
        symlink("..one", mounted.join("..data")).unwrap();
        symlink("..data/colour", mounted.join("colour")).unwrap();
        let source = source(&[mounted], &[("colour", "red"), ("SIZE", "9")]);
        let get = |key: &str| source.get(key).unwrap();
        assert_eq!(get("colour").as_deref(), Some("blue"));
        assert_eq!(get("SIZE").as_deref(), Some("9"));
        for none in ["", ".", "..", "..data", "a/b", "none", "a\0b"] {
            assert_eq!(get(none), None, "{none:?}");
        }
        assert!(matches!(source.get("binary"), Err(Error::Io(text)) if text.contains("UTF-8")));
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let all = pairs(&[("SIZE", "9"), ("colour", "blue")]);
        assert_eq!(source.all().unwrap(), all);
        symlink("..two", mounted.join("..new")).unwrap();
        std::fs::rename(mounted.join("..new"), mounted.join("..data")).unwrap();
        std::fs::remove_dir_all(mounted.join("..one")).unwrap();
        assert_eq!(get("colour").as_deref(), Some("green"));
        assert_eq!(source.all().unwrap()[1].1, "green");
    }

    #[test]
    fn plain_directories_and_hostile_files() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("plain"), "text\n").unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let missing = path("missing");
        let source = source(&[&missing, root.path()], &[]);
        assert_eq!(source.get("plain").unwrap().as_deref(), Some("text\n"));
        for none in ["directory", "dangling", "fifo"] {
            assert_eq!(source.get(none), Ok(None), "{none}");
        }
        assert_eq!(source.all().unwrap().len(), 1);
        std::fs::write(path("large"), vec![b'x'; MAX_VALUE as usize + 1]).unwrap();
        assert!(matches!(source.get("large"), Err(Error::Io(text)) if text.contains("more than")));
    }
}
