//! Several components become one: what the first imports and this engine does not
//! provide is taken from the others, and what those import likewise.
//!
//! An instance of each component that is needed, and no more: two that import the same
//! library share it. Interfaces of the engine stay imports of the whole, so a library
//! reads the container's files and writes to its log.

use std::fmt::Write as _;

use wac_graph::types::{Package, are_semver_compatible};
use wac_graph::{CompositionGraph, EncodeOptions, InstantiationArgumentError, NodeId};

use super::Failure;
use super::outline::Outline;
use crate::worlds;

/// A component, and what it is called in error texts.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Where the instance of a part stands.
#[derive(Debug, Clone, Copy)]
enum Instance {
    None,
    /// What it imports is being looked for.
    Begun,
    Node(NodeId),
}

struct Linker<'a> {
    parts: &'a [Part],
    outlines: Vec<Outline>,
    instances: Vec<Instance>,
    graph: CompositionGraph,
}

/// The first part with what it needs of the others; `None` when it needs nothing of them.
///
/// # Errors
/// Parts that need each other in a circle, and an export whose type is not what the import
/// says. An import that no part exports is none: linking with the engine names it.
pub(super) fn link(parts: &[Part]) -> Result<Option<Vec<u8>>, Failure> {
    let outline = |part: &Part| Outline::of(&part.bytes).unwrap_or_default();
    let mut linker = Linker {
        parts,
        outlines: parts.iter().map(outline).collect(),
        instances: vec![Instance::None; parts.len()],
        graph: CompositionGraph::new(),
    };
    if linker.wants(0).is_empty() {
        return Ok(None);
    }
    let main = linker.instance(0)?;
    for name in linker.outlines[0].exports.clone() {
        linker
            .graph
            .alias_instance_export(main, &name)
            .map_err(|error| linker.failed(0, &error))
            .and_then(|node| {
                let done = linker.graph.export(node, &name);
                done.map_err(|error| linker.failed(0, &error))
            })?;
    }
    let options = EncodeOptions {
        // It is compiled next, which validates it.
        validate: false,
        ..EncodeOptions::default()
    };
    let whole = linker.graph.encode(options);
    whole.map(Some).map_err(|error| linker.failed(0, &error))
}

/// What a component imports and neither the engine nor the component itself brings.
pub(super) fn unmet(outline: &Outline) -> Vec<&str> {
    let imports = outline.imports.iter().map(String::as_str);
    imports.filter(|name| !worlds::is_provided(name)).collect()
}

