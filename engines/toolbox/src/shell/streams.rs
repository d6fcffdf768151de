//! The shell's descriptors. They are its own table: preview 1 has no dup, and what a
//! command of the host gets is said when it is spawned.

use crate::host::{self, Errno, Handle};
use crate::sys;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::rc::Rc;

/// What `$( )` may return; more would be the guest's memory.
const CAPTURE_LIMIT: usize = 64 << 20;

pub(super) enum Stream {
    /// the process's own 0, 1 or 2
    Own(i32),
    Null,
    Handle(Owned),
    /// output of `$( )`
    Capture(RefCell<Vec<u8>>),
    /// a here-document
    Text(RefCell<Text>),
}

/// A text that commands read one after the other: each begins where the one before stopped.
pub(super) enum Text {
    /// the text, and how much of it is read
    Held(Vec<u8>, usize),
    /// from the first command on that was started
    Piped(Owned),
}

impl Text {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Text::Held(text, at) => {
                let rest = &text[*at..];
                let n = rest.len().min(buffer.len());
                buffer[..n].copy_from_slice(&rest[..n]);
                *at += n;
                Ok(n)
            }
            Text::Piped(reader) => host::read(reader.0, buffer),
        }
    }

    /// What is left, as a pipe. It is small enough to lie in one that nobody reads yet.
    fn reader(&mut self) -> Result<Handle, Errno> {
        let (text, at) = match self {
            Text::Piped(reader) => return Ok(reader.0),
            Text::Held(text, at) => (text, at),
        };
        let (reader, writer) = host::pipe()?;
        let (reader, writer) = (Owned(reader), Owned(writer));
        host::write_all(writer.0, &text[*at..])?;
        let handle = reader.0;
        *self = Text::Piped(reader);
        Ok(handle)
    }
}

/// A handle that is closed with its last user.
pub(super) struct Owned(pub(super) Handle);

impl Drop for Owned {
    fn drop(&mut self) {
        host::close(self.0);
    }
}

pub(super) type Shared = Rc<Stream>;

impl Stream {
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, String> {
        match self {
            Stream::Own(fd) => sys::Own(*fd)
                .read(buffer)
                .map_err(|error| crate::context::reason(&error)),
            Stream::Null => Ok(0),
            Stream::Handle(handle) => {
                host::read(handle.0, buffer).map_err(|errno| errno.to_string())
            }
            Stream::Capture(_) => Err(Errno(8).to_string()),
            Stream::Text(text) => text
                .borrow_mut()
                .read(buffer)
                .map_err(|errno| errno.to_string()),
        }
    }

    /// Writes all. `Err(None)`: nobody reads.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Option<String>> {
        match self {
            Stream::Own(fd) => sys::Own(*fd)
                .write_all(bytes)
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::BrokenPipe => None,
                    _ => Some(crate::context::reason(&error)),
                }),
            Stream::Null => Ok(()),
            Stream::Handle(handle) => {
                host::write_all(handle.0, bytes).map_err(|errno| match errno {
                    Errno::PIPE => None,
                    errno => Some(errno.to_string()),
                })
            }
            Stream::Capture(buffer) => {
                let mut buffer = buffer.borrow_mut();
                if buffer.len() + bytes.len() > CAPTURE_LIMIT {
                    return Err(Some(
                        "the output of a substitution is larger than 64 MiB".to_owned(),
                    ));
                }
                buffer.extend_from_slice(bytes);
                Ok(())
            }
            Stream::Text(_) => Err(Some(Errno(8).to_string())),
        }
    }
}

/// Descriptors by number.
#[derive(Clone)]
pub(super) struct Descriptors(pub(super) BTreeMap<u32, Shared>);

impl Descriptors {
    pub(super) fn own() -> Descriptors {
        Descriptors(
            (0..3)
                .map(|fd| (fd as u32, Rc::new(Stream::Own(fd))))
                .collect(),
        )
    }

    pub(super) fn get(&self, fd: u32) -> Option<Shared> {
        self.0.get(&fd).cloned()
    }

    pub(super) fn set(&mut self, fd: u32, stream: Stream) {
        self.0.insert(fd, Rc::new(stream));
    }
}

/// The streams of a command to be spawned, and what the shell has to carry for it.
pub(super) struct Plan {
    pub(super) streams: [u32; 3],
    /// write ends that the command got: ours are closed after the spawn
    ours: Vec<Owned>,
    /// pipes to copy from, in order
    drains: Vec<(Owned, Shared)>,
}

impl Plan {
    pub(super) fn new(descriptors: &Descriptors) -> Result<Plan, Errno> {
        let mut plan = Plan {
            streams: [host::NULL; 3],
            ours: Vec::new(),
            drains: Vec::new(),
        };
        plan.streams[0] = match descriptors.get(0).as_deref() {
            Some(Stream::Own(0)) => host::OWN,
            Some(Stream::Handle(handle)) => host::from_handle(handle.0),
            Some(Stream::Text(text)) => host::from_handle(text.borrow_mut().reader()?),
            _ => host::NULL,
        };
        let output = descriptors.get(1);
        plan.streams[1] = plan.sink(1, output.clone())?;
        let error = descriptors.get(2);
        plan.streams[2] = match (&output, &error) {
            (Some(output), Some(error)) if Rc::ptr_eq(output, error) => host::AS_OUTPUT,
            (Some(output), Some(error)) => match (output.as_ref(), error.as_ref()) {
                (Stream::Own(1), Stream::Own(1)) => host::AS_OUTPUT,
                _ => plan.sink(2, Some(error.clone()))?,
            },
            _ => plan.sink(2, error)?,
        };
        Ok(plan)
    }

    fn sink(&mut self, fd: i32, stream: Option<Shared>) -> Result<u32, Errno> {
        let stream = match stream {
            None => return Ok(host::NULL),
            Some(stream) => stream,
        };
        Ok(match stream.as_ref() {
            Stream::Own(own) if *own == fd => host::OWN,
            Stream::Null | Stream::Text(_) => host::NULL,
            Stream::Handle(handle) => host::from_handle(handle.0),
            // another stream of ours, or a buffer: the command gets a pipe
            Stream::Own(_) | Stream::Capture(_) => {
                let (reader, writer) = host::pipe()?;
                self.ours.push(Owned(writer));
                self.drains.push((Owned(reader), stream));
                host::from_handle(writer)
            }
        })
    }

    /// Closes what the command has got.
    pub(super) fn spawned(&mut self) {
        self.ours.clear();
    }

    /// Carries what the command says until all its pipes have ended.
    pub(super) fn carry(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        for (reader, stream) in self.drains.drain(..) {
            let mut buffer = [0; 4096];
            loop {
                match host::read(reader.0, &mut buffer) {
                    Ok(0) => break,
                    Ok(n) => match stream.write(&buffer[..n]) {
                        Ok(()) => {}
                        Err(text) => {
                            result = Err(text.unwrap_or_default());
                            break;
                        }
                    },
                    Err(Errno::INTR) => {}
                    Err(errno) => {
                        result = Err(errno.to_string());
                        break;
                    }
                }
            }
        }
        result
    }

    /// What is still to be carried when a background command was started inside `$( )`.
    pub(super) fn leave(self) -> Vec<(Owned, Shared)> {
        self.drains
    }
}
