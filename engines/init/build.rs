//! Link arguments of the binary: no C library and no start files, so that a pod's
//! init costs a few pages. They are here and not in RUSTFLAGS so that every cargo
//! call, `cargo test` included, builds the same program.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        // A fixed address: nobody is there who could apply relocations.
        "-static",
        "-no-pie",
        "-Wl,-s",
        "-Wl,--gc-sections",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-z,norelro",
        // One page holds headers, code and texts.
        "-Wl,-z,noseparate-code",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
