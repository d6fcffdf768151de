//! Which world a component is of, and the sentences for those that do not run here.

use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};

use crate::settings::{self, HANDLERS};
use crate::{foreign, services};

/// How a component is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum World {
    /// `wasi:cli/command` 0.2: it has a main.
    Command,
    /// `wasi:cli/command` 0.3.
    AsyncCommand,
    /// `wasi:http/proxy` 0.2: it answers requests.
    Proxy,
    /// `wasi:http/service` 0.3.
    Service,
    /// Another function that it exports, perhaps inside an exported interface.
    Function(Vec<String>),
}

/// Exports of a command, up to the version's patch number.
const RUN: [&str; 2] = ["wasi:cli/run@0.2", "wasi:cli/run@0.3."];

/// What this engine runs, for error texts.
const RUNS: &str = "this engine runs components of the worlds wasi:cli/command 0.2 and 0.3, wasi:http/proxy 0.2 and wasi:http/service 0.3, and core modules of WASI preview 1";

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

/// Interfaces of WASI 0.3 that are provided, without their version.
const PROVIDED_3: &[&str] = &[
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
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// Names in one error text.
const MAX_NAMES: usize = 20;

/// Decides by the export that was chosen (`path#export`), else by all exports, handlers first.
pub(crate) fn of(
    engine: &Engine,
    component: &Component,
    chosen: Option<&str>,
) -> Result<World, String> {
    let ty = component.component_type();
    let exports: Vec<_> = ty.exports(engine).map(|(name, _)| name).collect();
    match chosen {
        None => decide(&exports),
        Some(chosen) => choose(engine, component, &exports, chosen),
    }
}

/// What was chosen is an interface of one of our worlds, with or without its version, or a
/// function, behind `#` if it is in an interface: `demo:jobs/admin@1.0.0#migrate`.
fn choose(
    engine: &Engine,
    component: &Component,
    exports: &[&str],
    chosen: &str,
) -> Result<World, String> {
    let named: Vec<_> = exports
        .iter()
        .copied()
        .filter(|name| *name == chosen || name.split('@').next() == Some(chosen))
        .collect();
    if !named.is_empty()
        && let Ok(world) = decide(&named)
    {
        return Ok(world);
    }
    let path: Vec<_> = chosen.split('#').map(str::to_owned).collect();
    let mut item = None;
    for name in &path {
        let within = item.as_ref().map(|(_, index)| index);
        item = component.get_export(within, name.as_str());
        if item.is_none() {
            break;
        }
    }
    match item {
        Some((ComponentItem::ComponentFunc(function), _)) => {
            check_function(chosen, &function)?;
            Ok(World::Function(path))
        }
        Some(_) => Err(format!(
            "the export \"{chosen}\" is not a function; one that is inside of it is \"{chosen}#NAME\""
        )),
        None => Err(format!(
            "the component has no export \"{chosen}\"; it exports {}",
            list(&functions(engine, component))
        )),
    }
}

/// An entry takes nothing and gives nothing but how it ended.
fn check_function(chosen: &str, function: &ComponentFunc) -> Result<(), String> {
    let parameters = function.params().len();
    let fits = matches!(
        function.results().collect::<Vec<_>>().as_slice(),
        [] | [Type::Result(_)]
    );
    if parameters > 0 || !fits {
        return Err(format!(
            "the entry function \"{chosen}\" has {parameters} parameters, or a result that is no \"result\"; it must have none"
        ));
    }
    Ok(())
}

/// What can be chosen: exports, and functions inside of them.
fn functions(engine: &Engine, component: &Component) -> Vec<String> {
    let ty = component.component_type();
    let mut names = Vec::new();
    for (name, item) in ty.exports(engine) {
        match item.ty {
            ComponentItem::ComponentInstance(instance) => {
                let inside = instance.exports(engine).filter_map(|(function, item)| {
                    matches!(item.ty, ComponentItem::ComponentFunc(_))
                        .then(|| format!("{name}#{function}"))
                });
                names.extend(inside);
            }
            _ => names.push(name.to_owned()),
        }
    }
    names
}

fn decide(exports: &[&str]) -> Result<World, String> {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    for (prefix, world) in [
        (HANDLERS[0], World::Proxy),
        (HANDLERS[1], World::Service),
        (RUN[0], World::Command),
        (RUN[1], World::AsyncCommand),
    ] {
        if has(prefix) {
            return Ok(world);
        }
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

/// Whether it imports anything of WASI 0.3.
pub(crate) fn uses_preview_3(engine: &Engine, component: &Component) -> bool {
    imports(engine, component).any(|name| settings::is_preview_3(&name))
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
    if version == "0.2" || version.starts_with("0.2.") && !version.contains('-') {
        return PROVIDED.contains(&interface);
    }
    settings::is_preview_3(import) && PROVIDED_3.contains(&interface) || services::provide(import)
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

fn list<S: AsRef<str>>(names: &[S]) -> String {
    let mut first: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    first.truncate(MAX_NAMES);
    let list = first.join(", ");
    match names.len() {
        0 => "nothing".to_owned(),
        many if many > MAX_NAMES => format!("{list} and {} more", many - MAX_NAMES),
        _ => list,
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
            (&["wasi:http/handler@0.3.0"], Ok(World::Service)),
            (&["wasi:cli/run@0.3.0", "x"], Ok(World::AsyncCommand)),
            (&["wasi:cli/run@0.4.0", "x"], Err("wasi:cli/run@0.4.0, x")),
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
            ("wasi:cli/stdout@0.3.0", true),
            ("wasi:cli/stdout@0.3.0-rc-2026-03-15", false),
            ("wasi:io/streams@0.3.0", false),
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
