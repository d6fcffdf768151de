//! What an operator asks of the running daemon besides the CRI, on the same socket.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use criw_proto::admin::v1 as admin;
use criw_proto::admin::v1::images_server::Images;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::daemon::Daemon;
use crate::error;

/// The service.
#[derive(Clone)]
pub struct Admin(pub Arc<Daemon>);

/// Pieces of an archive between the socket and its reader.
const PIECES: usize = 8;

/// How long a client may be silent within an archive.
const SILENCE: Duration = Duration::from_secs(60);

#[async_trait]
impl Images for Admin {
    async fn import(
        &self,
        request: Request<Streaming<admin::ImportRequest>>,
    ) -> Result<Response<admin::ImportResponse>, Status> {
        let mut stream = request.into_inner();
        let first = message(&mut stream)
            .await?
            .ok_or_else(|| Status::invalid_argument("the request is empty"))?;
        let name = Some(first.name).filter(|name| !name.is_empty());
        let (sender, receiver) = mpsc::channel(PIECES);
        let import = self.0.images.import(Pipe::new(receiver), name);
        let feed = async {
            while let Some(piece) = message(&mut stream).await? {
                let end = piece.end;
                // A reader that has gone has an error to tell.
                if sender.send(Piece::of(piece)).await.is_err() || end {
                    break;
                }
            }
            drop(sender);
            Ok::<_, Status>(())
        };
        // An archive that breaks off ends for its reader too: both always come to an end.
        let (fed, imported) = tokio::join!(feed, import);
        let imported = match (fed, imported) {
            (Err(status), _) => return Err(status),
            (Ok(()), imported) => imported.map_err(|failure| {
                tracing::warn!(error = %error::chain(&failure), "import failed");
                error::pull(&failure)
            })?,
        };
        let images = imported.into_iter().map(|image| {
            tracing::info!(image = %image.name, id = %image.id, "imported");
            admin::ImportedImage {
                name: image.name,
                id: image.id.to_string(),
            }
        });
        Ok(Response::new(admin::ImportResponse {
            images: images.collect(),
        }))
    }
}

async fn message(
    stream: &mut Streaming<admin::ImportRequest>,
) -> Result<Option<admin::ImportRequest>, Status> {
    tokio::time::timeout(SILENCE, stream.message())
        .await
        .map_err(|_| {
            Status::deadline_exceeded(format!("the archive stood still for {SILENCE:?}"))
        })?
}

enum Piece {
    Data(Vec<u8>),
    End,
}

impl Piece {
    fn of(message: admin::ImportRequest) -> Self {
        if message.end {
            Self::End
        } else {
            Self::Data(message.data)
        }
    }
}

/// The archive as a reader on a thread that may block.
struct Pipe {
    receiver: mpsc::Receiver<Piece>,
    data: Vec<u8>,
    position: usize,
    ended: bool,
}

impl Pipe {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self {
            receiver,
            data: Vec::new(),
            position: 0,
            ended: false,
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.data.len() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => (self.data, self.position) = (data, 0),
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it broke off before its end",
                    ));
                }
            }
        }
        let rest = &self.data[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_whole_only_when_its_end_was_said() {
        for whole in [true, false] {
            let (sender, receiver) = mpsc::channel(PIECES);
            for data in [&b"ab"[..], b"", b"c"] {
                sender.blocking_send(Piece::Data(data.to_vec())).ok();
            }
            if whole {
                sender.blocking_send(Piece::End).ok();
            }
            drop(sender);
            let mut text = String::new();
            let read = Pipe::new(receiver).read_to_string(&mut text);
            assert_eq!((text.as_str(), read.is_ok()), ("abc", whole));
        }
    }
}
