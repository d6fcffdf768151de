//! The contract between daemon and shim (spec, protocol, client) and the frame
//! that every shim is built on (jail, log, stdio).
//!
//! Must not know: CRI, images, networks, any particular engine.
//!
//! ```text
//!   daemon side   client   launch a shim in its namespaces, call it
//!   both          protocol, spec   what is said
//!                 message, record  how it is said: one datagram, one file
//!   shim side     shim     main of every shim: cgroup, Create, lock-up, exit
//!                 server   the control thread's loop
//!                 jail     root, privileges, seccomp: the order of locking up
//!                 log      CRI log lines
//!                 sys      the few system calls that need `unsafe`
//! ```

pub mod client;
pub mod log;
pub mod message;
pub mod protocol;
pub mod record;
pub mod server;
pub mod spec;
mod sys;
