//! Guests as WebAssembly text, and others from C and Go where the toolchains are.

use std::path::Path;
use std::process::Command;

use crate::container::{binary, skipped};

/// A module with preview 1's `fd_write` and `proc_exit`, a page of memory, these
/// data from address 1024 on, and `$print` (address, length) to standard output.
pub(crate) fn module(data: &str, start: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "path_open"
                (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 1024) "{data}")
            (func $print (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
            (func $start (export "_start") {start}))"#
    )
}

/// Prints data of `length` bytes.
pub(crate) fn hello() -> String {
    module("hello\\n", "(call $print (i32.const 1024) (i32.const 6))")
}

/// Computes for ever.
pub(crate) fn spin() -> String {
    module(
        "spinning\\n",
        "(call $print (i32.const 1024) (i32.const 9)) (loop $again (br $again))",
    )
}

/// A C program for wasm32-wasi; `None` (said aloud) without the toolchain.
pub(crate) fn from_c(test: &str, directory: &Path, source: &str) -> Option<Vec<u8>> {
    let input = directory.join("guest.c");
    let output = directory.join("guest.wasm");
    std::fs::write(&input, source).unwrap();
    let built = Command::new("clang")
        .args(["--target=wasm32-wasi", "-O2", "-o"])
        .args([&output, &input])
        .output();
    read(test, "clang for wasm32-wasi", built, &output)
}

/// A Go program for wasip1; `None` (said aloud) without the toolchain.
pub(crate) fn from_go(test: &str, directory: &Path, source: &str) -> Option<Vec<u8>> {
    let input = directory.join("main.go");
    let output = directory.join("guest.wasm");
    std::fs::write(&input, source).unwrap();
    let built = Command::new("go")
        .env("GOOS", "wasip1")
        .env("GOARCH", "wasm")
        .env("GO111MODULE", "off")
        .args(["build", "-o"])
        .args([&output, &input])
        .output();
    read(test, "go", built, &output)
}

fn read(
    test: &str,
    tool: &str,
    built: std::io::Result<std::process::Output>,
    output: &Path,
) -> Option<Vec<u8>> {
    match built {
        Ok(built) if built.status.success() => Some(std::fs::read(output).unwrap()),
        Ok(built) => {
            let text = String::from_utf8_lossy(&built.stderr).into_owned();
            // A toolchain without its standard library is a missing toolchain.
            let first = text.lines().next().unwrap_or_default().to_owned();
            skipped(test, &format!("{tool}: {first}"));
            None
        }
        Err(error) => {
            skipped(test, &format!("{tool}: {error}"));
            None
        }
    }
}

/// A component that `make guests` built.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let build = binary("").join("../../guests");
    std::fs::read(build.join(format!("{name}.component.wasm"))).unwrap()
}
