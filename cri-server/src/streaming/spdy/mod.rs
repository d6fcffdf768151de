//! SPDY/3.1 as a server: what the kubelet, crictl and their relatives speak.

pub mod connection;
pub mod dictionary;
pub mod frame;
pub mod header;
