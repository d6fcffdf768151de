//! WASI preview 1: wasmtime-wasi's implementation, with these calls answered here
//! first:
//!
//! - `fd_write` to standard output and error goes straight to the log, in one piece.
//! - `proc_exit` takes every code; wasmtime-wasi traps from 126 on.
//! - Descriptors of preopened listeners and of connections accepted from them are
//!   ours (see [`crate::sockets`]). Listeners are numbered from 3 on and the
//!   directory `/` follows, as Wasmtime's own command line numbered them and socket
//!   activation expects. To shift the directory, `/` is preopened once more for
//!   each listener, and the listener hides that entry. `fd_prestat_get` answers for
//!   a listener with a tag that is no directory: C and Go libraries step over it,
//!   where an error would end their search before the directory.
//! - Calls that change what a path names fail with the error for a read-only file system where
//!   that is the reason (see [`crate::read_only`]).

use criw_engines::stdio::Output;
use wasmtime::{AsContextMut, Caller, Extern, Linker, Result, bail};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1 as _;
use wasmtime_wasi::p1::{WasiP1Ctx, add_to_linker_async};
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};
use wiggle::GuestMemory;

use crate::limits::MemoryLimit;
use crate::read_only;
use crate::sockets::{Errno, Sockets};
use crate::toolbox::Toolbox;

const MODULE: &str = "wasi_snapshot_preview1";

/// What the store of a preview 1 guest holds.
pub(crate) struct State {
    wasi: WasiP1Ctx,
    /// Standard output and error while descriptors 1 and 2 are what they were at first.
    outputs: [Option<Output>; 2],
    sockets: Sockets,
    pub(crate) memory: MemoryLimit,
    /// Only the toolbox has it.
    pub(crate) toolbox: Option<Toolbox>,
}

impl State {
    pub(crate) fn new(
        wasi: WasiP1Ctx,
        (stdout, stderr): (Output, Output),
        sockets: Sockets,
        memory: MemoryLimit,
        toolbox: Option<Toolbox>,
    ) -> Self {
        Self {
            wasi,
            outputs: [Some(stdout), Some(stderr)],
            sockets,
            memory,
            toolbox,
        }
    }

    /// A state in which nothing can run, to look at types.
    pub(crate) fn empty() -> Self {
        Self {
            wasi: WasiCtxBuilder::new().build_p1(),
            outputs: [None, None],
            sockets: Sockets::default(),
            memory: MemoryLimit::new(Some(0), true),
            toolbox: None,
        }
    }

    /// Whether this is standard output or error as it was at first.
    fn output(&self, fd: i32) -> Option<&Output> {
        let index = usize::try_from(fd).ok()?.checked_sub(1)?;
        self.outputs.get(index)?.as_ref()
    }

    /// The error that a call on a path gets, given what wasmtime-wasi made of it. Only below
    /// `/` as it was preopened, which is where the libraries of C, Rust and Go name files from:
    /// where another directory of the guest lies nobody tells.
    fn truth(&self, told: i32, memory: &[u8], [fd, path, length]: [i32; 3]) -> i32 {
        let root = self.sockets.root();
        match slice(memory, path as u32, length as u32) {
            Ok(path) if fd == root => read_only::errno(told, path),
            _ => told,
        }
    }

    /// Descriptor 1 or 2 becomes something else.
    fn forget_output(&mut self, fd: i32) {
        if let Some(output) = usize::try_from(fd)
            .ok()
            .and_then(|fd| fd.checked_sub(1))
            .and_then(|index| self.outputs.get_mut(index))
        {
            *output = None;
        }
    }
}

/// The guest's memory and an answer of our own: `None` means "not ours".
type Answer = Option<Result<i32, Errno>>;

macro_rules! as_i32 {
    ($arg:ident) => {
        i32
    };
}

