//! One binary for all scenarios; each module is a theme.

mod bad_input;
mod crictl;
mod engine;
mod exits;
mod faults;
mod fixtures;
mod images;
mod leaks;
mod life;
mod logs;
mod network;
mod restart;
mod volumes;
