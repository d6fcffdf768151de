//! The private imports of the toolbox (`engines/toolbox`), module `criw`: commands in the
//! same container, pipes between them, connections, and what a container says of itself.
//!
//! Linked only where the spec says that this program has a spawner. All parameters are
//! i32; the result is an error number of preview 1, 0 for success. A call that waits blocks
//! the guest's thread, and nobody else. Pointers point into the exported memory.
//!
//! | function | |
//! |---|---|
//! | `spawn(request, length, child_out)` | starts a command (`criw_engines::spawner::Command`) |
//! | `wait(child, flags, status_out)` | its exit code; flag 1: do not wait, AGAIN while it runs |
//! | `signal(child, signal)` | sends it a signal |
//! | `pipe(ends_out)` | handles of a new pipe: read, write |
//! | `read`, `write(handle, buffer, length, n_out)` | 0 bytes read is the end; PIPE when nobody reads |
//! | `close(handle)` | |
//! | `open(path, length, flags, handle_out)` | a file; flags 1 read, 2 write, 4 create, 8 truncate, 16 append |
//! | `connect(host, length, port, handle_out)` | a TCP connection |
//! | `listen(port, handle_out)`, `accept(handle, handle_out)` | TCP on all addresses of the pod |
//! | `shutdown_write(handle)` | the other side of a connection reads the end |
//! | `info(kind, buffer, length, n_out)` | 1 host name, 2 ids, 3 processes, 4 size of the terminal |

mod commands;
mod handles;
mod info;
mod net;

use std::sync::Arc;

use criw_engines::spawner::Spawner;
use criw_engines::stdio::Stdio;
use wasmtime::{Caller, Extern, Linker, Result, bail};

use crate::overlay::{State, slice, store};
use crate::sockets::Errno;
use commands::Commands;
use handles::Handles;

const MODULE: &str = "criw";

/// What the toolbox has besides WASI.
pub(crate) struct Toolbox {
    spawner: Arc<Spawner>,
    stdio: Stdio,
    ids: String,
    handles: Handles,
    commands: Commands,
}

impl Toolbox {
    pub(crate) fn new(spawner: Arc<Spawner>, stdio: Stdio, ids: String) -> Self {
        Self {
            spawner,
            stdio,
            ids,
            handles: Handles::default(),
            commands: Commands::default(),
        }
    }
}

type Answer = std::result::Result<(), Errno>;

/// The guest's memory and our state.
fn parts<'a>(caller: &'a mut Caller<'_, State>) -> Result<(&'a mut [u8], &'a mut Toolbox)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        bail!("the module exports no memory named \"memory\"");
    };
    let (bytes, state) = memory.data_and_store_mut(caller);
    match &mut state.toolbox {
        Some(toolbox) => Ok((bytes, toolbox)),
        None => bail!("this program has no spawner"),
    }
}

fn number(answer: Answer) -> i32 {
    answer.err().map_or(0, |errno| i32::from(errno.0))
}

macro_rules! as_i32 {
    ($arg:ident) => {
        i32
    };
}

/// Defines one call that blocks.
macro_rules! call {
    ($linker:ident, $name:literal, $own:path, ($($arg:ident),+)) => {
        $linker.func_wrap(
            MODULE,
            $name,
            |mut caller: Caller<'_, State>, $($arg: as_i32!($arg)),+| -> Result<i32> {
                let (memory, toolbox) = parts(&mut caller)?;
                Ok(number($own(toolbox, memory, [$($arg),+])))
            },
        )?;
    };
}

/// Adds the whole module.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    call!(linker, "spawn", commands::spawn, (request, length, out));
    call!(linker, "wait", commands::wait, (child, flags, out));
    call!(linker, "signal", commands::signal, (child, signal));
    call!(linker, "pipe", handles::pipe, (out));
    call!(linker, "read", handles::read, (handle, buffer, length, out));
    call!(
        linker,
        "write",
        handles::write,
        (handle, buffer, length, out)
    );
    call!(linker, "close", handles::close, (handle));
    call!(linker, "open", handles::open, (path, length, flags, out));
    call!(linker, "listen", net::listen, (port, out));
    call!(linker, "accept", net::accept, (handle, out));
    call!(linker, "shutdown_write", net::shutdown_write, (handle));
    call!(linker, "info", info::info, (kind, buffer, length, out));
    linker.func_wrap_async(
        MODULE,
        "connect",
        |mut caller: Caller<'_, State>, (host, length, port, out): (i32, i32, i32, i32)| {
            Box::new(async move {
                let host = text(parts(&mut caller)?.0, host, length);
                let connected = match host {
                    Ok(host) => net::connect(&host, port).await,
                    Err(errno) => Err(errno),
                };
                let (memory, toolbox) = parts(&mut caller)?;
                let answer = connected.and_then(|socket| toolbox.handles.give(memory, out, socket));
                Ok(number(answer))
            })
        },
    )?;
    Ok(())
}

/// A piece of the guest's memory that is text.
fn text(memory: &[u8], begin: i32, length: i32) -> std::result::Result<String, Errno> {
    let bytes = slice(memory, begin as u32, length as u32)?;
    let text = std::str::from_utf8(bytes).map_err(|_| Errno::ILSEQ)?;
    if text.contains('\0') {
        return Err(Errno::INVAL);
    }
    Ok(text.to_owned())
}

/// Writes a number to the guest's memory.
fn put(memory: &mut [u8], at: i32, number: u32) -> Answer {
    store(memory, at, &number.to_le_bytes())
}
