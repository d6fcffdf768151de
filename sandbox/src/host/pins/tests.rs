//! Rooms of our own, in directories of our own.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::super::shm;
use super::*;
use crate::model::IdRange;

const IDS: IdRange = IdRange {
    host: 100_000,
    length: 65536,
};

const ALL: Want = Want {
    user: Some(IdMap {
        uids: IDS,
        gids: IDS,
    }),
    net: true,
    ipc: true,
    uts: true,
};

/// Which namespace a descriptor is.
fn inode(namespace: &Option<OwnedFd>) -> Option<u64> {
    let file = std::fs::File::from(namespace.as_ref()?.try_clone().unwrap());
    Some(file.metadata().unwrap().ino())
}

fn inodes(namespaces: &PodNamespaces) -> [Option<u64>; 4] {
    [
        &namespaces.net,
        &namespaces.ipc,
        &namespaces.uts,
        &namespaces.user,
    ]
    .map(inode)
}

/// Removes a room also when its test fails.
struct Room(Option<PinRoom>);

impl std::ops::Deref for Room {
    type Target = PinRoom;
    fn deref(&self) -> &PinRoom {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let destroyed = self.0.take().map_or(Ok(()), PinRoom::destroy);
        if !std::thread::panicking() {
            destroyed.unwrap();
        }
    }
}

fn mounts_below(path: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table.lines().filter(|line| line.contains(path)).count()
}

#[test]
fn pins_outlive_the_daemon_and_end_when_removed() {
    let state = tempfile::tempdir().unwrap();
    let first = PinRoom::open(state.path()).unwrap();
    let made = inodes(&first.create("pod-a", ALL).unwrap());
    assert!(made.iter().all(Option::is_some), "{made:?}");
    let some = Want {
        user: None,
        ipc: false,
        ..ALL
    };
    let partly = inodes(&first.create("pod-b", some).unwrap());
    assert_eq!(partly[1], None);
    assert!(first.create("pod-b/../c", ALL).is_err());
    // The bind mount and the room: pods cost the host no mount.
    assert_eq!(mounts_below(state.path()), 2);
    drop(first);

    let again = Room(Some(PinRoom::open(state.path()).unwrap()));
    assert_eq!(again.list().unwrap(), ["pod-a", "pod-b"]);
    assert_eq!(inodes(&again.open_pod("pod-a").unwrap()), made);
    assert_eq!(inodes(&again.open_pod("pod-b").unwrap()), partly);
    assert_eq!(inodes(&again.open_pod("pod-c").unwrap()), [None; 4]);
    for _ in 0..2 {
        again.remove("pod-a").unwrap();
        assert_eq!(again.list().unwrap(), ["pod-b"]);
    }
    assert_eq!(inodes(&again.open_pod("pod-a").unwrap()), [None; 4]);
    drop(again);
    assert_eq!(mounts_below(state.path()), 0);
    assert!(!state.path().join("pins").exists());
}

#[test]
fn what_another_boot_left_is_replaced() {
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("pins")).unwrap();
    std::fs::write(state.path().join("pins/mnt"), "").unwrap();
    let room = Room(Some(PinRoom::open(state.path()).unwrap()));
    assert!(room.list().unwrap().is_empty());
    room.create("pod", ALL).unwrap();
}

#[test]
fn shared_memory_is_one_for_all_containers_of_a_pod() {
    let state = tempfile::tempdir().unwrap();
    let room = Room(Some(PinRoom::open(state.path()).unwrap()));
    room.create("pod", ALL).unwrap();
    shm::create(&room, "pod", None, None).unwrap();
    let one = shm::open(&room, "pod").unwrap();
    let two = shm::open(&room, "pod").unwrap();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::openat(&one, "segment", flags, Mode::RUSR).unwrap();
    rustix::fs::statat(&two, "segment", AtFlags::empty()).unwrap();
    let stat = rustix::fs::fstatvfs(&two).unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, shm::SIZE);
    let mode = rustix::fs::fstat(&two).unwrap().st_mode;
    assert_eq!(mode & 0o7777, 0o1777);
    room.remove("pod").unwrap();
    assert!(room.list().unwrap().is_empty());
}

#[test]
fn a_netns_is_pinned_where_plugins_look() {
    let state = tempfile::tempdir().unwrap();
    let room = Room(Some(PinRoom::open(state.path()).unwrap()));
    let pod = room.create("pod", ALL).unwrap();
    let directory = state.path().join("netns");
    let path = directory.join("criw-pod");
    for _ in 0..2 {
        host::pin_netns_at(pod.net.as_ref().unwrap().as_fd(), &path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().ino(),
            inode(&pod.net).unwrap()
        );
        assert_eq!(mounts_below(&directory), 2);
        host::unpin(&path).unwrap();
        host::unpin(&path).unwrap();
        assert!(!path.exists());
    }
    unmount(&directory).unwrap();
}

#[test]
fn costs_of_pins() {
    const WHAT: [&str; 5] = ["thread", "unshare alone", "create", "open", "remove"];
    let state = tempfile::tempdir().unwrap();
    let room = Room(Some(PinRoom::open(state.path()).unwrap()));
    let unshare = || {
        on_fresh_thread(|| sys::unshare(ALL.flags()).context(|| "unshare")).unwrap();
    };
    let thread = || on_fresh_thread(|| Ok(())).unwrap();
    let mut times: [Vec<Duration>; 5] = Default::default();
    for n in 0..30 {
        let name = format!("pod{n}");
        let steps: [&dyn Fn(); 5] = [
            &thread,
            &unshare,
            &|| drop(room.create(&name, ALL).unwrap()),
            &|| drop(room.open_pod(&name).unwrap()),
            &|| room.remove(&name).unwrap(),
        ];
        for (step, times) in steps.iter().zip(&mut times) {
            let begin = Instant::now();
            step();
            times.push(begin.elapsed());
        }
    }
    for (what, mut times) in WHAT.into_iter().zip(times) {
        times.sort_unstable();
        eprintln!("pins {what}: p50 {:?}, max {:?}", times[15], times[29]);
        assert!(times[15] < Duration::from_secs(1), "{what}");
    }
}