/// Defines one call: `own` answers, or wasmtime-wasi's function of that name does.
macro_rules! over {
    ($linker:ident, $own:expr, $name:ident($($arg:ident),+) $($wait:ident)?) => {
        $linker.func_wrap_async(
            MODULE,
            stringify!($name),
            |mut caller: Caller<'_, State>, ($($arg,)+): ($(as_i32!($arg),)+)| {
                Box::new(async move {
                    let export = caller.get_export("memory");
                    let fuel = caller.as_context_mut().hostcall_fuel();
                    match &export {
                        Some(Extern::Memory(memory)) => {
                            let (bytes, state) = memory.data_and_store_mut(&mut caller);
                            let answer: Answer = $own(state, bytes, [$($arg),+]);
                            if let Some(answer) = answer {
                                return Ok(match answer {
                                    Ok(value) => value,
                                    Err(errno) => i32::from(errno.0),
                                });
                            }
                            state.wasi.set_hostcall_fuel(fuel);
                            let mut memory = GuestMemory::Unshared(bytes);
                            let result = preview1::$name(&mut state.wasi, &mut memory, $($arg),+);
                            over!(@wait result $($wait)?)
                        }
                        // Threads and sockets do not meet: wasmtime-wasi has no sockets.
                        Some(Extern::SharedMemory(memory)) => {
                            let state = caller.data_mut();
                            state.wasi.set_hostcall_fuel(fuel);
                            let mut memory = GuestMemory::Shared(memory.data());
                            let result = preview1::$name(&mut state.wasi, &mut memory, $($arg),+);
                            over!(@wait result $($wait)?)
                        }
                        _ => bail!("the module exports no memory named \"memory\""),
                    }
                })
            },
        )?;
    };
    (@wait $result:ident wait) => { $result.await };
    (@wait $result:ident) => { $result };
}

/// Defines one call that changes what a path names: wasmtime-wasi's, with its error looked at.
macro_rules! told {
    ($linker:ident, $name:ident($($arg:ident: $kind:ty),+), $directory:ident/$path:ident:$length:ident) => {
        $linker.func_wrap_async(
            MODULE,
            stringify!($name),
            |mut caller: Caller<'_, State>, ($($arg,)+): ($($kind,)+)| {
                Box::new(async move {
                    let export = caller.get_export("memory");
                    let fuel = caller.as_context_mut().hostcall_fuel();
                    match &export {
                        Some(Extern::Memory(memory)) => {
                            let (bytes, state) = memory.data_and_store_mut(&mut caller);
                            state.wasi.set_hostcall_fuel(fuel);
                            let mut memory = GuestMemory::Unshared(&mut *bytes);
                            let result = preview1::$name(&mut state.wasi, &mut memory, $($arg),+);
                            let told = result.await?;
                            Ok(state.truth(told, bytes, [$directory, $path, $length]))
                        }
                        Some(Extern::SharedMemory(memory)) => {
                            let state = caller.data_mut();
                            state.wasi.set_hostcall_fuel(fuel);
                            let mut memory = GuestMemory::Shared(memory.data());
                            preview1::$name(&mut state.wasi, &mut memory, $($arg),+).await
                        }
                        _ => bail!("the module exports no memory named \"memory\""),
                    }
                })
            },
        )?;
    };
}

