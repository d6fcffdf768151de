//! What the host offers beyond WASI preview 1: commands, pipes and connections.
//!
//! The functions are the imports of module `criw`; outside of Wasm they are made of
//! std::process, so that the shell's tests run natively. Handles and children are small
//! numbers of this instance. An error is a preview 1 errno.

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::*;

use std::fmt;

pub(crate) type Handle = u32;
pub(crate) type Child = u32;

/// An error number of WASI preview 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const AGAIN: Errno = Errno(6);
    pub(crate) const INTR: Errno = Errno(27);
    pub(crate) const NOENT: Errno = Errno(44);
    pub(crate) const NOEXEC: Errno = Errno(45);
    pub(crate) const PIPE: Errno = Errno(64);
}

const TEXTS: &[(i32, &str)] = &[
    (1, "Argument list too long"),
    (2, "Permission denied"),
    (3, "Address already in use"),
    (6, "Resource temporarily unavailable"),
    (8, "Bad file descriptor"),
    (12, "No child process"),
    (14, "Connection refused"),
    (15, "Connection reset by peer"),
    (20, "File exists"),
    (22, "File too large"),
    (23, "Host is unreachable"),
    (27, "Interrupted"),
    (28, "Invalid argument"),
    (29, "I/O error"),
    (31, "Is a directory"),
    (32, "Too many levels of symbolic links"),
    (37, "File name too long"),
    (41, "Too many open files or commands"),
    (44, "No such file or directory"),
    (45, "Exec format error"),
    (48, "Out of memory"),
    (51, "No space left on device"),
    (52, "The container's shim does not offer this"),
    (54, "Not a directory"),
    (63, "Operation not permitted"),
    (64, "Broken pipe"),
    (69, "Read-only file system"),
    (73, "Connection timed out"),
    (76, "Permission denied"),
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TEXTS.iter().find(|(number, _)| *number == self.0) {
            Some((_, text)) => f.write_str(text),
            None => write!(f, "error {} of the host", self.0),
        }
    }
}

/// Where a stream of a new command comes from.
pub(crate) const OWN: u32 = 0;
pub(crate) const NULL: u32 = 1;
pub(crate) const AS_OUTPUT: u32 = 2;
pub(crate) fn from_handle(handle: Handle) -> u32 {
    16 + handle
}

pub(crate) const READ: u32 = 1;
pub(crate) const WRITE: u32 = 2;
pub(crate) const CREATE: u32 = 4;
pub(crate) const TRUNCATE: u32 = 8;
pub(crate) const APPEND: u32 = 16;

pub(crate) const INFO_HOST_NAME: u32 = 1;
pub(crate) const INFO_IDS: u32 = 2;
pub(crate) const INFO_PROCESSES: u32 = 3;
pub(crate) const INFO_TERMINAL: u32 = 4;

/// A command to start.
pub(crate) struct Request<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a [(String, String)],
    /// absolute
    pub(crate) directory: &'a str,
    /// standard input, output, error
    pub(crate) streams: [u32; 3],
}

#[cfg_attr(not(target_arch = "wasm32"), cfg(test))]
fn put(out: &mut Vec<u8>, pieces: &[&[u8]]) {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(&(length as u32).to_le_bytes());
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

/// The bytes that `spawn` of module `criw` takes.
#[cfg_attr(not(target_arch = "wasm32"), cfg(test))]
fn encode(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&(request.argv.len() as u32).to_le_bytes());
    for argument in request.argv {
        put(&mut out, &[argument.as_bytes()]);
    }
    out.extend_from_slice(&(request.env.len() as u32).to_le_bytes());
    for (name, value) in request.env {
        put(&mut out, &[name.as_bytes(), b"=", value.as_bytes()]);
    }
    put(&mut out, &[request.directory.as_bytes()]);
    for stream in request.streams {
        out.extend_from_slice(&stream.to_le_bytes());
    }
    out
}

/// Waits for a command's end, over interrupts of the terminal.
pub(crate) fn wait_for(child: Child) -> Result<u32, Errno> {
    loop {
        match wait(child, true) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn write_all(handle: Handle, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(handle, bytes) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(n) => bytes = &bytes[n.min(bytes.len())..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A handle as a stream of bytes, closed when dropped.
pub(crate) struct Stream(pub(crate) Handle);

impl std::io::Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        read(self.0, buffer).map_err(io_error)
    }
}

impl std::io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        write(self.0, bytes).map_err(io_error)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        close(self.0);
    }
}

pub(crate) fn io_error(errno: Errno) -> std::io::Error {
    let kind = match errno {
        Errno::PIPE => std::io::ErrorKind::BrokenPipe,
        Errno::INTR => std::io::ErrorKind::Interrupted,
        Errno::NOENT => std::io::ErrorKind::NotFound,
        _ => std::io::ErrorKind::Other,
    };
    std::io::Error::new(kind, errno.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_host_reads_it() {
        let argv = ["ls".to_owned(), "-l".to_owned()];
        let env = [("A".to_owned(), "b".to_owned())];
        let bytes = encode(&Request {
            argv: &argv,
            env: &env,
            directory: "/",
            streams: [OWN, from_handle(3), AS_OUTPUT],
        });
        let expected: Vec<u8> = [
            &[2, 0, 0, 0, 2, 0, 0, 0][..],
            b"ls",
            &[2, 0, 0, 0],
            b"-l",
            &[1, 0, 0, 0, 3, 0, 0, 0],
            b"A=b",
            &[1, 0, 0, 0],
            b"/",
            &[0, 0, 0, 0, 19, 0, 0, 0, 2, 0, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }
}
