//! Runtime handlers: which engine a RuntimeClass stands for.
//!
//! The names are those found in the wild, so that manifests written for other
//! runtimes need no change. `auto` decides by the image, as `""` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::Config;

/// The engine of Wasm containers whose handler names none.
pub const DEFAULT_WASM_ENGINE: &str = "wasmtime";

const BUILT_IN: &[(&str, &str)] = &[
    ("", "auto"),
    ("crun", "auto"),
    ("crun-wasm", "wasmtime"),
    ("lunatic", "lunatic"),
    ("runc", "runc"),
    ("slight", "slight"),
    ("spin", "spin"),
    ("spin-v2", "spin"),
    ("wamr", "wamr"),
    ("wasm", "wasmtime"),
    ("wasmedge", "wasmedge"),
    ("wasmer", "wasmer"),
    ("wasmtime", "wasmtime"),
    ("wasmtime-slight-v1", "slight"),
    ("wasmtime-spin-v0-5-1", "spin"),
    ("wasmtime-spin-v1", "spin"),
    ("wasmtime-spin-v2", "spin"),
    ("wws", "wws"),
];

/// Engines that will never be here, and what their users can do.
const RETIRED: &[(&str, &str)] = &[
    (
        "slight",
        "SpiderLightning (slight) is not run by CRI-W; build the application as a component of wasi:http/proxy or wasi:cli/command",
    ),
    (
        "wws",
        "Wasm Workers Server (wws) is not run by CRI-W; build each worker as a component of wasi:http/proxy",
    ),
    (
        "lunatic",
        "lunatic is not run by CRI-W; build the program for wasm32-wasip1 or wasm32-wasip2",
    ),
];

/// What a handler asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Whatever the image is; its host variant wins.
    Auto,
    /// The Linux variant of an image if there is one.
    Linux,
    /// The Wasm variant of an image if there is one, run by this engine.
    Wasm(String),
}

impl Route {
    fn parse(engine: &str) -> Self {
        match engine {
            "auto" => Self::Auto,
            "runc" => Self::Linux,
            other => Self::Wasm(other.to_owned()),
        }
    }

    /// The engine for a Wasm container of such a pod.
    pub fn wasm_engine(&self) -> &str {
        match self {
            Self::Wasm(engine) => engine,
            Self::Auto | Self::Linux => DEFAULT_WASM_ENGINE,
        }
    }
}

/// Why a handler cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// No such name.
    #[error("unknown runtime handler {name:?}; usable here: {usable}")]
    Unknown {
        /// As asked.
        name: String,
        /// Names that would work.
        usable: String,
    },
    /// The name is known from other runtimes, its engine is none of ours.
    #[error(
        "runtime handler {name:?}: {advice}, and use another RuntimeClass; usable here: {usable}"
    )]
    Retired {
        /// As asked.
        name: String,
        /// What to do.
        advice: &'static str,
        /// Names that would work.
        usable: String,
    },
    /// The name is known, its engine is not installed.
    #[error(
        "runtime handler {name:?} needs {binary}, which is not in {directory}; usable here: {usable}"
    )]
    NotInstalled {
        /// As asked.
        name: String,
        /// The missing binary.
        binary: String,
        /// Where it was looked for.
        directory: String,
        /// Names that would work.
        usable: String,
    },
}

/// All handlers.
#[derive(Debug, Clone)]
pub struct Handlers {
    libexec: PathBuf,
    routes: BTreeMap<String, Route>,
}

impl Handlers {
    /// The built-in table under the configured one.
    pub fn new(config: &Config) -> Self {
        let built_in = BUILT_IN.iter().map(|(name, engine)| (*name, *engine));
        let configured = config
            .handlers
            .iter()
            .map(|(name, handler)| (name.as_str(), handler.engine.as_str()));
        Self {
            libexec: config.libexec.clone(),
            routes: built_in
                .chain(configured)
                .map(|(name, engine)| (name.to_owned(), Route::parse(engine)))
                .collect(),
        }
    }

