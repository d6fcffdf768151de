//! RuntimeService: one method for each RPC. They check, convert and forward.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use criw_proto::v1 as cri;
use criw_proto::v1::runtime_service_server::RuntimeService;
use criw_sandbox::host::cgroup::Driver;
use criw_sandbox::model::Resources;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::resources::resources;
use crate::convert::status::{self, Filter};
use crate::daemon::Daemon;
use crate::{create, error, events, exec, info, metrics, stats};

/// Items in one message of a list stream.
const STREAM_CHUNK: usize = 256;

/// The service.
#[derive(Clone)]
pub struct Runtime(pub Arc<Daemon>);

impl Runtime {
    /// Reads numbers on one thread that may block, however many pods there are.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Daemon) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let daemon = self.0.clone();
        create::blocking(move || read(&daemon)).await
    }

    async fn stats_of<T: Send + 'static>(
        &self,
        read: fn(&Daemon, &Filter) -> Vec<T>,
        filter: Filter,
    ) -> Result<Vec<T>, Status> {
        self.reading(move |daemon| Ok(read(daemon, &filter))).await
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = ReceiverStream<Result<T, Status>>;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn later<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!(
        "{what} is not implemented by this version of criw"
    )))
}

/// A finished list as a stream of bounded messages; an empty list is an empty stream.
pub fn in_chunks<I: Clone, M: Send + 'static>(
    items: Vec<I>,
    message: impl Fn(Vec<I>) -> M,
) -> Answer<Messages<M>> {
    let count = items.len().div_ceil(STREAM_CHUNK).max(1);
    let (sender, receiver) = tokio::sync::mpsc::channel(count);
    for chunk in items.chunks(STREAM_CHUNK) {
        // Room for every chunk was made above.
        let _ = sender.try_send(Ok(message(chunk.to_vec())));
    }
    ok(ReceiverStream::new(receiver))
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn limits(asked: Option<&cri::LinuxContainerResources>) -> Result<Option<Resources>, Status> {
    Ok(asked.map(resources).transpose()?)
}

impl Runtime {
    fn pods(&self, filter: &Filter) -> Vec<cri::PodSandbox> {
        let mut pods = self.0.sandboxes.pods();
        pods.retain(|pod| filter.fits_pod(pod));
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        pods.iter().map(status::pod_item).collect()
    }

    fn containers(&self, filter: &Filter) -> Vec<cri::Container> {
        let mut containers = self.0.sandboxes.containers();
        containers.retain(|container| filter.fits_container(container));
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        containers.iter().map(status::container_item).collect()
    }
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        ok(cri::VersionResponse {
            // Of the kubelet's runtime API; clients compare it literally.
            version: "0.1.0".to_owned(),
            runtime_name: "criw".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        })
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        ok(info::status(&self.0, request.into_inner().verbose).await)
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        let driver = match Driver::from(self.0.config.cgroup.driver).prefers_systemd() {
            true => cri::CgroupDriver::Systemd,
            false => cri::CgroupDriver::Cgroupfs,
        };
        ok(cri::RuntimeConfigResponse {
            linux: Some(cri::LinuxRuntimeConfiguration {
                cgroup_driver: driver as i32,
            }),
        })
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let cidr = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config)
            .map(|network| network.pod_cidr)
            .unwrap_or_default();
        let cidrs: Vec<String> = cidr
            .split(',')
            .map(|cidr| cidr.trim().to_owned())
            .filter(|cidr| !cidr.is_empty())
            .collect();
        if !cidrs.is_empty() {
            tracing::info!(?cidrs, "the node's pod network");
            self.0
                .sandboxes
                .network()
                .set_pod_cidr(&cidrs)
                .map_err(|e| error::net(&e))?;
        }
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        self.0
            .handlers
            .route(&request.runtime_handler)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("the pod sandbox has no config"))?;
        let spec = crate::convert::pod::pod(&config, &request.runtime_handler)?;
        if let (Some(_), Err(reason)) = (spec.user_namespace, &self.0.host.user_namespaces) {
            return Err(Status::failed_precondition(format!(
                "pods cannot have user namespaces (hostUsers: false) on this node: {reason}"
            )));
        }
        let (name, namespace) = (spec.name.clone(), spec.namespace.clone());
        let id = self.0.sandboxes.run_pod(spec).await.map_err(|failure| {
            tracing::warn!(%namespace, pod_name = %name, error = %error::chain(&failure), "RunPodSandbox failed");
            error::sandbox(&failure)
        })?;
        ok(cri::RunPodSandboxResponse {
            pod_sandbox_id: id.into(),
        })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        if let Some(pod) = self.0.find_pod(&request.into_inner().pod_sandbox_id)? {
            self.0
                .sandboxes
                .stop_pod(&pod.id)
                .await
                .map_err(|e| error::sandbox(&e))?;
        }
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        if let Some(pod) = self.0.find_pod(&request.into_inner().pod_sandbox_id)? {
            let daemon = self.0.clone();
            // Removal and the release of images belong together, whatever becomes of the caller.
            tokio::spawn(async move {
                let containers = daemon.sandboxes.containers();
                daemon
                    .sandboxes
                    .remove_pod(&pod.id)
                    .await
                    .map_err(|e| error::sandbox(&e))?;
                for container in containers.iter().filter(|c| c.sandbox == pod.id) {
                    daemon
                        .images
                        .release(container.id.as_str())
                        .await
                        .map_err(|e| error::store(&e))?;
                }
                Ok::<_, Status>(())
            })
            .await
            .map_err(|error| Status::internal(format!("remove a pod sandbox: {error}")))??;
        }
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        // Before the states are read: news that come later carry a later time.
        let timestamp = now();
        let pod = self.0.pod(&request.pod_sandbox_id)?;
        let mut containers = self.0.sandboxes.containers();
        containers.retain(|container| container.sandbox == pod.id);
        ok(cri::PodSandboxStatusResponse {
            status: Some(status::pod_status(&pod)),
            info: if request.verbose {
                info::pod(&pod)
            } else {
                HashMap::new()
            },
            containers_statuses: containers.iter().map(status::container_status).collect(),
            timestamp,
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        ok(cri::ListPodSandboxResponse {
            items: self.pods(&request.into_inner().filter.into()),
        })
    }

    type StreamPodSandboxesStream = Messages<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pods = self.pods(&request.into_inner().filter.into());
        in_chunks(pods, |pod_sandboxes| cri::StreamPodSandboxesResponse {
            pod_sandboxes,
        })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let pod = self.0.pod(&request.pod_sandbox_id)?;
        self.0
            .sandboxes
            .update_pod(
                &pod.id,
                limits(request.overhead.as_ref())?,
                limits(request.resources.as_ref())?,
            )
            .await
            .map_err(|e| error::sandbox(&e))?;
        ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let pod = request.pod_sandbox_id.clone();
        let name = request
            .config
            .as_ref()
            .and_then(|config| config.metadata.as_ref())
            .map(|metadata| metadata.name.clone())
            .unwrap_or_default();
        let id = create::create(&self.0, request).await.inspect_err(|status| {
            tracing::warn!(%pod, container_name = %name, error = %status.message(), "CreateContainer failed");
        })?;
        ok(cri::CreateContainerResponse {
            container_id: id.into(),
        })
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        self.0
            .sandboxes
            .start(&container.id)
            .await
            .map_err(|failure| {
                tracing::warn!(pod = %container.sandbox, container = %container.id, error = %error::chain(&failure), "StartContainer failed");
                error::sandbox(&failure)
            })?;
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        if let Some(container) = self.0.find_container(&request.container_id)? {
            let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
            self.0
                .sandboxes
                .stop(&container.id, grace)
                .await
                .map_err(|e| error::sandbox(&e))?;
        }
        ok(cri::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        if let Some(container) = self.0.find_container(&request.into_inner().container_id)? {
            let daemon = self.0.clone();
            tokio::spawn(async move {
                create::remove(&daemon, &container.id).await?;
                Ok::<_, Status>(())
            })
            .await
            .map_err(|error| Status::internal(format!("remove a container: {error}")))??;
        }
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        ok(cri::ListContainersResponse {
            containers: self.containers(&request.into_inner().filter.into()),
        })
    }

    type StreamContainersStream = Messages<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.containers(&request.into_inner().filter.into());
        in_chunks(containers, |containers| cri::StreamContainersResponse {
            containers,
        })
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        ok(cri::ContainerStatusResponse {
            status: Some(status::container_status(&container)),
            info: if request.verbose {
                info::container(&container).await
            } else {
                HashMap::new()
            },
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        if let Some(asked) = limits(request.linux.as_ref())? {
            self.0
                .sandboxes
                .update(&container.id, asked)
                .await
                .map_err(|e| error::sandbox(&e))?;
        }
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        self.0
            .sandboxes
            .reopen_log(&container.id)
            .await
            .map_err(|e| error::sandbox(&e))?;
        ok(cri::ReopenContainerLogResponse {})
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Answer<cri::ExecSyncResponse> {
        ok(exec::exec_sync(&self.0, request.into_inner()).await?)
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let granted = exec::grant_exec(&self.0, request.into_inner())?;
        ok(cri::ExecResponse {
            url: self.0.streaming.url(granted)?,
        })
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let granted = exec::grant_attach(&self.0, request.into_inner())?;
        ok(cri::AttachResponse {
            url: self.0.streaming.url(granted)?,
        })
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let granted = exec::grant_port_forward(&self.0, request.into_inner())?;
        ok(cri::PortForwardResponse {
            url: self.0.streaming.url(granted)?,
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        later("CheckpointContainer")
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        ok(cri::ContainerStatsResponse {
            stats: Some(
                self.reading(move |daemon| stats::container(daemon, &container))
                    .await?,
            ),
        })
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        ok(cri::ListContainerStatsResponse {
            stats: self
                .stats_of(stats::containers, request.into_inner().filter.into())
                .await?,
        })
    }

    type StreamContainerStatsStream = Messages<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.into();
        let stats = self.stats_of(stats::containers, filter).await?;
        in_chunks(stats, |container_stats| cri::StreamContainerStatsResponse {
            container_stats,
        })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let pod = self.0.pod(&request.into_inner().pod_sandbox_id)?;
        if !pod.ready {
            return Err(Status::unavailable(format!(
                "pod sandbox {} is not ready, it has no stats",
                pod.id
            )));
        }
        ok(cri::PodSandboxStatsResponse {
            stats: Some(self.reading(move |daemon| stats::pod(daemon, &pod)).await?),
        })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        ok(cri::ListPodSandboxStatsResponse {
            stats: self
                .stats_of(stats::pods, request.into_inner().filter.into())
                .await?,
        })
    }

    type StreamPodSandboxStatsStream = Messages<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.into();
        let stats = self.stats_of(stats::pods, filter).await?;
        in_chunks(stats, |pod_sandbox_stats| {
            cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })
    }

    type GetContainerEventsStream = Messages<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        ok(events::stream(&self.0))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        ok(cri::ListMetricDescriptorsResponse {
            descriptors: metrics::descriptors(),
        })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        ok(cri::ListPodSandboxMetricsResponse {
            pod_metrics: self.reading(|daemon| Ok(metrics::pods(daemon))).await?,
        })
    }

    type StreamPodSandboxMetricsStream = Messages<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.reading(|daemon| Ok(metrics::pods(daemon))).await?;
        in_chunks(metrics, |pod_sandbox_metrics| {
            cri::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        })
    }
}
