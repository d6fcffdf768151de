//! Cgroups of containers by plain file operations: cgroup v1, v2, and the hybrid
//! of both. A container has one leaf, `<parent>/<container id>`, in every
//! hierarchy; that leaf is its identity on the node.
//!
//! What differs between the versions is in [`v1`] and [`v2`], as pure functions
//! from resources to writes and from files to numbers.

mod end;
mod v1;
mod v2;
mod write;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(super) use self::v2::cpu_weight;
use self::write::{Undo, Write};
use super::{Context, template};
use crate::error::{Error, Result};
use crate::model::Resources;

const CGROUP_MAGIC: i64 = 0x0027_e0eb;
/// `f_type` of cgroup v2.
pub(super) const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// What the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Controllers in v1 hierarchies only.
    V1,
    /// Controllers in v1 hierarchies, and a v2 tree beside them.
    Hybrid,
    /// One v2 tree.
    V2,
}

/// The cgroup hierarchies of the node. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Arc<Layout>,
}

#[derive(Debug)]
struct Layout {
    /// v1 hierarchies; empty with v2.
    v1: Vec<Hierarchy>,
    /// The v2 tree.
    v2: Option<PathBuf>,
    /// Whether v1 memory accounts swap.
    memsw: bool,
}

#[derive(Debug)]
struct Hierarchy {
    root: PathBuf,
    controllers: Vec<String>,
}

/// Which leaf, as records keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafId {
    /// Absolute, below the root of every hierarchy.
    pub parent: String,
    /// One path component.
    pub name: String,
}

/// The cgroup of one container; it need not exist.
#[derive(Debug, Clone)]
pub struct Leaf {
    cgroups: Cgroups,
    id: LeafId,
}

/// What a leaf has used. Bytes and nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupUsage {
    /// CPU time of all its processes, ever.
    pub cpu_usage_ns: u64,
    /// Memory charged to it.
    pub memory_usage: u64,
    /// Usage without inactive file pages: what eviction looks at.
    pub memory_working_set: u64,
    /// Anonymous memory.
    pub memory_rss: u64,
    /// Its limit, if it has one.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read from disk.
    pub major_page_faults: u64,
    /// Swap used; `None` when the kernel does not account it.
    pub swap_usage: Option<u64>,
    /// Processes in it now.
    pub processes: u64,
}

impl Cgroups {
    /// Finds the hierarchies mounted at (usually) `/sys/fs/cgroup`.
    pub fn detect(mount: &Path) -> Result<Self> {
        if file_system(mount)? == Some(CGROUP2_MAGIC) {
            return Ok(Self::new(Vec::new(), Some(mount.to_owned())));
        }
        let mut v1 = Vec::new();
        let mut v2 = None;
        let entries = fs::read_dir(mount).context(|| format!("list {}", mount.display()))?;
        for entry in entries {
            let entry = entry.context(|| format!("list {}", mount.display()))?;
            // Beside `cpu,cpuacct` there are links `cpu` and `cpuacct` to it.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let root = entry.path();
            match file_system(&root)? {
                Some(CGROUP2_MAGIC) => v2 = Some(root),
                Some(CGROUP_MAGIC) => {
                    let name = entry.file_name();
                    let name = name.to_string_lossy();
                    let controllers = name.split(',').map(str::to_owned);
                    v1.push(Hierarchy {
                        controllers: controllers.collect(),
                        root,
                    });
                }
                _ => {}
            }
        }
        if v1.is_empty() && v2.is_none() {
            return Err(Error::Unavailable(format!(
                "no cgroup hierarchy is mounted at or below {}: mount cgroup2 there",
                mount.display()
            )));
        }
        // One fixed order, whatever the directory says.
        v1.sort_by(|a, b| a.root.cmp(&b.root));
        Ok(Self::new(v1, v2))
    }

    fn new(v1: Vec<Hierarchy>, v2: Option<PathBuf>) -> Self {
        let memsw = v1.iter().any(|hierarchy| {
            hierarchy.has("memory") && hierarchy.root.join(v1::MEMSW_LIMIT).exists()
        });
        Self {
            layout: Arc::new(Layout { v1, v2, memsw }),
        }
    }

