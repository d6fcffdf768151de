//! What an engine's error means: exit code, reason, text.

use criw_engines::engine::Outcome;
use wasmtime::Error;
use wasmtime_wasi::I32Exit;

use crate::limits::OutOfMemory;

/// The end of a guest whose entry function returned an error.
pub(crate) fn while_running(error: &Error) -> Outcome {
    common(error).unwrap_or_else(|| Outcome::trap(text(error)))
}

/// The end of a guest that could not be instantiated.
pub(crate) fn while_starting(error: &Error) -> Outcome {
    common(error).unwrap_or_else(|| Outcome::start_error(format!("instantiate: {}", text(error))))
}

/// What means the same at any time.
fn common(error: &Error) -> Option<Outcome> {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        // As the kernel keeps it: the low byte.
        return Some(Outcome::exit((code & 0xff) as u8));
    }
    if error.is::<OutOfMemory>() {
        return Some(Outcome::out_of_memory(text(error)));
    }
    None
}

/// The cause first (it is what a user looks for, and texts are cut at their end),
/// then the Wasm backtrace.
pub(crate) fn text(error: &Error) -> String {
    let mut layers: Vec<String> = error
        .chain()
        .map(|cause| cause.to_string().trim_end().to_owned())
        .collect();
    layers.reverse();
    layers.join("\n")
}
