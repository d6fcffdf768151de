//! How the guest of a shim starts further commands in its container.
//!
//! A locked-up shim can start nothing, so it asks the daemon, on a `SOCK_SEQPACKET`
//! socket of its own: one JSON object each way, with descriptors, the shim first. Only the
//! toolbox has one. What comes from a shim is hostile input to the daemon.
//!
//! ```text
//!   shim                                  daemon
//!     Spawn + command, streams ----------> starts one more exec shim in the container
//!           <--------- Spawned + a pipe    ... its end: four bytes on the pipe, the exit code
//!     Signal / Interrupt / Processes ----> answered at once
//!     (the socket closes) ---------------- all that was spawned is ended, and theirs
//! ```
//!
//! The command is a sealed memory file in the guest's own format ([`Command`]), because
//! an argument list may be longer than a datagram and a sealed file cannot block its reader.
//!
//! A pipe that ends without a code says that the daemon has gone. The next one ends what
//! its predecessor left running, and then hands over a new socket (`Request::Spawner`).

mod client;
mod command;

pub use client::{Spawned, Spawner};
pub use command::{BadCommand, Command, MAX_COMMAND, Source};

use serde::{Deserialize, Serialize};

use crate::protocol::FdRole;

/// Commands that live at the same time, of one session and all that its commands started.
pub const MAX_COMMANDS: usize = 64;

/// How deep commands may start commands.
pub const MAX_DEPTH: usize = 16;

/// Bytes of [`Answer::Processes`], so that it fits into a message with its escapes.
pub const MAX_PROCESSES: usize = 24 * 1024;

/// What a shim asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Start a command. The first descriptor is the [`Command`], the others are its streams.
    Spawn {
        /// Some of `Stdin`, `Stdout` and `Stderr`, once each; the others are empty.
        streams: Vec<FdRole>,
        /// Its standard input is the session's terminal.
        terminal: bool,
    },
    /// Send a command a signal.
    Signal {
        /// From [`Answer::Spawned`].
        command: u64,
        /// Linux signal number.
        signal: i32,
    },
    /// The terminal's interrupt character was typed: end all commands of the session, but
    /// not the shells that wait for a line themselves. Only of the session's first shim.
    Interrupt,
    /// What runs in the container.
    Processes,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// It runs. A pipe comes along: four bytes when it has ended, its exit code (little endian).
    Spawned {
        /// Its number, for `Signal`.
        command: u64,
    },
    /// Signal was sent.
    Done,
    /// So many commands got it.
    Interrupted {
        /// None is left to be interrupted when it is zero.
        commands: usize,
    },
    /// A line for each process: pid, uid, state, CPU seconds, resident KiB and argv, with
    /// tabs between.
    Processes {
        /// At most [`MAX_PROCESSES`] bytes.
        text: String,
    },
    /// It was not done.
    Refused {
        /// Why.
        why: Refusal,
    },
}

/// Why an ask was not done, by what a shell makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// argv\[0\] is nothing in the image, the mounts or the toolbox.
    NotFound,
    /// It is there and cannot be run here.
    NotExecutable,
    /// It is masked in this container. (A shim that does not know this word takes it for
    /// `Failed`.)
    Denied,
    /// [`MAX_COMMANDS`] or [`MAX_DEPTH`] is reached.
    TooMany,
    /// There is no such command, or it has ended.
    NoSuchCommand,
    /// The ask makes no sense.
    Invalid,
    /// The node could not do it, or there is no daemon; its log has the reason.
    Failed,
}

/// Whether a command is a shell that reads its commands from its terminal: an interrupt
/// ends its line, not the shell.
pub fn is_interactive(args: &[String], terminal: bool) -> bool {
    let Some((name, options)) = args.split_first() else {
        return false;
    };
    terminal
        && matches!(name.rsplit('/').next(), Some("sh" | "ash"))
        && options
            .iter()
            .all(|option| option.starts_with(['-', '+']) && !option.contains('c'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_without_a_script_is_interactive() {
        for (argv, terminal, expected) in [
            (&["sh"][..], true, true),
            (&["/bin/sh", "-l", "-i"], true, true),
            (&["sh"], false, false),
            (&["sh", "-c", "sleep 1"], true, false),
            (&["sh", "-ec", "sleep 1"], true, false),
            (&["sh", "script"], true, false),
            (&["cat"], true, false),
            (&["xsh"], true, false),
            (&[], true, false),
        ] {
            let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(is_interactive(&argv, terminal), expected, "{argv:?}");
        }
    }

    #[test]
    fn what_is_said_is_parsed_strictly() {
        for (json, good) in [
            (
                r#"{"ask":"spawn","streams":["stdin"],"terminal":false}"#,
                true,
            ),
            (r#"{"ask":"signal","command":3,"signal":15}"#, true),
            (r#"{"ask":"interrupt"}"#, true),
            (r#"{"ask":"processes"}"#, true),
            (r#"{"ask":"spawn","streams":["stdin"]}"#, false),
            (r#"{"ask":"signal","command":-1,"signal":15}"#, false),
            (r#"{"ask":"signal","command":1,"signal":15,"x":1}"#, false),
            (r#"{"ask":"dance"}"#, false),
            ("", false),
        ] {
            assert_eq!(serde_json::from_str::<Ask>(json).is_ok(), good, "{json}");
        }
    }
}
