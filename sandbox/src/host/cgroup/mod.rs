//! Cgroups of containers: cgroup v1, v2, and the hybrid of both. A container has one leaf
//! in every hierarchy; that leaf is its identity on the node.
//!
//! The name of the parent says who makes leaves below it. Below a path it is this daemon,
//! by plain file operations, and the leaf is `<parent>/<container id>` (the kubelet calls that
//! cgroupfs). Below a slice it is systemd, and the leaf is its scope
//! `criw-<container id>.scope`, whose limits systemd has to know too.
//!
//! What differs between the versions is in [`v1`] and [`v2`], as pure functions
//! from resources to writes and from files to numbers.

mod driver;
mod end;
mod holder;
mod leaf;
mod properties;
pub mod systemd;
mod v1;
mod v2;
mod write;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criw_engines::slice;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use self::driver::{Driver, beside, id_in, own_name, plain_name};
pub use self::holder::Holder;
pub use self::leaf::Leaf;
pub(super) use self::v2::cpu_weight;
use super::{Context, template};
use crate::error::{Error, Result};

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
    /// The program that holds scopes, `criw-init`.
    init: PathBuf,
    systemd: systemd::Manager,
}

#[derive(Debug)]
struct Hierarchy {
    root: PathBuf,
    controllers: Vec<String>,
}

/// A leaf in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// What the hierarchy controls, by the names of v1.
    pub controllers: Vec<String>,
}

/// Which leaf, as records keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafId {
    /// A slice of systemd, or absolute, below the root of every hierarchy.
    pub parent: String,
    /// One path component; of a scope when the parent is a slice.
    pub name: String,
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
    /// How much of its memory may be swapped out, if there is a limit of that.
    pub swap_limit: Option<u64>,
    /// Processes in it now.
    pub processes: u64,
}

impl Cgroups {
    /// Finds the hierarchies mounted at (usually) `/sys/fs/cgroup`. `init` is the program
    /// that holds scopes of systemd, `criw-init`.
    pub fn detect(mount: &Path, init: &Path) -> Result<Self> {
        if file_system(mount)? == Some(CGROUP2_MAGIC) {
            return Ok(Self::new(Vec::new(), Some(mount.to_owned()), init));
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
        Ok(Self::new(v1, v2, init))
    }

    fn new(v1: Vec<Hierarchy>, v2: Option<PathBuf>, init: &Path) -> Self {
        let memsw = v1.iter().any(|hierarchy| {
            hierarchy.has("memory") && hierarchy.root.join(v1::MEMSW_LIMIT).exists()
        });
        Self {
            layout: Arc::new(Layout {
                v1,
                v2,
                memsw,
                init: init.to_owned(),
                systemd: systemd::Manager::default(),
            }),
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
        let parent = match slice_name(parent) {
            Some(slice) => slice.to_owned(),
            None => normal_parent(parent)?,
        };
        let path = group_path(&parent)?;
        Ok(Leaf::new(
            self.clone(),
            LeafId {
                parent,
                name: name.to_owned(),
            },
            &path,
        ))
    }

    /// The group that is a parent itself, to read its counters.
    pub fn parent(&self, parent: &str) -> Result<Leaf> {
        let path = match slice_name(parent) {
            Some(slice) => group_path(slice)?,
            None => normal_parent(parent)?,
        };
        let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let id = LeafId {
            parent: above.to_owned(),
            name: name.to_owned(),
        };
        Ok(Leaf::new(self.clone(), id, above))
    }

    /// Names below a parent, in whichever hierarchy.
    pub fn children(&self, parent: &str) -> Result<Vec<String>> {
        let parent = match slice_name(parent) {
            Some(slice) => group_path(slice)?,
            None => normal_parent(parent)?,
        };
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

/// `/a/b` below a root.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The slice that a parent names, by its name or, as the kubelet does, by its whole path.
fn slice_name(parent: &str) -> Option<&str> {
    let name = parent.trim_end_matches('/').rsplit('/').next()?;
    name.ends_with(".slice").then_some(name)
}

/// Where the group of a parent is: a slice, or a path in normal form.
fn group_path(parent: &str) -> Result<String> {
    if !parent.ends_with(".slice") {
        return Ok(parent.to_owned());
    }
    let path = slice::path(parent).ok_or_else(|| {
        Error::Invalid(format!(
            "cgroup parent {parent:?} is no name of a systemd slice: \
             use one like kubepods-burstable.slice, with a dash for each level"
        ))
    })?;
    // The root slice is the root group.
    Ok(path.trim_end_matches('/').to_owned())
}

/// Absolute, without `.`, `..` or empty components.
fn normal_parent(parent: &str) -> Result<String> {
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
