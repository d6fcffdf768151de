//! One Wasm container (or exec) on Wasmtime. Started by the daemon only.

use std::process::ExitCode;

fn main() -> ExitCode {
    criw_engines::shim::run(&criw_shim_wasmtime::engine::Wasmtime)
}
