//! Views of pods and containers as CRI status and list items, and the filters of lists.

use std::collections::HashMap;

use criw_proto::v1 as cri;
use criw_sandbox::model::{Map, Scope};
use criw_sandbox::{ContainerState, ContainerView, PodView};

use super::mounts::mount_status;
use super::pod::namespace_options;
use super::resources::resources_status;
use super::signal;

/// As messages carry it.
pub fn labels_map(map: &Map) -> HashMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Name, uid, namespace, attempt.
pub fn pod_metadata(pod: &PodView) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: pod.spec.name.clone(),
        uid: pod.spec.uid.clone(),
        namespace: pod.spec.namespace.clone(),
        attempt: pod.spec.attempt,
    }
}

/// READY or NOTREADY.
pub fn pod_state(pod: &PodView) -> i32 {
    if pod.ready {
        cri::PodSandboxState::SandboxReady as i32
    } else {
        cri::PodSandboxState::SandboxNotready as i32
    }
}

/// A line of ListPodSandbox.
pub fn pod_item(pod: &PodView) -> cri::PodSandbox {
    cri::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod),
        created_at: pod.created_at,
        labels: labels_map(&pod.spec.labels),
        annotations: labels_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// PodSandboxStatus. Addresses on the node's network are the kubelet's business: empty.
pub fn pod_status(pod: &PodView) -> cri::PodSandboxStatus {
    let mut ips = match pod.spec.namespaces.network {
        Scope::Pod => pod.ips.as_slice(),
        Scope::Node => &[],
    }
    .iter()
    .map(ToString::to_string);
    cri::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod),
        created_at: pod.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(namespace_options(
                    &pod.spec.namespaces,
                    pod.spec.user_namespace,
                )),
            }),
        }),
        labels: labels_map(&pod.spec.labels),
        annotations: labels_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// CREATED, RUNNING or EXITED.
pub fn container_state(container: &ContainerView) -> i32 {
    match container.state {
        ContainerState::Creating | ContainerState::Created { .. } => {
            cri::ContainerState::ContainerCreated as i32
        }
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning as i32,
        ContainerState::Exited { .. } => cri::ContainerState::ContainerExited as i32,
    }
}

/// Name and attempt.
pub fn container_metadata(container: &ContainerView) -> cri::ContainerMetadata {
    cri::ContainerMetadata {
        name: container.spec.name.clone(),
        attempt: container.spec.attempt,
    }
}

fn image_spec(container: &ContainerView) -> cri::ImageSpec {
    let image = &container.spec.image;
    cri::ImageSpec {
        image: image.image.clone(),
        annotations: labels_map(&image.annotations),
        user_specified_image: image.user_specified.clone(),
        ..cri::ImageSpec::default()
    }
}

/// A line of ListContainers.
pub fn container_item(container: &ContainerView) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.to_string(),
        metadata: Some(container_metadata(container)),
        image: Some(image_spec(container)),
        image_ref: container.spec.image.image_ref.clone(),
        state: container_state(container),
        created_at: container.created_at,
        labels: labels_map(&container.spec.labels),
        annotations: labels_map(&container.spec.annotations),
        image_id: container.spec.image.image_id.clone(),
    }
}

/// ContainerStatus.
pub fn container_status(container: &ContainerView) -> cri::ContainerStatus {
    let spec = &container.spec;
    let (started_at, exit) = match &container.state {
        ContainerState::Creating | ContainerState::Created { .. } => (0, None),
        ContainerState::Running { started_at, .. } => (*started_at, None),
        // What failed to start never began: that would be shown as "Started: 1970".
        ContainerState::Exited {
            started_at: 0,
            exit,
        } => (exit.finished_at, Some(exit)),
        ContainerState::Exited { started_at, exit } => (*started_at, Some(exit)),
    };
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(container),
        created_at: container.created_at,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image_spec(container)),
        image_ref: spec.image.image_ref.clone(),
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: labels_map(&spec.labels),
        annotations: labels_map(&spec.annotations),
        mounts: spec.mounts.iter().map(mount_status).collect(),
        log_path: container
            .log_path
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(resources_status(&container.resources)),
            windows: None,
        }),
        image_id: spec.image.image_id.clone(),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: spec.process.uid.into(),
                gid: spec.process.gid.into(),
                supplemental_groups: spec.process.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: signal::to_enum(spec.stop_signal),
    }
}

