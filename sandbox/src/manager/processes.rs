//! What runs in a Wasm container, as `ps` shows it: there is no procfs inside.

use std::collections::HashMap;

use super::{Container, Inner, Sandboxes, blocking, lock};
use crate::error::Result;
use crate::id::ContainerId;

/// Clock ticks of a second in /proc, on every architecture that Linux has had for decades.
const TICKS: u64 = 100;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessView {
    /// Pid as the container sees it.
    pub pid: i32,
    /// User id as the node sees it.
    pub uid: u32,
    /// `R`, `S`, …
    pub state: char,
    /// CPU time in seconds.
    pub cpu_seconds: u64,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// argv of the guest.
    pub args: Vec<String>,
}

impl Sandboxes {
    /// The processes of a container, the first one first. One that ends meanwhile is left out.
    ///
    /// # Errors
    /// `NotFound`, or the node's refusal to list its cgroup.
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<ProcessView>> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        blocking(move || inner.processes(&container)).await
    }
}

impl Inner {
    fn processes(&self, container: &Container) -> Result<Vec<ProcessView>> {
        let (leaf, shim) = {
            let record = container.record();
            (record.leaf.clone(), record.state.shim())
        };
        let mut known: HashMap<i32, Vec<String>> = lock(&container.execs).clone();
        if let Some(shim) = shim {
            known.insert(shim.pid, container.spec.process.args.clone());
        }
        let pids = self.leaf(&leaf)?.procs()?;
        let mut views: Vec<_> = pids
            .into_iter()
            .filter_map(|pid| {
                let args = known.remove(&pid)?;
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                parse(&status, &stat, args)
            })
            .collect();
        views.sort_by_key(|view| view.pid);
        Ok(views)
    }
}

/// From the two files of proc(5).
fn parse(status: &str, stat: &str, args: Vec<String>) -> Option<ProcessView> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.strip_prefix(':')?.split_ascii_whitespace())
    };
    // The command name (field 2) may hold spaces and brackets.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some(ProcessView {
        // The last is that of the innermost namespace.
        pid: field("NSpid")?.next_back()?.parse().ok()?,
        uid: field("Uid")?.next()?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS,
        rss_kib: field("VmRSS").map_or(Some(0), |mut rss| rss.next()?.parse().ok())?,
        args,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        let status = "Name:\tx\nUid:\t7\t8\t9\t9\nNSpid:\t4711\t3\nVmRSS:\t  120 kB\n";
        let stat = "4711 (a) b) S 1 2 3 4 5 6 7 8 9 10 350 60 13 14";
        let view = parse(status, stat, vec!["sh".into()]).unwrap();
        let expected = ProcessView {
            pid: 3,
            uid: 7,
            state: 'S',
            cpu_seconds: 4,
            rss_kib: 120,
            args: vec!["sh".into()],
        };
        assert_eq!(view, expected);
        // One that is ending has no memory; a torn file is none at all.
        assert!(parse("Uid:\t7\nNSpid:\t1\n", stat, vec![]).is_some());
        assert!(parse("Uid:\t7\n", stat, vec![]).is_none());
        assert!(parse(status, "4711 (x", vec![]).is_none());
    }
}
