//! Black-box tests of the real binaries: what the tests, the demo's push tool and
//! the benchmark share. Nothing in here knows the inside of the daemon; it speaks
//! CRI, reads logs, and looks at the machine.
//!
//! Every test has a [`machine::Machine`] of its own: a private directory, a private
//! network and mount namespace, a daemon, a registry. So tests run side by side,
//! and beside any other daemon of the machine.

pub mod bench;
pub mod binaries;
pub mod checks;
pub mod client;
pub mod config;
pub mod containerd;
pub mod crictl;
pub mod critest;
pub mod daemon;
pub mod faulty;
pub mod http;
pub mod https;
pub mod image;
pub mod images;
pub mod kubelet;
pub mod leak;
pub mod machine;
pub mod noise;
pub mod plan;
pub mod reboot;
pub mod registry;
pub mod spdy;
pub mod wait;
pub mod world;