/// Conditions that must all hold; each filter message of CRI becomes one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Id or prefix, "" = any.
    pub id: String,
    /// Of containers only: pod id or prefix, "" = any.
    pub pod: String,
    /// The state's number.
    pub state: Option<i32>,
    /// Equalities.
    pub labels: HashMap<String, String>,
}

impl Filter {
    /// Whether a pod fits.
    pub fn fits_pod(&self, pod: &PodView) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == pod_state(pod))
            && self.fits_labels(&pod.spec.labels)
    }

    /// Whether a container fits.
    pub fn fits_container(&self, container: &ContainerView) -> bool {
        container.id.as_str().starts_with(&self.id)
            && container.sandbox.as_str().starts_with(&self.pod)
            && self
                .state
                .is_none_or(|state| state == container_state(container))
            && self.fits_labels(&container.spec.labels)
    }

    fn fits_labels(&self, labels: &Map) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl From<Option<cri::PodSandboxFilter>> for Filter {
    fn from(filter: Option<cri::PodSandboxFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self {
            id: filter.id,
            pod: String::new(),
            state: filter.state.map(|state| state.state),
            labels: filter.label_selector,
        }
    }
}

impl From<Option<cri::ContainerFilter>> for Filter {
    fn from(filter: Option<cri::ContainerFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self {
            id: filter.id,
            pod: filter.pod_sandbox_id,
            state: filter.state.map(|state| state.state),
            labels: filter.label_selector,
        }
    }
}

impl From<Option<cri::ContainerStatsFilter>> for Filter {
    fn from(filter: Option<cri::ContainerStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self {
            id: filter.id,
            pod: filter.pod_sandbox_id,
            state: None,
            labels: filter.label_selector,
        }
    }
}