    /// What the node has.
    pub fn version(&self) -> Version {
        match (self.layout.v1.is_empty(), &self.layout.v2) {
            (true, _) => Version::V2,
            (false, Some(_)) => Version::Hybrid,
            (false, None) => Version::V1,
        }
    }

    /// The leaf `name` below a parent as the kubelet names it.
    pub fn leaf(&self, parent: &str, name: &str) -> Result<Leaf> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::Invalid(format!("{name:?} cannot name a cgroup")));
        }
        Ok(Leaf {
            cgroups: self.clone(),
            id: LeafId {
                parent: normal_parent(parent)?,
                name: name.to_owned(),
            },
        })
    }

    /// Names below a parent, in whichever hierarchy.
    pub fn children(&self, parent: &str) -> Result<Vec<String>> {
        let parent = normal_parent(parent)?;
        let mut names = std::collections::BTreeSet::new();
        for root in self.roots() {
            for child in write::sub_groups(&below(root, &parent))? {
                names.insert(child);
            }
        }
        Ok(names.into_iter().collect())
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.layout.v1.iter().map(|hierarchy| &hierarchy.root);
        v1.chain(&self.layout.v2).map(PathBuf::as_path)
    }

    fn v1_root(&self, controller: &str) -> Option<&Path> {
        let mut hierarchies = self.layout.v1.iter();
        hierarchies
            .find(|hierarchy| hierarchy.has(controller))
            .map(|hierarchy| hierarchy.root.as_path())
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

impl Leaf {
    /// As it stands in records.
    pub fn id(&self) -> &LeafId {
        &self.id
    }

    /// Path below the root of each hierarchy, as OCI's `cgroupsPath` has it.
    pub fn path(&self) -> String {
        format!("{}/{}", self.id.parent.trim_end_matches('/'), self.id.name)
    }

    /// Its directory in each hierarchy: what a shim joins.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let path = self.path();
        let roots = self.cgroups.roots();
        roots.map(|root| below(root, &path)).collect()
    }

    /// Makes it in every hierarchy, parents included, and applies `resources`. On
    /// failure nothing of the leaf is left.
    pub fn create(&self, resources: &Resources) -> Result<()> {
        let made = self
            .make_directories(resources)
            .and_then(|()| self.write(resources, Undo::No));
        if made.is_err() {
            self.remove(std::time::Duration::from_millis(100))?;
        }
        made
    }

    /// Changes the limits of an existing leaf: all of them, or on failure none.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        self.write(resources, Undo::Yes)
    }

    /// Whether any hierarchy has it.
    pub fn exists(&self) -> bool {
        self.dirs().iter().any(|directory| directory.exists())
    }

    /// Pids in it and below, in whichever hierarchy.
    pub fn procs(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.dirs() {
            write::processes_below(&directory, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Processes that the kernel's out-of-memory killer ended in it; 0 when the
    /// leaf is gone.
    pub fn oom_kills(&self) -> Result<u64> {
        let (file, key) = match self.v1_directory("memory") {
            Some(directory) => (directory.join("memory.oom_control"), "oom_kill"),
            None => (self.v2_directory()?.join("memory.events"), "oom_kill"),
        };
        Ok(write::read_if_there(&file)?.map_or(0, |text| write::keyed(&text, key)))
    }

    /// Reads its counters.
    pub fn usage(&self) -> Result<CgroupUsage> {
        match self.cgroups.version() {
            Version::V2 => v2::usage(&self.v2_directory()?),
            Version::V1 | Version::Hybrid => {
                let directory = |controller| {
                    self.v1_directory(controller).ok_or_else(|| {
                        Error::Unavailable(format!(
                            "the node has no cgroup controller {controller}"
                        ))
                    })
                };
                v1::usage(&directory("cpuacct")?, &directory("memory")?)
            }
        }
    }

    fn v1_directory(&self, controller: &str) -> Option<PathBuf> {
        let root = self.cgroups.v1_root(controller)?;
        Some(below(root, &self.path()))
    }

    fn v2_directory(&self) -> Result<PathBuf> {
        let root = self.cgroups.layout.v2.as_deref().ok_or_else(|| {
            Error::Unavailable("the node has neither this controller nor cgroup v2".into())
        })?;
        Ok(below(root, &self.path()))
    }

    fn make_directories(&self, resources: &Resources) -> Result<()> {
        let path = self.path();
        for hierarchy in &self.cgroups.layout.v1 {
            let directory = below(&hierarchy.root, &path);
            make_directory(&directory)?;
            if hierarchy.has("cpuset") {
                v1::inherit_cpuset(&hierarchy.root, &directory)?;
            }
        }
        if let Some(root) = &self.cgroups.layout.v2 {
            let directory = below(root, &path);
            make_directory(&directory)?;
            // In a hybrid the tree has hugetlb at most.
            let wants_controllers = self.cgroups.version() == Version::V2
                || resources
                    .hugepage_limits
                    .iter()
                    .any(|(_, limit)| *limit > 0);
            if wants_controllers {
                v2::enable_controllers(root, &directory)?;
            }
        }
        Ok(())
    }

    fn write(&self, resources: &Resources, undo: Undo) -> Result<()> {
        let mut writes = Vec::new();
        if self.cgroups.version() == Version::V2 {
            let directory = self.v2_directory()?;
            if undo == Undo::Yes {
                v2::refuse_limit_below_usage(&directory, resources)?;
            }
            for (file, value) in v2::plan(resources)? {
                // Without swap accounting there is nothing to limit.
                if file == v2::SWAP_MAX && !directory.join(&file).exists() {
                    continue;
                }
                writes.push(Write::new(directory.join(file), value));
            }
        } else {
            let current = match (undo, self.v1_directory("memory"), self.v1_directory("cpu")) {
                (Undo::Yes, Some(memory), Some(cpu)) => {
                    v1::Current::read(&memory, &cpu, self.cgroups.layout.memsw)?
                }
                _ => v1::Current::fresh(self.cgroups.layout.memsw),
            };
            for (controller, file, value) in v1::plan(resources, &current)? {
                let directory = self.v1_directory(controller).ok_or_else(|| {
                    Error::Invalid(format!(
                        "cannot set {file}: the node has no cgroup controller {controller}"
                    ))
                });
                let path = match (directory, controller) {
                    (Ok(directory), _) => directory.join(file),
                    (Err(_), "hugetlb") if self.cgroups.layout.v2.is_some() => self
                        .v2_directory()?
                        .join(file.replace("limit_in_bytes", "max")),
                    (Err(error), _) => return Err(error),
                };
                writes.push(Write::new(path, value));
            }
        }
        write::all(&writes, undo)
    }
}

/// `/a/b` below a root.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Absolute, without `.`, `..` or empty components.
fn normal_parent(parent: &str) -> Result<String> {
    if parent.ends_with(".slice") {
        return Err(Error::Invalid(format!(
            "cgroup parent {parent} is a systemd slice, but this daemon drives cgroups by cgroupfs: \
             set the kubelet's cgroupDriver to cgroupfs"
        )));
    }
    let mut normal = String::with_capacity(parent.len() + 1);
    for component in parent.split('/').filter(|component| !component.is_empty()) {
        if component == "." || component == ".." || component.contains('\0') {
            return Err(Error::Invalid(format!(
                "cgroup parent {parent:?} has a component {component:?}"
            )));
        }
        normal.push('/');
        normal.push_str(component);
    }
    Ok(normal)
}

fn make_directory(directory: &Path) -> Result<()> {
    let made = rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755));
    let made = match made {
        Err(Errno::NOENT) => fs::create_dir_all(directory),
        Err(Errno::EXIST) => Ok(()),
        other => other.map_err(Into::into),
    };
    made.context(|| format!("create cgroup {}", directory.display()))
}

/// `f_type` of what is at a path.
fn file_system(path: &Path) -> Result<Option<i64>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(error) if std::io::Error::from(error).kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::node(
                format!("open {}", path.display()),
                std::io::Error::from(error),
            ));
        }
    };
    for magic in [CGROUP2_MAGIC, CGROUP_MAGIC] {
        if template::is_on(file.as_fd(), magic)? {
            return Ok(Some(magic));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
