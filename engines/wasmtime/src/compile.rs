//! The compiler's main: lock up, read, compile, write.
//!
//! The module is hostile and Cranelift is large, so nothing is read before the
//! process has given up everything but three descriptors, memory and CPU time.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

use wasmtime::Engine;

use crate::failure::text;
use crate::settings::{self, Meter, Purpose};

use link::Part;
use outline::Outline;

mod input;
mod link;
mod lockup;
mod outline;

/// Why there is no code.
#[derive(Debug)]
pub enum Failure {
    /// The input is no valid module; the text is for the user.
    Invalid(String),
    /// This process failed; the text is for the operator.
    Internal(String),
}

/// Imports in one report; what has more is not linked by adding the rest.
const MAX_UNMET: usize = 32;

/// Runs with the words after the program's name. What is returned are lines for standard
/// error: the imports that the engine does not provide, which other components may.
///
/// # Errors
/// The module's fault or ours, see [`Failure`].
pub fn run(mut words: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    match (words.next(), words.next()) {
        (None, None) => single(Meter::Without),
        (Some(word), None) if word == "--fuel" => single(Meter::Fuel),
        (Some(word), None) if word == "--link" => compile(Meter::Without, linked),
        (Some(word), Some(other)) if word == "--fuel" && other == "--link" => {
            compile(Meter::Fuel, linked)
        }
        (Some(word), None) if word == "--fingerprint" => {
            println!("{}", settings::fingerprint(&engines(Meter::Without)?));
            Ok(Vec::new())
        }
        _ => Err(Failure::Internal(
            "usage: criw-compile [--fingerprint | --fuel] < module > code, or criw-compile [--fuel] --link < modules > code".to_owned(),
        )),
    }
}

/// A module alone.
fn single(meter: Meter) -> Result<Vec<String>, Failure> {
    compile(meter, || {
        let module = input::module(std::io::stdin().lock())?;
        Ok(to_binary(&module)?.into_owned())
    })
}

/// One for each of [`Purpose::ALL`].
fn engines(meter: Meter) -> Result<Vec<Engine>, Failure> {
    let engines = Purpose::ALL.map(|purpose| settings::engine(purpose, meter));
    let engines = engines.into_iter().collect::<wasmtime::Result<_>>();
    engines.map_err(|error| Failure::Internal(text(&error)))
}

/// `read` sees hostile bytes, so it is called after the lock-up.
fn compile(
    meter: Meter,
    read: impl FnOnce() -> Result<Vec<u8>, Failure>,
) -> Result<Vec<String>, Failure> {
    // Looks at the CPU, and at nothing that came from outside.
    let engines = engines(meter)?;
    let of = |wanted: Purpose| {
        let at = Purpose::ALL.iter().position(|purpose| *purpose == wanted);
        at.map(|at| &engines[at])
            .ok_or_else(|| Failure::Internal(format!("no engine for {wanted:?}")))
    };
    lockup::lock_up().map_err(Failure::Internal)?;
    let module = read()?;
    let mut unmet = Vec::new();
    let code = if is_component(&module) {
        let outline = Outline::of(&module).unwrap_or_default();
        let names = link::unmet(&outline).into_iter();
        unmet.extend(names.take(MAX_UNMET).map(str::to_owned));
        let purpose = purpose(&outline);
        let concurrent = Purpose {
            concurrent: true,
            ..purpose
        };
        match of(purpose)?.precompile_component(&module) {
            // Async functions inside, and none of it in the names that it shows.
            Err(_) if purpose != concurrent => of(concurrent)?.precompile_component(&module),
            compiled => compiled,
        }
    } else {
        of(Purpose::RUN)?.precompile_module(&module)
    };
    let code = code.map_err(|error| Failure::Invalid(text(&error)))?;
    let mut output = std::io::stdout().lock();
    output
        .write_all(&code)
        .and_then(|()| output.flush())
        .map_err(|error| Failure::Internal(format!("write code: {error}")))?;
    Ok(unmet)
}

