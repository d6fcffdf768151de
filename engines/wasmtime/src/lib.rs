//! The Wasmtime engine: settings shared by shim and compiler, and the shim's half
//! that loads compiled code and runs it as a WASI command.
//!
//! ```text
//!   settings   one Config for both binaries, else loading fails
//!   engine     compiled code -> linked program (module or component)
//!   module     WASI preview 1 command
//!   overlay    what we answer ourselves of preview 1: output, exit codes, sockets
//!   sockets    preopened TCP listeners of a preview 1 guest
//!   component  wasi:cli/command 0.2
//!   world      argv, env, root and streams for both
//!   limits     linear memory
//!   compile    the main of criw-compile (feature `compiler`)
//!   failure    an engine's error -> exit code, reason, text
//! ```
//!
//! Guest names are never looked up: the static binary must not call `getaddrinfo`
//! (it would load code from the image), so `wasi:sockets/ip-name-lookup` is denied.

#[cfg(feature = "compiler")]
pub mod compile;
mod component;
pub mod engine;
mod failure;
mod limits;
mod module;
mod overlay;
pub mod settings;
mod sockets;
mod world;
