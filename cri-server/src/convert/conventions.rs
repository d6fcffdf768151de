//! Annotations by which users of other runtimes ask for Wasm: crun's `run.oci.handler`,
//! and `module.wasm.image/variant`, which youki and buildah know too.
//!
//! What runs is told by the image's content here, so that these only choose between the
//! variants of an image, and between engines. The `-smart` forms leave that to the content.

use criw_sandbox::model::Map;

use crate::convert::annotations::lookup;
use crate::error::{Invalid, invalid};
use crate::handlers::DEFAULT_WASM_ENGINE;

const HANDLER: &str = "run.oci.handler";
const VARIANT: &str = "module.wasm.image/variant";

/// The Wasm engine that a container's annotations ask for, if they ask for Wasm at all.
pub fn wasm_engine(name: &str, container: &Map, pod: &Map) -> Result<Option<String>, Invalid> {
    match lookup(HANDLER, name, container, pod) {
        Some("wasm") => return Ok(Some(DEFAULT_WASM_ENGINE.to_owned())),
        Some(engine @ ("wasmtime" | "wasmedge" | "wasmer" | "wamr")) => {
            return Ok(Some(engine.to_owned()));
        }
        None | Some("" | "wasm-smart") => {}
        Some(other) => {
            return invalid(format!(
                "annotation {HANDLER} asks for {other:?}, which CRI-W does not have; \
                 it can be wasm, wasm-smart, wasmtime, wasmedge, wasmer or wamr, or be left out"
            ));
        }
    }
    Ok(match lookup(VARIANT, name, container, pod) {
        Some("compat") => Some(DEFAULT_WASM_ENGINE.to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_other_runtimes_ask_for_wasm_or_leave_it_to_the_content() {
        let ask = |pairs: &[(&str, &str)]| {
            let pod: Map = pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            wasm_engine("web", &Map::new(), &pod).map_err(|error| error.0)
        };
        let engine = |name: &str| Ok(Some(name.to_owned()));
        for (pairs, expected) in [
            (&[][..], Ok(None)),
            (&[(HANDLER, "wasm")], engine("wasmtime")),
            (&[(HANDLER, "wasmedge")], engine("wasmedge")),
            (&[(HANDLER, "wasm-smart")], Ok(None)),
            (&[(VARIANT, "compat")], engine("wasmtime")),
            (&[(VARIANT, "compat-smart")], Ok(None)),
            (&[(VARIANT, "other")], Ok(None)),
            (
                &[("module.wasm.image/variant.web", "compat")],
                engine("wasmtime"),
            ),
            (&[("module.wasm.image/variant.db", "compat")], Ok(None)),
            (
                &[(HANDLER, "wasmer"), (VARIANT, "compat")],
                engine("wasmer"),
            ),
        ] {
            assert_eq!(ask(pairs), expected, "{pairs:?}");
        }
        for other in ["krun", "dotnet", "spin", "x"] {
            let text = ask(&[(HANDLER, other)]).unwrap_err();
            assert!(
                text.contains(other) && text.contains("wasm-smart"),
                "{text}"
            );
        }
    }
}
