//! Records: one directory per pod and container under the lasting root, one
//! versioned JSON file in each, replaced by temporary file and rename.
//!
//! There is no fsync on a pod's path: kill -9 of the daemon loses nothing,
//! because the page cache outlives the process; and after a power cut no process
//! of the old boot is alive, so what a lost record would have said is void.
//!
//! ```text
//!   <root>/pods/<id>/record.json
//!   <root>/containers/<id>/record.json
//!   <root>/containers/<id>/exit.json      written by the shim
//!   <root>/containers/<id>/upper, work    writable layer
//!   <root>/damaged/<id>-<n>               records that nobody could read
//! ```

use std::collections::HashSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criw_net::Attachment;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::container_state::{ContainerState, ProcessIdentity};
use crate::error::{Error, Result};
use crate::id::{ContainerId, SandboxId};
use crate::model::{ContainerSpec, PodSpec, Resources, SelinuxLabels};

/// Format of the records. A newer one is left alone and reported.
pub const VERSION: u32 = 1;

/// Bytes of a record that are read at most (a CRI request is at most 16 MiB).
const MAX_RECORD: u64 = 64 * 1024 * 1024;

const FILE: &str = "record.json";

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodPhase {
    /// RunPodSandbox has not answered; not listed; a crash here means tear-down.
    Creating,
    /// READY.
    Ready,
    /// NOTREADY; there is no way back.
    NotReady,
}

/// All that is known of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Boot in which its namespaces live.
    pub boot_id: String,
    /// Its id; equals the directory's name.
    pub id: SandboxId,
    /// As asked.
    pub spec: Arc<PodSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Present from before ADD until DEL has succeeded.
    pub attachment: Option<Attachment>,
    /// Its own process: the init of a shared PID namespace, or one for cAdvisor to look at.
    pub init: Option<ProcessIdentity>,
    /// Leaf of that process, when it is to have one.
    #[serde(default)]
    pub init_leaf: Option<LeafName>,
    /// Why it is not ready.
    #[serde(default)]
    pub message: String,
    /// Its SELinux labels, on a node that has SELinux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<SelinuxLabels>,
}

/// Name of a cgroup leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafName {
    /// As the kubelet names it, or our own default.
    pub parent: String,
    /// Below it.
    pub name: String,
}

/// All that is known of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Boot in which its processes live.
    pub boot_id: String,
    /// Its id; equals the directory's name.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox: SandboxId,
    /// As asked.
    pub spec: Arc<ContainerSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Leaf that its processes are in; for Wasm the shim itself.
    pub leaf: LeafName,
    /// Leaf of a shim that is not the container (runc).
    pub shim_leaf: Option<LeafName>,
    /// We are about to send, or have sent, SIGKILL: an exit without a record is our doing.
    #[serde(default)]
    pub killed_by_us: bool,
    /// As of the last successful update.
    pub resources: Resources,
    /// Joined log path.
    pub log_path: Option<PathBuf>,
}

/// What both kinds share.
pub trait Record: Serialize + DeserializeOwned {
    /// Directory below the root.
    const KIND: &'static str;
    /// Name of its own directory.
    fn key(&self) -> &str;
    /// Format that it was written in.
    fn version(&self) -> u32;
}

