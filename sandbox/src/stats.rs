//! What containers and pods use: read from their cgroup leaves, network
//! namespaces and writable layers at the moment of the question.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criw_net::InterfaceCounters;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::cpu_rate::CpuRate;
use crate::detail::{self, Pressures};
use crate::error::{Error, Result};
use crate::host::cgroup::{CgroupUsage, Leaf};

/// Usage of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU and memory.
    pub cgroup: CgroupUsage,
    /// Nanoseconds of CPU time per second, lately; `None` until it was asked twice.
    pub cpu_rate: Option<u64>,
    /// Files that it wrote into its root.
    pub writable_layer: LayerUsage,
    /// How long it waited.
    pub pressures: Pressures,
}

/// Usage of a pod and its network.
#[derive(Debug, Clone, PartialEq)]
pub struct PodStats {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU and memory: of the pod's own cgroup when it has one, else the sum of its
    /// running containers. `processes` counts those of all containers.
    pub cgroup: CgroupUsage,
    /// As for a container.
    pub cpu_rate: Option<u64>,
    /// How long the processes of its own cgroup waited, if it has one.
    pub pressures: Pressures,
    /// Every interface with its counters; empty with the node's network.
    pub network: Vec<InterfaceCounters>,
}

/// What a writable layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// Bytes of disk blocks.
    pub bytes: u64,
    /// Files and directories, the layer's own root not counted.
    pub inodes: u64,
}

/// How long a measured writable layer is good for; walking one costs a system
/// call per file, and the kubelet asks every ten seconds.
const LAYER_FRESH: Duration = Duration::from_secs(10);
/// Entries counted in one walk: a guest must not keep the daemon busy. What is
/// beyond them is not counted.
const MAX_ENTRIES: u64 = 500_000;
/// Directories within directories; each holds a descriptor open.
const MAX_DEPTH: usize = 256;

impl ContainerStats {
    /// The limit minus the working set; `None` without a limit.
    pub fn memory_available(&self) -> Option<u64> {
        available(&self.cgroup)
    }

    /// How much more may be swapped out; `None` without a limit of it.
    pub fn swap_available(&self) -> Option<u64> {
        let limit = self.cgroup.swap_limit?;
        Some(limit.saturating_sub(self.cgroup.swap_usage?))
    }
}

impl PodStats {
    /// The limits minus the working sets; `None` when any container has no limit.
    pub fn memory_available(&self) -> Option<u64> {
        available(&self.cgroup)
    }
}

fn available(usage: &CgroupUsage) -> Option<u64> {
    let limit = usage.memory_limit?;
    Some(limit.saturating_sub(usage.memory_working_set))
}

/// Reads the usage of a container.
///
/// # Errors
/// `NotFound` when its leaf is gone: it ended meanwhile.
pub(crate) fn container(leaf: &Leaf, rate: &CpuRate, layer: &Layer) -> Result<ContainerStats> {
    let cgroup = leaf.usage()?;
    Ok(ContainerStats {
        timestamp: now(),
        cpu_rate: rate.look(cgroup.cpu_usage_ns),
        cgroup,
        writable_layer: layer.usage()?,
        pressures: detail::pressures(&leaf.dirs()),
    })
}

/// Reads the usage of a pod with these containers; those that are gone meanwhile
/// are left out. `own` is the pod's cgroup: its counters do not fall when a container ends.
pub(crate) fn pod(
    own: Option<&Leaf>,
    leaves: &[Leaf],
    rate: &CpuRate,
    netns: Option<BorrowedFd<'_>>,
) -> Result<PodStats> {
    let mut usages = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        match leaf.usage() {
            Ok(usage) => usages.push(usage),
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let network = match netns {
        Some(netns) => criw_net::interface_counters(netns)
            .map_err(|error| Error::node("read the interfaces of a pod", error))?,
        None => Vec::new(),
    };
    let containers = sum(&usages);
    let cgroup = match own.map(Leaf::usage) {
        Some(Ok(usage)) => CgroupUsage {
            processes: containers.processes,
            ..usage
        },
        None | Some(Err(Error::NotFound(_))) => containers,
        Some(Err(error)) => return Err(error),
    };
    Ok(PodStats {
        timestamp: now(),
        cpu_rate: rate.look(cgroup.cpu_usage_ns),
        cgroup,
        pressures: own.map_or_else(Pressures::default, |own| detail::pressures(&own.dirs())),
        network,
    })
}

/// Whether the kubelet made a parent for this pod alone. Others than the kubelet give many
/// pods one parent.
pub(crate) fn is_own_group(cgroup_parent: &str, pod_uid: &str) -> bool {
    let name = cgroup_parent.trim_end_matches('/').rsplit('/').next();
    let name = name.unwrap_or_default();
    // In the name of a slice a dash means a level, so the kubelet writes another character.
    let (name, uid) = match name.strip_suffix(".slice") {
        Some(slice) => (
            slice.rsplit('-').next().unwrap_or_default(),
            pod_uid.replace('-', "_"),
        ),
        None => (name, pod_uid.to_owned()),
    };
    !uid.is_empty() && name.strip_prefix("pod") == Some(&uid)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

/// A limit or swap is that of the pod only when every container has one.
fn sum(usages: &[CgroupUsage]) -> CgroupUsage {
    let Some((first, rest)) = usages.split_first() else {
        return CgroupUsage::default();
    };
    let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    rest.iter().fold(first.clone(), |sum, usage| CgroupUsage {
        cpu_usage_ns: sum.cpu_usage_ns + usage.cpu_usage_ns,
        memory_usage: sum.memory_usage + usage.memory_usage,
        memory_working_set: sum.memory_working_set + usage.memory_working_set,
        memory_rss: sum.memory_rss + usage.memory_rss,
        memory_limit: both(sum.memory_limit, usage.memory_limit),
        page_faults: sum.page_faults + usage.page_faults,
        major_page_faults: sum.major_page_faults + usage.major_page_faults,
        swap_usage: both(sum.swap_usage, usage.swap_usage),
        swap_limit: both(sum.swap_limit, usage.swap_limit),
        processes: sum.processes + usage.processes,
    })
}

/// The writable layer of one container, with its last measured size.
#[derive(Debug)]
pub struct Layer {
    directory: PathBuf,
    last: Mutex<Option<(Instant, LayerUsage)>>,
}

impl Layer {
    /// `directory` is the upper directory of the container's root.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            last: Mutex::new(None),
        }
    }

    /// Its size, at most ten seconds old. A layer that does not exist takes nothing.
    pub fn usage(&self) -> Result<LayerUsage> {
        let last = || self.last.lock().unwrap_or_else(|error| error.into_inner());
        if let Some((at, usage)) = *last()
            && at.elapsed() < LAYER_FRESH
        {
            return Ok(usage);
        }
        // Not under the lock: two walks at once cost time, a waiting reader more.
        let usage = measure(&self.directory)?;
        *last() = Some((Instant::now(), usage));
        Ok(usage)
    }
}

