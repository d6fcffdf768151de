//! ImageService: one method for each RPC.

use std::collections::HashMap;
use std::sync::Arc;

use criw_image_service::{PullRequest, Want};
use criw_proto::v1 as cri;
use criw_proto::v1::image_service_server::ImageService;
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::image::{auth, image};
use crate::daemon::Daemon;
use crate::error;
use crate::runtime::{in_chunks, now};

/// The service.
#[derive(Clone)]
pub struct Images(pub Arc<Daemon>);

type Answer<T> = Result<Response<T>, Status>;

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn name(spec: Option<cri::ImageSpec>) -> Result<String, Status> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(Status::invalid_argument("the request names no image")),
    }
}

impl Images {
    /// An empty text in the filter is crictl's way to ask for all.
    fn list(&self, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image)
            .filter(|text| !text.is_empty());
        let images = self.0.images.list(wanted.as_deref());
        images.iter().map(image).collect()
    }
}

#[async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Answer<cri::ListImagesResponse> {
        Ok(Response::new(cri::ListImagesResponse {
            images: self.list(request.into_inner().filter),
        }))
    }

    type StreamImagesStream = ReceiverStream<Result<cri::StreamImagesResponse, Status>>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.list(request.into_inner().filter);
        in_chunks(images, |images| cri::StreamImagesResponse { images })
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let found = self
            .0
            .images
            .find(&name)
            .map_err(|e| error::ambiguous(&e))?;
        let mut info = HashMap::new();
        if let (true, Some(found)) = (request.verbose, &found) {
            let spec = match self
                .0
                .images
                .prepare(&found.id, found.scope.as_deref(), Want::Any)
                .await
            {
                Ok(prepared) => json!({
                    "config": prepared.config,
                    "modules": prepared.modules,
                    "kind": prepared.kind,
                }),
                Err(error) => return Err(error::prepare(&error)),
            };
            let text = json!({
                "kinds": found.kinds,
                "labels": found.labels,
                "imageSpec": spec,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(Response::new(cri::ImageStatusResponse {
            image: found.as_ref().map(image),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let reference = name(request.image)?;
        tracing::info!(image = %reference, "pull");
        let begin = std::time::Instant::now();
        // Not in a task of its own: when the client gives up, the pull ends with this future.
        let pulled = self
            .0
            .images
            .pull(PullRequest {
                reference: reference.clone(),
                auth: request.auth.as_ref().map(auth),
                // Whatever pod it is for: any pod may mix Linux and Wasm containers.
                want: Want::Any,
            })
            .await;
        match pulled {
            Ok(id) => {
                tracing::info!(image = %reference, %id, elapsed = ?begin.elapsed(), "pulled");
                Ok(Response::new(cri::PullImageResponse {
                    image_ref: id.to_string(),
                }))
            }
            Err(failure) => {
                tracing::warn!(image = %reference, error = %error::chain(&failure), "pull failed");
                Err(error::pull(&failure))
            }
        }
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let name = name(request.into_inner().image)?;
        match self.0.images.remove(&name).await {
            Ok(()) | Err(criw_image_service::StoreError::UnknownImage(_)) => {
                tracing::info!(image = %name, "image removed");
                Ok(Response::new(cri::RemoveImageResponse {}))
            }
            Err(failure) => Err(error::store(&failure)),
        }
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Answer<cri::ImageFsInfoResponse> {
        let usage = self.0.images.usage();
        let filesystem = |used_bytes: u64, inodes_used: u64| cri::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(cri::UInt64Value { value: used_bytes }),
            inodes_used: Some(cri::UInt64Value { value: inodes_used }),
        };
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(usage.used_bytes, usage.inodes_used)],
            container_filesystems: vec![filesystem(usage.used_bytes, usage.inodes_used)],
        }))
    }
}
