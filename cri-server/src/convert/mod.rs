//! CRI messages to the rooms' own types and back: pure functions, a table test each.

pub mod annotations;
pub mod argv;
pub mod conventions;
pub mod image;
pub mod mounts;
pub mod pod;
pub mod resources;
pub mod security;
pub mod signal;
pub mod status;
pub mod user;
