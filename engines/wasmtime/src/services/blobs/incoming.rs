//! An object, or a part of it, on its way to the guest. The open file keeps the bytes as they
//! were, whoever replaces or deletes the object meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::{Told, failed, file_name, missing};
use crate::services::files::Directory;

/// Bytes of one read.
const MAX_READ: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Incoming {
    file: File,
    /// From here on, so many bytes.
    at: u64,
    left: u64,
}

impl Incoming {
    /// Both ends of the range belong to it; what lies behind the object is cut off.
    pub(super) fn open(directory: &Directory, object: &str, start: u64, end: u64) -> Told<Self> {
        let told = |error: std::io::Error| failed("open object", object, &error);
        let file = directory
            .file(&file_name("object", object)?)
            .map_err(told)?;
        let file = file.ok_or_else(|| missing("object", object))?;
        let size = file.metadata().map_err(told)?.len();
        if start > end || start > size {
            return Err(format!(
                "get bytes {start} to {end} of object {object:?}: it has {size} bytes"
            ));
        }
        Ok(Self {
            file,
            at: start,
            left: end.saturating_add(1).min(size).saturating_sub(start),
        })
    }

    pub(super) fn length(&self) -> u64 {
        self.left
    }

    /// All in one piece.
    pub(super) fn whole(mut self, max: u64) -> Told<Vec<u8>> {
        if self.left > max {
            return Err(format!(
                "get {} bytes at once: at most {max} are possible; use incoming-value-consume-async",
                self.left
            ));
        }
        let mut all = Vec::with_capacity(self.left as usize);
        while self.left > 0 {
            match self.next(MAX_READ) {
                // Somebody cut the file short under its name.
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => all.extend_from_slice(&piece),
                Err(error) => return Err(format!("read an object: {error}")),
            }
        }
        Ok(all)
    }

    fn next(&mut self, size: usize) -> std::io::Result<Bytes> {
        let length = (size.min(MAX_READ) as u64).min(self.left) as usize;
        let mut piece = vec![0; length];
        let read = self.file.read_at(&mut piece, self.at)?;
        piece.truncate(read);
        self.at += read as u64;
        self.left -= read as u64;
        Ok(piece.into())
    }
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {}
}

impl InputStream for Incoming {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        match self.next(size) {
            Ok(piece) if piece.is_empty() => Err(StreamError::Closed),
            Ok(piece) => Ok(piece),
            Err(error) => Err(StreamError::LastOperationFailed(error.into())),
        }
    }
}