impl Linker<'_> {
    /// What is taken from other parts: the import, the part, and the name of its export.
    fn wants(&self, part: usize) -> Vec<(String, usize, String)> {
        let mut wants = Vec::new();
        for import in unmet(&self.outlines[part]) {
            let found = (0..self.parts.len())
                .filter(|other| *other != part)
                .find_map(|other| {
                    let mut exports = self.outlines[other].exports.iter();
                    let export = exports.find(|name| are_semver_compatible(name, import))?;
                    Some((other, export.clone()))
                });
            if let Some((other, export)) = found {
                wants.push((import.to_owned(), other, export));
            }
        }
        wants
    }

    /// Depth is bounded by the number of parts: one that is begun is not begun again.
    fn instance(&mut self, part: usize) -> Result<NodeId, Failure> {
        match self.instances[part] {
            Instance::Node(node) => return Ok(node),
            Instance::Begun => return Err(self.circle(part)),
            Instance::None => {}
        }
        self.instances[part] = Instance::Begun;
        // The name only has to be another for each; users never see it.
        let package = Package::from_bytes(
            &format!("criw:part{part}"),
            None,
            self.parts[part].bytes.as_slice(),
            self.graph.types_mut(),
        )
        .map_err(|error| self.failed(part, error.as_ref()))?;
        let package = self.graph.register_package(package);
        let package = package.map_err(|error| self.failed(part, &error))?;
        let node = self.graph.instantiate(package);
        for (import, other, export) in self.wants(part) {
            let provider = self.instance(other)?;
            let alias = self.graph.alias_instance_export(provider, &export);
            let alias = alias.map_err(|error| self.failed(other, &error))?;
            match self.graph.set_instantiation_argument(node, &import, alias) {
                Ok(()) => {}
                Err(InstantiationArgumentError::ArgumentTypeMismatch { source, .. }) => {
                    return Err(Failure::Invalid(format!(
                        "{} imports {import}, and what {} exports as {export} is of another type: {source:#}; build both from the same WIT",
                        self.parts[part].name, self.parts[other].name
                    )));
                }
                Err(error) => return Err(self.failed(part, &error)),
            }
        }
        self.instances[part] = Instance::Node(node);
        Ok(node)
    }

    fn circle(&self, part: usize) -> Failure {
        let begun = self.instances.iter().zip(self.parts);
        let mut names = String::new();
        for (_, part) in begun.filter(|(instance, _)| matches!(instance, Instance::Begun)) {
            let _ = write!(
                names,
                "{}{}",
                if names.is_empty() { "" } else { ", " },
                part.name
            );
        }
        Failure::Invalid(format!(
            "components import each other in a circle, which nothing can link ({names}; {} is needed twice)",
            self.parts[part].name
        ))
    }

    fn failed(&self, part: usize, error: &dyn std::error::Error) -> Failure {
        let mut text = format!(
            "link {} with other components: {error}",
            self.parts[part].name
        );
        let mut source = error.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        Failure::Invalid(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, text: &str) -> Part {
        Part {
            name: name.to_owned(),
            bytes: wat::parse_str(text).unwrap(),
        }
    }

    /// A component with these imports, each an instance with a function `f`, and one export of
    /// such an instance.
    fn component(imports: &[&str], export: &str) -> String {
        let mut text = "(component\n".to_owned();
        for (n, import) in imports.iter().enumerate() {
            let _ = writeln!(
                text,
                r#"(import "{import}" (instance $i{n} (export "f" (func (result u32)))))"#
            );
        }
        text.push_str(
            r#"(core module $m (func (export "f") (result i32) i32.const 7))
               (core instance $c (instantiate $m))
               (func $f (result u32) (canon lift (core func $c "f")))
               (instance $e (export "f" (func $f)))"#,
        );
        let _ = writeln!(text, r#"(export "{export}" (instance $e)))"#);
        text
    }

    fn imports(component: &[u8]) -> Vec<String> {
        Outline::of(component).unwrap().imports
    }

    #[test]
    fn what_is_missing_comes_from_the_others() {
        for (case, others, left) in [
            ("direct", vec![(vec![], "a:b/c@1.0.0")], vec![]),
            (
                "a compatible version",
                vec![(vec![], "a:b/c@1.2.0")],
                vec![],
            ),
            (
                "through another",
                vec![
                    (vec!["a:b/d@1.0.0"], "a:b/c@1.0.0"),
                    (vec![], "a:b/d@1.0.0"),
                ],
                vec![],
            ),
            (
                "the rest of the library is left to the engine",
                vec![(vec!["wasi:cli/x@0.2.0"], "a:b/c@1.0.0")],
                vec!["wasi:cli/x@0.2.0"],
            ),
            (
                "not needed",
                vec![
                    (vec![], "a:b/c@1.0.0"),
                    (vec!["u:v/w@1.0.0"], "a:b/x@1.0.0"),
                ],
                vec![],
            ),
        ] {
            let mut parts = vec![part("main", &component(&["a:b/c@1.0.0"], "e:f/g@1.0.0"))];
            for (imports, export) in &others {
                parts.push(part(export, &component(imports, export)));
            }
            let whole = link(&parts).unwrap().unwrap();
            assert_eq!(imports(&whole), left, "{case}");
            let exports = Outline::of(&whole).unwrap().exports;
            assert_eq!(exports, ["e:f/g@1.0.0"], "{case}");
        }
    }

    #[test]
    fn nothing_is_linked_that_is_not_needed() {
        for imports in [&[][..], &["a:b/other@1.0.0"], &["a:b/c@2.0.0"]] {
            let parts = [
                part("main", &component(imports, "e:f/g@1.0.0")),
                part("library", &component(&[], "a:b/c@1.0.0")),
            ];
            assert!(link(&parts).unwrap().is_none(), "{imports:?}");
        }
    }

    #[test]
    fn what_cannot_be_linked_is_named() {
        let circle = [
            part("main.wasm", &component(&["a:b/c@1.0.0"], "e:f/g@1.0.0")),
            part("one.wasm", &component(&["a:b/d@1.0.0"], "a:b/c@1.0.0")),
            part("two.wasm", &component(&["a:b/c@1.0.0"], "a:b/d@1.0.0")),
        ];
        let other_type = [
            part("main.wasm", &component(&["a:b/c@1.0.0"], "e:f/g@1.0.0")),
            part(
                "library.wasm",
                r#"(component (instance $e) (export "a:b/c@1.0.0" (instance $e)))"#,
            ),
        ];
        for (parts, words) in [
            (&circle[..], &["circle", "one.wasm", "two.wasm"][..]),
            (
                &other_type,
                &[
                    "main.wasm imports a:b/c@1.0.0",
                    "library.wasm",
                    "another type",
                ],
            ),
        ] {
            match link(parts) {
                Err(Failure::Invalid(text)) => {
                    for word in words {
                        assert!(text.contains(word), "{text}");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn two_share_their_library() {
        let parts = [
            part(
                "main",
                &component(&["a:b/c@1.0.0", "a:b/d@1.0.0"], "e:f/g@1.0.0"),
            ),
            part("one", &component(&["a:b/lib@1.0.0"], "a:b/c@1.0.0")),
            part("two", &component(&["a:b/lib@1.0.0"], "a:b/d@1.0.0")),
            part("lib", &component(&[], "a:b/lib@1.0.0")),
        ];
        let whole = link(&parts).unwrap().unwrap();
        // Each component is defined and instantiated once.
        let definitions = wasmparser::Parser::new(0)
            .parse_all(&whole)
            .filter(|payload| matches!(payload, Ok(wasmparser::Payload::ComponentSection { .. })))
            .count();
        assert_eq!(definitions, 4);
        let instantiated: u32 = {
            let mut depth = 0;
            let mut count = 0;
            for payload in wasmparser::Parser::new(0).parse_all(&whole) {
                match payload.unwrap() {
                    wasmparser::Payload::ModuleSection { .. }
                    | wasmparser::Payload::ComponentSection { .. } => depth += 1,
                    wasmparser::Payload::End(_) if depth > 0 => depth -= 1,
                    wasmparser::Payload::ComponentInstanceSection(section) if depth == 0 => {
                        count += section.count();
                    }
                    _ => {}
                }
            }
            count
        };
        assert_eq!(instantiated, 4);
    }
}
