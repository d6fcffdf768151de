//! Engine settings shared by shim and compiler.
