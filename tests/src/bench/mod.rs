//! What the benchmarks share: options, percentiles, the runtimes that they compare, and a
//! place where other work on the machine does not show in the figures.

mod options;
mod runtime;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

pub use self::options::Options;
pub use self::runtime::{CpuCount, Runtime};

use crate::wait;
use crate::world::World;

/// Runs a benchmark; an error is told, with the program's name.
pub fn main(name: &str, run: impl FnOnce() -> Result<()>) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A percentile in milliseconds, see [`percentile`].
pub fn milliseconds(samples: &[Duration], percent: usize) -> f64 {
    percentile(samples, percent).as_secs_f64() * 1000.0
}

/// Nearest rank; the slice is not empty.
pub fn percentile(samples: &[Duration], percent: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Weight of our own v1 `cpu` groups; everything else has 1024.
const SHARES: &str = "200000";

/// An own v1 `cpu` group with high shares for this process and what it starts. Dropped,
/// it goes.
pub struct CpuShares {
    group: PathBuf,
}

impl CpuShares {
    /// `None` where there is no v1 `cpu` hierarchy to make one in.
    pub fn take() -> Option<Self> {
        let group = PathBuf::from(format!(
            "/sys/fs/cgroup/cpu/criw-bench-{}",
            std::process::id()
        ));
        std::fs::create_dir(&group).ok()?;
        let shares = Self { group };
        std::fs::write(shares.group.join("cpu.shares"), SHARES).ok()?;
        std::fs::write(
            shares.group.join("cgroup.procs"),
            std::process::id().to_string(),
        )
        .ok()?;
        Some(shares)
    }
}

impl Drop for CpuShares {
    fn drop(&mut self) {
        let root = self
            .group
            .parent()
            .map(|parent| parent.join("cgroup.procs"));
        let _ = root.map(|root| std::fs::write(root, std::process::id().to_string()));
        let _ = wait::until("the bench's cpu group to be empty", wait::PATIENCE, || {
            std::fs::remove_dir(&self.group).ok()
        });
    }
}

/// Lets the pods of a world compete with the same weight as the holder of a [`CpuShares`].
///
/// # Errors
/// Where there is no v1 `cpu` hierarchy.
pub fn same_weight(world: &World) -> Result<()> {
    let pods = PathBuf::from("/sys/fs/cgroup/cpu").join(&world.name);
    std::fs::create_dir_all(&pods)
        .and_then(|()| std::fs::write(pods.join("cpu.shares"), SHARES))
        .with_context(|| format!("weigh {}", pods.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&samples, 50), Duration::from_millis(50));
        assert_eq!(percentile(&samples, 99), Duration::from_millis(99));
        assert_eq!(percentile(&samples[..1], 99), Duration::from_millis(100));
    }
}
