//! Which world a component is of, and the sentences for those that do not run here.

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::settings::INCOMING_HANDLER;
use crate::{foreign, services};

/// How a component is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum World {
    /// `wasi:cli/command`: it has a main.
    Command,
    /// `wasi:http/proxy`: it answers requests.
    Proxy,
}

/// Export of a command, up to the version's patch number.
const RUN: &str = "wasi:cli/run@0.2";

/// What this engine runs, for error texts.
const RUNS: &str = "this engine runs components of the worlds wasi:cli/command 0.2 and wasi:http/proxy 0.2, and core modules of WASI preview 1";

/// Interfaces that are provided, without their version, which is 0.2. Those of
/// [`crate::services`] come besides.
const PROVIDED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Names in one error text.
const MAX_NAMES: usize = 20;

/// Decides by the exports, the handler first.
pub(crate) fn of(engine: &Engine, component: &Component) -> Result<World, String> {
    let ty = component.component_type();
    let exports: Vec<_> = ty.exports(engine).map(|(name, _)| name).collect();
    decide(&exports)
}

fn decide(exports: &[&str]) -> Result<World, String> {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    if has(INCOMING_HANDLER) {
        return Ok(World::Proxy);
    }
    if has(RUN) {
        return Ok(World::Command);
    }
    Err(format!(
        "the component exports {}, which is none of our worlds: {RUNS}{}",
        list(exports),
        foreign::hint(exports.iter().copied())
    ))
}

/// Whether it imports anything of `wasi:http`.
pub(crate) fn uses_http(engine: &Engine, component: &Component) -> bool {
    imports(engine, component).any(|name| name.starts_with("wasi:http/"))
}

/// All imports that nobody provides, by name; linking itself names only the first.
pub(crate) fn unknown_imports(engine: &Engine, component: &Component) -> Option<String> {
    let names: Vec<_> = imports(engine, component).collect();
    let unknown: Vec<_> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !is_provided(name))
        .collect();
    if unknown.is_empty() {
        return None;
    }
    Some(format!(
        "unknown imports: {}, which neither the engine nor another component of the image, its image volumes or the pod's containers provides; {RUNS}{}{}",
        list(&unknown),
        other_versions(&unknown),
        foreign::hint(unknown.iter().copied())
    ))
}

fn imports(engine: &Engine, component: &Component) -> impl Iterator<Item = String> {
    let ty = component.component_type();
    let names: Vec<_> = ty
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    names.into_iter()
}

/// Whether the engine itself brings what is imported by this name.
pub(crate) fn is_provided(import: &str) -> bool {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    let released = PROVIDED.contains(&interface);
    released && (version == "0.2" || version.starts_with("0.2.")) || services::provide(import)
}

/// What to do about a draft of another date than ours.
fn other_versions(unknown: &[&str]) -> String {
    let known: Vec<_> = unknown
        .iter()
        .map(|name| (name, services::other_versions(name)))
        .filter(|(_, versions)| !versions.is_empty())
        .map(|(name, versions)| {
            let interface = name.split('@').next().unwrap_or_default();
            format!("; {interface} is provided as {}", versions.join(", "))
        })
        .collect();
    known.concat()
}

fn list(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names if names.len() > MAX_NAMES => format!(
            "{} and {} more",
            names[..MAX_NAMES].join(", "),
            names.len() - MAX_NAMES
        ),
        names => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exports_tell_the_world() {
        let run = "wasi:cli/run@0.2.3";
        let handler = "wasi:http/incoming-handler@0.2.0";
        for (exports, expected) in [
            (&[run][..], Ok(World::Command)),
            (&[handler], Ok(World::Proxy)),
            (&[run, handler], Ok(World::Proxy)),
            (&[], Err("exports nothing")),
            (&["wasi:http/handler@0.3.0"], Err("wasi:http/handler@0.3.0")),
            (&["wasi:cli/run@0.3.0", "x"], Err("wasi:cli/run@0.3.0, x")),
        ] {
            match (decide(exports), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (found, _) => panic!("{exports:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn only_our_interfaces_and_versions_are_provided() {
        for (import, expected) in [
            ("wasi:cli/stdout@0.2.0", true),
            ("wasi:http/types@0.2.6", true),
            ("wasi:cli/stdout@0.3.0", false),
            ("wasi:cli/stdout@0.20.0", false),
            ("wasi:cli/stdout", false),
            ("wasi:keyvalue/store@0.2.0-draft", true),
            ("wasi:keyvalue/store@0.2.0", false),
            ("a:b/c@0.2.0", false),
        ] {
            assert_eq!(is_provided(import), expected, "{import}");
        }
    }

    #[test]
    fn drafts_of_another_date_are_told_ours() {
        let text = other_versions(&["a:b/c@1.0.0", "wasi:config/store@0.2.0"]);
        assert_eq!(
            text,
            "; wasi:config/store is provided as 0.2.0-draft, 0.2.0-draft-2024-09-27, 0.2.0-rc.1"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        assert!(list(&vec!["x"; 23]).ends_with("x and 3 more"));
    }
}