impl Record for PodRecord {
    const KIND: &'static str = "pods";
    fn key(&self) -> &str {
        self.id.as_str()
    }
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for ContainerRecord {
    const KIND: &'static str = "containers";
    fn key(&self) -> &str {
        self.id.as_str()
    }
    fn version(&self) -> u32 {
        self.version
    }
}

/// Directory of one record.
pub fn directory<R: Record>(root: &Path, key: &str) -> PathBuf {
    root.join(R::KIND).join(key)
}

/// Writes a record; the file is the old or the new one, never half of either.
pub fn write<R: Record>(root: &Path, record: &R) -> Result<()> {
    let directory = directory::<R>(root, record.key());
    let failed = |source: std::io::Error| {
        Error::node(format!("write record {}", directory.display()), source)
    };
    let json = serde_json::to_vec(record)
        .map_err(|e| Error::node(format!("encode record {}", directory.display()), e))?;
    fs::create_dir_all(&directory).map_err(failed)?;
    let temporary = directory.join("record.json.new");
    let result = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(&json))
        .and_then(|()| fs::rename(&temporary, directory.join(FILE)));
    if result.is_err() {
        // A full disk must not leave a stump behind; the old record still stands.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(failed)
}

/// Removes a record's directory with all in it; absent is fine. The record file goes
/// first, so that a crash in between leaves a directory that is swept at start.
pub fn remove<R: Record>(root: &Path, key: &str) -> Result<()> {
    let directory = directory::<R>(root, key);
    let failed = |source: std::io::Error| {
        Error::node(format!("remove record {}", directory.display()), source)
    };
    match fs::remove_file(directory.join(FILE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    match fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Reads every record of one kind. A directory without a record is removed (a
/// removal or creation was cut short); an unreadable record is moved to `damaged`,
/// reported, and costs nobody else anything.
pub fn read_all<R: Record>(root: &Path) -> Result<Vec<R>> {
    let parent = root.join(R::KIND);
    let failed =
        |source: std::io::Error| Error::node(format!("read records {}", parent.display()), source);
    fs::create_dir_all(&parent).map_err(failed)?;
    let mut records = Vec::new();
    for entry in fs::read_dir(&parent).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let directory = entry.path();
        let name = entry.file_name();
        match read_one::<R>(&directory) {
            Ok(Some(record)) if name.to_str() == Some(record.key()) => records.push(record),
            Ok(None) => {
                tracing::info!(directory = %directory.display(), "remove directory without a record");
                let _ = fs::remove_dir_all(&directory);
            }
            Ok(Some(record)) => set_aside(
                root,
                &directory,
                &format!("it names {} inside", record.key()),
            ),
            Err(why) => set_aside(root, &directory, &why),
        }
    }
    Ok(records)
}

fn read_one<R: Record>(directory: &Path) -> std::result::Result<Option<R>, String> {
    let mut json = Vec::new();
    match fs::File::open(directory.join(FILE)) {
        Ok(file) => {
            file.take(MAX_RECORD)
                .read_to_end(&mut json)
                .map_err(|e| e.to_string())?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    let record: R = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    if record.version() != VERSION {
        return Err(format!(
            "it has format {}, this daemon knows {VERSION}",
            record.version()
        ));
    }
    Ok(Some(record))
}

/// Ids whose records were set aside as unreadable.
pub fn damaged_ids(root: &Path) -> HashSet<String> {
    let Ok(entries) = fs::read_dir(root.join("damaged")) else {
        return HashSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let (id, _) = name.to_str()?.rsplit_once('-')?;
            Some(id.to_owned())
        })
        .collect()
}

fn set_aside(root: &Path, directory: &Path, why: &str) {
    let damaged = root.join("damaged");
    let _ = fs::create_dir_all(&damaged);
    let name = directory
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let target = (0..1000)
        .map(|n| damaged.join(format!("{name}-{n}")))
        .find(|t| !t.exists());
    let moved = target.is_some_and(|t| fs::rename(directory, t).is_ok());
    tracing::error!(
        directory = %directory.display(), why, moved,
        "cannot read a record; what it describes is taken down, the record is kept in `damaged`"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodRecord {
        let spec = serde_json::json!({
            "name": "p", "uid": "u", "namespace": "n", "attempt": 0, "hostname": "h",
            "log_directory": null, "dns": null, "ports": [], "labels": {"a": "b"},
            "annotations": {}, "handler": "", "cgroup_parent": null, "sysctls": {},
            "namespaces": {"network": "pod", "ipc": "pod", "pid": "container"},
            "privileged": false, "resources": null, "overhead": null
        });
        PodRecord {
            version: VERSION,
            boot_id: "b".into(),
            id: SandboxId::random(),
            spec: serde_json::from_value(spec).unwrap(),
            created_at: 1,
            phase: PodPhase::Ready,
            attachment: None,
            init: None,
            init_leaf: None,
            message: String::new(),
            labels: None,
        }
    }

    #[test]
    fn records_come_back_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let record = pod();
        write(root.path(), &record).unwrap();
        let back: Vec<PodRecord> = read_all(root.path()).unwrap();
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].spec, record.spec);
        remove::<PodRecord>(root.path(), record.key()).unwrap();
        remove::<PodRecord>(root.path(), record.key()).unwrap();
        assert!(read_all::<PodRecord>(root.path()).unwrap().is_empty());
    }

    #[test]
    fn one_unreadable_record_costs_that_record_only() {
        let root = tempfile::tempdir().unwrap();
        let good = pod();
        write(root.path(), &good).unwrap();
        let mut newer = pod();
        newer.version = VERSION + 1;
        write(root.path(), &newer).unwrap();
        let broken = root.path().join("pods").join(SandboxId::random().as_str());
        fs::create_dir_all(&broken).unwrap();
        fs::write(broken.join(FILE), b"{\"version\":1,").unwrap();
        let empty = root.path().join("pods").join(SandboxId::random().as_str());
        fs::create_dir_all(&empty).unwrap();
        let back: Vec<PodRecord> = read_all(root.path()).unwrap();
        assert_eq!(
            back.iter().map(|r| r.key()).collect::<Vec<_>>(),
            [good.key()]
        );
        assert_eq!(damaged_ids(root.path()).len(), 2);
        assert!(!empty.exists());
    }

    #[test]
    fn a_failed_write_keeps_the_old_record() {
        let root = tempfile::tempdir().unwrap();
        let mut record = pod();
        write(root.path(), &record).unwrap();
        // A directory in the way of the temporary file makes the write fail.
        let obstacle = directory::<PodRecord>(root.path(), record.key()).join("record.json.new");
        fs::create_dir(&obstacle).unwrap();
        record.created_at = 2;
        assert!(write(root.path(), &record).is_err());
        let back: Vec<PodRecord> = read_all(root.path()).unwrap();
        assert_eq!(back[0].created_at, 1);
    }
}
