//! The judge from outside: critest of the Kubernetes project against our daemon.
//!
//! critest names its images by their public names. They are not to be had on a machine
//! without that network, so substitutes with the same behaviour are built here, pushed
//! to a registry on loopback, and found by the daemon through its mirror configuration
//! under the original names. One image is asked for by a digest that only the original
//! has: that constant of critest is replaced at build time, nothing else is.

pub mod consts;
pub mod expected;
pub mod images;
pub mod report;
pub mod run;
