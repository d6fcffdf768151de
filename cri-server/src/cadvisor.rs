//! A second socket for the kubelet's built-in cAdvisor, which learns only from a containerd
//! which pod a cgroup belongs to. Three calls, nothing that changes anything.
//!
//! cAdvisor asks once for each cgroup with an id in its name, as soon as the kernel shows it: about
//! a leaf that is still being filled as well. What it is refused then, it never asks
//! for again; only for the pid does it try some more times, for three seconds.
//!
//! Of containers cAdvisor counts no traffic. It counts a pod's by a process of a container whose
//! label says that it is a sandbox, which here is the pod's own process in a leaf named by the pod's id.

use std::collections::HashMap;
use std::sync::Arc;

use criw_proto::containerd::containers::containers_server::{Containers, ContainersServer};
use criw_proto::containerd::containers::{Container, GetContainerRequest, GetContainerResponse};
use criw_proto::containerd::tasks::tasks_server::{Tasks, TasksServer};
use criw_proto::containerd::tasks::{self as task, GetRequest, GetResponse, Process};
use criw_proto::containerd::version::VersionResponse;
use criw_proto::containerd::version::version_server::{Version, VersionServer};
use criw_sandbox::{ContainerState, Owner};
use serde_json::json;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait};

use crate::convert::status::labels_map;
use crate::daemon::Daemon;

/// The label by which cAdvisor tells a pod from its containers.
const KIND: &str = "io.cri-containerd.kind";

/// What stands for the image of a pod's own process: the program that it is. Dashboards leave out
/// what has no image.
const POD_IMAGE: &str = "criw-init";

/// What containerd calls the type of the specs in its answers.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

#[derive(Clone)]
struct Cadvisor(Arc<Daemon>);

/// Serves until the daemon ends.
pub async fn serve(daemon: Arc<Daemon>, listener: UnixListener) {
    let mut ending = daemon.ending.clone();
    let service = Cadvisor(daemon);
    let served = tonic::transport::Server::builder()
        .add_service(ContainersServer::new(service.clone()))
        .add_service(TasksServer::new(service.clone()))
        .add_service(VersionServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            let _ = ending.wait_for(|ending| *ending).await;
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "serve cAdvisor");
    }
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("no pod or container of criw has the id {id:?}"))
}

#[async_trait]
impl Containers for Cadvisor {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        let id = request.into_inner().id;
        let owner = self.0.sandboxes.owner(&id).ok_or_else(|| unknown(&id))?;
        let container = Some(container(id, &owner));
        Ok(Response::new(GetContainerResponse { container }))
    }
}

#[async_trait]
impl Tasks for Cadvisor {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let id = request.into_inner().container_id;
        let owner = self.0.sandboxes.owner(&id).ok_or_else(|| unknown(&id))?;
        let process = process(&id, &owner).ok_or_else(|| {
            Status::not_found(format!("{id} has no process yet, or none any more"))
        })?;
        let process = Some(process);
        Ok(Response::new(GetResponse { process }))
    }
}

#[async_trait]
impl Version for Cadvisor {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(VersionResponse { version }))
    }
}

fn container(id: String, owner: &Owner) -> Container {
    let (mut labels, image, args, kind): (HashMap<_, _>, _, _, _) = match owner {
        Owner::Pod { spec, .. } => (labels_map(&spec.labels), POD_IMAGE, &[][..], "sandbox"),
        Owner::Container { spec, .. } => (
            labels_map(&spec.labels),
            &*spec.image.image,
            &spec.process.args[..],
            "container",
        ),
    };
    labels.insert(KIND.to_owned(), kind.to_owned());
    // It would look for labels in the environment; that holds secrets and is not for everybody
    // who may watch cgroups.
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"args": args, "cwd": "/", "env": []},
    });
    Container {
        id,
        labels,
        image: image.to_owned(),
        spec: Some(prost_types::Any {
            type_url: SPEC_TYPE.to_owned(),
            value: spec.to_string().into_bytes(),
        }),
    }
}

/// `None` while there is none: cAdvisor asks again.
fn process(id: &str, owner: &Owner) -> Option<Process> {
    let (pid, status, exit_status) = match owner {
        Owner::Pod { pid, .. } => ((*pid)?, task::Status::Running, 0),
        Owner::Container { state, .. } => match state {
            ContainerState::Creating => return None,
            ContainerState::Created { .. } => (state.pid()?, task::Status::Created, 0),
            ContainerState::Running { .. } => (state.pid()?, task::Status::Running, 0),
            ContainerState::Exited { exit, .. } => (0, task::Status::Stopped, exit.code),
        },
    };
    Some(Process {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid: pid.unsigned_abs(),
        status: status.into(),
        exit_status: exit_status.unsigned_abs(),
    })
}
