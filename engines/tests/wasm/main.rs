//! Black box: the real static shim and the real compiler, driven as the daemon
//! drives them. One suite for every Wasm engine; today `criw-shim-wasmtime`.
//!
//! Needs root and the binaries of `make shims` in `$CRIW_BUILD_DIR/libexec/criw`
//! (without the variable: `build/libexec/criw` of this checkout).
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod bounds;
mod container;
mod ends;
mod exports;
mod flood;
mod guests;
mod http;
mod isolation;
mod network;
mod outbound;
mod output;
mod preview3;
mod reuse;
mod services;
mod speed;