/// Adds the whole of preview 1.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    add_to_linker_async(linker, |state: &mut State| &mut state.wasi)?;
    linker.allow_shadowing(true);
    linker.func_wrap(MODULE, "proc_exit", |code: i32| -> Result<()> {
        Err(I32Exit(code).into())
    })?;
    over!(linker, fd_write, fd_write(fd, iovs, count, written) wait);
    over!(linker, fd_read, fd_read(fd, iovs, count, read) wait);
    over!(linker, fd_close, fd_close(fd) wait);
    over!(linker, fd_renumber, fd_renumber(from, to) wait);
    over!(linker, fd_fdstat_get, fd_fdstat_get(fd, stat) wait);
    over!(linker, fd_filestat_get, fd_filestat_get(fd, stat) wait);
    over!(linker, fd_fdstat_set_flags, fd_fdstat_set_flags(fd, flags));
    over!(linker, fd_prestat_get, fd_prestat_get(fd, stat));
    over!(
        linker,
        not_a_directory,
        fd_prestat_dir_name(fd, name, length)
    );
    over!(linker, sock_accept, sock_accept(fd, flags, accepted));
    over!(
        linker,
        sock_recv,
        sock_recv(fd, iovs, count, flags, read, out_flags)
    );
    over!(
        linker,
        sock_send,
        sock_send(fd, iovs, count, flags, written)
    );
    over!(linker, sock_shutdown, sock_shutdown(fd, how));
    over!(linker, poll_oneoff, poll_oneoff(subscriptions, events, count, ready) wait);
    told!(
        linker,
        path_open(
            fd: i32, lookup: i32, path: i32, length: i32, flags: i32,
            rights: i64, inherited: i64, fd_flags: i32, opened: i32
        ),
        fd/path:length
    );
    told!(linker, path_create_directory(fd: i32, path: i32, length: i32), fd/path:length);
    told!(linker, path_remove_directory(fd: i32, path: i32, length: i32), fd/path:length);
    told!(linker, path_unlink_file(fd: i32, path: i32, length: i32), fd/path:length);
    told!(
        linker,
        path_symlink(target: i32, target_length: i32, fd: i32, path: i32, length: i32),
        fd/path:length
    );
    told!(
        linker,
        path_link(
            from: i32, lookup: i32, old: i32, old_length: i32, fd: i32, path: i32, length: i32
        ),
        fd/path:length
    );
    told!(
        linker,
        path_rename(from: i32, old: i32, old_length: i32, fd: i32, path: i32, length: i32),
        fd/path:length
    );
    told!(
        linker,
        path_filestat_set_times(
            fd: i32, lookup: i32, path: i32, length: i32, accessed: i64, modified: i64, flags: i32
        ),
        fd/path:length
    );
    linker.allow_shadowing(false);
    Ok(())
}

fn done(result: Result<(), Errno>) -> Answer {
    Some(result.map(|()| 0))
}

fn fd_write(state: &mut State, memory: &mut [u8], [fd, iovs, count, out]: [i32; 4]) -> Answer {
    if let Some(output) = state.output(fd) {
        let written = write_output(output, memory, iovs, count);
        return done(written.and_then(|written| store(memory, out, &written.to_le_bytes())));
    }
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| socket.send(memory, iovs, count, out)))
}

fn write_output(output: &Output, memory: &[u8], iovs: i32, count: i32) -> Result<u32, Errno> {
    let mut written = 0u32;
    for piece in vectors(memory, iovs, count)? {
        let (begin, length) = piece;
        output.write(slice(memory, begin, length)?);
        written = written.wrapping_add(length);
    }
    Ok(written)
}

fn fd_read(state: &mut State, memory: &mut [u8], [fd, iovs, count, out]: [i32; 4]) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| socket.receive(memory, iovs, count, 0, out)))
}

fn fd_close(state: &mut State, _: &mut [u8], [fd]: [i32; 1]) -> Answer {
    state.forget_output(fd);
    state.sockets.close(fd).map(|result| result.map(|()| 0))
}

fn fd_renumber(state: &mut State, _: &mut [u8], [from, to]: [i32; 2]) -> Answer {
    let ours = state.sockets.find(from).is_some() || state.sockets.find(to).is_some();
    if ours {
        return Some(Err(Errno::NOTSUP));
    }
    state.forget_output(from);
    state.forget_output(to);
    None
}

fn fd_fdstat_get(state: &mut State, memory: &mut [u8], [fd, out]: [i32; 2]) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(
        socket
            .and_then(|socket| socket.fdstat())
            .and_then(|stat| store(memory, out, &stat)),
    )
}

