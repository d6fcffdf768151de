//! The crate from outside: pulls from a real registry, and from scripted ones that
//! misbehave in ways a real one cannot be made to.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod compile;
mod faults;
mod fixture;
mod imports;
mod pulls;
mod scripted;
