//! Attaches real namespaces to real networks. Needs root, nftables and the
//! reference CNI plugins; what is missing is said aloud.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod builtin;
mod cni;
mod host;
