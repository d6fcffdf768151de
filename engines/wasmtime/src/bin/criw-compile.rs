//! Wasm on standard input, compiled code on standard output, errors on standard error.
//!
//! With `--link` several components come in, and the first is linked with those of the others
//! that export what it imports. After success each line on standard error is an import of a
//! component that neither the engine nor another of them provides.
//!
//! Exit codes: 0 compiled, 1 the module is invalid (the text is for the user),
//! 2 anything else. `--fingerprint` prints the name of the code that it makes.

use std::process::ExitCode;

use criw_shim_wasmtime::compile::{Failure, run};

/// Bytes of text on standard error.
const MAX_TEXT: usize = 4096;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(unmet) => {
            for name in unmet {
                eprintln!("{name}");
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let (text, code) = match failure {
                Failure::Invalid(text) => (text, 1),
                Failure::Internal(text) => (text, 2),
            };
            let end = text.floor_char_boundary(MAX_TEXT - 1);
            eprintln!("{}", text[..end].trim_end());
            ExitCode::from(code)
        }
    }
}
