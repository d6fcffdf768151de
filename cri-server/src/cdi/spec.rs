//! The form of a CDI spec (versions 0.3 to 1.0), and what each of its edits becomes.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use criw_sandbox::model::{DeviceNode, EditMount, Hook};
use serde::Deserialize;

use super::Found;

/// Bytes of a spec; real ones have some thousands.
const MAX_SPEC: u64 = 4 << 20;

/// The moments at which an OCI runtime runs hooks.
const MOMENTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(rename = "cdiVersion")]
    _version: String,
    pub(super) kind: String,
    devices: Vec<Device>,
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: ContainerEdits,
}

/// What a device, or all of a spec, change in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<NamedHook>,
    #[serde(alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
    net_devices: Vec<serde_json::Value>,
    intel_rdt: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    #[serde(default)]
    host_path: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    major: Option<i64>,
    #[serde(default)]
    minor: Option<i64>,
    #[serde(default)]
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedHook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    timeout: Option<i64>,
}

impl Spec {
    /// Reads a file; YAML, of which JSON is a part.
    pub(super) fn read(file: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let length = std::fs::metadata(file)?.len();
        if length > MAX_SPEC {
            return Err(format!("it has {length} bytes, more than {MAX_SPEC}").into());
        }
        Ok(serde_yaml_ng::from_slice(&std::fs::read(file)?)?)
    }

    pub(super) fn has(&self, device: &str) -> bool {
        self.devices.iter().any(|one| one.name == device)
    }

    pub(super) fn edits_of(&self, device: &str) -> impl Iterator<Item = &ContainerEdits> {
        let named = self.devices.iter().filter(move |one| one.name == device);
        named.map(|one| &one.container_edits)
    }
}

impl ContainerEdits {
    /// Adds these edits; the error says what of them is not possible.
    pub(super) fn apply(&self, found: &mut Found) -> Result<(), String> {
        if self.intel_rdt.is_some() {
            return Err("it asks for Intel RDT, which criw does not set up".to_owned());
        }
        if !self.net_devices.is_empty() {
            return Err(
                "it asks for network interfaces of the node, which criw does not move".to_owned(),
            );
        }
        for line in &self.env {
            let named = line.split_once('=').is_some_and(|(key, _)| !key.is_empty());
            if !named || line.contains('\0') {
                return Err(format!("{line:?} is no environment variable"));
            }
            found.env.push(line.clone());
        }
        for node in &self.device_nodes {
            found.edits.nodes.push(node.found()?);
        }
        for mount in &self.mounts {
            found.edits.mounts.push(mount.found()?);
        }
        for hook in &self.hooks {
            if !MOMENTS.contains(&hook.hook_name.as_str()) {
                return Err(format!("{:?} is no moment for a hook", hook.hook_name));
            }
            absolute("hook", &hook.path)?;
            let hooks = found.edits.hooks.entry(hook.hook_name.clone());
            hooks.or_default().push(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook.timeout,
            });
        }
        // Root's group gives nothing that a device could mean.
        let new = |gid: &&u32| **gid != 0;
        for gid in self.additional_gids.iter().filter(new) {
            if !found.gids.contains(gid) {
                found.gids.push(*gid);
            }
        }
        Ok(())
    }
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!("the path of its {what}, {path:?}, is not absolute"))
    }
}

impl Node {
    /// What the spec leaves out is as it is on the node.
    fn found(&self) -> Result<DeviceNode, String> {
        absolute("device node", &self.path)?;
        let permissions = self.permissions.clone().unwrap_or_else(|| "rwm".to_owned());
        if !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(format!("permissions {permissions:?} are not of \"rwm\""));
        }
        let mut node = DeviceNode {
            path: self.path.clone(),
            kind: self.kind.clone().unwrap_or_default(),
            major: self.major.unwrap_or_default(),
            minor: self.minor.unwrap_or_default(),
            mode: self.file_mode,
            uid: self.uid,
            gid: self.gid,
            permissions,
        };
        let known = node.kind == "p" || (self.major.is_some() && self.minor.is_some());
        if node.kind.is_empty() || !known {
            self.ask_the_node(&mut node)?;
        }
        if !["b", "c", "u", "p"].contains(&node.kind.as_str()) {
            return Err(format!("{:?} is no type of a device node", node.kind));
        }
        Ok(node)
    }

    fn ask_the_node(&self, node: &mut DeviceNode) -> Result<(), String> {
        let source = self.host_path.as_deref().unwrap_or(&self.path);
        let data =
            std::fs::metadata(source).map_err(|error| format!("device {source}: {error}"))?;
        let kind = match data.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            kind if kind.is_fifo() => "p",
            _ => return Err(format!("{source} is no device")),
        };
        if !node.kind.is_empty() && node.kind != kind {
            return Err(format!("{source} is of type {kind}, not {}", node.kind));
        }
        kind.clone_into(&mut node.kind);
        if kind != "p" {
            node.major = rustix::fs::major(data.rdev()).into();
            node.minor = rustix::fs::minor(data.rdev()).into();
        }
        node.mode = node.mode.or(Some(data.mode() & 0o7777));
        node.uid = node.uid.or(Some(data.uid()));
        node.gid = node.gid.or(Some(data.gid()));
        Ok(())
    }
}

impl Mount {
    fn found(&self) -> Result<EditMount, String> {
        absolute("mount point", &self.container_path)?;
        let is_bind = |option: &String| option == "bind" || option == "rbind";
        let kind = self.kind.clone().filter(|kind| !kind.is_empty());
        let kind = kind.unwrap_or_else(|| "bind".to_owned());
        let mut options = self.options.clone();
        if kind == "bind" {
            absolute("mount", &self.host_path)?;
            std::fs::symlink_metadata(&self.host_path)
                .map_err(|error| format!("mount of {}: {error}", self.host_path))?;
            if !options.iter().any(is_bind) {
                options.push("bind".to_owned());
            }
        }
        Ok(EditMount {
            container_path: self.container_path.clone(),
            host_path: self.host_path.clone(),
            kind,
            options,
        })
    }
}
