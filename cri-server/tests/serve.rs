//! The daemon's library on a private socket, spoken to as a kubelet does. Needs no
//! engine: whole lives of containers are tested with the real binaries elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use criw_proto::v1 as cri;
use criw_proto::v1::image_service_client::ImageServiceClient;
use criw_proto::v1::runtime_service_client::RuntimeServiceClient;
use criw_server::config::{self, Config};
use criw_server::serve;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A daemon pins namespaces in mounts that outlive it, as they must; a test's must not.
struct PrivateDirectory(tempfile::TempDir);

impl PrivateDirectory {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mut ours: Vec<_> = points
            .filter(|point| Path::new(point).starts_with(self.path()))
            .collect();
        ours.reverse();
        for point in ours {
            let flags = rustix::mount::UnmountFlags::DETACH;
            if let Err(error) = rustix::mount::unmount(point, flags) {
                eprintln!("unmount {point}: {error}");
            }
        }
    }
}

struct Daemon {
    directory: PrivateDirectory,
    channel: Channel,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Pods and their parts need root, in tests as on a node.
fn skipped() -> bool {
    let skip = !rustix::process::geteuid().is_root();
    if skip {
        eprintln!("skipped: the daemon needs root");
    }
    skip
}

fn private_config(directory: &Path) -> Config {
    let file = directory.join("config.toml");
    let text = format!(
        "socket = '{0}/criw.sock'\nroot = '{0}/root'\nstate = '{0}/state'\nlibexec = '{0}/libexec'\n\
         [cni]\nconf_dir = '{0}/net.d'\nbin_dirs = ['{0}/bin']\n[registry]\nhosts_dir = '{0}/certs'\n\
         [cgroup]\ndriver = 'cgroupfs'\n",
        directory.display()
    );
    std::fs::write(&file, text).unwrap();
    std::fs::create_dir_all(directory.join("libexec")).unwrap();
    config::load(Some(&file)).unwrap()
}

async fn connect(socket: PathBuf, task: &JoinHandle<anyhow::Result<()>>) -> Channel {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(error) => {
                let ended = task.is_finished();
                assert!(!ended, "the daemon ended before it served");
                let late = tokio::time::Instant::now() > deadline;
                assert!(!late, "no daemon on {}: {error}", socket.display());
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn start() -> Daemon {
    let directory = PrivateDirectory(tempfile::tempdir().unwrap());
    let config = private_config(directory.path());
    let (end, ended) = oneshot::channel();
    let socket = config.socket.clone();
    let ended = Box::pin(async {
        let _ = ended.await;
    });
    let task = tokio::spawn(serve::run(config, ended));
    Daemon {
        channel: connect(socket, &task).await,
        directory,
        end: Some(end),
        task,
    }
}

impl Daemon {
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_encoding_message_size(64 << 20)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    async fn stop(mut self) {
        let _ = self.end.take().unwrap().send(());
        drop(self.channel);
        let ended = tokio::time::timeout(Duration::from_secs(15), self.task).await;
        ended.expect("the daemon drains in time").unwrap().unwrap();
        assert!(!self.directory.path().join("criw.sock").exists());
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("an error").code()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kubelet_asks_at_its_start() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let (mut runtime, mut images) = (daemon.runtime(), daemon.images());
    let version = runtime
        .version(cri::VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(version.version, "0.1.0");
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("criw", "v1")
    );
    assert_eq!(version.runtime_version.split('.').count(), 3);

    let status = runtime
        .status(cri::StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions
        .iter()
        .find(|c| c.r#type == "NetworkReady")
        .unwrap();
    assert!(
        !network.status && network.message.contains("net.d"),
        "{network:?}"
    );
    assert!(
        conditions
            .iter()
            .any(|c| c.r#type == "RuntimeReady" && c.status)
    );
    let names: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    assert_eq!(names, ["", "crun", "runc"]);
    assert!(status.features.unwrap().supplemental_groups_policy);
    let info: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(
        info["stateDir"],
        daemon.directory.path().join("state").to_str().unwrap()
    );

    let config = runtime
        .runtime_config(cri::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        config.linux.unwrap().cgroup_driver,
        cri::CgroupDriver::Cgroupfs as i32
    );
    runtime
        .update_runtime_config(cri::UpdateRuntimeConfigRequest {
            runtime_config: Some(cri::RuntimeConfig {
                network_config: Some(cri::NetworkConfig {
                    pod_cidr: "10.9.0.0/24,fd00::/64".into(),
                }),
            }),
        })
        .await
        .unwrap();

    let usage = images
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = &usage.image_filesystems[0];
    assert!(first.used_bytes.is_some() && first.timestamp > 0);
    let mountpoint = &first.fs_id.as_ref().unwrap().mountpoint;
    assert!(Path::new(mountpoint).is_dir(), "{mountpoint}");
    let list = images
        .list_images(cri::ListImagesRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().images.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_have_the_codes_of_the_contract() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let (mut runtime, mut images) = (daemon.runtime(), daemon.images());
    let id = || "f".repeat(64);
    let image = || {
        Some(cri::ImageSpec {
            image: "nowhere.test/none:1".into(),
            ..Default::default()
        })
    };

    // Taking down what is not there succeeds.
    runtime
        .stop_pod_sandbox(cri::StopPodSandboxRequest {
            pod_sandbox_id: id(),
        })
        .await
        .unwrap();
    runtime
        .remove_pod_sandbox(cri::RemovePodSandboxRequest {
            pod_sandbox_id: id(),
        })
        .await
        .unwrap();
    runtime
        .stop_container(cri::StopContainerRequest {
            container_id: id(),
            timeout: 1,
        })
        .await
        .unwrap();
    runtime
        .remove_container(cri::RemoveContainerRequest { container_id: id() })
        .await
        .unwrap();
    images
        .remove_image(cri::RemoveImageRequest { image: image() })
        .await
        .unwrap();
    let status = images
        .image_status(cri::ImageStatusRequest {
            image: image(),
            verbose: true,
        })
        .await
        .unwrap();
    assert_eq!(status.into_inner().image, None);

    // Asking for it is NotFound.
    for verbose in [false, true] {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id(),
            verbose,
        };
        assert_eq!(
            code(runtime.pod_sandbox_status(request).await),
            Code::NotFound
        );
        let request = cri::ContainerStatusRequest {
            container_id: id(),
            verbose,
        };
        assert_eq!(
            code(runtime.container_status(request).await),
            Code::NotFound
        );
    }
    let request = cri::StartContainerRequest { container_id: id() };
    assert_eq!(code(runtime.start_container(request).await), Code::NotFound);
    let request = cri::ContainerStatsRequest { container_id: id() };
    assert_eq!(code(runtime.container_stats(request).await), Code::NotFound);
    let request = cri::ReopenContainerLogRequest { container_id: id() };
    assert_eq!(
        code(runtime.reopen_container_log(request).await),
        Code::NotFound
    );
    let request = cri::ExecSyncRequest {
        container_id: id(),
        cmd: vec!["x".into()],
        timeout: 1,
    };
    assert_eq!(code(runtime.exec_sync(request).await), Code::NotFound);
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id(),
        ..Default::default()
    };
    assert_eq!(
        code(runtime.update_container_resources(request).await),
        Code::NotFound
    );
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: id(),
        ..Default::default()
    };
    assert_eq!(
        code(runtime.create_container(request).await),
        Code::NotFound
    );

    // Lists are empty, whatever the filter says.
    let filter = cri::ContainerFilter {
        id: id(),
        ..Default::default()
    };
    let request = cri::ListContainersRequest {
        filter: Some(filter),
    };
    assert!(
        runtime
            .list_containers(request)
            .await
            .unwrap()
            .into_inner()
            .containers
            .is_empty()
    );
    let pods = runtime
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await
        .unwrap();
    assert!(pods.into_inner().items.is_empty());
    let mut stream = runtime
        .stream_containers(cri::StreamContainersRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_none());
    daemon.stop().await;
}

fn pod(handler: &str) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "p".into(),
                namespace: "ns".into(),
                uid: "u".into(),
                attempt: 0,
            }),
            ..Default::default()
        }),
        runtime_handler: handler.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_cannot_run_say_why() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let mut runtime = daemon.runtime();
    let mut refused = async |request: cri::RunPodSandboxRequest| {
        let status = runtime.run_pod_sandbox(request).await.expect_err("no pod");
        (status.code(), status.message().to_owned())
    };
    let (code, text) = refused(pod("gvisor")).await;
    assert!(
        code == Code::InvalidArgument && text.contains("unknown runtime handler"),
        "{text}"
    );
    let (code, text) = refused(pod("wasmedge")).await;
    assert!(
        code == Code::InvalidArgument && text.contains("criw-shim-wasmedge"),
        "{text}"
    );
    let no_config = cri::RunPodSandboxRequest {
        config: None,
        ..pod("")
    };
    assert_eq!(refused(no_config).await.0, Code::InvalidArgument);
    // No CNI configuration: the network is not ready, and nothing stays behind.
    let (code, text) = refused(pod("")).await;
    assert!(text.contains("net.d"), "{code:?} {text}");
    let pods = runtime
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await
        .unwrap();
    assert!(pods.into_inner().items.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_yet_says_so() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let mut runtime = daemon.runtime();
    let answer = runtime
        .checkpoint_container(cri::CheckpointContainerRequest::default())
        .await;
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("not implemented by this version"),
        "{status}"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pods_there_are_descriptors_and_no_metrics() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let mut runtime = daemon.runtime();
    let descriptors = runtime
        .list_metric_descriptors(cri::ListMetricDescriptorsRequest {})
        .await
        .unwrap();
    assert!(descriptors.into_inner().descriptors.len() > 40);
    let metrics = runtime
        .list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})
        .await
        .unwrap();
    assert!(metrics.into_inner().pod_metrics.is_empty());
    let mut stream = runtime
        .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.message().await.unwrap(), None);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_requests_are_resource_exhausted() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let mut runtime = daemon.runtime();
    let of_size = |bytes: usize| cri::VersionRequest {
        version: "v".repeat(bytes),
    };
    let status = runtime.version(of_size(17 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    runtime.version(of_size(15 << 20)).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_per_state_and_the_end_ends_streams() {
    if skipped() {
        return;
    }
    let daemon = start().await;
    let again = serve::run(
        private_config(daemon.directory.path()),
        Box::pin(std::future::pending()),
    )
    .await;
    let text = format!("{:#}", again.unwrap_err());
    assert!(text.contains("another daemon uses"), "{text}");
    let mut events = daemon
        .runtime()
        .get_container_events(cri::GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    daemon.stop().await;
    let end = tokio::time::timeout(Duration::from_secs(5), events.message()).await;
    assert!(!matches!(end.expect("the stream ends"), Ok(Some(_))));
}
