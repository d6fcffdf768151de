//! A tiny HTTP server that answers as a test tells it to.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::Push;
use criw_image_service::Digest;

/// What to do with one request.
pub(crate) enum Reply {
    /// Status line rest and headers, body.
    Send(String, Vec<u8>),
    /// The whole length is promised, but only the first bytes come.
    Cut(Vec<u8>, usize),
    /// Nothing comes, the connection stays.
    Hang,
}

impl Reply {
    pub(crate) fn ok(body: &[u8]) -> Reply {
        Reply::Send("200 OK\r\n".into(), body.to_vec())
    }

    pub(crate) fn status(line: &str) -> Reply {
        Reply::Send(format!("{line}\r\n"), Vec::new())
    }
}

/// Serves until it is dropped.
pub(crate) struct Server {
    pub(crate) host: String,
    /// Head of each request.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `answer` gets the head of each request and how many came before it.
    pub(crate) async fn start(
        answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, seen.clone(), answer.clone()));
            }
        });
        Server {
            host,
            requests,
            task,
        }
    }

    /// Serves an image, except where `twist` answers itself.
    pub(crate) async fn with_image(
        push: &Push,
        twist: impl Fn(&str, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Server {
        let push = push.clone();
        Server::start(move |head, count| twist(head, count).unwrap_or_else(|| image(&push, head)))
            .await
    }
}

fn image(push: &Push, head: &str) -> Reply {
    let path = head.split(' ').nth(1).unwrap();
    let name = path.split('?').next().unwrap().rsplit('/').next().unwrap();
    let Ok(digest) = name.parse::<Digest>() else {
        return Reply::ok(&push.manifests.last().unwrap().1);
    };
    let manifests = push.manifests.iter().map(|(_, manifest)| manifest);
    match push
        .blobs
        .values()
        .chain(manifests)
        .find(|blob| Digest::of(blob) == digest)
    {
        Some(blob) => Reply::ok(blob),
        None => Reply::status("404 Not Found"),
    }
}

async fn serve<F: Fn(&str, usize) -> Reply>(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
    answer: Arc<F>,
) {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let count = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len() - 1
    };
    let (head, body) = match answer(&head, count) {
        Reply::Send(head, body) => (
            format!("HTTP/1.1 {head}content-length: {}\r\n", body.len()),
            body,
        ),
        Reply::Cut(body, sent) => (
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", body.len()),
            body[..sent].to_vec(),
        ),
        Reply::Hang => return std::future::pending().await,
    };
    let _ = stream
        .write_all(format!("{head}connection: close\r\n\r\n").as_bytes())
        .await;
    let _ = stream.write_all(&body).await;
    let _ = stream.shutdown().await;
}
