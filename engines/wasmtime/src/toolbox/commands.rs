//! Commands: started by the daemon, waited for here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use criw_engines::protocol::FdRole;
use criw_engines::spawner::{Ask, BadCommand, Command, Refusal, Source, Spawned};

use super::{Answer, Toolbox, put};
use crate::overlay::slice;
use crate::sockets::Errno;

/// Commands that were not waited for yet.
const MAX: u32 = 64;

/// Do not wait.
const NO_WAIT: i32 = 1;

/// All of an instance, by its own numbers.
#[derive(Debug, Default)]
pub(super) struct Commands(BTreeMap<u32, Spawned>);

pub(super) fn spawn(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [request, length, out]: [i32; 3],
) -> Answer {
    let bytes = slice(memory, request as u32, length as u32)?;
    let command = Command::parse(bytes).map_err(|error| match error {
        BadCommand::NotText => Errno::ILSEQ,
        BadCommand::Malformed => Errno::INVAL,
    })?;
    let number = (1..=MAX)
        .find(|number| !toolbox.commands.0.contains_key(number))
        .ok_or(Errno::NFILE)?;
    let streams = toolbox.streams(&command)?;
    let roles = [FdRole::Stdin, FdRole::Stdout, FdRole::Stderr];
    let (roles, fds): (Vec<_>, Vec<_>) = roles
        .into_iter()
        .zip(streams)
        .filter_map(|(role, fd)| Some((role, fd?)))
        .unzip();
    let own_input = command.streams[0] == Source::Own;
    let ask = Ask::Spawn {
        terminal: own_input && toolbox.terminal().is_some(),
        streams: roles,
    };
    let spawned = toolbox
        .spawner
        .spawn(bytes, &ask, &fds)
        .map_err(|refusal| match refusal {
            Refusal::NotFound => Errno::NOENT,
            Refusal::NotExecutable => Errno::NOEXEC,
            Refusal::Denied => Errno::ACCES,
            Refusal::TooMany => Errno::AGAIN,
            Refusal::NoSuchCommand => Errno::CHILD,
            Refusal::Invalid => Errno::INVAL,
            Refusal::Failed => Errno::IO,
        })?;
    toolbox.commands.0.insert(number, spawned);
    put(memory, out, number)
}

pub(super) fn wait(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [child, flags, out]: [i32; 3],
) -> Answer {
    let child = child as u32;
    let spawned = toolbox.commands.0.get_mut(&child).ok_or(Errno::CHILD)?;
    let code = toolbox
        .spawner
        .wait(spawned, flags & NO_WAIT == 0)
        .map_err(|_| Errno::IO)?
        .ok_or(Errno::AGAIN)?;
    put(memory, out, code)?;
    toolbox.commands.0.remove(&child);
    Ok(())
}

pub(super) fn signal(toolbox: &mut Toolbox, _: &mut [u8], [child, signal]: [i32; 2]) -> Answer {
    let spawned = toolbox
        .commands
        .0
        .get(&(child as u32))
        .ok_or(Errno::CHILD)?;
    match toolbox.spawner.signal(spawned, signal) {
        Ok(()) => Ok(()),
        Err(Refusal::NoSuchCommand) => Err(Errno::CHILD),
        Err(Refusal::Invalid) => Err(Errno::INVAL),
        Err(_) => Err(Errno::IO),
    }
}

impl Toolbox {
    /// Descriptors of a command's streams; `None` is empty.
    fn streams(&self, command: &Command) -> Result<[Option<BorrowedFd<'_>>; 3], Errno> {
        let [input, output, error] = command.streams;
        let handle = |number| self.handles.get(number).map(Some);
        let stdin = match input {
            Source::Own => self.stdio.stdin.as_deref().map(AsFd::as_fd),
            Source::Handle(number) => handle(number)?,
            Source::Empty | Source::Output => None,
        };
        let stdout = match output {
            Source::Own => self.stdio.stdout.descriptor().map_err(|_| Errno::IO)?,
            Source::Handle(number) => handle(number)?,
            Source::Empty | Source::Output => None,
        };
        let stderr = match error {
            Source::Own => self.stdio.stderr.descriptor().map_err(|_| Errno::IO)?,
            Source::Output => stdout,
            Source::Handle(number) => handle(number)?,
            Source::Empty => None,
        };
        Ok([stdin, stdout, stderr])
    }
}
