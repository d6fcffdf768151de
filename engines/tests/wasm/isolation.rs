//! What a guest cannot reach, and what the shim gave up.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use criw_engines::protocol::{Reply, Request};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};
use rustix::thread::UnshareFlags;

use crate::container::{Container, DEADLINE, Plan, binary, compile, skip, tmpfs};
use crate::guests::{component, module, spin};

/// Exits with the errno of opening `path` below "/" for writing (0: it is open).
fn open_for_writing(path: &str) -> String {
    module(
        path,
        &format!(
            "(call $exit (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024)
                (i32.const {}) (i32.const 0) (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 32)))",
            path.len()
        ),
    )
}

fn procfs() -> OwnedFd {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&context, flags, MountAttrFlags::empty()).unwrap()
}

/// The host's own procfs, as a hostPath of "/proc" would be.
fn host_procfs() -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, "/proc", flags).unwrap()
}

/// A tree with a procfs below its top, as a hostPath of "/" would be. Made in a
/// mount namespace of its own: the host's "/" may hold mounts of other tests that
/// the kernel refuses to copy (pinned mount namespaces).
#[allow(
    unsafe_code,
    reason = "unshare without CLONE_FILES, on a fresh thread that ends"
)]
fn tree_with_procfs() -> OwnedFd {
    std::thread::spawn(|| {
        let directory = tempfile::tempdir().unwrap();
        // SAFETY: descriptors stay shared, and the thread does nothing else.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let attach = |mount: OwnedFd, place: &std::path::Path| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&mount, "", CWD, place, flags).unwrap();
        };
        attach(tmpfs(&[]), directory.path());
        let below = directory.path().join("proc");
        std::fs::create_dir(&below).unwrap();
        attach(procfs(), &below);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = rustix::mount::open_tree(CWD, directory.path(), flags).unwrap();
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(directory.path(), flags).unwrap();
        tree
    })
    .join()
    .unwrap()
}

#[test]
fn a_guest_cannot_write_its_engines_memory() {
    if skip("a_guest_cannot_write_its_engines_memory") {
        return;
    }
    // Without a volume there is no procfs at all; in a volume it is read-only.
    const NOENT: i32 = 44;
    const ROFS: i32 = 69;
    for (path, mounts, expected) in [
        ("proc/self/mem", vec![], NOENT),
        ("v/self/mem", vec![("/v".to_owned(), procfs())], ROFS),
        ("v/1/mem", vec![("/v".to_owned(), procfs())], ROFS),
        (
            "h/proc/1/mem",
            vec![("/h".to_owned(), tree_with_procfs())],
            ROFS,
        ),
        // The good twin: what is not the kernel's is writable.
        (
            "v/file",
            vec![("/v".to_owned(), tmpfs(&[("file", "x")]))],
            0,
        ),
        ("greeting", vec![], 0),
    ] {
        let plan = Plan {
            uid: 0,
            mounts,
            ..Plan::default()
        };
        let mut container = Container::run(&open_for_writing(path), plan);
        let (code, _) = container.wait();
        assert_eq!(code, expected, "{path}");
    }
}

#[test]
fn the_hosts_procfs_stays_writable() {
    if skip("the_hosts_procfs_stays_writable") {
        return;
    }
    let plan = Plan {
        mounts: vec![("/h".to_owned(), host_procfs())],
        ..Plan::default()
    };
    let container = Container::run(&spin(), plan);
    let mut file = File::options()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .unwrap();
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    file.write_all(own.as_bytes()).unwrap();
    drop(container);
}

#[test]
fn the_shim_keeps_nothing() {
    if skip("the_shim_keeps_nothing") {
        return;
    }
    let container = Container::run(&spin(), Plan::default());
    container.await_log("spinning");
    let pid = container.child.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t ",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Threads:\t2",
        "TracerPid:\t0",
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line}\n{status}"
        );
    }
    for kind in ["mnt", "pid"] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(theirs, ours);
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    // Nothing executable besides the engine, the compiled code and the vdso.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for line in maps.lines() {
        let protection = line.split(' ').nth(1).unwrap();
        assert!(
            !(protection.contains('w') && protection.contains('x')),
            "{line}"
        );
    }
    // Inherited: standard streams and the socket; the rest came with Create.
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.is_empty());
}

#[test]
fn a_mount_point_that_cannot_be_made_fails_create() {
    if skip("a_mount_point_that_cannot_be_made_fails_create") {
        return;
    }
    let code = compile(spin().as_bytes()).unwrap();
    let plan = Plan {
        mounts: vec![("/greeting/below".to_owned(), tmpfs(&[]))],
        ..Plan::default()
    };
    let Err(message) = Container::create(&code, plan) else {
        panic!("a directory below a file was made");
    };
    assert!(message.contains("mount at /greeting/below"), "{message}");
}

