//! cgroup v1: file names, the order in which limits may be written, counters.

use std::path::Path;

use super::CgroupUsage;
use super::write::{keyed, number, one, read, read_if_there};
use crate::error::{Error, Result};
use crate::model::Resources;

pub(super) const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
pub(super) const MEMSW_LIMIT: &str = "memory.memsw.limit_in_bytes";
const PERIOD: &str = "cpu.cfs_period_us";

/// What stands in files whose order of writing depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    /// Limit of memory and swap; `None` when the kernel does not account swap.
    pub(super) memsw: Option<u64>,
    /// CFS period.
    pub(super) period: u64,
}

impl Current {
    /// Of a leaf just made.
    pub(super) fn fresh(memsw: bool) -> Self {
        Self {
            memsw: memsw.then_some(u64::MAX),
            period: 100_000,
        }
    }

    pub(super) fn read(memory: &Path, cpu: &Path, memsw: bool) -> Result<Self> {
        Ok(Self {
            memsw: match memsw {
                true => Some(number(&memory.join(MEMSW_LIMIT))?),
                false => None,
            },
            period: number(&cpu.join(PERIOD))?,
        })
    }
}

/// Controller, file and value of each write, in an order that the kernel accepts.
pub(super) fn plan(
    resources: &Resources,
    current: &Current,
) -> Result<Vec<(&'static str, String, String)>> {
    if let Some(file) = resources.unified.keys().next() {
        return Err(Error::Invalid(format!(
            "resource {file} needs cgroup v2, and this node has the controllers in cgroup v1"
        )));
    }
    let mut writes = Vec::new();
    cpu(resources, current, &mut writes);
    memory(resources, current, &mut writes);
    let mut text = |controller, file: &str, value: &str| {
        if !value.is_empty() {
            writes.push((controller, file.to_owned(), value.to_owned()));
        }
    };
    text("cpuset", "cpuset.cpus", &resources.cpuset_cpus);
    text("cpuset", "cpuset.mems", &resources.cpuset_mems);
    for (size, limit) in resources
        .hugepage_limits
        .iter()
        .filter(|(_, limit)| *limit > 0)
    {
        super::v2::check_page_size(size)?;
        writes.push((
            "hugetlb",
            format!("hugetlb.{size}.limit_in_bytes"),
            limit.to_string(),
        ));
    }
    Ok(writes)
}

type Writes = Vec<(&'static str, String, String)>;

fn cpu(resources: &Resources, current: &Current, writes: &mut Writes) {
    let mut put = |file: &str, value: i64| {
        if value != 0 {
            writes.push(("cpu", file.to_owned(), value.to_string()));
        }
    };
    put("cpu.shares", resources.cpu_shares);
    let quota = ("cpu.cfs_quota_us", resources.cpu_quota);
    let period = (PERIOD, resources.cpu_period);
    // Between the two writes the share of a CPU must not exceed the parent's: a
    // shorter period comes after its quota, a longer one before.
    let shrinks = u64::try_from(resources.cpu_period).is_ok_and(|new| new < current.period);
    let order = if shrinks {
        [quota, period]
    } else {
        [period, quota]
    };
    for (file, value) in order {
        put(file, value);
    }
}

/// The limit of memory never exceeds that of memory and swap, not even between writes.
fn memory(resources: &Resources, current: &Current, writes: &mut Writes) {
    let mut put = |file: &str, value: i64| {
        writes.push(("memory", file.to_owned(), value.to_string()));
    };
    let (limit, swap) = (resources.memory_limit, resources.memory_swap_limit);
    let Some(memsw) = current.memsw else {
        if limit != 0 {
            put(MEMORY_LIMIT, limit);
        }
        return;
    };
    // -1 means unlimited.
    let as_limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    match (limit, swap) {
        (0, 0) => {}
        (0, swap) => put(MEMSW_LIMIT, swap),
        (limit, 0) if as_limit(limit) > memsw => {
            put(MEMSW_LIMIT, limit);
            put(MEMORY_LIMIT, limit);
        }
        (limit, 0) => put(MEMORY_LIMIT, limit),
        (limit, swap) if as_limit(swap) > memsw => {
            put(MEMSW_LIMIT, swap);
            put(MEMORY_LIMIT, limit);
        }
        (limit, swap) => {
            put(MEMORY_LIMIT, limit);
            put(MEMSW_LIMIT, swap);
        }
    }
}

/// Lets new groups below this one begin with its CPUs and memory nodes. To write them into
/// each new one makes the kernel look at all cpusets of the node, so pods would start more
/// slowly the more there are. Where it does not work, [`inherit_cpuset`] does.
pub(super) fn let_children_inherit(root: &Path, parent: &Path) {
    // What holds for the whole machine is not ours to change.
    if parent == root || !parent.starts_with(root) {
        return;
    }
    let file = parent.join("cgroup.clone_children");
    if read(&file).is_ok_and(|now| now.trim() == "0") {
        let _ = one(file, "1".to_owned());
    }
}

/// Nobody may join a cpuset without CPUs and memory nodes, and a new one has none.
pub(super) fn inherit_cpuset(root: &Path, directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent().filter(|_| directory != root) else {
        return Ok(());
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        if !read(&file)?.trim().is_empty() {
            continue;
        }
        if read(&parent.join(name))?.trim().is_empty() {
            inherit_cpuset(root, parent)?;
        }
        one(file, read(&parent.join(name))?.trim().to_owned())?;
    }
    Ok(())
}

pub(super) fn usage(cpuacct: &Path, memory: &Path) -> Result<CgroupUsage> {
    let stat = read(&memory.join("memory.stat"))?;
    let memory_usage = number(&memory.join("memory.usage_in_bytes"))?;
    let limit = number(&memory.join(MEMORY_LIMIT))?;
    let procs = read(&cpuacct.join("cgroup.procs"))?;
    // No limit is shown as the largest number of whole pages.
    let some = |limit: u64| (limit < u64::MAX >> 2).then_some(limit);
    let memory_limit = some(limit);
    let memsw = read_if_there(&memory.join(MEMSW_LIMIT))?;
    let memsw = memsw.and_then(|text| text.trim().parse().ok().and_then(some));
    Ok(CgroupUsage {
        cpu_usage_ns: number(&cpuacct.join("cpuacct.usage"))?,
        memory_usage,
        memory_working_set: memory_usage.saturating_sub(keyed(&stat, "total_inactive_file")),
        memory_rss: keyed(&stat, "total_rss"),
        memory_limit,
        page_faults: keyed(&stat, "total_pgfault"),
        major_page_faults: keyed(&stat, "total_pgmajfault"),
        swap_usage: stat
            .contains("\ntotal_swap ")
            .then(|| keyed(&stat, "total_swap")),
        swap_limit: memsw
            .zip(memory_limit)
            .map(|(both, memory)| both.saturating_sub(memory)),
        processes: procs.lines().count() as u64,
    })
}
