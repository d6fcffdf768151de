//! Images that were made for another host and can never run here: the sentence that
//! says so, which names the host and what to do instead.

use std::path::{Path, PathBuf};

use crate::image::{ProcessConfig, WasmModule};
use crate::layer::Fault;
use crate::program::{self, Program};

/// Why Spin applications are refused, in whatever form they come.
pub(crate) const SPIN: &str = "it is a Spin application, which is not supported yet; \
     build it as an image with its component as entrypoint";

/// Files at the root by which an application is known that its host would read, not we.
const MANIFESTS: &[(&str, &str)] = &[
    ("/spin.toml", SPIN),
    (
        "/slightfile.toml",
        "it is an application for SpiderLightning (slight), whose interfaces are not provided here; \
         build it as a component of wasi:http/proxy or wasi:cli/command with an entrypoint",
    ),
];

const PROXY_WASM: &str = "it holds a proxy-wasm filter (plugin.wasm) and no command; \
     such modules run inside Envoy, use it in a WasmPlugin instead of a pod";

/// What an image's own command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// One of its modules.
    Module,
    /// Another file, or none.
    Other,
    /// For another host: the sentence.
    Foreign(&'static str),
}

/// `lowers` bottom first. Blocks on disk, for some microseconds a directory.
pub(crate) fn command(
    lowers: &[PathBuf],
    modules: &[WasmModule],
    process: &ProcessConfig,
) -> Result<Command, Fault> {
    if is_proxy_wasm(modules, process) {
        return Ok(Command::Foreign(PROXY_WASM));
    }
    let search = process
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="));
    let find = |word: &str| program::find(lowers, modules, word, &process.working_dir, search);
    let first = process.entrypoint.iter().chain(&process.cmd).next();
    match first.map(|word| find(word)).transpose()?.flatten() {
        Some(Program::Module(_)) => return Ok(Command::Module),
        Some(Program::Other(_)) => return Ok(Command::Other),
        None => {}
    }
    for (file, sentence) in MANIFESTS {
        if find(file)?.is_some() {
            return Ok(Command::Foreign(sentence));
        }
    }
    Ok(Command::Other)
}

/// What Istio's tools push: a file system with nothing but the filter.
fn is_proxy_wasm(modules: &[WasmModule], process: &ProcessConfig) -> bool {
    matches!(modules, [module] if module.path.as_deref() == Some(Path::new("/plugin.wasm")))
        && process.entrypoint.is_empty()
        && process.cmd.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn applications_for_other_hosts_are_told_by_their_files_unless_they_have_a_command() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a view of layers needs CAP_SYS_ADMIN");
            return;
        }
        let table: &[(&[&str], &[&str], &str)] = &[
            (&["plugin.wasm"], &[], "Envoy"),
            (&["plugin.wasm"], &["/plugin.wasm"], "module"),
            (&["app.wasm"], &[], "other"),
            (&["app.wasm"], &["app.wasm"], "module"),
            (&["spin.toml", "app.wasm"], &[], "Spin"),
            // What the Spin shim's users write where a command is asked for.
            (&["spin.toml", "app.wasm"], &["/"], "Spin"),
            (&["spin.toml", "app.wasm"], &["/app.wasm"], "module"),
            (&["spin.toml", "bin/sh"], &["bin/sh"], "other"),
            (&["slightfile.toml", "app.wasm"], &[], "slight"),
        ];
        for (files, entrypoint, expected) in table {
            let directory = tempfile::tempdir().unwrap();
            for file in *files {
                let path = directory.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, b"x").unwrap();
            }
            let modules: Vec<WasmModule> = files
                .iter()
                .filter(|file| file.ends_with(".wasm"))
                .map(|file| WasmModule {
                    path: Some(Path::new("/").join(file)),
                    digest: Digest::of(file.as_bytes()),
                    size: 1,
                })
                .collect();
            let process = ProcessConfig {
                entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
                ..ProcessConfig::default()
            };
            let lowers = [directory.path().to_owned()];
            let found = match command(&lowers, &modules, &process).unwrap() {
                Command::Module => "module",
                Command::Other => "other",
                Command::Foreign(sentence) => sentence,
            };
            assert!(
                found.contains(expected),
                "{files:?} {entrypoint:?}: {found}"
            );
        }
    }
}
