//! The contract between daemon and shim, and the shim's frame.