#[test]
fn a_shim_survives_rubbish_before_create() {
    if skip("a_shim_survives_rubbish_before_create") {
        return;
    }
    use criw_engines::protocol::{Phase, Reply};
    let container = Container::launch(None);
    for request in [
        Request::Start,
        Request::Create {
            version: 99,
            fds: Vec::new(),
        },
        Request::Create {
            version: 1,
            fds: Vec::new(),
        },
    ] {
        let reply = container.call(&request);
        assert!(matches!(reply, Reply::Failed { .. }), "{reply:?}");
    }
    let reply = container.socket.call(&Request::State, &[], DEADLINE);
    assert!(matches!(
        reply.unwrap(),
        Reply::State {
            phase: Phase::Empty,
            ..
        }
    ));
}

#[test]
fn the_shim_is_static_small_and_without_a_compiler() {
    if skip("the_shim_is_static_small_and_without_a_compiler") {
        return;
    }
    // 14.2 MB measured; it was 9.8 before WASI 0.3 came in, and 8.1 before HTTP, TLS and
    // name lookups did.
    const MAX_LOADED: u64 = 15 << 20;
    let bytes = std::fs::read(binary("criw-shim-wasmtime")).unwrap();
    assert!(!has_interpreter(&bytes), "it is linked dynamically");
    let loaded = loaded_bytes(&bytes);
    assert!(loaded < MAX_LOADED, "{loaded} bytes are loaded");
    let compiler = b"cranelift_codegen";
    let found = bytes.windows(compiler.len()).any(|part| part == compiler);
    assert!(!found, "the compiler is in it");
    // The search finds what it looks for.
    let other = std::fs::read(binary("criw-compile")).unwrap();
    assert!(other.windows(compiler.len()).any(|part| part == compiler));
}

/// (type, size in the file) of each program header of a 64-bit ELF file.
fn segments(elf: &[u8]) -> Vec<(u32, u64)> {
    let u16_at = |at: usize| u16::from_le_bytes(elf[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let (table, size, count) = (u64_at(32) as usize, u16_at(54), u16_at(56));
    (0..count)
        .map(|n| table + usize::from(n) * usize::from(size))
        .map(|at| (u32_at(at), u64_at(at + 32)))
        .collect()
}

fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    segments(elf).iter().any(|(kind, _)| *kind == PT_INTERP)
}

fn loaded_bytes(elf: &[u8]) -> u64 {
    const PT_LOAD: u32 = 1;
    let loads = segments(elf).into_iter();
    loads
        .filter(|(kind, _)| *kind == PT_LOAD)
        .map(|(_, size)| size)
        .sum()
}

fn make_read_only(mount: &OwnedFd) {
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = rustix::mount::fspick(mount, "", flags).unwrap();
    rustix::mount::fsconfig_set_flag(&context, "ro").unwrap();
    rustix::mount::fsconfig_reconfigure(&context).unwrap();
}

/// A component was told of an I/O error, as if a disk were broken.
#[test]
fn a_read_only_place_is_called_so() {
    if skip("a_read_only_place_is_called_so") {
        return;
    }
    let words = [
        "create/ro/new",
        "write/ro/file",
        "mkdir/ro/new",
        "rmdir/ro/below",
        "unlink/ro/file",
        "rename/ro/file",
        "read/ro/file",
        "read/ro/none",
        "create/new",
        "mkdir/made",
    ];
    // (read-only, no entry) by the numbers of each version.
    for (guest, read_only, no_entry) in [("files", 33, 20), ("async", 32, 19)] {
        let sealed = tmpfs(&[("file", "x")]);
        rustix::fs::mkdirat(&sealed, "below", rustix::fs::Mode::RWXU).unwrap();
        make_read_only(&sealed);
        let plan = Plan {
            uid: 0,
            args: std::iter::once(guest)
                .chain(words)
                .map(str::to_owned)
                .collect(),
            mounts: vec![("/ro".to_owned(), sealed)],
            ..Plan::default()
        };
        let code = compile(&component(guest)).unwrap();
        let mut container = Container::create(&code, plan).unwrap();
        assert_eq!(container.call(&Request::Start), Reply::Started);
        let (code, record) = container.wait();
        assert_eq!(code, 0, "{guest}: {record:?}");
        let said: Vec<String> = container.lines().into_iter().map(|line| line.2).collect();
        let mut expected = vec![format!("error {read_only}"); 6];
        expected.extend(["ok".to_owned(), format!("error {no_entry}")]);
        expected.extend(["ok".to_owned(), "ok".to_owned()]);
        assert_eq!(said, expected, "{guest}");
    }
}
