//! The real shim with the real runc, driven through the daemon's client. Every test
//! ends with a look for what may be left: processes, cgroups, mounts, runc's state.
//!
//! Needs root, runc and a static busybox; without them each test says so and passes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod execs;
mod faults;
mod fixture;
mod life;
mod volumes;