fn measure(directory: &Path) -> Result<LayerUsage> {
    let what = || format!("measure writable layer {}", directory.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(LayerUsage::default()),
        Err(error) => return Err(Error::node(what(), std::io::Error::from(error))),
    };
    let mut usage = LayerUsage::default();
    walk(&root, 0, &mut usage).map_err(|error| Error::node(what(), std::io::Error::from(error)))?;
    Ok(usage)
}

/// By descriptors and without following links: the guest renames while we look.
fn walk(directory: &OwnedFd, depth: usize, usage: &mut LayerUsage) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if usage.inodes >= MAX_ENTRIES {
            return Ok(());
        }
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        usage.inodes += 1;
        // Whatever the block size of the file system, stat counts in 512 bytes.
        usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory && depth < MAX_DEPTH {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(directory.as_fd(), name, flags, Mode::empty()) {
                Ok(below) => walk(&below, depth + 1, usage)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_layer_is_measured_without_following_links_and_kept_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let upper = directory.path().join("upper");
        let layer = Layer::new(upper.clone());
        assert_eq!(measure(&upper).unwrap(), LayerUsage::default());
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/b/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", upper.join("link")).unwrap();
        let usage = layer.usage().unwrap();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
        fs::write(upper.join("later"), "x").unwrap();
        assert_eq!(layer.usage().unwrap(), usage, "walked again at once");
        assert_eq!(measure(&upper).unwrap().inodes, 5);
    }

    #[test]
    fn only_a_parent_with_the_pods_uid_is_the_pods_own() {
        for (parent, uid, expected) in [
            ("/kubepods/burstable/pod12-3", "12-3", true),
            ("/kubepods/pod12-3/", "12-3", true),
            ("/kubepods/pod12-3", "12", false),
            ("/kubepods/pod", "", false),
            ("/k8s.io", "12-3", false),
            ("kubepods-burstable-pod12_3.slice", "12-3", true),
            ("/kubepods.slice/kubepods-pod12_3.slice", "12-3", true),
            ("kubepods-pod12_3.slice", "3", false),
            ("kubepods-pod.slice", "", false),
            ("criw.slice", "12-3", false),
        ] {
            assert_eq!(is_own_group(parent, uid), expected, "{parent}");
        }
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let one = CgroupUsage {
            cpu_usage_ns: 5,
            memory_working_set: 10,
            memory_limit: Some(100),
            processes: 2,
            ..Default::default()
        };
        let unlimited = CgroupUsage {
            memory_limit: None,
            ..one.clone()
        };
        let two = sum(&[one.clone(), one.clone()]);
        assert_eq!((two.cpu_usage_ns, two.processes), (10, 4));
        assert_eq!(available(&two), Some(180));
        assert_eq!(available(&sum(&[one, unlimited])), None);
        assert_eq!(sum(&[]), CgroupUsage::default());
    }

    #[test]
    fn swap_is_available_up_to_its_limit() {
        for (limit, usage, available) in [
            (Some(10), Some(4), Some(6)),
            (Some(0), Some(0), Some(0)),
            // Lowered below what is used.
            (Some(3), Some(4), Some(0)),
            (None, Some(4), None),
            (Some(10), None, None),
        ] {
            let stats = ContainerStats {
                timestamp: 1,
                cgroup: CgroupUsage {
                    swap_limit: limit,
                    swap_usage: usage,
                    ..Default::default()
                },
                cpu_rate: None,
                writable_layer: LayerUsage::default(),
                pressures: Pressures::default(),
            };
            assert_eq!(stats.swap_available(), available, "{limit:?} {usage:?}");
        }
    }
}
