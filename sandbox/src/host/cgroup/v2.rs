//! cgroup v2: file names, conversions from the v1 terms of CRI, counters.

use std::path::Path;

use super::CgroupUsage;
use super::write::{keyed, number, one, read, read_if_there};
use crate::error::{Error, Result};
use crate::model::Resources;

pub(super) const SWAP_MAX: &str = "memory.swap.max";

/// File and value of each write.
pub(super) fn plan(resources: &Resources) -> Result<Vec<(String, String)>> {
    let mut writes = Vec::new();
    let mut put = |file: &str, value: String| writes.push((file.to_owned(), value));
    if resources.cpu_shares > 0 {
        put("cpu.weight", cpu_weight(resources.cpu_shares).to_string());
    }
    match (resources.cpu_quota, resources.cpu_period) {
        (0, 0) => {}
        (quota, 0) => put("cpu.max", or_max(quota)),
        (0, period) => put("cpu.max", format!("max {period}")),
        (quota, period) => put("cpu.max", format!("{} {period}", or_max(quota))),
    }
    let (limit, swap) = (resources.memory_limit, resources.memory_swap_limit);
    if limit != 0 {
        put("memory.max", or_max(limit));
    }
    match (limit, swap) {
        (_, 0) => {}
        (_, swap) if swap < 0 => put(SWAP_MAX, "max".into()),
        // What CRI sends is memory and swap together, as v1 had it.
        (limit, swap) if limit > 0 && swap >= limit => put(SWAP_MAX, (swap - limit).to_string()),
        (limit, swap) => {
            return Err(Error::Invalid(format!(
                "the limit {swap} of memory and swap together is below that of memory, {limit}"
            )));
        }
    }
    if !resources.cpuset_cpus.is_empty() {
        put("cpuset.cpus", resources.cpuset_cpus.clone());
    }
    if !resources.cpuset_mems.is_empty() {
        put("cpuset.mems", resources.cpuset_mems.clone());
    }
    for (size, limit) in resources
        .hugepage_limits
        .iter()
        .filter(|(_, limit)| *limit > 0)
    {
        check_page_size(size)?;
        put(&format!("hugetlb.{size}.max"), limit.to_string());
    }
    for (file, value) in &resources.unified {
        check_unified(file)?;
        put(file, value.clone());
    }
    Ok(writes)
}

fn or_max(value: i64) -> String {
    match value {
        ..0 => "max".into(),
        value => value.to_string(),
    }
}

/// From 2..=262144 to 1..=10000 so that the defaults 1024 and 100 meet: the
/// quadratic (in logarithms) that Kubernetes has settled on.
pub(in crate::host) fn cpu_weight(shares: i64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Rounded up, but not because of the last bit of a float.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// The name becomes part of a file name.
pub(super) fn check_page_size(size: &str) -> Result<()> {
    if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::Invalid(format!(
            "{size:?} is no huge page size: use one like 2MB"
        )));
    }
    Ok(())
}

/// A file of a controller, never one of the tree's own (`cgroup.*`).
fn check_unified(file: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good = file.bytes().all(plain)
        && file.split_once('.').is_some_and(|(controller, rest)| {
            !controller.is_empty() && !rest.is_empty() && controller != "cgroup"
        });
    match good {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "{file:?} is no resource file of cgroup v2: use one like memory.high"
        ))),
    }
}

/// Where v1 refuses, v2 kills: so the refusal is ours.
pub(super) fn refuse_limit_below_usage(directory: &Path, resources: &Resources) -> Result<()> {
    let Some(limit) = u64::try_from(resources.memory_limit)
        .ok()
        .filter(|l| *l > 0)
    else {
        return Ok(());
    };
    let usage = number(&directory.join("memory.current"))?;
    if usage > limit {
        return Err(Error::Invalid(format!(
            "memory limit {limit} is below the current usage {usage}: the container would be killed"
        )));
    }
    Ok(())
}

/// Children have the controllers that `cgroup.subtree_control` of all parents names.
pub(super) fn enable_controllers(root: &Path, leaf: &Path) -> Result<()> {
    let available = read(&root.join("cgroup.controllers"))?;
    if read(&leaf.join("cgroup.controllers"))? == available {
        return Ok(());
    }
    let mut parents: Vec<&Path> = leaf
        .ancestors()
        .skip(1)
        .take_while(|parent| parent.starts_with(root))
        .collect();
    parents.reverse();
    for parent in parents {
        let available = read(&parent.join("cgroup.controllers"))?;
        let file = parent.join("cgroup.subtree_control");
        let enabled = read(&file)?;
        let missing: Vec<String> = available
            .split_whitespace()
            .filter(|controller| !enabled.split_whitespace().any(|have| have == *controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        if !missing.is_empty() {
            one(file, missing.join(" "))?;
        }
    }
    Ok(())
}

pub(super) fn usage(directory: &Path) -> Result<CgroupUsage> {
    let stat = read(&directory.join("memory.stat"))?;
    let memory_usage = number(&directory.join("memory.current"))?;
    let limit = number(&directory.join("memory.max"))?;
    let swap = |file| -> Result<Option<u64>> {
        // "max" is none.
        let text = read_if_there(&directory.join(file))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    };
    let cpu = read(&directory.join("cpu.stat"))?;
    let procs = read(&directory.join("cgroup.procs"))?;
    Ok(CgroupUsage {
        cpu_usage_ns: keyed(&cpu, "usage_usec") * 1000,
        memory_usage,
        memory_working_set: memory_usage.saturating_sub(keyed(&stat, "inactive_file")),
        memory_rss: keyed(&stat, "anon"),
        memory_limit: (limit != u64::MAX).then_some(limit),
        page_faults: keyed(&stat, "pgfault"),
        major_page_faults: keyed(&stat, "pgmajfault"),
        swap_usage: swap("memory.swap.current")?,
        swap_limit: swap(SWAP_MAX)?,
        processes: procs.lines().count() as u64,
    })
}
