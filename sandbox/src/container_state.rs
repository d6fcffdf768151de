//! The life of a container, as a pure function.
//!
//! ```text
//!   Creating --shim ready--> Created --started--> Running --exit--> Exited
//!      |                        |                                     ^
//!      | (failed: torn down)    +--start failed / exit ---------------+
//! ```
//!
//! An exit is a fact: it is accepted in any state but `Exited`, where the first one wins.

use serde::{Deserialize, Serialize};

/// Identity of a process that survives pid reuse and daemon restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Host pid.
    pub pid: i32,
    /// Field 22 of /proc/pid/stat, clock ticks since boot.
    pub start_time: u64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ContainerState {
    /// The record stands, the shim is being built; not listed.
    Creating,
    /// The shim waits for "go".
    Created {
        /// The shim.
        shim: ProcessIdentity,
        /// Main process when it is not the shim (runc).
        pid: Option<i32>,
    },
    /// The guest runs.
    Running {
        /// The shim.
        shim: ProcessIdentity,
        /// Main process when it is not the shim (runc).
        pid: Option<i32>,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It ended, or never began.
    Exited {
        /// Nanoseconds since the epoch, 0 when it never ran.
        started_at: i64,
        /// How.
        exit: Exit,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128+n for signals.
    pub code: i32,
    /// ContainerStatus.reason
    pub reason: String,
    /// ContainerStatus.message
    pub message: String,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The shim answered Created.
    ShimReady {
        /// The shim.
        shim: ProcessIdentity,
        /// Main process when it is not the shim.
        pid: Option<i32>,
    },
    /// The shim answered Started.
    Started {
        /// Nanoseconds since the epoch.
        at: i64,
    },
    /// The process is gone, or the start failed.
    Exit(Exit),
}

/// Why an event does not fit a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Start of a container that runs already.
    #[error("is already running")]
    AlreadyRunning,
    /// Anything but removal of a container that ended.
    #[error("has exited; a container is never started twice")]
    AlreadyExited,
    /// Its shim is not there yet.
    #[error("is still being created")]
    NotCreated,
    /// The shim reported twice.
    #[error("was already created")]
    AlreadyCreated,
}

impl ContainerState {
    /// The next state, or why not. The caller passes the clock in the event.
    pub fn on(&self, event: &ContainerEvent) -> Result<Self, Refusal> {
        use ContainerEvent as E;
        Ok(match (self, event) {
            (Self::Creating, E::ShimReady { shim, pid }) => Self::Created {
                shim: *shim,
                pid: *pid,
            },
            (_, E::ShimReady { .. }) => return Err(Refusal::AlreadyCreated),
            (Self::Created { shim, pid }, E::Started { at }) => Self::Running {
                shim: *shim,
                pid: *pid,
                started_at: *at,
            },
            (Self::Creating, E::Started { .. }) => return Err(Refusal::NotCreated),
            (Self::Running { .. }, E::Started { .. }) => return Err(Refusal::AlreadyRunning),
            (Self::Exited { .. }, _) => return Err(Refusal::AlreadyExited),
            (Self::Running { started_at, .. }, E::Exit(exit)) => Self::Exited {
                started_at: *started_at,
                exit: exit.clone(),
            },
            (Self::Creating | Self::Created { .. }, E::Exit(exit)) => Self::Exited {
                started_at: 0,
                exit: exit.clone(),
            },
        })
    }

    /// The shim, while there is one.
    pub fn shim(&self) -> Option<ProcessIdentity> {
        match self {
            Self::Created { shim, .. } | Self::Running { shim, .. } => Some(*shim),
            Self::Creating | Self::Exited { .. } => None,
        }
    }

    /// Host pid of the main process, while there is one.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { shim, pid } | Self::Running { shim, pid, .. } => {
                Some(pid.unwrap_or(shim.pid))
            }
            Self::Creating | Self::Exited { .. } => None,
        }
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Whether it ended.
    pub fn is_exited(&self) -> bool {
        matches!(self, Self::Exited { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIM: ProcessIdentity = ProcessIdentity {
        pid: 7,
        start_time: 9,
    };

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            reason: "Error".into(),
            message: String::new(),
            finished_at: 30,
        }
    }

    #[test]
    fn every_state_meets_every_event() {
        use ContainerEvent as E;
        use ContainerState as S;
        let created = S::Created {
            shim: SHIM,
            pid: None,
        };
        let running = S::Running {
            shim: SHIM,
            pid: None,
            started_at: 20,
        };
        let exited = |started_at| S::Exited {
            started_at,
            exit: exit(1),
        };
        let ready = E::ShimReady {
            shim: SHIM,
            pid: None,
        };
        let started = E::Started { at: 20 };
        let gone = E::Exit(exit(1));
        let table = [
            (S::Creating, &ready, Ok(created.clone())),
            (S::Creating, &started, Err(Refusal::NotCreated)),
            (S::Creating, &gone, Ok(exited(0))),
            (created.clone(), &ready, Err(Refusal::AlreadyCreated)),
            (created.clone(), &started, Ok(running.clone())),
            (created, &gone, Ok(exited(0))),
            (running.clone(), &ready, Err(Refusal::AlreadyCreated)),
            (running.clone(), &started, Err(Refusal::AlreadyRunning)),
            (running, &gone, Ok(exited(20))),
            (exited(20), &ready, Err(Refusal::AlreadyCreated)),
            (exited(20), &started, Err(Refusal::AlreadyExited)),
            (exited(20), &E::Exit(exit(9)), Err(Refusal::AlreadyExited)),
        ];
        for (state, event, expected) in table {
            assert_eq!(state.on(event), expected, "{state:?} on {event:?}");
        }
    }
}
