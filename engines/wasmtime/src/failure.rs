//! What an engine's error means: exit code, reason, text.

use criw_engines::engine::Outcome;
use wasmtime::{Error, Store, Trap};
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
    if is_out_of_fuel(error) {
        return Some(Outcome::exceeded(format!("{OUT_OF_FUEL}\n{}", text(error))));
    }
    None
}

/// What ended a guest with [`crate::settings::Meter::Fuel`].
pub(crate) const OUT_OF_FUEL: &str =
    "out of fuel: the guest used up all that it may (annotation criw.dev/fuel)";

/// Whether the guest used up its fuel.
pub(crate) fn is_out_of_fuel(error: &Error) -> bool {
    error.downcast_ref() == Some(&Trap::OutOfFuel)
}

/// The word for a trap in a metric: few, and they stay.
pub(crate) fn kind(trap: Trap) -> &'static str {
    match trap {
        Trap::StackOverflow => "stack_overflow",
        Trap::MemoryOutOfBounds | Trap::HeapMisaligned => "memory_out_of_bounds",
        Trap::TableOutOfBounds => "table_out_of_bounds",
        Trap::IndirectCallToNull | Trap::BadSignature => "bad_indirect_call",
        Trap::IntegerOverflow | Trap::BadConversionToInteger => "integer_overflow",
        Trap::IntegerDivisionByZero => "division_by_zero",
        Trap::UnreachableCodeReached => "unreachable",
        _ => "other",
    }
}

/// Gives a guest the fuel that it may use up, if there is a bound.
pub(crate) fn refuel<T>(store: &mut Store<T>, fuel: Option<u64>) -> Result<(), String> {
    match fuel {
        Some(fuel) => store.set_fuel(fuel).map_err(|error| text(&error)),
        None => Ok(()),
    }
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
