//! The contract between daemon and shim (spec, protocol, client) and the frame
//! that every shim is built on (jail, log, stdio).
//!
//! Must not know: CRI, images, networks, any particular engine.

pub mod protocol;
pub mod spec;