impl From<Option<cri::PodSandboxStatsFilter>> for Filter {
    fn from(filter: Option<cri::PodSandboxStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self {
            id: filter.id,
            pod: String::new(),
            state: None,
            labels: filter.label_selector,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use criw_sandbox::model::{
        ContainerSpec, EngineSpec, ImageNames, Mount, NamespaceModes, PidMode, PodSpec, Process,
        Resources,
    };
    use criw_sandbox::{ContainerId, Exit, ProcessIdentity, SandboxId};

    use super::*;

    fn id<T: TryFrom<String>>(digit: &str) -> T
    where
        T::Error: std::fmt::Debug,
    {
        T::try_from(digit.repeat(64)).unwrap()
    }

    fn labels() -> Map {
        [("app", "web"), ("tier", "front")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    fn pod(network: Scope) -> PodView {
        PodView {
            id: id::<SandboxId>("a"),
            spec: Arc::new(PodSpec {
                name: "web".into(),
                uid: "u".into(),
                namespace: "ns".into(),
                attempt: 1,
                hostname: String::new(),
                log_directory: None,
                dns: None,
                ports: Vec::new(),
                labels: labels(),
                annotations: Map::new(),
                handler: "wasm".into(),
                cgroup_parent: None,
                sysctls: Map::new(),
                namespaces: NamespaceModes {
                    network,
                    ipc: Scope::Pod,
                    pid: PidMode::Container,
                },
                user_namespace: None,
                privileged: false,
                selinux: None,
                resources: None,
                overhead: None,
            }),
            created_at: 5,
            ready: true,
            ips: ["10.0.0.2", "fd00::2"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            netns: None,
            pid: None,
            message: String::new(),
        }
    }

    fn container(state: ContainerState) -> ContainerView {
        ContainerView {
            id: id::<ContainerId>("b"),
            sandbox: id::<SandboxId>("a"),
            spec: Arc::new(ContainerSpec {
                name: "main".into(),
                attempt: 3,
                labels: labels(),
                annotations: Map::new(),
                image: ImageNames {
                    image: "docker.io/library/x:1".into(),
                    user_specified: "x:1".into(),
                    annotations: Map::new(),
                    image_ref: "docker.io/library/x@sha256:1".into(),
                    image_id: "sha256:2".into(),
                },
                log_path: None,
                stdin: false,
                stdin_once: false,
                tty: false,
                stop_signal: 3,
                process: Process {
                    uid: 1000,
                    gid: 5,
                    groups: vec![5, 6],
                    ..Process::default()
                },
                mounts: vec![Mount {
                    container_path: "/data".into(),
                    host_path: "/srv".into(),
                    ..Mount::default()
                }],
                devices: Vec::new(),
                edits: Default::default(),
                resources: Resources::default(),
                privileged: false,
                readonly_rootfs: false,
                masked_paths: Vec::new(),
                readonly_paths: Vec::new(),
                pid: PidMode::Container,
                lowers: Vec::new(),
                engine: EngineSpec::Runc,
            }),
            created_at: 10,
            state,
            log_path: Some("/logs/main/3.log".into()),
            pid: None,
            resources: Resources {
                memory_limit: 77,
                ..Resources::default()
            },
            bundle: "/bundle".into(),
        }
    }

    fn states() -> [(ContainerState, i32); 3] {
        let shim = ProcessIdentity {
            pid: 1,
            start_time: 2,
        };
        [
            (ContainerState::Created { shim, pid: None }, 0),
            (
                ContainerState::Running {
                    shim,
                    pid: None,
                    started_at: 20,
                },
                1,
            ),
            (
                ContainerState::Exited {
                    started_at: 20,
                    exit: Exit {
                        code: 137,
                        reason: "OOMKilled".into(),
                        message: "m".into(),
                        finished_at: 30,
                    },
                },
                2,
            ),
        ]
    }

    #[test]
    fn what_the_kubelet_dereferences_is_there() {
        for (state, number) in states() {
            let status = container_status(&container(state));
            assert_eq!(status.state, number);
            assert_eq!(status.started_at, if number == 0 { 0 } else { 20 });
            let exited = number == 2;
            assert_eq!(status.finished_at, if exited { 30 } else { 0 });
            assert_eq!(status.exit_code, if exited { 137 } else { 0 });
            assert_eq!(status.reason, if exited { "OOMKilled" } else { "" });
            assert_eq!(status.image.unwrap().image, "docker.io/library/x:1");
            assert_eq!(status.image_ref, "docker.io/library/x@sha256:1");
            assert_eq!(status.image_id, "sha256:2");
            assert_eq!(status.mounts.len(), 1);
            assert_eq!(status.log_path, "/logs/main/3.log");
            assert_eq!(status.stop_signal, cri::Signal::Sigquit as i32);
            let limits = status.resources.unwrap().linux.unwrap();
            assert_eq!(limits.memory_limit_in_bytes, 77);
            let user = status.user.unwrap().linux.unwrap();
            assert_eq!(
                (user.uid, user.gid, user.supplemental_groups),
                (1000, 5, vec![5, 6])
            );
        }
    }

    #[test]
    fn addresses_are_shown_for_the_pod_network_only() {
        let status = pod_status(&pod(Scope::Pod));
        let network = status.network.unwrap();
        assert_eq!(network.ip, "10.0.0.2");
        assert_eq!(network.additional_ips[0].ip, "fd00::2");
        let network = pod_status(&pod(Scope::Node)).network.unwrap();
        assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("", 0));
    }

    #[test]
    fn filters_are_anded() {
        let label = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let filter = |id: &str, pod: &str, state, labels| Filter {
            id: id.to_owned(),
            pod: pod.to_owned(),
            state,
            labels,
        };
        let view = container(states()[1].0.clone());
        for (filter, fits) in [
            (Filter::default(), true),
            (filter("bbb", "", None, label(&[])), true),
            (filter("bbb", "aa", Some(1), label(&[("app", "web")])), true),
            (filter("abc", "", None, label(&[])), false),
            (filter("", "b", None, label(&[])), false),
            (filter("", "", Some(0), label(&[])), false),
            (
                filter("", "", None, label(&[("app", "web"), ("tier", "back")])),
                false,
            ),
            (filter("", "", None, label(&[("none", "")])), false),
        ] {
            assert_eq!(filter.fits_container(&view), fits, "{filter:?}");
        }
        // A present state wrapper with value 0 means READY, an absent one anything.
        let ready: Filter = Some(cri::PodSandboxFilter {
            state: Some(cri::PodSandboxStateValue { state: 0 }),
            ..Default::default()
        })
        .into();
        let mut stopped = pod(Scope::Pod);
        stopped.ready = false;
        assert!(ready.fits_pod(&pod(Scope::Pod)));
        assert!(!ready.fits_pod(&stopped));
        assert!(Filter::from(None::<cri::PodSandboxFilter>).fits_pod(&stopped));
    }
}
