//! `criw images …`: the operator's side, which asks the running daemon.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use criw_proto::admin::v1 as admin;
use criw_proto::admin::v1::images_client::ImagesClient;
use criw_proto::v1 as cri;
use criw_proto::v1::image_service_client::ImageServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::serve::MAX_MESSAGE;

/// Bytes of one message.
const PIECE: usize = 256 << 10;

/// For an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends an archive (`-` is standard input) to the daemon, and prints what it held.
pub async fn import(socket: &Path, file: &Path, name: &str) -> anyhow::Result<()> {
    let mut archive: Box<dyn Read + Send> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(File::open(file).with_context(|| format!("open {}", file.display()))?),
    };
    let mut client = ImagesClient::new(connect(socket).await?);
    let (sender, receiver) = mpsc::channel(4);
    let first = admin::ImportRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    // A file that cannot be read has no end: the daemon drops what it got.
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let mut message = first;
        // A daemon that takes no more has an error to tell.
        while sender.blocking_send(message).is_ok() {
            let mut data = Vec::with_capacity(PIECE);
            let end = archive.by_ref().take(PIECE as u64).read_to_end(&mut data)? == 0;
            message = admin::ImportRequest {
                data,
                end,
                ..Default::default()
            };
            if end {
                let _ = sender.blocking_send(message);
                break;
            }
        }
        Ok(())
    });
    let answer = client.import(ReceiverStream::new(receiver)).await;
    reading
        .await?
        .with_context(|| format!("read {}", file.display()))?;
    for image in answer.map_err(|status| told(&status))?.into_inner().images {
        println!("{}  {}", image.id, image.name);
    }
    Ok(())
}

/// Prints the images that the daemon has: id, bytes, names.
pub async fn list(socket: &Path) -> anyhow::Result<()> {
    let mut client =
        ImageServiceClient::new(connect(socket).await?).max_decoding_message_size(MAX_MESSAGE);
    let answer = client.list_images(cri::ListImagesRequest::default());
    let answer = tokio::time::timeout(PATIENCE, answer)
        .await
        .map_err(|_| anyhow!("the daemon did not answer within {PATIENCE:?}"))?
        .map_err(|status| told(&status))?;
    for image in answer.into_inner().images {
        let names = match image.repo_tags.as_slice() {
            [] => image.repo_digests.join(" "),
            tags => tags.join(" "),
        };
        println!("{}  {:>12}  {names}", image.id, image.size);
    }
    Ok(())
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let Some(path) = socket.to_str() else {
        bail!("the socket {} is no text", socket.display());
    };
    Endpoint::try_from(format!("unix:{path}"))?
        .connect_timeout(PATIENCE)
        .connect()
        .await
        .with_context(|| {
            format!("reach the daemon on {path}; start it first (systemctl start criw), or name its --config")
        })
}

fn told(status: &Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
