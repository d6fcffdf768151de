//! What a container says of itself: there is no procfs in its root.

use std::os::fd::OwnedFd;

use criw_engines::spawner::{Answer as Told, Ask};

use super::{Answer, Toolbox, put};
use crate::overlay::{slice, store};
use crate::sockets::Errno;

const HOST_NAME: i32 = 1;
const IDS: i32 = 2;
const PROCESSES: i32 = 3;
const TERMINAL: i32 = 4;

/// The guest learns the whole length, and gets what fits.
pub(super) fn info(
    toolbox: &mut Toolbox,
    memory: &mut [u8],
    [kind, buffer, length, out]: [i32; 4],
) -> Answer {
    slice(memory, buffer as u32, length as u32)?;
    let text = match kind {
        HOST_NAME => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        IDS => toolbox.ids.clone(),
        PROCESSES => match toolbox.spawner.ask(&Ask::Processes) {
            Ok(Told::Processes { text }) => text,
            Ok(_) | Err(_) => return Err(Errno::IO),
        },
        TERMINAL => toolbox.size(),
        _ => return Err(Errno::INVAL),
    };
    let fits = text.len().min(length as u32 as usize);
    store(memory, buffer, &text.as_bytes()[..fits])?;
    put(memory, out, text.len() as u32)
}

impl Toolbox {
    /// Standard input, if that is a terminal.
    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        let input = self.stdio.stdin.as_deref()?;
        rustix::termios::isatty(input).then_some(input)
    }

    /// Columns and rows.
    fn size(&self) -> String {
        self.terminal()
            .and_then(|terminal| rustix::termios::tcgetwinsize(terminal).ok())
            .map(|size| format!("{} {}", size.ws_col, size.ws_row))
            .unwrap_or_default()
    }
}
