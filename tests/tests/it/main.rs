//! One binary for all scenarios; each module is a theme.

mod fixtures;
mod leaks;
