//! Channels in a WebSocket, of any version and codec: any bytes come to an end, and
//! messages that are well formed bring just what was sent on each channel.

#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use criw_fuzz::streaming::channels::Peer;
use criw_fuzz::streaming::upgrade::{Codec, Version};
use criw_fuzz::streaming::websocket::{self, Channels, Socket};
use criw_fuzz::{Heard, Source, client, hear, run, web_socket_message};
use libfuzzer_sys::fuzz_target;
use tokio_tungstenite::tungstenite::protocol::Role;

const BINARY: u8 = 2;
const TEXT: u8 = 1;

/// What the client may send on.
const READABLE: [u8; 3] = [0, 3, 4];

const CLOSE: u8 = 255;

fuzz_target!(|input: &[u8]| {
    let mut source = Source(input);
    let choice = source.byte();
    let version = [Version::V1, Version::V4, Version::V5][usize::from(choice % 3)];
    let codec = if choice & 8 == 0 {
        Codec::Binary
    } else {
        Codec::Base64
    };
    let (bytes, expected) = if choice & 16 == 0 {
        (source.0.to_vec(), None)
    } else {
        let (bytes, heard) = script(&mut source, version, codec);
        (bytes, Some(heard))
    };
    let piece = 1 + 8 * usize::from(choice);
    run(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = Some(websocket::config());
        let socket = Socket::from_raw_socket(far, Role::Server, config).await;
        let mut channels =
            Channels::serve(socket, Peer::unknown(), version, codec, &READABLE, Some(1));
        let session = async {
            let mut heard = Vec::new();
            for channel in READABLE {
                let stream = channels.incoming.remove(&channel).expect("asked for");
                heard.push(tokio::spawn(hear(stream)));
            }
            let mut all = Vec::new();
            for one in heard {
                all.push(one.await.expect("a session reads to the end"));
            }
            channels.link.close().await;
            all
        };
        let (_, heard) = tokio::join!(client(near, bytes, piece), session);
        if let Some(expected) = expected {
            assert_eq!(heard, expected);
        }
    });
});

/// Messages, and what has to come of them on each channel.
fn script(source: &mut Source<'_>, version: Version, codec: Codec) -> (Vec<u8>, Vec<Heard>) {
    let mut sent = Vec::new();
    let mut heard = vec![Heard::default(); READABLE.len()];
    while !source.is_empty() {
        let at = usize::from(source.byte()) % READABLE.len();
        let channel = READABLE[at];
        let length = usize::from(source.byte());
        let bytes = source.bytes(length);
        let closes = version == Version::V5 && codec == Codec::Binary && source.byte() % 8 == 7;
        let message = match codec {
            Codec::Binary if closes => web_socket_message(BINARY, &[CLOSE, channel]),
            Codec::Binary => web_socket_message(BINARY, &[&[channel], bytes].concat()),
            Codec::Base64 => {
                let text = format!("{channel}{}", BASE64_STANDARD.encode(bytes));
                web_socket_message(TEXT, text.as_bytes())
            }
        };
        sent.extend_from_slice(&message);
        if closes {
            heard[at].ended = true;
        } else if !heard[at].ended {
            heard[at].bytes.extend_from_slice(bytes);
        }
    }
    (sent, heard)
}
