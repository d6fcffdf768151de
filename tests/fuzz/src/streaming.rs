//! The daemon's own files, under the paths that they know each other by.

#[path = "../../../cri-server/src/streaming/channels.rs"]
pub mod channels;
#[path = "../../../cri-server/src/streaming/spdy/mod.rs"]
pub mod spdy;
#[path = "../../../cri-server/src/streaming/tunnel.rs"]
pub mod tunnel;
#[path = "../../../cri-server/src/streaming/upgrade.rs"]
pub mod upgrade;
#[path = "../../../cri-server/src/streaming/websocket.rs"]
pub mod websocket;
