//! What an engine is to the frame: it turns compiled code into a program, and a
//! program runs once.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::drain::Drain;
use crate::facts::Facts;
use crate::protocol::ExitReason;
use crate::spawner::Spawner;
use crate::spec::Spec;
use crate::stdio::Stdio;

/// One Wasm engine, linked into a shim.
pub trait Engine {
    /// Maps and links the code; called before the lock-up, on the main thread, with
    /// the host's file system still around (which an engine has no reason to touch).
    /// The error is a text for the user and is told at Start.
    fn prepare(&self, code: OwnedFd, spec: &Spec) -> Result<Box<dyn Program>, String>;
}

/// Linked code that waits for "go". Moves once, to the guest's thread.
pub trait Program: Send {
    /// Everything that can be done before "go" and needs the guest's root: called on
    /// the guest's thread, locked up. No guest code may run here.
    fn settle(&mut self, surroundings: Surroundings) -> Result<(), String>;

    /// Whether it knows what to do with [`Surroundings::drain`]; the stop signal ends
    /// others at once.
    fn drains(&self) -> bool {
        false
    }

    /// Where it counts what it does, if it does.
    fn facts(&self) -> Option<Arc<Facts>> {
        None
    }

    /// Instantiates, calls `started` when that worked, and runs to the end.
    fn run(self: Box<Self>, started: &dyn Fn()) -> Outcome;
}

/// What the frame hands to a guest.
#[derive(Debug)]
pub struct Surroundings {
    /// Its standard streams.
    pub stdio: Stdio,
    /// Bound sockets in the order of `WasmSection.listen`; the control thread shuts
    /// them down when the guest shall drain.
    pub listeners: Arc<Vec<TcpListener>>,
    /// Tells a program that [`Program::drains`] to do so.
    pub drain: Arc<Drain>,
    /// Starts further commands, for a guest that may.
    pub spawner: Option<Arc<Spawner>>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code as Kubernetes shows it.
    pub code: u8,
    /// Why.
    pub reason: ExitReason,
    /// Text for the user; empty when the guest ended by itself.
    pub message: String,
}

impl Outcome {
    /// The guest ended with this code.
    pub fn exit(code: u8) -> Self {
        Self {
            code,
            reason: if code == 0 {
                ExitReason::Completed
            } else {
                ExitReason::Error
            },
            message: String::new(),
        }
    }

    /// A trap, with the Wasm backtrace in the text.
    pub fn trap(message: String) -> Self {
        Self {
            code: 134,
            reason: ExitReason::Trap,
            message,
        }
    }

    /// The guest never ran.
    pub fn start_error(message: String) -> Self {
        Self {
            code: 128,
            reason: ExitReason::StartError,
            message,
        }
    }

    /// Memory grew past the limit.
    pub fn out_of_memory(message: String) -> Self {
        Self {
            code: 137,
            reason: ExitReason::OOMKilled,
            message,
        }
    }

    /// A deadline, or all fuel, was used up.
    pub fn exceeded(message: String) -> Self {
        Self {
            code: 124,
            reason: ExitReason::DeadlineExceeded,
            message,
        }
    }
}
