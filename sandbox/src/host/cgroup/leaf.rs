//! The cgroup of one container, or of one process of ours beside it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::write::{self, Before, Undo, Write};
use super::{
    CgroupUsage, Cgroups, Directory, Holder, LeafId, Version, below, holder, properties, systemd,
    v1, v2,
};
use crate::error::{Error, Result};
use crate::host::Context as _;
use crate::model::Resources;

/// The cgroup of one container; it need not exist.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub(super) cgroups: Cgroups,
    id: LeafId,
    path: String,
}

impl Leaf {
    pub(super) fn new(cgroups: Cgroups, id: LeafId, parent: &str) -> Self {
        let path = format!("{}/{}", parent.trim_end_matches('/'), id.name);
        Self { cgroups, id, path }
    }

    /// As it stands in records.
    pub fn id(&self) -> &LeafId {
        &self.id
    }

    /// Path below the root of each hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// As `cgroupsPath` of the runtime config has it: the path, or a scope in runc's words.
    pub fn oci_path(&self) -> String {
        let name = self.scope().and_then(|scope| scope.strip_suffix(".scope"));
        match name.and_then(|name| name.split_once('-')) {
            Some((prefix, id)) => format!("{}:{prefix}:{id}", self.id.parent),
            None => self.path.clone(),
        }
    }

    /// Whether systemd makes it.
    pub fn is_scope(&self) -> bool {
        self.scope().is_some()
    }

    /// Its unit, when systemd makes it.
    pub(super) fn scope(&self) -> Option<&str> {
        self.id
            .parent
            .ends_with(".slice")
            .then_some(self.id.name.as_str())
            .filter(|name| name.ends_with(".scope"))
    }

    /// Its directory in each hierarchy: what a shim joins.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let roots = self.cgroups.roots();
        roots.map(|root| below(root, &self.path)).collect()
    }

    /// The same with the controllers of each; the v2 tree, which comes last, names none.
    pub fn directories(&self) -> Vec<Directory> {
        let v1 = self.cgroups.layout.v1.iter().map(|hierarchy| Directory {
            path: below(&hierarchy.root, &self.path),
            controllers: hierarchy.controllers.clone(),
        });
        let v2 = self.cgroups.layout.v2.iter().map(|root| Directory {
            path: below(root, &self.path),
            controllers: Vec::new(),
        });
        v1.chain(v2).collect()
    }

    /// Makes it in every hierarchy, parents included, and applies `resources`. A scope lives
    /// as long as what is returned, or as a process in it. On failure nothing of the leaf is left.
    pub fn create(&self, resources: &Resources) -> Result<Holder> {
        let made = match self.scope() {
            Some(scope) => self.start_scope(scope, resources),
            None => self
                .make_directories(resources)
                .and_then(|()| self.write(resources, Undo::No))
                .map(|_| Holder::none()),
        };
        if made.is_err() {
            self.remove(std::time::Duration::from_millis(100))?;
        }
        made
    }

    fn start_scope(&self, scope: &str, resources: &Resources) -> Result<Holder> {
        let limits = self.properties(resources)?;
        let holder = Holder::start(&self.cgroups.layout.init, &[])?;
        let mut properties = properties::of_scope(
            &format!("CRI-W {}", scope.trim_end_matches(".scope")),
            &self.id.parent,
            holder.pid().unwrap_or_default(),
        );
        properties.extend(limits);
        let systemd = &self.cgroups.layout.systemd;
        systemd.start_scope(scope, properties)?;
        // In v1 systemd makes the group in the hierarchies that it knows.
        self.make_directories(resources)?;
        self.write(resources, Undo::No)?;
        Ok(holder)
    }

    /// Puts a holder into a scope that somebody else made.
    pub fn hold(&self) -> Result<()> {
        let Some(scope) = self.scope() else {
            return Ok(());
        };
        // In v1 runc leaves out the hierarchies that it does not know.
        let mut there = self.dirs();
        there.retain(|directory| directory.exists());
        if there.is_empty() {
            return Err(Error::NotFound(format!(
                "hold {scope}: its last process has ended"
            )));
        }
        Holder::start(&self.cgroups.layout.init, &there)?.stay()
    }

    /// Changes the limits of an existing leaf: all of them, or on failure none.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        let Some(scope) = self.scope() else {
            return self.write(resources, Undo::Yes).map(drop);
        };
        let limits = self.properties(resources)?;
        let before = self.write(resources, Undo::Yes)?;
        let systemd = &self.cgroups.layout.systemd;
        if let Err(error) = systemd.set_properties(scope, limits) {
            before.put_back();
            return Err(error);
        }
        // It has rounded the quota of CPU time.
        self.write(resources, Undo::No).map(drop)
    }

    fn properties(&self, resources: &Resources) -> Result<Vec<systemd::Property>> {
        match self.cgroups.version() {
            Version::V2 => properties::of_v2(&v2::plan(resources)?),
            Version::V1 | Version::Hybrid => Ok(properties::of_v1(resources)),
        }
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

    /// Like [`Self::procs`], without the process that holds a scope.
    pub fn workload(&self) -> Result<Vec<i32>> {
        let mut pids = self.procs()?;
        if self.is_scope() {
            pids.retain(|pid| !holder::is_holder(*pid));
        }
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

    /// Reads its counters. The process that holds a scope is not counted.
    pub fn usage(&self) -> Result<CgroupUsage> {
        let mut usage = self.all_usage()?;
        if self.is_scope() {
            usage.processes = usage.processes.saturating_sub(1);
        }
        Ok(usage)
    }

    fn all_usage(&self) -> Result<CgroupUsage> {
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

    pub(super) fn v1_directory(&self, controller: &str) -> Option<PathBuf> {
        let root = self.cgroups.v1_root(controller)?;
        Some(below(root, &self.path))
    }

    fn v2_directory(&self) -> Result<PathBuf> {
        let root = self.cgroups.layout.v2.as_deref().ok_or_else(|| {
            Error::Unavailable("the node has neither this controller nor cgroup v2".into())
        })?;
        Ok(below(root, &self.path))
    }

    fn make_directories(&self, resources: &Resources) -> Result<()> {
        let path = &self.path;
        for hierarchy in &self.cgroups.layout.v1 {
            let directory = below(&hierarchy.root, path);
            let cpuset = hierarchy.has("cpuset");
            if cpuset && let Some(parent) = directory.parent() {
                v1::let_children_inherit(&hierarchy.root, parent);
            }
            make_directory(&directory)?;
            if cpuset {
                v1::inherit_cpuset(&hierarchy.root, &directory)?;
            }
        }
        if let Some(root) = &self.cgroups.layout.v2 {
            let directory = below(root, path);
            make_directory(&directory)?;
            // In a hybrid the tree has hugetlb at most.
            // Above a scope systemd enables what it knows, which is all but hugetlb.
            let wants_controllers = (self.cgroups.version() == Version::V2 && !self.is_scope())
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

    fn write(&self, resources: &Resources, undo: Undo) -> Result<Before> {
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

fn make_directory(directory: &Path) -> Result<()> {
    let made = rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755));
    let made = match made {
        Err(Errno::NOENT) => fs::create_dir_all(directory),
        Err(Errno::EXIST) => Ok(()),
        other => other.map_err(Into::into),
    };
    made.context(|| format!("create cgroup {}", directory.display()))
}
