//! Attaches real namespaces to real networks. Needs root, nftables and the
//! reference CNI plugins; what is missing is said aloud.

mod builtin;
mod host;
