//! The names that a component imports and exports.

use wasmparser::{Parser, Payload};

/// What stands outermost in a component, by name and in its order.
#[derive(Debug, Default)]
pub(super) struct Outline {
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
}

impl Outline {
    /// `None` for what does not parse: compiling it says what is wrong.
    pub(super) fn of(component: &[u8]) -> Option<Self> {
        let mut outline = Self::default();
        // Components nest; only the outermost names are seen from outside.
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(component) {
            match payload.ok()? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        outline.imports.push(import.ok()?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        outline.exports.push(export.ok()?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Some(outline)
    }

    /// Whether a name that begins so is exported.
    pub(super) fn exports_any(&self, prefix: &str) -> bool {
        self.exports.iter().any(|name| name.starts_with(prefix))
    }
}
