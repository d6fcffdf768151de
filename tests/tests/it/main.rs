//! One binary for all scenarios; each module is a theme.
#![allow(
    clippy::unwrap_used,
    clippy::result_large_err,
    reason = "a test ends with a panic, also in its helpers; the large error is tonic's own"
)]

mod bad_input;
mod cadvisor;
mod cdi;
mod composition;
mod crictl;
mod engine;
mod exits;
mod faults;
mod fixtures;
mod formats;
mod http;
mod http_bounds;
mod http_tls;
mod image_volumes;
mod images;
mod import;
mod leaks;
mod life;
mod logs;
mod masks;
mod metrics;
mod network;
mod prometheus;
mod refusals;
mod restart;
mod services;
mod streaming;
mod toolbox;
mod users;
mod volumes;
