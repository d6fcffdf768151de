//! The compiler's main: lock up, read, compile, write.
//!
//! The module is hostile and Cranelift is large, so nothing is read before the
//! process has given up everything but three descriptors, memory and CPU time.

use std::ffi::OsString;
use std::io::{Read, Write};

use wasmparser::{Parser, Payload};
use wasmtime::Engine;

use crate::failure::text;
use crate::settings::{self, Purpose};

mod lockup;

/// Why there is no code.
#[derive(Debug)]
pub enum Failure {
    /// The input is no valid module; the text is for the user.
    Invalid(String),
    /// This process failed; the text is for the operator.
    Internal(String),
}

/// Bytes of a module. Compiling takes about twenty times as much memory.
const MAX_MODULE: usize = 256 << 20;

/// Runs with the words after the program's name.
pub fn run(mut words: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    match (words.next(), words.next()) {
        (None, None) => compile(),
        (Some(word), None) if word == "--fingerprint" => {
            let (run, serve) = (new_engine(Purpose::Run)?, new_engine(Purpose::Serve)?);
            println!("{}", settings::fingerprint([&run, &serve]));
            Ok(())
        }
        _ => Err(Failure::Internal(
            "usage: criw-compile [--fingerprint] < module > code".to_owned(),
        )),
    }
}

fn new_engine(purpose: Purpose) -> Result<Engine, Failure> {
    settings::engine(purpose).map_err(|error| Failure::Internal(text(&error)))
}

fn compile() -> Result<(), Failure> {
    // Looks at the CPU, and at nothing that came from outside.
    let (run, serve) = (new_engine(Purpose::Run)?, new_engine(Purpose::Serve)?);
    lockup::lock_up().map_err(Failure::Internal)?;
    let input = read()?;
    let module = to_binary(&input)?;
    let code = if !is_component(&module) {
        run.precompile_module(&module)
    } else if serves(&module) {
        serve.precompile_component(&module)
    } else {
        run.precompile_component(&module)
    };
    let code = code.map_err(|error| Failure::Invalid(text(&error)))?;
    let mut output = std::io::stdout().lock();
    output
        .write_all(&code)
        .and_then(|()| output.flush())
        .map_err(|error| Failure::Internal(format!("write code: {error}")))
}

fn read() -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_MODULE as u64 + 1)
        .read_to_end(&mut input)
        .map_err(|error| Failure::Internal(format!("read module: {error}")))?;
    if input.len() > MAX_MODULE {
        return Err(Failure::Invalid(format!(
            "the module has more than {MAX_MODULE} bytes"
        )));
    }
    Ok(input)
}

/// Binary as it is, text translated, everything else refused: compiled code above
/// all, because it would be native code from an image.
fn to_binary(input: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, Failure> {
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

/// Whether a component exports the handler of HTTP requests. What does not parse does
/// not: compiling it says what is wrong.
fn serves(component: &[u8]) -> bool {
    // Components nest; only the exports of the outermost count.
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload {
            Ok(Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) => depth += 1,
            Ok(Payload::End(_)) => depth = depth.saturating_sub(1),
            Ok(Payload::ComponentExportSection(exports)) if depth == 0 => {
                let mut names = exports.into_iter().flatten().map(|export| export.name.name);
                if names.any(|name| name.starts_with(settings::INCOMING_HANDLER)) {
                    return true;
                }
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
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
    fn what_serves_is_told_by_the_outermost_exports() {
        let handler = |version: &str| {
            format!(
                r#"(instance $i) (export "wasi:http/incoming-handler@{version}" (instance $i))"#
            )
        };
        for (text, expected) in [
            ("(component)".to_owned(), false),
            (format!("(component {})", handler("0.2.0")), true),
            (format!("(component {})", handler("0.2.6")), true),
            (format!("(component {})", handler("0.3.0")), false),
            (
                format!("(component (core module) {})", handler("0.2.0")),
                true,
            ),
            (
                format!("(component (component {}))", handler("0.2.0")),
                false,
            ),
        ] {
            assert_eq!(serves(&wat::parse_str(&text).unwrap()), expected, "{text}");
        }
    }
}
