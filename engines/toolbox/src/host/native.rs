//! The host interface outside of Wasm, for tests: commands are processes of this machine,
//! and names of applets run this program again.
#![allow(
    clippy::incompatible_msrv,
    reason = "never compiled by the old compiler that makes the module"
)]

use super::{Child, Errno, Handle, Request};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

const ACCES: Errno = Errno(2);
const CHILD: Errno = Errno(12);
const INVAL: Errno = Errno(28);

#[derive(Default)]
struct Table {
    next: u32,
    handles: HashMap<Handle, OwnedFd>,
    children: HashMap<Child, std::process::Child>,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(fd: impl Into<OwnedFd>) -> Handle {
    let mut table = table();
    // the lowest free number, as the host gives them
    let number = (1..)
        .find(|n| !table.handles.contains_key(n))
        .unwrap_or(u32::MAX);
    table.handles.insert(number, fd.into());
    number
}

fn copy(handle: Handle) -> Result<File, Errno> {
    let table = table();
    let fd = table.handles.get(&handle).ok_or(Errno(8))?;
    fd.try_clone().map(File::from).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    use std::io::ErrorKind::*;
    match error.kind() {
        NotFound => Errno::NOENT,
        PermissionDenied => ACCES,
        BrokenPipe => Errno::PIPE,
        Interrupted => Errno::INTR,
        IsADirectory => Errno(31),
        NotADirectory => Errno(54),
        ConnectionRefused => Errno(14),
        AddrInUse => Errno(3),
        _ if error.raw_os_error() == Some(8) => Errno::NOEXEC,
        _ => Errno(29),
    }
}

fn stdio(stream: u32, own: fn() -> Stdio) -> Result<Stdio, Errno> {
    match stream {
        super::OWN => Ok(own()),
        super::NULL => Ok(Stdio::null()),
        n if n > 16 => Ok(copy(n - 16)?.into()),
        _ => Err(INVAL),
    }
}

/// The daemon bounds how many commands live and how deep they nest; here nobody would, and a
/// script that multiplies itself would take the machine.
const DEPTH: u32 = 6;
const DEPTH_VARIABLE: &str = "CRIW_TOOLBOX_DEPTH";

pub(crate) fn spawn(request: &Request<'_>) -> Result<Child, Errno> {
    let depth = std::env::var(DEPTH_VARIABLE);
    let depth: u32 = depth.ok().and_then(|depth| depth.parse().ok()).unwrap_or(0);
    if depth >= DEPTH {
        return Err(Errno(41));
    }
    let name = request.argv.first().ok_or(INVAL)?;
    let base = name.rsplit('/').next().unwrap_or(name);
    let mut command = if crate::applets::find(base).is_some() {
        let mut command = Command::new(std::env::current_exe().map_err(errno)?);
        command.arg0(name);
        command
    } else {
        Command::new(name)
    };
    command
        .args(&request.argv[1..])
        .env_clear()
        .envs(request.env.iter().cloned());
    command
        .env("PWD", request.directory)
        .current_dir(request.directory);
    let [input, output, error] = request.streams;
    command.stdin(stdio(input, Stdio::inherit)?);
    command.stdout(stdio(output, Stdio::inherit)?);
    if error == super::AS_OUTPUT {
        command.stderr(match output {
            super::OWN => Stdio::from(
                std::io::stdout()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(errno)?,
            ),
            other => stdio(other, Stdio::inherit)?,
        });
    } else {
        command.stderr(stdio(error, Stdio::inherit)?);
    }
    command.env(DEPTH_VARIABLE, (depth + 1).to_string());
    let path = crate::files::absolute(request.directory, name);
    let child = command.spawn().map_err(|error| match errno(error) {
        // in a Wasm container nothing has mode bits: a script is what is no module
        ACCES if std::path::Path::new(&path).is_file() => Errno::NOEXEC,
        other => other,
    })?;
    let mut table = table();
    table.next += 1;
    let number = table.next;
    table.children.insert(number, child);
    Ok(number)
}

fn code(status: ExitStatus) -> u32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u32,
        (None, signal) => 128 + signal.unwrap_or(0) as u32,
    }
}

pub(crate) fn wait(child: Child, block: bool) -> Result<u32, Errno> {
    // taken out: a wait that blocks must not hold the table
    let mut process = table().children.remove(&child).ok_or(CHILD)?;
    if block {
        return process.wait().map(code).map_err(errno);
    }
    match process.try_wait().map_err(errno)? {
        Some(status) => Ok(code(status)),
        None => {
            table().children.insert(child, process);
            Err(Errno::AGAIN)
        }
    }
}

pub(crate) fn signal(child: Child, signal: u32) -> Result<(), Errno> {
    let pid = table().children.get(&child).ok_or(CHILD)?.id();
    let status = Command::new("/bin/kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status();
    status.map(|_| ()).map_err(errno)
}

pub(crate) fn pipe() -> Result<(Handle, Handle), Errno> {
    let (reader, writer) = std::io::pipe().map_err(errno)?;
    Ok((keep(reader), keep(writer)))
}

pub(crate) fn read(handle: Handle, buffer: &mut [u8]) -> Result<usize, Errno> {
    copy(handle)?.read(buffer).map_err(errno)
}

pub(crate) fn write(handle: Handle, bytes: &[u8]) -> Result<usize, Errno> {
    copy(handle)?.write(bytes).map_err(errno)
}

pub(crate) fn close(handle: Handle) {
    table().handles.remove(&handle);
}

pub(crate) fn open(path: &str, flags: u32) -> Result<Handle, Errno> {
    let has = |flag| flags & flag != 0;
    let file = OpenOptions::new()
        .read(has(super::READ))
        .write(has(super::WRITE) && !has(super::APPEND))
        .append(has(super::APPEND))
        .create(has(super::CREATE))
        .truncate(has(super::TRUNCATE))
        .open(path)
        .map_err(errno)?;
    Ok(keep(file))
}

pub(crate) fn connect(host: &str, port: u16) -> Result<Handle, Errno> {
    TcpStream::connect((host, port)).map(keep).map_err(errno)
}

pub(crate) fn listen(port: u16) -> Result<Handle, Errno> {
    TcpListener::bind(("127.0.0.1", port))
        .map(keep)
        .map_err(errno)
}

pub(crate) fn accept(listener: Handle) -> Result<Handle, Errno> {
    let listener = TcpListener::from(OwnedFd::from(copy(listener)?));
    listener
        .accept()
        .map(|(connection, _)| keep(connection))
        .map_err(errno)
}

pub(crate) fn shutdown_write(handle: Handle) -> Result<(), Errno> {
    let connection = TcpStream::from(OwnedFd::from(copy(handle)?));
    connection
        .shutdown(std::net::Shutdown::Write)
        .map_err(errno)
}

pub(crate) fn info(kind: u32) -> Result<String, Errno> {
    Ok(match kind {
        super::INFO_HOST_NAME => "testhost".to_owned(),
        super::INFO_IDS => "1000 1001 1001 2000".to_owned(),
        super::INFO_PROCESSES => {
            "1\t1000\tS\t0.01\t420\tserver --port 80\n7\t0\tR\t61.50\t2048\tsh\n".to_owned()
        }
        _ => String::new(),
    })
}
