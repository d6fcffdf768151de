//! The daemon's outermost layer: CRI to the rooms below and their errors back.
//!
//! ```text
//!   cli, config, logging, notify, socket   what happens before and around serving
//!   serve       opens the rooms, serves, drains
//!   door        deadlines and codes, before every RPC
//!   runtime, image_rpc   one method for each RPC: check, convert, forward
//!   create, variant, entry, exec  what a container or command is, out of a request and an image
//!   toolbox     commands that an image lacks
//!   spawner     commands that a command starts
//!   streaming            exec, attach and port-forward: HTTP, SPDY, WebSocket
//!   info                 status of the node, verbose answers
//!   events, stats        news and numbers
//!   convert     pure conversions      error   pure error mapping
//!   handlers, host       what this node can run
//!   admin, operator      what `criw images` asks of the daemon, both sides
//!   cadvisor    whose cgroups are, in containerd's words, for a kubelet's cAdvisor
//!   check       looks at the machine for an operator
//! ```
//!
//! Must not know: how pods, images and networks are made. It holds no state of its
//! own that would have to survive a restart.

pub mod admin;
pub mod cadvisor;
pub mod cdi;
pub mod check;
pub mod cli;
pub mod config;
pub mod convert;
pub mod create;
pub mod daemon;
pub mod door;
pub mod entry;
pub mod error;
pub mod events;
pub mod exec;
pub mod handlers;
pub mod host;
pub mod image_rpc;
pub mod image_volumes;
pub mod info;
pub mod libraries;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod operator;
pub mod prometheus;
pub mod runtime;
pub mod serve;
pub mod socket;
pub mod spawner;
pub mod stats;
pub mod streaming;
pub mod toolbox;
pub mod variant;