fn fd_filestat_get(state: &mut State, memory: &mut [u8], [fd, out]: [i32; 2]) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| store(memory, out, &socket.filestat())))
}

fn fd_fdstat_set_flags(state: &mut State, _: &mut [u8], [fd, flags]: [i32; 2]) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| socket.set_flags(flags)))
}

fn fd_prestat_get(state: &mut State, memory: &mut [u8], [fd, out]: [i32; 2]) -> Answer {
    // Preview 1 knows one tag, 0 for a directory.
    const NO_DIRECTORY: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|_| store(memory, out, &NO_DIRECTORY)))
}

fn not_a_directory(state: &mut State, _: &mut [u8], [fd, _, _]: [i32; 3]) -> Answer {
    let socket = state.sockets.find(fd)?;
    Some(socket.and(Err(Errno::NOTDIR)))
}

fn sock_accept(state: &mut State, memory: &mut [u8], [fd, flags, out]: [i32; 3]) -> Answer {
    state.sockets.find(fd)?.err().map_or_else(
        || {
            let accepted = state.sockets.accept(fd, flags);
            done(accepted.and_then(|number| store(memory, out, &number.to_le_bytes())))
        },
        |errno| Some(Err(errno)),
    )
}

fn sock_recv(
    state: &mut State,
    memory: &mut [u8],
    [fd, iovs, count, flags, out, out_flags]: [i32; 6],
) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| {
        socket.receive(memory, iovs, count, flags, out)?;
        store(memory, out_flags, &0u16.to_le_bytes())
    }))
}

fn sock_send(
    state: &mut State,
    memory: &mut [u8],
    [fd, iovs, count, _flags, out]: [i32; 5],
) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| socket.send(memory, iovs, count, out)))
}

fn sock_shutdown(state: &mut State, _: &mut [u8], [fd, how]: [i32; 2]) -> Answer {
    let socket = state.sockets.find(fd)?;
    done(socket.and_then(|socket| socket.shutdown(how)))
}

fn poll_oneoff(
    state: &mut State,
    memory: &mut [u8],
    [subscriptions, events, count, ready]: [i32; 4],
) -> Answer {
    crate::sockets::poll(&state.sockets, memory, subscriptions, events, count).map(|result| {
        result
            .and_then(|n| store(memory, ready, &n.to_le_bytes()))
            .map(|()| 0)
    })
}

/// A piece of guest memory.
pub(crate) fn slice(memory: &[u8], begin: u32, length: u32) -> Result<&[u8], Errno> {
    let begin = begin as usize;
    let end = begin.checked_add(length as usize).ok_or(Errno::FAULT)?;
    memory.get(begin..end).ok_or(Errno::FAULT)
}

/// Writes to guest memory.
pub(crate) fn store(memory: &mut [u8], at: i32, bytes: &[u8]) -> Result<(), Errno> {
    // Guest addresses are unsigned.
    let at = at as u32 as usize;
    let end = at.checked_add(bytes.len()).ok_or(Errno::FAULT)?;
    let place = memory.get_mut(at..end).ok_or(Errno::FAULT)?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// Entries of one I/O vector; POSIX calls it IOV_MAX.
const MAX_VECTORS: u32 = 1024;

/// The (address, length) pairs of an I/O vector.
pub(crate) fn vectors(memory: &[u8], iovs: i32, count: i32) -> Result<Vec<(u32, u32)>, Errno> {
    let count = count as u32;
    if count > MAX_VECTORS {
        return Err(Errno::INVAL);
    }
    let table = slice(memory, iovs as u32, count * 8)?;
    Ok(table
        .as_chunks::<8>()
        .0
        .iter()
        .map(|[a, b, c, d, e, f, g, h]| {
            (
                u32::from_le_bytes([*a, *b, *c, *d]),
                u32::from_le_bytes([*e, *f, *g, *h]),
            )
        })
        .collect())
}
