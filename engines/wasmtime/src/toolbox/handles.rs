//! Handles: pipes, files and connections by small numbers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::{Answer, Toolbox, put, text};
use crate::overlay::slice;
use crate::sockets::Errno;

/// Handles at the same time.
const MAX: u32 = 64;

/// Bytes of one read or write.
const MAX_PIECE: u32 = 1 << 20;

const READ: i32 = 1;
const WRITE: i32 = 2;
const CREATE: i32 = 4;
const TRUNCATE: i32 = 8;
const APPEND: i32 = 16;

/// All of an instance.
#[derive(Debug, Default)]
pub(super) struct Handles(BTreeMap<u32, OwnedFd>);

impl Handles {
    pub(super) fn get(&self, handle: u32) -> Result<BorrowedFd<'_>, Errno> {
        self.0.get(&handle).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// The lowest free number.
    fn add(&mut self, fd: OwnedFd) -> Result<u32, Errno> {
        let number = (1..=MAX)
            .find(|number| !self.0.contains_key(number))
            .ok_or(Errno::NFILE)?;
        self.0.insert(number, fd);
        Ok(number)
    }

    /// Adds one and tells the guest its number.
    pub(super) fn give(&mut self, memory: &mut [u8], out: i32, fd: OwnedFd) -> Answer {
        let number = self.add(fd)?;
        put(memory, out, number).inspect_err(|_| drop(self.0.remove(&number)))
    }
}

pub(super) fn pipe(toolbox: &mut Toolbox, memory: &mut [u8], [out]: [i32; 1]) -> Answer {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let handles = &mut toolbox.handles;
    let read = handles.add(read)?;
    let both = handles.add(write).and_then(|write| {
        put(memory, out, read)?;
        put(memory, out.wrapping_add(4), write).inspect_err(|_| drop(handles.0.remove(&write)))
    });
    both.inspect_err(|_| drop(toolbox.handles.0.remove(&read)))
}

pub(super) fn read(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [handle, buffer, length, out]: [i32; 4],
) -> Answer {
    let fd = toolbox.handles.get(handle as u32)?;
    let length = (length as u32).min(MAX_PIECE);
    slice(memory, buffer as u32, length)?;
    let begin = buffer as u32 as usize;
    let place = &mut memory[begin..begin + length as usize];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *place))?;
    put(memory, out, count as u32)
}

pub(super) fn write(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [handle, buffer, length, out]: [i32; 4],
) -> Answer {
    let fd = toolbox.handles.get(handle as u32)?;
    let bytes = slice(memory, buffer as u32, (length as u32).min(MAX_PIECE))?;
    let count = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
    put(memory, out, count as u32)
}

pub(super) fn close(toolbox: &mut Toolbox, _: &mut [u8], [handle]: [i32; 1]) -> Answer {
    let closed = toolbox.handles.0.remove(&(handle as u32));
    closed.map(drop).ok_or(Errno::BADF)
}

/// The shim's root is the guest's, and the kernel knows what its user may do there.
pub(super) fn open(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [path, length, flags, out]: [i32; 4],
) -> Answer {
    let path = text(memory, path, length)?;
    if !path.starts_with('/') {
        return Err(Errno::INVAL);
    }
    let flags = open_flags(flags)?;
    let mode = Mode::from_raw_mode(0o666);
    let fd = rustix::io::retry_on_intr(|| rustix::fs::open(&path, flags, mode))?;
    toolbox.handles.give(memory, out, fd)
}

fn open_flags(flags: i32) -> Result<OFlags, Errno> {
    let known = READ | WRITE | CREATE | TRUNCATE | APPEND;
    if flags & !known != 0 {
        return Err(Errno::INVAL);
    }
    let mut out = match (flags & READ != 0, flags & WRITE != 0) {
        (true, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
        (false, false) => return Err(Errno::INVAL),
    };
    for (flag, also) in [
        (CREATE, OFlags::CREATE),
        (TRUNCATE, OFlags::TRUNC),
        (APPEND, OFlags::APPEND),
    ] {
        if flags & flag != 0 {
            out |= also;
        }
    }
    Ok(out | OFlags::CLOEXEC | OFlags::NOCTTY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn numbers_are_given_again_and_are_bounded() {
        let mut handles = Handles::default();
        for expected in 1..=MAX {
            assert_eq!(handles.add(file()), Ok(expected));
        }
        assert_eq!(handles.add(file()), Err(Errno::NFILE));
        handles.0.remove(&7);
        assert_eq!(handles.add(file()), Ok(7));
        assert!(handles.get(0).is_err() && handles.get(MAX + 1).is_err());
        // A guest that names no memory for the number gets none.
        handles.0.remove(&9);
        let given = handles.give(&mut [0; 4], 1, file());
        assert_eq!(
            (given, handles.0.contains_key(&9)),
            (Err(Errno::FAULT), false)
        );
    }

    #[test]
    fn flags_are_translated() {
        for (flags, expected) in [
            (READ, Some(OFlags::RDONLY)),
            (
                WRITE | CREATE | TRUNCATE,
                Some(OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC),
            ),
            (READ | WRITE | APPEND, Some(OFlags::RDWR | OFlags::APPEND)),
            (0, None),
            (CREATE, None),
            (READ | 32, None),
            (-1, None),
        ] {
            let always = OFlags::CLOEXEC | OFlags::NOCTTY;
            assert_eq!(open_flags(flags).ok(), expected.map(|flags| flags | always));
        }
    }
}
