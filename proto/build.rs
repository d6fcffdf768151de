//! Compiles `runtime/v1/cri.proto` to Rust without protoc: protox parses it to a
//! descriptor set, tonic-prost-build turns that into messages, clients and servers.
//! The encoded descriptor set is kept too, so that it can be compared with upstream's.

use std::error::Error;
use std::path::PathBuf;

/// Where imports are looked up, relative to this crate.
const INCLUDE: &str = "proto";
const CRI: &str = "runtime/v1/cri.proto";
/// What the operator's commands ask; no part of the CRI and of its descriptor set.
const ADMIN: &str = "criw/admin/v1/images.proto";
/// What cAdvisor asks of a containerd.
const CONTAINERD: [&str; 3] = [
    "containerd/containers.proto",
    "containerd/tasks.proto",
    "containerd/version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);

    // Encoded by protox, because a round trip through prost's own descriptor types
    // drops options that those do not know. Without source positions and comments,
    // which would make it several times larger.
    let encoded = protox::Compiler::new([INCLUDE])?
        .open_file(CRI)?
        .encode_file_descriptor_set();
    let path = out.join("descriptor.bin");
    std::fs::write(&path, encoded).map_err(|error| format!("write {}: {error}", path.display()))?;

    tonic_prost_build::configure()
        // Registry credentials: lib.rs prints them redacted.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(protox::compile([CRI], [INCLUDE])?)?;
    tonic_prost_build::configure().compile_fds(protox::compile([ADMIN], [INCLUDE])?)?;
    tonic_prost_build::configure().compile_fds(protox::compile(CONTAINERD, [INCLUDE])?)?;
    Ok(())
}
