//! Numbers of pods and containers.
use crate::convert::status::Filter;
use crate::daemon::Daemon;
use criw_proto::v1 as cri;
use criw_sandbox::{ContainerView, PodView};
use std::sync::Arc;
use tonic::Status;
pub async fn container(_: &Arc<Daemon>, _: &ContainerView) -> Result<cri::ContainerStats, Status> {
    Err(Status::unimplemented("x"))
}
pub async fn containers(_: &Arc<Daemon>, _: &Filter) -> Vec<cri::ContainerStats> {
    Vec::new()
}
pub async fn pod(_: &Arc<Daemon>, _: &PodView) -> Result<cri::PodSandboxStats, Status> {
    Err(Status::unimplemented("x"))
}
pub async fn pods(_: &Arc<Daemon>, _: &Filter) -> Vec<cri::PodSandboxStats> {
    Vec::new()
}