    /// What a handler stands for; looks anew whether its engine is there.
    pub fn route(&self, name: &str) -> Result<&Route, HandlerError> {
        let Some(route) = self.routes.get(name) else {
            return Err(HandlerError::Unknown {
                name: name.to_owned(),
                usable: self.usable_text(),
            });
        };
        let retired = match route {
            Route::Wasm(engine) => RETIRED.iter().find(|(name, _)| name == engine),
            Route::Auto | Route::Linux => None,
        };
        match (self.missing(route), retired) {
            (None, _) => Ok(route),
            (Some(_), Some((_, advice))) => Err(HandlerError::Retired {
                name: name.to_owned(),
                advice,
                usable: self.usable_text(),
            }),
            (Some(binary), None) => Err(HandlerError::NotInstalled {
                name: name.to_owned(),
                binary,
                directory: self.libexec.display().to_string(),
                usable: self.usable_text(),
            }),
        }
    }

    /// The route of a pod that was accepted once: a vanished engine shows at create.
    pub fn known_route(&self, name: &str) -> Route {
        self.routes.get(name).cloned().unwrap_or(Route::Auto)
    }

    /// Names whose engine is installed, sorted; `""` is always the first.
    pub fn usable(&self) -> Vec<String> {
        self.routes
            .iter()
            .filter(|(_, route)| self.missing(route).is_none())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The shim of a Wasm engine.
    pub fn shim(&self, engine: &str) -> PathBuf {
        shim(&self.libexec, engine)
    }

    fn missing(&self, route: &Route) -> Option<String> {
        match route {
            Route::Auto | Route::Linux => None,
            Route::Wasm(engine) if self.shim(engine).is_file() => None,
            Route::Wasm(engine) => Some(format!("criw-shim-{engine}")),
        }
    }

    fn usable_text(&self) -> String {
        self.usable()
            .iter()
            .map(|name| format!("{name:?}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

fn shim(libexec: &Path, engine: &str) -> PathBuf {
    libexec.join(format!("criw-shim-{engine}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Handler;

    #[test]
    fn only_handlers_with_an_engine_are_usable() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            libexec: directory.path().to_owned(),
            ..Config::default()
        };
        for (name, engine) in [("mine", "wasmtime"), ("spin", "wasmtime"), ("odd", "none")] {
            let engine = engine.to_owned();
            config.handlers.insert(name.to_owned(), Handler { engine });
        }
        let handlers = Handlers::new(&config);
        assert_eq!(handlers.usable(), ["", "crun", "runc"]);
        std::fs::write(directory.path().join("criw-shim-wasmtime"), b"").unwrap();
        assert_eq!(
            handlers.usable(),
            [
                "",
                "crun",
                "crun-wasm",
                "mine",
                "runc",
                "spin",
                "wasm",
                "wasmtime"
            ]
        );
        assert_eq!(handlers.route(""), Ok(&Route::Auto));
        assert_eq!(handlers.route("runc"), Ok(&Route::Linux));
        assert_eq!(handlers.route("spin"), Ok(&Route::Wasm("wasmtime".into())));
        let text = handlers.route("gvisor").unwrap_err().to_string();
        assert!(
            text.contains("unknown runtime handler \"gvisor\""),
            "{text}"
        );
        let text = handlers.route("wasmedge").unwrap_err().to_string();
        for word in ["\"wasmedge\"", "criw-shim-wasmedge", "\"wasmtime\""] {
            assert!(text.contains(word), "{text}");
        }
        for (name, part) in [
            ("wasmtime-slight-v1", "wasi:http/proxy"),
            ("wws", "Wasm Workers Server"),
            ("lunatic", "wasm32-wasip2"),
        ] {
            let text = handlers.route(name).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(part), "{text}");
        }
    }
}
