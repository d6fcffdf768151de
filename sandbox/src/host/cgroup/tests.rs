//! Plans as tables, v2 against a tree of plain files, v1 for real in groups of our own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::id::ContainerId;
use crate::model::Resources;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(10);
const MIB: i64 = 1024 * 1024;

fn plan_v1(resources: &Resources, current: v1::Current) -> Vec<String> {
    let plan = v1::plan(resources, &current).unwrap();
    let line = |(_, file, value)| format!("{file}={value}");
    plan.into_iter().map(line).collect()
}

#[test]
fn v1_limits_are_written_in_an_order_that_the_kernel_accepts() {
    let fresh = v1::Current::fresh(true);
    let small = v1::Current {
        memsw: Some(100),
        period: 100_000,
    };
    let no_swap = v1::Current::fresh(false);
    let memory = |limit, swap| Resources {
        memory_limit: limit,
        memory_swap_limit: swap,
        ..Default::default()
    };
    let cpu = |quota, period| Resources {
        cpu_quota: quota,
        cpu_period: period,
        ..Default::default()
    };
    let (limit, memsw) = (v1::MEMORY_LIMIT, v1::MEMSW_LIMIT);
    let table = [
        (Resources::default(), fresh, vec![]),
        (memory(50, 0), fresh, vec![format!("{limit}=50")]),
        (
            memory(50, 50),
            fresh,
            vec![format!("{limit}=50"), format!("{memsw}=50")],
        ),
        (
            memory(50, 60),
            small,
            vec![format!("{limit}=50"), format!("{memsw}=60")],
        ),
        (
            memory(200, 200),
            small,
            vec![format!("{memsw}=200"), format!("{limit}=200")],
        ),
        (
            memory(200, 0),
            small,
            vec![format!("{memsw}=200"), format!("{limit}=200")],
        ),
        (
            memory(-1, -1),
            small,
            vec![format!("{memsw}=-1"), format!("{limit}=-1")],
        ),
        (memory(200, 200), no_swap, vec![format!("{limit}=200")]),
        (
            cpu(20_000, 50_000),
            fresh,
            vec![
                "cpu.cfs_quota_us=20000".into(),
                "cpu.cfs_period_us=50000".into(),
            ],
        ),
        (
            cpu(-1, 200_000),
            fresh,
            vec![
                "cpu.cfs_period_us=200000".into(),
                "cpu.cfs_quota_us=-1".into(),
            ],
        ),
    ];
    for (resources, current, expected) in table {
        assert_eq!(
            plan_v1(&resources, current),
            expected,
            "{resources:?} after {current:?}"
        );
    }
    let unified = Resources {
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    assert!(matches!(v1::plan(&unified, &fresh), Err(Error::Invalid(_))));
}

#[test]
fn v2_takes_the_terms_of_v1() {
    let resources = Resources {
        cpu_shares: 1024,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit: 64 * MIB,
        memory_swap_limit: 80 * MIB,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![("2MB".into(), 4096), ("1GB".into(), 0)],
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let plan: Vec<String> = v2::plan(&resources)
        .unwrap()
        .into_iter()
        .map(|(file, value)| format!("{file}={value}"))
        .collect();
    assert_eq!(
        plan,
        [
            "cpu.weight=100",
            "cpu.max=20000 100000",
            "memory.max=67108864",
            "memory.swap.max=16777216",
            "cpuset.cpus=0-1",
            "hugetlb.2MB.max=4096",
            "memory.oom.group=1",
        ]
    );
    for (shares, weight) in [
        (0, 1),
        (2, 1),
        (1024, 100),
        (262_144, 10_000),
        (i64::MAX, 10_000),
    ] {
        assert_eq!(v2::cpu_weight(shares), weight, "{shares}");
    }
    for file in ["cgroup.kill", "memory/../x", "memory", ".max", "memory."] {
        let unified = Resources {
            unified: [(file.to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert!(
            matches!(v2::plan(&unified), Err(Error::Invalid(_))),
            "{file}"
        );
    }
    let nonsense = Resources {
        memory_limit: 10,
        memory_swap_limit: 5,
        ..Default::default()
    };
    assert!(matches!(v2::plan(&nonsense), Err(Error::Invalid(_))));
}

#[test]
fn parents_are_normalised_or_refused() {
    for (parent, expected) in [
        ("/kubepods/burstable/podx", Some("/kubepods/burstable/podx")),
        ("criw//a/", Some("/criw/a")),
        ("/", Some("")),
        ("/a/../b", None),
    ] {
        assert_eq!(normal_parent(parent).ok().as_deref(), expected, "{parent}");
    }
}

/// A v2 tree of plain files, as the kernel would show it after mkdir.
fn fake_v2(directory: &Path) -> (Cgroups, Leaf, PathBuf) {
    let parent = directory.join("pods");
    let leaf = parent.join("leaf");
    fs::create_dir_all(&leaf).unwrap();
    for group in [directory, &parent, &leaf] {
        fs::write(group.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(group.join("cgroup.subtree_control"), "").unwrap();
        fs::write(group.join("cgroup.procs"), "").unwrap();
    }
    for (file, text) in [
        ("cpu.max", "max 100000\n"),
        ("cpu.weight", "100\n"),
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
        ("memory.max", "max\n"),
        ("memory.current", "1000\n"),
        ("memory.swap.max", "max\n"),
        ("memory.swap.current", "7\n"),
        (
            "memory.stat",
            "anon 600\nfile 400\ninactive_file 300\npgfault 9\npgmajfault 2\n",
        ),
        ("memory.events", "low 0\noom 3\noom_kill 2\n"),
    ] {
        fs::write(leaf.join(file), text).unwrap();
    }
    let cgroups = Cgroups::new(
        Vec::new(),
        Some(directory.to_owned()),
        Path::new("/no/init"),
    );
    let handle = cgroups.leaf("/pods", "leaf").unwrap();
    (cgroups, handle, leaf)
}

#[test]
fn v2_files_are_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let (cgroups, leaf, path) = fake_v2(directory.path());
    assert_eq!(cgroups.version(), Version::V2);
    assert_eq!(cgroups.children("/pods").unwrap(), ["leaf"]);
    assert_eq!(leaf.dirs(), std::slice::from_ref(&path));
    assert_eq!(leaf.oom_kills().unwrap(), 2);
    let usage = leaf.usage().unwrap();
    let expected = CgroupUsage {
        cpu_usage_ns: 1_500_000,
        memory_usage: 1000,
        memory_working_set: 700,
        memory_rss: 600,
        memory_limit: None,
        page_faults: 9,
        major_page_faults: 2,
        swap_usage: Some(7),
        swap_limit: None,
        processes: 0,
    };
    assert_eq!(usage, expected);
    let resources = Resources {
        memory_limit: 5000,
        cpu_quota: 7,
        ..Default::default()
    };
    leaf.apply(&resources).unwrap();
    assert_eq!(leaf.usage().unwrap().memory_limit, Some(5000));
    let swapping = Resources {
        memory_limit: 5000,
        // Four digits: plain files, unlike the kernel's, keep what is not written over.
        memory_swap_limit: 6009,
        ..Default::default()
    };
    leaf.apply(&swapping).unwrap();
    assert_eq!(leaf.usage().unwrap().swap_limit, Some(1009));
    let quota = fs::read_to_string(path.join("cpu.max")).unwrap();
    assert!(quota.starts_with('7'), "{quota}");
    // Below the usage of 1000 v2 would kill.
    let low = Resources {
        memory_limit: 500,
        ..Default::default()
    };
    assert!(matches!(leaf.apply(&low), Err(Error::Invalid(_))));
}

#[test]
fn a_failed_update_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (_, leaf, path) = fake_v2(directory.path());
    let resources = Resources {
        cpu_shares: 2,
        memory_limit: 5000,
        unified: [("memory.absent".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    // Plain files, unlike the kernel's, would be created by a write that may create.
    assert!(matches!(leaf.apply(&resources), Err(Error::Invalid(_))));
    for (file, text) in [("cpu.weight", "100"), ("memory.max", "max")] {
        assert!(
            fs::read_to_string(path.join(file))
                .unwrap()
                .starts_with(text),
            "{file}"
        );
    }
}

#[test]
fn v2_controllers_are_enabled_from_the_root_down() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, path) = fake_v2(directory.path());
    fs::write(path.join("cgroup.controllers"), "pids\n").unwrap();
    fs::write(
        directory.path().join("cgroup.subtree_control"),
        "cpu memory pids\n",
    )
    .unwrap();
    fs::write(
        directory.path().join("pods/cgroup.subtree_control"),
        "pids\n",
    )
    .unwrap();
    v2::enable_controllers(directory.path(), &path).unwrap();
    let read = |group: &str| {
        fs::read_to_string(directory.path().join(group).join("cgroup.subtree_control")).unwrap()
    };
    assert!(read("").starts_with("cpu memory pids"), "left alone");
    assert!(read("pods").starts_with("+cpu +memory"), "{}", read("pods"));
    assert_eq!(read("pods/leaf"), "");
}

/// A parent of our own in the node's real hierarchies.
struct Parent {
    cgroups: Cgroups,
    path: String,
}

impl Parent {
    fn new() -> Option<Self> {
        let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup"), Path::new("/no/init")).unwrap();
        if cgroups.version() == Version::V2 {
            eprintln!("skipped: the node has no cgroup v1 hierarchies");
            return None;
        }
        let path = format!("/criw-test-{}", &ContainerId::random().as_str()[..12]);
        Some(Self { cgroups, path })
    }

    fn leaf(&self, name: &str) -> Leaf {
        self.cgroups.leaf(&self.path, name).unwrap()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let leaf = self.cgroups.leaf("/", &self.path[1..]).unwrap();
        let ended = leaf.kill(LONG).and_then(|()| leaf.remove(LONG));
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

#[test]
fn scopes_lie_in_their_slices() {
    let directory = tempfile::tempdir().unwrap();
    let (cgroups, plain, _) = fake_v2(directory.path());
    assert!(!plain.is_scope());
    assert_eq!(
        (plain.path(), plain.oci_path()),
        ("/pods/leaf", "/pods/leaf".into())
    );
    for (parent, path, oci) in [
        (
            "pods-a.slice",
            "/pods.slice/pods-a.slice/criw-c.scope",
            "pods-a.slice:criw:c",
        ),
        (
            "/pods.slice/pods-a.slice",
            "/pods.slice/pods-a.slice/criw-c.scope",
            "pods-a.slice:criw:c",
        ),
        ("-.slice", "/criw-c.scope", "-.slice:criw:c"),
    ] {
        let leaf = cgroups.leaf(parent, &own_name(parent, "c")).unwrap();
        assert!(leaf.is_scope());
        assert_eq!((leaf.path(), leaf.oci_path()), (path, oci.into()));
        assert_eq!(criw_engines::slice::of_cgroups_path(oci).unwrap(), path);
        let above = cgroups.parent(parent).unwrap();
        assert!(!above.is_scope());
        assert_eq!(
            format!("{}/criw-c.scope", above.path().trim_end_matches('/')),
            path
        );
    }
    assert!(matches!(
        cgroups.leaf("a--b.slice", "x.scope"),
        Err(Error::Invalid(_))
    ));
}

/// Joins before it runs, as shims do.
fn start_in(leaf: &Leaf, script: &str) -> Child {
    let mut joined = String::new();
    for directory in leaf.dirs() {
        joined.push_str(&format!("echo $$ > {}/cgroup.procs; ", directory.display()));
    }
    let mut child = Command::new("sh")
        .args(["-c", &format!("{joined} echo in; {script}")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert_eq!(line, "in\n");
    child
}

#[test]
fn a_real_leaf_lives_and_ends() {
    let Some(parent) = Parent::new() else { return };
    let leaf = parent.leaf("one");
    assert!(!leaf.exists());
    assert_eq!(leaf.oom_kills().unwrap(), 0);
    let resources = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 64 * MIB,
        memory_swap_limit: 64 * MIB,
        ..Default::default()
    };
    leaf.create(&resources).unwrap().stay().unwrap();
    assert_eq!(parent.cgroups.children(&parent.path).unwrap(), ["one"]);
    assert_eq!(leaf.usage().unwrap().memory_limit, Some(64 * MIB as u64));
    let mut child = start_in(&leaf, "while :; do :; done & mkdir -p /dev/null/x; wait");
    assert!(leaf.procs().unwrap().contains(&(child.id() as i32)));
    let begin = Instant::now();
    while leaf.usage().unwrap().cpu_usage_ns == 0 {
        assert!(begin.elapsed() < LONG, "no CPU time is counted");
    }
    // Raised, lowered, and refused without a change.
    for (limit, swap) in [(128 * MIB, 4 * MIB), (32 * MIB, 0)] {
        let resources = Resources {
            memory_limit: limit,
            memory_swap_limit: limit + swap,
            ..Default::default()
        };
        leaf.apply(&resources).unwrap();
        let usage = leaf.usage().unwrap();
        assert_eq!(usage.memory_limit, Some(limit as u64));
        // A kernel need not account swap.
        if parent.cgroups.layout.memsw {
            assert_eq!(usage.swap_limit, Some(swap as u64));
        }
    }
    let refused = Resources {
        memory_limit: 48 * MIB,
        memory_swap_limit: 48 * MIB,
        cpuset_cpus: "999".into(),
        ..Default::default()
    };
    assert!(leaf.apply(&refused).is_err());
    assert_eq!(leaf.usage().unwrap().memory_limit, Some(32 * MIB as u64));
    leaf.kill(LONG).unwrap();
    child.wait().unwrap();
    leaf.remove(LONG).unwrap();
    assert!(!leaf.exists());
    leaf.kill(SECOND).unwrap();
    leaf.remove(SECOND).unwrap();
}

#[test]
fn frozen_processes_and_sub_groups_end_too() {
    let Some(parent) = Parent::new() else { return };
    let leaf = parent.leaf("frozen");
    leaf.create(&Resources::default()).unwrap().stay().unwrap();
    let inner = parent.cgroups.leaf(leaf.path(), "inner").unwrap();
    inner.create(&Resources::default()).unwrap().stay().unwrap();
    let mut child = start_in(&inner, "sleep 600");
    let freezer = leaf.v1_directory("freezer").unwrap().join("freezer.state");
    fs::write(&freezer, "FROZEN").unwrap();
    assert!(leaf.remove(Duration::from_millis(1)).is_err());
    leaf.kill(LONG).unwrap();
    child.wait().unwrap();
    leaf.remove(LONG).unwrap();
    assert!(!inner.exists() && !leaf.exists());
}

#[test]
fn a_real_oom_kill_is_counted() {
    let Some(parent) = Parent::new() else { return };
    let leaf = parent.leaf("oom");
    let resources = Resources {
        memory_limit: 8 * MIB,
        memory_swap_limit: 8 * MIB,
        ..Default::default()
    };
    leaf.create(&resources).unwrap().stay().unwrap();
    // Keeps the last lines, and this "line" has no end.
    let mut child = start_in(&leaf, "exec tail /dev/zero");
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > LONG {
            leaf.kill(LONG).unwrap();
            child.wait().unwrap();
            panic!("nobody was killed at the memory limit");
        }
        std::thread::yield_now();
    }
    assert!(leaf.oom_kills().unwrap() >= 1);
}

#[test]
fn costs_of_a_leaf() {
    let Some(parent) = Parent::new() else { return };
    let resources = Resources {
        cpu_shares: 512,
        memory_limit: 64 * MIB,
        memory_swap_limit: 64 * MIB,
        ..Default::default()
    };
    let mut samples: Vec<[Duration; 3]> = Vec::new();
    for n in 0..30 {
        let leaf = parent.leaf(&format!("leaf{n}"));
        let begin = Instant::now();
        leaf.create(&resources).unwrap().stay().unwrap();
        let created = begin.elapsed();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let begin = Instant::now();
        for directory in leaf.dirs() {
            fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let joined = begin.elapsed();
        leaf.kill(LONG).unwrap();
        child.wait().unwrap();
        let begin = Instant::now();
        leaf.remove(LONG).unwrap();
        samples.push([created, joined, begin.elapsed()]);
    }
    for (n, what) in ["create", "join", "remove"].iter().enumerate() {
        let mut times: Vec<_> = samples.iter().map(|sample| sample[n]).collect();
        times.sort_unstable();
        eprintln!(
            "cgroup leaf {what}: p50 {:?}, max {:?}",
            times[15], times[29]
        );
        assert!(times[15] < SECOND, "{what} takes {:?}", times[15]);
    }
}
