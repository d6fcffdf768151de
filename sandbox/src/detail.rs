//! Everything that the cgroup of a container counts, for metrics: read at the moment of the
//! question, in the terms of both versions of cgroups. Files that a kernel does not have
//! leave their numbers out.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::cgroup::Directory;

/// Counters of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// Nanoseconds of CPU time.
    pub cpu_usage_ns: u64,
    /// Of it, in programs.
    pub cpu_user_ns: u64,
    /// Of it, in the kernel.
    pub cpu_system_ns: u64,
    /// Periods of the CPU limit that have passed.
    pub periods: u64,
    /// Of them, those in which it had to wait.
    pub throttled_periods: u64,
    /// Nanoseconds of waiting.
    pub throttled_ns: u64,
    /// Memory.
    pub memory: Memory,
    /// Disks, by their numbers.
    pub disks: Vec<DiskUse>,
    /// Processes.
    pub processes: Vec<i32>,
    /// Threads.
    pub threads: u64,
    /// How many it may have; `None` is any number.
    pub threads_max: Option<u64>,
    /// Open files of all its processes.
    pub descriptors: u64,
    /// Of them, sockets.
    pub sockets: u64,
    /// How many files its first process may have open.
    pub open_files_soft: Option<u64>,
}

/// Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Charged now.
    pub usage: u64,
    /// Charged at most.
    pub max_usage: u64,
    /// File pages.
    pub cache: u64,
    /// Anonymous pages.
    pub rss: u64,
    /// Swapped out.
    pub swap: u64,
    /// Mapped file pages.
    pub mapped_file: u64,
    /// File pages in use lately.
    pub active_file: u64,
    /// File pages that are the first to go.
    pub inactive_file: u64,
    /// Of the kernel.
    pub kernel: u64,
    /// Times that the limit was hit.
    pub limit_hits: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
}

/// What went to and from one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

/// How long processes waited for a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one waited.
    pub some: Wait,
    /// All waited.
    pub full: Wait,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wait {
    /// Microseconds, ever.
    pub total: u64,
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// Pressure on CPU, memory and disks; `None` where the kernel does not count it. It does in
/// the v2 tree only.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// CPU.
    pub cpu: Option<Pressure>,
    /// Memory.
    pub memory: Option<Pressure>,
    /// Disks.
    pub io: Option<Pressure>,
}

/// Reads the counters of the group with these directories, one in each hierarchy.
///
/// # Errors
/// `NotFound` when it is gone.
pub fn read(dirs: &[Directory]) -> Result<Detail> {
    let group = Group(dirs);
    let procs = group
        .text("cgroup.procs")
        .ok_or_else(|| Error::NotFound("the cgroup is gone".to_owned()))?;
    let mut detail = Detail {
        processes: procs.lines().filter_map(|pid| pid.parse().ok()).collect(),
        ..Detail::default()
    };
    match group.text("memory.current") {
        Some(current) => read_v2(&group, &current, &mut detail),
        None => read_v1(&group, &mut detail),
    }
    detail.threads = group.number("pids.current").unwrap_or_default();
    detail.threads_max = group.number("pids.max");
    let first = detail.processes.iter().min();
    detail.open_files_soft = first.and_then(|pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let line = limits
            .lines()
            .find_map(|l| l.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse().ok()
    });
    for pid in &detail.processes {
        // Gone meanwhile: it has none.
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        for file in open.into_iter().flatten().flatten() {
            detail.descriptors += 1;
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            detail.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    Ok(detail)
}

/// Reads the pressure files of a group.
pub fn pressures(dirs: &[PathBuf]) -> Pressures {
    // Only the v2 tree has them, and it comes last.
    let one = |name| {
        let read = |dir: &PathBuf| std::fs::read_to_string(dir.join(name)).ok();
        dirs.iter()
            .rev()
            .find_map(read)
            .as_deref()
            .and_then(pressure)
    };
    Pressures {
        cpu: one("cpu.pressure"),
        memory: one("memory.pressure"),
        io: one("io.pressure"),
    }
}

struct Group<'a>(&'a [Directory]);

impl Group<'_> {
    /// The file in the hierarchy of the controller that it is named for, if that is there,
    /// else in the first that has it.
    fn text(&self, name: &str) -> Option<String> {
        let read = |dir: &Directory| std::fs::read_to_string(dir.path.join(name)).ok();
        let controller = name.split('.').next().unwrap_or_default();
        let is_own = |dir: &&Directory| dir.controllers.iter().any(|one| one == controller);
        let own = self.0.iter().find(is_own);
        own.and_then(read).or_else(|| self.0.iter().find_map(read))
    }

    /// `None` also for `max`.
    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }
}

/// The number behind a word at the beginning of a line; 0 without one.
fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| {
        let (word, value) = line.split_once(' ')?;
        (word == key).then(|| value.trim().parse().ok()).flatten()
    };
    text.lines().find_map(value).unwrap_or_default()
}

