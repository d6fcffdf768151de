//! What pods and containers are asked for in tests: plain CRI messages with few words.

use std::path::Path;

use criw_proto::v1::*;

use crate::client::image_spec;

/// A pod's configuration; the cgroup parent and log directory are the machine's.
pub fn pod(name: &str, cgroup: &str, logs: &Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "tests".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.join(name).to_string_lossy().into_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "kept byte for byte: ä\t\"".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container's configuration with the image's own command.
pub fn container(name: &str, image: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(image_spec(image)),
        log_path: format!("{name}.log"),
        labels: [("container".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

/// The same with a command, which replaces entrypoint and arguments of the image.
pub fn command(name: &str, image: &str, argv: &[&str]) -> ContainerConfig {
    ContainerConfig {
        command: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        ..container(name, image)
    }
}

/// An environment variable.
pub fn env(key: &str, value: impl Into<Vec<u8>>) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

/// A volume.
pub fn mount(host: &Path, inside: &str, readonly: bool) -> Mount {
    Mount {
        container_path: inside.into(),
        host_path: host.to_string_lossy().into_owned(),
        readonly,
        ..Default::default()
    }
}

/// A memory limit in bytes, without swap.
pub fn memory(limit: i64) -> Option<LinuxContainerConfig> {
    Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: limit,
            ..Default::default()
        }),
        ..Default::default()
    })
}
