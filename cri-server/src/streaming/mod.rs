//! Exec, attach and port-forward: the RPC grants a request and answers with a URL, and
//! whoever comes with it gets the streams.
//!
//! ```text
//!   wire       a TCP connection, inside TLS or not
//!   token      requests that were granted and wait for their client
//!   server     HTTP on a loopback address, up to the upgrade
//!   upgrade    what the connection becomes, out of the headers
//!   spdy/      SPDY/3.1: frames, header blocks, streams
//!   websocket  numbered channels in a WebSocket      tunnel   SPDY in a WebSocket
//!   channels   what both give to a session: streams, bounds, whether the client is there
//!   remote, resize, status   the remote-command protocol: exec and attach
//!   forward    port forwarding
//! ```

pub mod channels;
pub mod forward;
pub mod remote;
pub mod resize;
pub mod server;
pub mod spdy;
pub mod status;
pub mod token;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;
pub mod wire;

pub use server::{Granted, Streaming};