/// The first of several modules, linked with the others. Of those only components count.
fn linked() -> Result<Vec<u8>, Failure> {
    let mut parts: Vec<Part> = Vec::new();
    for part in input::parts(std::io::stdin().lock())? {
        match to_binary(&part.bytes) {
            Ok(Cow::Borrowed(_)) => parts.push(part),
            Ok(Cow::Owned(bytes)) => parts.push(Part { bytes, ..part }),
            Err(failure) if parts.is_empty() => return Err(failure),
            Err(_) => {}
        }
    }
    match link::link(&parts)? {
        Some(whole) => Ok(whole),
        None => Ok(parts.swap_remove(0).bytes),
    }
}

/// Binary as it is, text translated, everything else refused: compiled code above
/// all, because it would be native code from an image.
fn to_binary(input: &[u8]) -> Result<Cow<'_, [u8]>, Failure> {
    let invalid = |text: &str| Failure::Invalid(text.to_owned());
    if input.is_empty() {
        return Err(invalid("the module is empty"));
    }
    if input.starts_with(b"\0asm") {
        return Ok(input.into());
    }
    if input.starts_with(b"\x7fELF") || Engine::detect_precompiled(input).is_some() {
        return Err(invalid(
            "this is native code, not a WebAssembly module (begins with \"\\x7fELF\")",
        ));
    }
    if input.trim_ascii_start().starts_with(b"(") || input.starts_with(b";;") {
        return wat::parse_bytes(input).map_err(|error| Failure::Invalid(error.to_string()));
    }
    Err(invalid(
        "this is not a WebAssembly module (it does not begin with \"\\0asm\")",
    ))
}

/// The second half of a binary's version word is the layer: 0 module, 1 component.
fn is_component(module: &[u8]) -> bool {
    module.get(6..8) == Some(&[1, 0])
}

/// Whether a component exports a handler of HTTP requests, and has to do with WASI 0.3.
fn purpose(outline: &Outline) -> Purpose {
    let mut names = outline.imports.iter().chain(&outline.exports);
    Purpose {
        serves: settings::HANDLERS
            .iter()
            .any(|handler| outline.exports_any(handler)),
        concurrent: names.any(|name| settings::is_preview_3(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wasm_is_taken() {
        for (input, expected) in [
            (&b""[..], Err("empty")),
            (b"\0asm\x01\0\0\0", Ok(false)),
            (b"\0asm\x0d\0\x01\0", Ok(true)),
            (b"(module)", Ok(false)),
            (b"  \n(component)", Ok(true)),
            (b";; text\n(module)", Ok(false)),
            (b"(module", Err("expected")),
            (b"\x7fELF\x02\x01\x01", Err("native code")),
            (b"#!/bin/sh", Err("not a WebAssembly")),
        ] {
            match (to_binary(input), expected) {
                (Ok(module), Ok(component)) => assert_eq!(is_component(&module), component),
                (Err(Failure::Invalid(text)), Err(part)) => {
                    assert!(text.contains(part), "{text}");
                }
                (found, _) => panic!("{input:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_purpose_is_told_by_the_outermost_names() {
        let export = |name: &str| format!(r#"(instance $i) (export "{name}" (instance $i))"#);
        let handler = |version: &str| export(&format!("wasi:http/incoming-handler@{version}"));
        for (text, expected) in [
            ("(component)".to_owned(), Purpose::RUN),
            (format!("(component {})", handler("0.2.0")), Purpose::SERVE),
            (format!("(component {})", handler("0.2.6")), Purpose::SERVE),
            (
                format!("(component {})", export("wasi:http/handler@0.3.0")),
                Purpose::SERVE_CONCURRENT,
            ),
            (
                format!("(component {})", export("wasi:cli/run@0.3.1")),
                Purpose::RUN_CONCURRENT,
            ),
            (
                format!("(component {})", export("wasi:cli/run@0.3.0-rc-1")),
                Purpose::RUN,
            ),
            (
                r#"(component (import "wasi:random/random@0.3.0" (instance)))"#.to_owned(),
                Purpose::RUN_CONCURRENT,
            ),
            (
                format!("(component (core module) {})", handler("0.2.0")),
                Purpose::SERVE,
            ),
            (
                format!("(component (component {}))", handler("0.2.0")),
                Purpose::RUN,
            ),
        ] {
            let outline = Outline::of(&wat::parse_str(&text).unwrap()).unwrap();
            assert_eq!(purpose(&outline), expected, "{text}");
        }
    }
}