fn read_v2(group: &Group<'_>, current: &str, detail: &mut Detail) {
    let cpu = group.text("cpu.stat").unwrap_or_default();
    let nanoseconds = |key| keyed(&cpu, key) * 1000;
    detail.cpu_usage_ns = nanoseconds("usage_usec");
    detail.cpu_user_ns = nanoseconds("user_usec");
    detail.cpu_system_ns = nanoseconds("system_usec");
    detail.periods = keyed(&cpu, "nr_periods");
    detail.throttled_periods = keyed(&cpu, "nr_throttled");
    detail.throttled_ns = nanoseconds("throttled_usec");
    let stat = group.text("memory.stat").unwrap_or_default();
    let events = group.text("memory.events").unwrap_or_default();
    let usage = current.trim().parse().unwrap_or_default();
    detail.memory = Memory {
        usage,
        max_usage: group.number("memory.peak").unwrap_or(usage),
        cache: keyed(&stat, "file"),
        rss: keyed(&stat, "anon"),
        swap: group.number("memory.swap.current").unwrap_or_default(),
        mapped_file: keyed(&stat, "file_mapped"),
        active_file: keyed(&stat, "active_file"),
        inactive_file: keyed(&stat, "inactive_file"),
        kernel: keyed(&stat, "kernel"),
        limit_hits: keyed(&events, "max"),
        faults: keyed(&stat, "pgfault"),
        major_faults: keyed(&stat, "pgmajfault"),
    };
    detail.disks = disks_v2(&group.text("io.stat").unwrap_or_default());
}

fn read_v1(group: &Group<'_>, detail: &mut Detail) {
    let number = |name| group.number(name).unwrap_or_default();
    detail.cpu_usage_ns = number("cpuacct.usage");
    detail.cpu_user_ns = number("cpuacct.usage_user");
    detail.cpu_system_ns = number("cpuacct.usage_sys");
    let cpu = group.text("cpu.stat").unwrap_or_default();
    detail.periods = keyed(&cpu, "nr_periods");
    detail.throttled_periods = keyed(&cpu, "nr_throttled");
    detail.throttled_ns = keyed(&cpu, "throttled_time");
    let stat = group.text("memory.stat").unwrap_or_default();
    detail.memory = Memory {
        usage: number("memory.usage_in_bytes"),
        max_usage: number("memory.max_usage_in_bytes"),
        cache: keyed(&stat, "total_cache"),
        rss: keyed(&stat, "total_rss"),
        swap: keyed(&stat, "total_swap"),
        mapped_file: keyed(&stat, "total_mapped_file"),
        active_file: keyed(&stat, "total_active_file"),
        inactive_file: keyed(&stat, "total_inactive_file"),
        kernel: number("memory.kmem.usage_in_bytes"),
        limit_hits: number("memory.failcnt"),
        faults: keyed(&stat, "total_pgfault"),
        major_faults: keyed(&stat, "total_pgmajfault"),
    };
    let bytes = group.text("blkio.throttle.io_service_bytes");
    let requests = group.text("blkio.throttle.io_serviced");
    detail.disks = disks_v1(&bytes.unwrap_or_default(), &requests.unwrap_or_default());
}

