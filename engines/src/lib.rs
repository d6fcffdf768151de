//! The contract between daemon and shim (spec, protocol, client) and the frame
//! that every shim is built on (jail, log, stdio).
//!
//! Must not know: CRI, images, networks, any particular engine.
//!
//! ```text
//!   daemon side   client   launch a shim in its namespaces, call it
//!                 birth    a process born in its cgroups
//!   both          protocol, spec   what is said
//!                 message, record  how it is said: one datagram, one file
//!                 spawner  how a shim asks for further commands in its container
//!                 slice    where systemd puts cgroups
//!   shim side     shim     main of every Wasm shim: Create, lock-up, control, exit
//!                 server   the control loop's socket
//!                 descriptors, signal   what came with Create; what a signal becomes
//!                 jail     the order of locking up: root, privileges, AppArmor, seccomp
//!                 engine, guest   what an engine is; the thread that it runs on
//!                 drain    the word to finish and end
//!                 log, stdio   CRI log lines; the guest's standard streams
//!                 attach       clients that get a copy of them
//!                 terminal, pump   a terminal in their place; a thread that copies
//!   both          sys      the few system calls that need `unsafe`
//! ```

mod apparmor;
pub mod attach;
pub mod birth;
pub mod client;
mod confinement;
pub mod descriptors;
pub mod drain;
pub mod engine;
pub mod facts;
pub mod guest;
pub mod in_root;
pub mod jail;
pub mod log;
pub mod masks;
pub mod message;
mod privileges;
pub mod protocol;
mod pump;
pub mod record;
mod root;
mod seccomp;
mod selinux;
pub mod server;
pub mod shim;
pub mod signal;
pub mod slice;
pub mod spawner;
pub mod spec;
pub mod stdio;
mod sys;
mod terminal;
