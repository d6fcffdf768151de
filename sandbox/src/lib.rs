//! Pods and the containers in them: state machine, record, namespaces, cgroups, stats.
//!
//! Must not know: CRI messages, registries, image formats, what Wasm is.

pub mod container_state;
mod cpu_rate;
pub mod detail;
pub mod error;
pub mod fault;
pub mod host;
pub mod id;
mod laps;
pub mod manager;
pub mod model;
pub mod readiness;
pub mod record;
pub mod stats;
pub mod view;

pub use container_state::{ContainerState, Exit, ProcessIdentity};
pub use error::{Error, Result};
pub use host::rootview;
pub use id::{ContainerId, SandboxId};
pub use manager::{
    AllTold, Config, Exec, ExecPlace, ExecSpec, Owner, Pipes, ProcessView, Sandboxes, Signals,
    Streams, Told, chain,
};
pub use view::{ContainerView, Event, ExecOutput, PodView};
