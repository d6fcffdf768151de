//! A stream of bytes inside a WebSocket: how SPDY passes proxies that know nothing but
//! WebSockets. Binary messages carry the bytes; where one ends means nothing.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::Message;

use super::channels::{GOODBYE, PIECE};
use super::websocket::{self, Socket};

/// The bytes of a WebSocket; dropped or shut down, the WebSocket is closed.
pub fn bytes_of<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: Socket<S>,
) -> DuplexStream {
    let (inner, outer) = tokio::io::duplex(2 * PIECE);
    tokio::spawn(carry(socket, inner));
    outer
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(socket: Socket<S>, bytes: DuplexStream) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut read, mut write) = tokio::io::split(bytes);
    let inbound = async {
        while let Some(Ok(message)) = from_client.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                // SPDY is no text.
                Message::Text(_) | Message::Close(_) => break,
            };
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let outbound = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match read.read_buf(&mut buffer).await {
                Ok(1..) => {
                    let piece: Bytes = buffer.split().freeze();
                    if to_client.send(Message::Binary(piece)).await.is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => {
                    let _ = to_client.send(websocket::goodbye()).await;
                    // For the client's own; data that it still sends would otherwise
                    // reset the connection, and take our last bytes with it.
                    return tokio::time::sleep(GOODBYE).await;
                }
            }
        }
    };
    tokio::select! {
        () = inbound => {}
        () = outbound => {}
    }
}
