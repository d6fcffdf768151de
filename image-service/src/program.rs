//! What the first word of a command stands for in an image: one of its modules, a
//! native program, or nothing. By the rules of execvp: a word with a slash is a path,
//! any other is looked up in PATH.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::image::WasmModule;
use crate::layer::Fault;
use crate::layer::tree::{Found, Tree};

/// What a command's first word names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// One of the image's recorded modules.
    Module(WasmModule),
    /// Any other file; the path has no symbolic links.
    Other(PathBuf),
}

/// Where commands are looked up when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `lowers` bottom first. Blocks on disk, for some microseconds a directory.
pub(crate) fn find(
    lowers: &[PathBuf],
    modules: &[WasmModule],
    word: &str,
    working_dir: &str,
    search_path: Option<&str>,
) -> Result<Option<Program>, Fault> {
    if word.is_empty() || lowers.is_empty() {
        return Ok(None);
    }
    let layers: Vec<&Path> = lowers.iter().rev().map(PathBuf::as_path).collect();
    let tree = Tree::open(&layers)?;
    let base = Path::new("/").join(working_dir);
    let mut places = Vec::new();
    if word.contains('/') {
        places.push(base.join(word));
    } else {
        for directory in search_path.unwrap_or(DEFAULT_PATH).split(':') {
            places.push(base.join(directory).join(word));
        }
        // Images made for Wasm runtimes name their module by a bare file name; runwasi looks there too.
        places.push(base.join(word));
    }
    for place in places {
        let found = match tree.find(&place) {
            Ok(found) => found,
            // A loop of links in one place does not hide the next.
            Err(Fault::Content(_)) => None,
            Err(fault) => return Err(fault),
        };
        let Some((path, Found::Other { stat, .. })) = found else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let path = Path::new("/").join(path);
        let module = modules
            .iter()
            .find(|module| module.path.as_deref() == Some(&path));
        return Ok(Some(match module {
            Some(module) => Program::Module(module.clone()),
            None => Program::Other(path),
        }));
    }
    Ok(None)
}
