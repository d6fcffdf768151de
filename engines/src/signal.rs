//! What a signal becomes for a Wasm guest, which knows no signals. Pure.
//!
//! | signal | guest | becomes |
//! |---|---|---|
//! | stop, mode `auto` | can drain (has listeners, or serves HTTP) | close listeners, wait for the guest (`Drain`) |
//! | stop, mode `auto` | cannot | end with 128+n |
//! | stop, mode `now` | any | end with 128+n |
//! | stop, mode `drain` | any | close listeners, wait for the guest |
//! | stop, mode `grace` | any | nothing, the guest has the grace |
//! | KILL, or another that ends a process by default | any | end with 128+n |
//! | CHLD, CONT, URG, WINCH, STOP, TSTP, TTIN, TTOU, 0 | any | nothing |

use crate::protocol::{ExitReason, ExitRecord};
use crate::spec::StopMode;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write the record of [`ended_by`] and end the process.
    End,
    /// Close the listeners and let the guest end by itself.
    Drain,
    /// Nothing.
    Ignore,
    /// There is no such signal.
    Invalid,
}

/// Highest signal number of Linux (real-time signals included).
const LAST: i32 = 64;

const IGNORED: [i32; 9] = [
    0,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Decides by signal, its purpose, and what the guest is.
pub fn decide(signal: i32, stop: bool, mode: StopMode, drains: bool) -> Action {
    if !(0..=LAST).contains(&signal) {
        return Action::Invalid;
    }
    if signal == libc::SIGKILL {
        return Action::End;
    }
    if stop {
        return match mode {
            StopMode::Auto if drains => Action::Drain,
            StopMode::Auto | StopMode::Now => Action::End,
            StopMode::Drain => Action::Drain,
            StopMode::Grace => Action::Ignore,
        };
    }
    if IGNORED.contains(&signal) {
        Action::Ignore
    } else {
        Action::End
    }
}

/// The record of a guest that a signal ended.
pub fn ended_by(signal: i32) -> ExitRecord {
    let message = match name(signal) {
        Some(name) => format!("stopped by signal {signal} ({name})"),
        None => format!("stopped by signal {signal}"),
    };
    ExitRecord::now(128 + signal, ExitReason::Error, message)
}

fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGABRT => "SIGABRT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_in_every_mode() {
        let modes = [
            StopMode::Auto,
            StopMode::Now,
            StopMode::Drain,
            StopMode::Grace,
        ];
        // (signal, stop, without listeners by mode, with listeners by mode)
        use Action::{Drain, End, Ignore, Invalid};
        let table = [
            (
                libc::SIGTERM,
                true,
                [End, End, Drain, Ignore],
                [Drain, End, Drain, Ignore],
            ),
            (
                libc::SIGWINCH,
                true,
                [End, End, Drain, Ignore],
                [Drain, End, Drain, Ignore],
            ),
            (libc::SIGKILL, true, [End; 4], [End; 4]),
            (libc::SIGKILL, false, [End; 4], [End; 4]),
            (libc::SIGTERM, false, [End; 4], [End; 4]),
            (libc::SIGUSR1, false, [End; 4], [End; 4]),
            (LAST, false, [End; 4], [End; 4]),
            (libc::SIGWINCH, false, [Ignore; 4], [Ignore; 4]),
            (libc::SIGSTOP, false, [Ignore; 4], [Ignore; 4]),
            (0, false, [Ignore; 4], [Ignore; 4]),
            (-1, true, [Invalid; 4], [Invalid; 4]),
            (LAST + 1, false, [Invalid; 4], [Invalid; 4]),
        ];
        for (signal, stop, without, with) in table {
            for (n, mode) in modes.into_iter().enumerate() {
                let case = format!("{signal} stop={stop} {mode:?}");
                assert_eq!(decide(signal, stop, mode, false), without[n], "{case}");
                assert_eq!(decide(signal, stop, mode, true), with[n], "{case}");
            }
        }
    }

    #[test]
    fn the_record_names_the_signal() {
        for (signal, code, text) in [
            (15, 143, "stopped by signal 15 (SIGTERM)"),
            (9, 137, "stopped by signal 9 (SIGKILL)"),
            (40, 168, "stopped by signal 40"),
        ] {
            let record = ended_by(signal);
            assert_eq!((record.code, record.message.as_str()), (code, text));
            assert_eq!(record.reason, ExitReason::Error);
        }
    }
}
