//! GetContainerEvents: news of pods and containers with their whole status.

use std::collections::HashMap;
use std::sync::Arc;

use criw_proto::v1 as cri;
use criw_sandbox::{ContainerId, Event, PodView, SandboxId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::convert::status::{container_status, pod_status};
use crate::daemon::Daemon;
use crate::runtime::now;

/// Messages that wait for one subscriber; behind them waits the news channel itself,
/// never the runtime.
const QUEUE: usize = 64;

/// Starts a stream that ends with the client or the daemon.
pub fn stream(daemon: &Arc<Daemon>) -> ReceiverStream<Result<cri::ContainerEventResponse, Status>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut news = daemon.sandboxes.subscribe();
    let mut known = Known::new(daemon);
    let daemon = daemon.clone();
    let mut ending = daemon.ending.clone();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = news.recv() => event,
                () = sender.closed() => return,
                _ = ending.wait_for(|ending| *ending) => return,
            };
            match event {
                Ok(event) => {
                    for message in known.messages(&daemon, &event) {
                        tokio::select! {
                            sent = sender.send(Ok(message)) => if sent.is_err() { return },
                            _ = ending.wait_for(|ending| *ending) => return,
                        }
                    }
                }
                Err(RecvError::Closed) => return,
                Err(RecvError::Lagged(lost)) => {
                    // The kubelet relists when a stream fails.
                    let text = format!("the subscriber was too slow, {lost} events are lost");
                    let _ = sender.try_send(Err(Status::unavailable(text)));
                    return;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// What one subscriber has seen: an event about something that is gone still tells
/// whose it was, because the kubelet drops events without a pod.
struct Known {
    pods: HashMap<SandboxId, PodView>,
    owner: HashMap<ContainerId, SandboxId>,
}

impl Known {
    fn new(daemon: &Daemon) -> Self {
        let pods = daemon.sandboxes.pods().into_iter();
        let containers = daemon.sandboxes.containers().into_iter();
        Self {
            pods: pods.map(|pod| (pod.id.clone(), pod)).collect(),
            owner: containers.map(|c| (c.id, c.sandbox)).collect(),
        }
    }

    fn messages(&mut self, daemon: &Daemon, event: &Event) -> Vec<cri::ContainerEventResponse> {
        use cri::ContainerEventType as Type;
        let (kinds, container) = match event {
            Event::PodReady(_) => (
                &[Type::ContainerCreatedEvent, Type::ContainerStartedEvent][..],
                None,
            ),
            Event::PodStopped(_) => (&[Type::ContainerStoppedEvent][..], None),
            Event::PodRemoved(_) => (&[Type::ContainerDeletedEvent][..], None),
            Event::Created(id) => (&[Type::ContainerCreatedEvent][..], Some(id)),
            Event::Started(id) => (&[Type::ContainerStartedEvent][..], Some(id)),
            Event::Stopped(id) => (&[Type::ContainerStoppedEvent][..], Some(id)),
            Event::Removed(id) => (&[Type::ContainerDeletedEvent][..], Some(id)),
        };
        let containers = daemon.sandboxes.containers();
        for container in &containers {
            self.owner
                .insert(container.id.clone(), container.sandbox.clone());
        }
        let (subject, pod_id) = match (event, container) {
            (_, Some(id)) => (id.to_string(), self.owner.get(id).cloned()),
            (Event::PodReady(id) | Event::PodStopped(id) | Event::PodRemoved(id), None) => {
                (id.to_string(), Some(id.clone()))
            }
            (_, None) => return Vec::new(),
        };
        let Some(pod_id) = pod_id else {
            return Vec::new();
        };
        if let Ok(Some(pod)) = daemon.sandboxes.find_pod(pod_id.as_str()) {
            self.pods.insert(pod_id.clone(), pod);
        }
        let message = |kind: Type| cri::ContainerEventResponse {
            container_id: subject.clone(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: self.pods.get(&pod_id).map(pod_status),
            containers_statuses: containers
                .iter()
                .filter(|container| container.sandbox == pod_id)
                .map(container_status)
                .collect(),
        };
        let messages = kinds.iter().map(|kind| message(*kind)).collect();
        match event {
            Event::PodRemoved(id) => {
                self.pods.remove(id);
                self.owner.retain(|_, owner| owner != id);
            }
            Event::Removed(id) => {
                self.owner.remove(id);
            }
            _ => {}
        }
        messages
    }
}