fn device(text: &str) -> Option<DiskUse> {
    let (major, minor) = text.split_once(':')?;
    Some(DiskUse {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..DiskUse::default()
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn disks_v2(text: &str) -> Vec<DiskUse> {
    let disk = |line: &str| {
        let mut words = line.split(' ');
        let mut disk = device(words.next()?)?;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
        Some(disk)
    };
    text.lines().filter_map(disk).collect()
}

/// `8:0 Read 1` in two files; the last line of each has the sum of all.
fn disks_v1(bytes: &str, requests: &str) -> Vec<DiskUse> {
    let mut disks: Vec<DiskUse> = Vec::new();
    for (text, in_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(number), Some(what), Some(value)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let Some(new) = device(number) else {
                continue;
            };
            let same = |disk: &DiskUse| (disk.major, disk.minor) == (new.major, new.minor);
            let at = disks.iter().position(same).unwrap_or(disks.len());
            if at == disks.len() {
                disks.push(new);
            }
            let disk = &mut disks[at];
            let value = value.parse().unwrap_or_default();
            match (what, in_bytes) {
                ("Read", true) => disk.read_bytes = value,
                ("Write", true) => disk.written_bytes = value,
                ("Read", false) => disk.reads = value,
                ("Write", false) => disk.writes = value,
                _ => {}
            }
        }
    }
    disks
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; older kernels have no `full` for CPU.
fn pressure(text: &str) -> Option<Pressure> {
    let wait = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut wait = Wait::default();
        for (key, value) in line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            match key {
                "total" => wait.total = value.parse().ok()?,
                "avg10" => wait.avg10 = value.parse().ok()?,
                "avg60" => wait.avg60 = value.parse().ok()?,
                "avg300" => wait.avg300 = value.parse().ok()?,
                _ => {}
            }
        }
        Some(wait)
    };
    Some(Pressure {
        some: wait("some ")?,
        full: wait("full ").unwrap_or_default(),
    })
}

/// `/dev/vda` of a disk's number, as sysfs names it; the number itself when it does not.
pub fn disk_name(major: u32, minor: u32) -> String {
    let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match text.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        Some(name) => Path::new("/dev").join(name).display().to_string(),
        None => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory is named for its controller, but for the v2 tree.
    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Directory>) {
        let root = tempfile::tempdir().unwrap();
        let mut dirs = Vec::new();
        for (name, text) in files {
            let path = root.path().join(name);
            let controller = name.split_once('/').map(|(controller, _)| controller);
            let controller = controller.filter(|name| *name != "unified");
            let dir = Directory {
                path: path.parent().unwrap().to_owned(),
                controllers: controller.into_iter().map(str::to_owned).collect(),
            };
            std::fs::create_dir_all(&dir.path).unwrap();
            std::fs::write(path, text).unwrap();
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        (root, dirs)
    }

    #[test]
    fn both_versions_give_the_same_numbers() {
        let v2 = [
            ("cgroup.procs", "999999999\n"),
            (
                "cpu.stat",
                "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\n",
            ),
            ("memory.current", "100\n"),
            ("memory.peak", "120\n"),
            ("memory.swap.current", "5\n"),
            ("memory.events", "low 0\nmax 6\noom 0\n"),
            (
                "memory.stat",
                "anon 10\nfile 20\nkernel 30\nfile_mapped 11\ninactive_file 12\nactive_file 13\npgfault 14\npgmajfault 15\n",
            ),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
        ];
        let v1 = [
            ("cpu/cgroup.procs", "999999999\n"),
            ("cpu/cpuacct.usage", "3000\n"),
            ("cpu/cpuacct.usage_user", "2000\n"),
            ("cpu/cpuacct.usage_sys", "1000\n"),
            ("unified/cpu.stat", "usage_usec 77\n"),
            ("cpu/cpu.shares", "2\n"),
            (
                "cpu/cpu.stat",
                "nr_periods 9\nnr_throttled 4\nthrottled_time 7000\n",
            ),
            ("memory/memory.usage_in_bytes", "100\n"),
            ("memory/memory.max_usage_in_bytes", "120\n"),
            ("memory/memory.kmem.usage_in_bytes", "30\n"),
            ("memory/memory.failcnt", "6\n"),
            (
                "memory/memory.stat",
                "total_cache 20\ntotal_rss 10\ntotal_swap 5\ntotal_mapped_file 11\ntotal_inactive_file 12\ntotal_active_file 13\ntotal_pgfault 14\ntotal_pgmajfault 15\n",
            ),
            (
                "blkio/blkio.throttle.io_service_bytes",
                "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
            ),
            (
                "blkio/blkio.throttle.io_serviced",
                "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
            ),
            ("pids/pids.current", "3\n"),
            ("pids/pids.max", "max\n"),
        ];
        let (_keep, dirs) = group(&v2);
        let new = read(&dirs).unwrap();
        let (_keep, dirs) = group(&v1);
        let old = read(&dirs).unwrap();
        assert_eq!(new, old);
        assert_eq!((new.cpu_usage_ns, new.throttled_ns), (3000, 7000));
        assert_eq!((new.memory.kernel, new.memory.limit_hits), (30, 6));
        let disk = DiskUse {
            major: 8,
            minor: 0,
            read_bytes: 1,
            written_bytes: 2,
            reads: 3,
            writes: 4,
        };
        assert_eq!(new.disks, [disk]);
        assert_eq!((new.threads, new.threads_max), (3, None));
        assert!(matches!(read(&[]), Err(Error::NotFound(_))));
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let both = pressure(text).unwrap();
        assert_eq!(
            (both.some.total, both.some.avg10, both.full.total),
            (42, 1.5, 7)
        );
        let some = pressure(text.lines().next().unwrap()).unwrap();
        assert_eq!(some.full, Wait::default());
        assert_eq!(pressure(""), None);
        assert_eq!(pressure("some avg10=x"), None);
    }

    #[test]
    fn our_own_group_has_something_to_say() {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let top = Path::new("/sys/fs/cgroup");
        let dirs: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (names, path) = (parts.next()?, parts.next()?);
                let roots = [names, names.trim_start_matches("name="), "unified", "."];
                let found = roots.map(|root| top.join(root).join(path.trim_start_matches('/')));
                let found = found
                    .into_iter()
                    .find(|dir| dir.join("cgroup.procs").exists());
                found.map(|path| Directory {
                    path,
                    controllers: names.split(',').map(str::to_owned).collect(),
                })
            })
            .collect();
        let detail = read(&dirs).unwrap();
        assert!(!detail.processes.is_empty());
        assert!(detail.cpu_usage_ns > 0, "{detail:?}");
        assert_eq!(disk_name(9999, 1), "9999:1");
    }
}
