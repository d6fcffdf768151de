//! The imports of module `criw`.

use super::{encode, Child, Errno, Handle, Request};

mod imports {
    #[link(wasm_import_module = "criw")]
    extern "C" {
        pub(super) fn spawn(request: *const u8, length: usize, child: *mut u32) -> i32;
        pub(super) fn wait(child: u32, flags: u32, status: *mut u32) -> i32;
        pub(super) fn signal(child: u32, signal: u32) -> i32;
        pub(super) fn pipe(ends: *mut u32) -> i32;
        pub(super) fn read(handle: u32, buffer: *mut u8, length: usize, n: *mut usize) -> i32;
        pub(super) fn write(handle: u32, buffer: *const u8, length: usize, n: *mut usize) -> i32;
        pub(super) fn close(handle: u32) -> i32;
        pub(super) fn open(path: *const u8, length: usize, flags: u32, handle: *mut u32) -> i32;
        pub(super) fn connect(host: *const u8, length: usize, port: u32, handle: *mut u32) -> i32;
        pub(super) fn listen(port: u32, handle: *mut u32) -> i32;
        pub(super) fn accept(listener: u32, handle: *mut u32) -> i32;
        pub(super) fn shutdown_write(handle: u32) -> i32;
        pub(super) fn info(kind: u32, buffer: *mut u8, length: usize, n: *mut usize) -> i32;
    }
}

fn check(errno: i32) -> Result<(), Errno> {
    if errno == 0 {
        Ok(())
    } else {
        Err(Errno(errno))
    }
}

pub(crate) fn spawn(request: &Request<'_>) -> Result<Child, Errno> {
    let bytes = encode(request);
    let mut child = 0;
    // SAFETY: the host reads `length` bytes and writes one u32.
    check(unsafe { imports::spawn(bytes.as_ptr(), bytes.len(), &mut child) })?;
    Ok(child)
}

pub(crate) fn wait(child: Child, block: bool) -> Result<u32, Errno> {
    let mut status = 0;
    // SAFETY: the host writes one u32.
    check(unsafe { imports::wait(child, if block { 0 } else { 1 }, &mut status) })?;
    Ok(status)
}

pub(crate) fn signal(child: Child, signal: u32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    check(unsafe { imports::signal(child, signal) })
}

pub(crate) fn pipe() -> Result<(Handle, Handle), Errno> {
    let mut ends = [0; 2];
    // SAFETY: the host writes two u32.
    check(unsafe { imports::pipe(ends.as_mut_ptr()) })?;
    Ok((ends[0], ends[1]))
}

pub(crate) fn read(handle: Handle, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut n = 0;
    // SAFETY: the host writes at most `length` bytes and one u32.
    check(unsafe { imports::read(handle, buffer.as_mut_ptr(), buffer.len(), &mut n) })?;
    Ok(n.min(buffer.len()))
}

pub(crate) fn write(handle: Handle, bytes: &[u8]) -> Result<usize, Errno> {
    let mut n = 0;
    // SAFETY: the host reads at most `length` bytes and writes one u32.
    check(unsafe { imports::write(handle, bytes.as_ptr(), bytes.len(), &mut n) })?;
    Ok(n)
}

pub(crate) fn close(handle: Handle) {
    // SAFETY: numbers only. An error would say that it was closed before.
    unsafe { imports::close(handle) };
}

fn handle_of(call: impl FnOnce(*mut u32) -> i32) -> Result<Handle, Errno> {
    let mut handle = 0;
    check(call(&mut handle))?;
    Ok(handle)
}

pub(crate) fn open(path: &str, flags: u32) -> Result<Handle, Errno> {
    // SAFETY: the host reads the path and writes one u32.
    handle_of(|out| unsafe { imports::open(path.as_ptr(), path.len(), flags, out) })
}

pub(crate) fn connect(host: &str, port: u16) -> Result<Handle, Errno> {
    // SAFETY: the host reads the name and writes one u32.
    handle_of(|out| unsafe { imports::connect(host.as_ptr(), host.len(), port.into(), out) })
}

pub(crate) fn listen(port: u16) -> Result<Handle, Errno> {
    // SAFETY: the host writes one u32.
    handle_of(|out| unsafe { imports::listen(port.into(), out) })
}

pub(crate) fn accept(listener: Handle) -> Result<Handle, Errno> {
    // SAFETY: the host writes one u32.
    handle_of(|out| unsafe { imports::accept(listener, out) })
}

pub(crate) fn shutdown_write(handle: Handle) -> Result<(), Errno> {
    // SAFETY: numbers only.
    check(unsafe { imports::shutdown_write(handle) })
}

/// Text about the container; kinds are `INFO_...`.
pub(crate) fn info(kind: u32) -> Result<String, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        let mut n = 0;
        // SAFETY: the host writes at most `length` bytes and one u32.
        check(unsafe { imports::info(kind, buffer.as_mut_ptr(), buffer.len(), &mut n) })?;
        if n <= buffer.len() {
            buffer.truncate(n);
            return Ok(String::from_utf8_lossy(&buffer).into_owned());
        }
        // it may grow while we ask again
        buffer.resize(n + 1024, 0);
    }
}
