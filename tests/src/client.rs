//! A blocking CRI client on a unix socket: one method for each call that tests use.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use criw_proto::v1::image_service_client::ImageServiceClient;
use criw_proto::v1::runtime_service_client::RuntimeServiceClient;
use criw_proto::v1::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// As kubelet: replies of up to 16 MiB.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Longest time a call of a test may take; kubelet's default is the same.
const DEADLINE: Duration = Duration::from_secs(120);

/// A connection.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    deadline: Duration,
}

/// Defines a blocking method for each unary RPC.
macro_rules! calls {
    ($($service:ident: $method:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $(
                #[doc = concat!("The RPC of `", stringify!($request), "`.")]
                #[allow(clippy::result_large_err, reason = "tonic's own type, used once per call")]
                pub fn $method(&self, message: $request) -> Result<$response, Status> {
                    let mut client = self.$service.clone();
                    let mut request = Request::new(message);
                    request.set_timeout(self.deadline);
                    self.runtime
                        .block_on(async move {
                            // The server must honour the deadline; a dead one cannot.
                            tokio::time::timeout(self.deadline + Duration::from_secs(5), client.$method(request))
                                .await
                                .unwrap_or_else(|_| Err(Status::deadline_exceeded(
                                    concat!("no answer to ", stringify!($method)))))
                        })
                        .map(tonic::Response::into_inner)
                }
            )*
        }
    };
}

calls! {
    pods: version(VersionRequest) -> VersionResponse;
    pods: status(StatusRequest) -> StatusResponse;
    pods: runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    pods: update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    pods: run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    pods: stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    pods: remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pods: pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    pods: list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    pods: create_container(CreateContainerRequest) -> CreateContainerResponse;
    pods: start_container(StartContainerRequest) -> StartContainerResponse;
    pods: stop_container(StopContainerRequest) -> StopContainerResponse;
    pods: remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    pods: list_containers(ListContainersRequest) -> ListContainersResponse;
    pods: container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    pods: update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    pods: attach(AttachRequest) -> AttachResponse;
    pods: port_forward(PortForwardRequest) -> PortForwardResponse;
    pods: reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    pods: exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    pods: exec(ExecRequest) -> ExecResponse;
    pods: container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    pods: pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    pods: list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    pods: list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    pods: list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    pods: list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    images: list_images(ListImagesRequest) -> ListImagesResponse;
    images: image_status(ImageStatusRequest) -> ImageStatusResponse;
    images: pull_image(PullImageRequest) -> PullImageResponse;
    images: remove_image(RemoveImageRequest) -> RemoveImageResponse;
    images: image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

impl Client {
    /// Connects; the daemon must listen already.
    pub fn connect(socket: &Path) -> Result<Self> {
        // A thread of its own answers a daemon that ends and says so to idle connections,
        // or the daemon would wait for this one until its deadline.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start a runtime for the client")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("connect to {}", socket.display()))?;
        let pods = RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(2 * MAX_MESSAGE);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self {
            runtime,
            pods,
            images,
            deadline: DEADLINE,
        })
    }

    /// The same connection with another deadline for each call.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// An image by reference or id, as clients name it.
pub fn image_spec(reference: &str) -> ImageSpec {
    ImageSpec {
        image: reference.into(),
        ..Default::default()
    }
}
