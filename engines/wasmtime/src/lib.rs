//! The Wasmtime engine: settings shared by shim and compiler, and the shim's half
//! that loads compiled code and runs it as a WASI command.
//!
//! ```text
//!   settings   one Config for both binaries, else loading fails
//!   engine     compiled code -> linked program (module or component)
//!   module     WASI preview 1 command
//!   overlay    what we answer ourselves of preview 1: output, exit codes, sockets
//!   read_only  the error for a read-only file system
//!   sockets    preopened TCP listeners of a preview 1 guest
//!   worlds     which world a component is of
//!   host       what components import
//!   component  wasi:cli/command 0.2 and 0.3, and other functions of a component
//!   proxy      wasi:http/proxy 0.2 and wasi:http/service 0.3: the HTTP server
//!   net        what instances share to reach others
//!     outbound   wasi:http/outgoing-handler
//!     roots      TLS and whom to trust
//!     lookup     wasi:sockets/ip-name-lookup
//!     resolver   names to addresses
//!   services   logging, config, keyvalue, blobstore
//!   world      argv, env, root and streams for all
//!   input      standard input, not a byte ahead of the guest
//!   toolbox    what the toolbox imports besides: commands, pipes, connections
//!   limits     linear memory
//!   compile    the main of criw-compile (feature `compiler`)
//!   failure    an engine's error -> exit code, reason, text
//!   foreign    what was made for other hosts, in a sentence
//! ```
//!
//! The static binary must not call `getaddrinfo`, which would load code from the
//! image: `resolver` does all lookups.

#[cfg(feature = "compiler")]
pub mod compile;
mod component;
pub mod engine;
mod failure;
mod foreign;
mod host;
mod input;
mod limits;
mod lookup;
mod module;
mod net;
mod outbound;
mod overlay;
mod proxy;
mod read_only;
mod resolver;
mod roots;
mod services;
pub mod settings;
mod sockets;
mod toolbox;
mod world;
mod worlds;
