//! Any bytes as a SPDY connection, plain or inside a WebSocket: it ends, what the server
//! says is SPDY, and no stream brings bytes that were not sent.

#![no_main]

use criw_fuzz::streaming::channels::Peer;
use criw_fuzz::streaming::spdy::connection;
use criw_fuzz::streaming::websocket::{self, Socket};
use criw_fuzz::streaming::{channels::Link, tunnel};
use criw_fuzz::{Source, answered_pings, client, hear, run, web_socket_message};
use libfuzzer_sys::fuzz_target;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Role;

fuzz_target!(|input: &[u8]| {
    let mut source = Source(input);
    let choice = source.byte();
    let piece = 1 + usize::from(choice >> 1);
    let bytes = source.0.to_vec();
    run(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        if choice & 1 == 0 {
            let (answer, ()) = tokio::join!(
                client(near, bytes, piece),
                serve(connection::serve(far, Peer::unknown()), source.0.len())
            );
            answered_pings(&answer);
        } else {
            let config = Some(websocket::config());
            let socket = Socket::from_raw_socket(far, Role::Server, config).await;
            let messages: Vec<u8> = bytes
                .chunks(piece)
                .flat_map(|piece| web_socket_message(2, piece))
                .collect();
            let inner = tunnel::bytes_of(socket);
            tokio::join!(
                client(near, messages, 4096),
                serve(connection::serve(inner, Peer::unknown()), bytes.len())
            );
        }
    });
});

/// Takes the streams as they come, refuses some, and reads the others to their end.
async fn serve((mut streams, link): (mpsc::Receiver<connection::NewStream>, Link), sent: usize) {
    let mut sessions = Vec::new();
    while let Some(new) = streams.recv().await {
        if new.id % 8 == 7 {
            let _ = new.refuse();
        } else if let Ok((_, _, incoming, outgoing)) = new.accept() {
            sessions.push(tokio::spawn(async move {
                let heard = hear(incoming).await;
                drop(outgoing);
                heard.bytes.len()
            }));
        }
    }
    link.close().await;
    let mut received = 0;
    for session in sessions {
        received += session.await.expect("a session reads to the end");
    }
    assert!(received <= sent, "{received} bytes out of {sent}");
}
