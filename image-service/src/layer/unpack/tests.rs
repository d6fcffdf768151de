use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::{EntryType, Header};

use super::*;

/// One archive, built entry by entry with raw names, as no honest tool would.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        mode: u32,
        size: u64,
        data: &[u8],
    ) -> Tar {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
            .set_device_major(if kind == EntryType::Char { 1 } else { 0 })
            .unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Tar {
        self.raw(
            EntryType::Regular,
            name.as_bytes(),
            b"",
            0o644,
            data.len() as u64,
            data,
        )
    }

    fn dir(self, name: &str, mode: u32) -> Tar {
        self.raw(EntryType::Directory, name.as_bytes(), b"", mode, 0, b"")
    }

    fn link(self, name: &str, target: &str) -> Tar {
        self.raw(
            EntryType::Symlink,
            name.as_bytes(),
            target.as_bytes(),
            0o777,
            0,
            b"",
        )
    }

    fn hard(self, name: &str, target: &str) -> Tar {
        self.raw(
            EntryType::Link,
            name.as_bytes(),
            target.as_bytes(),
            0o644,
            0,
            b"",
        )
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..)
                .find(|length| length.to_string().len() + rest == *length)
                .unwrap();
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", 0, data.len() as u64, &data)
    }
}

/// Layers below a private directory, bottom first, and a sentinel beside them.
struct Stack {
    directory: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

const BOUNDS: Bounds = Bounds {
    bytes: 1 << 20,
    entries: 100,
    module_bytes: 1 << 20,
};

impl Stack {
    fn new() -> Stack {
        Stack {
            directory: tempfile::tempdir().unwrap(),
            layers: Vec::new(),
        }
    }

    fn add(&mut self, tar: Tar) -> Result<(PathBuf, Unpacked), Fault> {
        self.add_bounded(tar, BOUNDS)
    }

    fn add_bounded(&mut self, mut tar: Tar, bounds: Bounds) -> Result<(PathBuf, Unpacked), Fault> {
        tar.0.extend([0; 1024]);
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(&tar.0).unwrap();
        let target = self.directory.path().join(self.layers.len().to_string());
        std::fs::create_dir_all(&target).unwrap();
        let done = unpack(&Job {
            blob: &blob,
            lowers: &self.layers,
            target: &target,
            diff_id: &Digest::of(&tar.0),
            bounds,
            cancelled: &AtomicBool::new(false),
        })?;
        self.layers.push(target.clone());
        Ok((target, done))
    }

    /// Nothing but the layers is beside the layers.
    fn assert_nothing_escaped(&self) {
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.parse::<usize>().is_ok(), "{name} came out of a layer");
        }
    }
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = path.symlink_metadata().unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(path, OPAQUE, &mut value[..]) == Ok(1) && value == *b"y"
}

#[test]
fn files_keep_owner_mode_time_and_attributes() {
    let mut stack = Stack::new();
    let tar = Tar::default()
        .dir("./", 0o711)
        .dir("bin/", 0o1777)
        .pax(&[
            ("mtime", b"1000000000.5"),
            ("SCHILY.xattr.user.note", b"a\0b"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("uid", b"100000"),
        ])
        .raw(EntryType::Regular, b"bin/su", b"", 0o4755, 3, b"abc")
        .hard("bin/su2", "bin/su")
        .link("bin/sh", "/bin/su")
        .raw(EntryType::Fifo, b"pipe", b"", 0o600, 0, b"")
        .raw(EntryType::Char, b"null", b"", 0o666, 0, b"")
        .file("deep/er/file", b"");
    let (root, done) = stack.add(tar).unwrap();
    assert_eq!(done.bytes, 3);
    let su = root.join("bin/su").metadata().unwrap();
    assert_eq!(
        (su.uid(), su.gid(), su.mode() & 0o7777),
        (100_000, 2, 0o4755)
    );
    assert_eq!(
        (su.mtime(), su.mtime_nsec(), su.nlink()),
        (1_000_000_000, 500_000_000, 2)
    );
    let mut value = [0; 8];
    assert_eq!(
        rustix::fs::lgetxattr(root.join("bin/su"), "user.note", &mut value[..]),
        Ok(3)
    );
    assert!(!is_opaque(&root.join("bin/su")));
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o711);
    let bin = root.join("bin").metadata().unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_000_000_000));
    assert_eq!(
        std::fs::read_link(root.join("bin/sh")).unwrap(),
        Path::new("/bin/su")
    );
    assert_eq!(root.join("bin/sh").symlink_metadata().unwrap().uid(), 1);
    assert!(root.join("pipe").metadata().unwrap().file_type().is_fifo());
    let null = root.join("null").metadata().unwrap();
    assert_eq!(
        (null.rdev(), null.permissions().mode() & 0o777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert!(root.join("deep/er/file").is_file());
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let mut stack = Stack::new();
    let base = Tar::default()
        .dir("d/", 0o700)
        .file("d/a", b"1")
        .file("d/b", b"2")
        .file("e/a", b"3")
        .file("f/old", b"4");
    stack.add(base).unwrap();
    let tar = Tar::default()
        .file("d/.wh.a", b"")
        .file("d/.wh.nothing", b"")
        .file("e/new", b"")
        .file("e/.wh..wh..opq", b"")
        .file(".wh.f", b"")
        .file("f/new", b"")
        .file(".wh..wh.plnk", b"");
    let (root, _) = stack.add(tar).unwrap();
    assert!(is_whiteout(&root.join("d/a")));
    assert!(!root.join("d/nothing").exists() && !root.join("d/b").exists());
    assert!(is_opaque(&root.join("e")) && root.join("e/new").is_file());
    assert!(
        is_opaque(&root.join("f")),
        "a directory over its own whiteout hides what is below"
    );
    assert!(!root.join(".wh..wh.plnk").exists());
    // The directory that the archive does not name looks as it does below.
    let d = root.join("d").metadata().unwrap();
    assert_eq!((d.mode() & 0o7777, d.uid()), (0o700, 1));
    // The merged view agrees, and so does the kernel.
    let mount = Overlay::mount(&stack);
    let tree = Tree::open(&[&stack.layers[1], &stack.layers[0]]).unwrap();
    for (path, there) in [
        ("d/a", false),
        ("d/b", true),
        ("e/a", false),
        ("f/old", false),
        ("f/new", true),
    ] {
        assert_eq!(
            tree.find(Path::new(path)).unwrap().is_some(),
            there,
            "{path}"
        );
        if let Some(mount) = &mount {
            assert_eq!(mount.0.join(path).exists(), there, "{path} by the kernel");
        }
    }
}

/// Two layers as the kernel shows them.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(stack: &Stack) -> Option<Overlay> {
        let target = stack.directory.path().join("9");
        std::fs::create_dir(&target).unwrap();
        let [bottom, top] = &stack.layers[..] else {
            panic!("two layers are needed")
        };
        let options = format!("ro,lowerdir={}:{}", top.display(), bottom.display());
        let mounted = std::process::Command::new("mount")
            .args(["-t", "overlay", "-o", &options, "overlay"])
            .arg(&target)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped in part: an overlay cannot be mounted here");
            return None;
        }
        Some(Overlay(target))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn the_layers_below_decide_links_on_the_way() {
    let mut stack = Stack::new();
    stack
        .add(
            Tar::default()
                .dir("usr/lib/", 0o755)
                .link("lib", "usr/lib")
                .file("usr/lib/low", b"low"),
        )
        .unwrap();
    let (root, _) = stack
        .add(
            Tar::default()
                .file("lib/new", b"n")
                .hard("lib/linked", "lib/low"),
        )
        .unwrap();
    assert!(root.join("usr/lib/new").is_file() && root.join("lib").symlink_metadata().is_err());
    // Linked to a file of a lower layer: copied up, as overlayfs would.
    assert_eq!(std::fs::read(root.join("usr/lib/linked")).unwrap(), b"low");
    assert_eq!(root.join("usr/lib/low").metadata().unwrap().nlink(), 2);
}

#[test]
fn an_entry_replaces_what_its_own_layer_has() {
    let mut stack = Stack::new();
    let tar = Tar::default()
        .file("x/y", b"\0asm1")
        .file("x", b"file")
        .file("z", b"file")
        .file("z/inner", b"")
        .file("twice", b"\0asm1")
        .file("twice", b"\0asm2");
    let fault = stack.add(tar).unwrap_err();
    assert!(fault.to_string().contains("no directory"), "{fault}");
    let tar = Tar::default()
        .file("x/y", b"\0asm1")
        .file("x", b"file")
        .file("twice", b"\0asm1")
        .file("twice", b"\0asm2")
        .hard("again", "twice");
    stack.directory = tempfile::tempdir().unwrap();
    let (root, done) = stack.add(tar).unwrap();
    assert!(root.join("x").is_file());
    let modules: Vec<_> = done
        .modules
        .iter()
        .map(|(path, (digest, _))| (path.to_str().unwrap(), digest.clone()))
        .collect();
    let second = Digest::of(b"\0asm2");
    assert_eq!(modules, [("again", second.clone()), ("twice", second)]);
}

#[test]
fn no_name_leads_out_of_the_layer() {
    let refused: [(&str, Tar); 7] = [
        ("leads out", Tar::default().file("../escaped", b"")),
        ("leads out", Tar::default().file("a/../../escaped", b"")),
        ("leads out", Tar::default().hard("a", "../../etc/passwd")),
        ("not there", Tar::default().hard("a", "/etc/passwd")),
        ("leads out", Tar::default().file("../.wh.0", b"")),
        ("names nothing", Tar::default().file("a/.wh...", b"")),
        (
            "0:0",
            Tar::default()
                .raw(EntryType::Block, b"ok", b"", 0, 0, b"")
                .raw(EntryType::Fifo, b"ok2", b"", 0, 0, b"")
                .pax(&[])
                .zero_device(),
        ),
    ];
    for (part, tar) in refused {
        let mut stack = Stack::new();
        let fault = stack.add(tar).unwrap_err();
        assert!(matches!(fault, Fault::Content(_)), "{fault}");
        assert!(fault.to_string().contains(part), "{part}: {fault}");
        stack.assert_nothing_escaped();
    }
    // Links are followed as the container would: inside.
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let mut stack = Stack::new();
    let tar = Tar::default()
        .link("up", "../../../..")
        .file("up/one", b"1")
        .link("abs", target)
        .dir(&target[1..], 0o755)
        .file("abs/two", b"2")
        .file("/three", b"3")
        .file("in/../four", b"4");
    let (root, _) = stack.add(tar).unwrap();
    assert_eq!(std::fs::read(root.join("one")).unwrap(), b"1");
    assert_eq!(
        std::fs::read(root.join(&target[1..]).join("two")).unwrap(),
        b"2"
    );
    assert!(root.join("three").is_file() && root.join("four").is_file());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    stack.assert_nothing_escaped();
    // A loop ends.
    let fault = Stack::new()
        .add(
            Tar::default()
                .link("a", "b")
                .link("b", "a")
                .file("a/x", b""),
        )
        .unwrap_err();
    assert!(
        fault.to_string().contains("too many symbolic links"),
        "{fault}"
    );
}

impl Tar {
    fn zero_device(mut self) -> Tar {
        let mut header = Header::new_gnu();
        header.set_path("hide").unwrap();
        header.set_entry_type(EntryType::Char);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }
}

#[test]
fn bombs_are_refused_before_they_are_written() {
    let sparse = |real: u64| {
        let mut header = Header::new_gnu();
        header.set_path("sparse").unwrap();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(4);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(real);
        gnu.sparse[0].offset.copy_from_slice(b"00000001000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000004\0");
        header.set_cksum();
        let mut tar = Tar::default();
        tar.0.extend(header.as_bytes());
        tar.0.extend(b"data");
        tar.0.resize(1024, 0);
        tar
    };
    // The good twin: a hole, then data.
    let mut stack = Stack::new();
    let (root, done) = stack.add(sparse(0o2000)).unwrap();
    assert_eq!(done.bytes, 0o2000);
    let content = std::fs::read(root.join("sparse")).unwrap();
    assert_eq!(
        (content.len(), &content[0o1000..0o1004]),
        (0o2000, &b"data"[..])
    );
    let fault = Stack::new().add(sparse(1 << 50)).unwrap_err();
    assert!(
        matches!(fault, Fault::Limit(_)) && fault.to_string().contains("allowed"),
        "{fault}"
    );
    let many = |count: usize| {
        (0..count).fold(Tar::default(), |tar, n| {
            tar.file(&format!("f{n}"), b"12345678")
        })
    };
    let tight = Bounds {
        bytes: 80,
        entries: 10,
        ..BOUNDS
    };
    assert!(Stack::new().add_bounded(many(10), tight).is_ok());
    let fault = Stack::new().add_bounded(many(11), tight).unwrap_err();
    assert!(
        matches!(fault, Fault::Limit(_)) && fault.to_string().contains("files"),
        "{fault}"
    );
    let fault = Stack::new()
        .add_bounded(
            many(11),
            Bounds {
                entries: 99,
                ..tight
            },
        )
        .unwrap_err();
    assert!(
        matches!(fault, Fault::Limit(_)) && fault.to_string().contains("bytes"),
        "{fault}"
    );
}

#[test]
fn damaged_archives_are_told() {
    let cut = |bytes: &[u8]| {
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(bytes).unwrap();
        let target = tempfile::tempdir().unwrap();
        unpack(&Job {
            blob: &blob,
            lowers: &[],
            target: target.path(),
            diff_id: &Digest::of(bytes),
            bounds: BOUNDS,
            cancelled: &AtomicBool::new(false),
        })
    };
    let whole = Tar::default().file("a", &[7; 2000]).0;
    assert!(cut(&whole).is_ok());
    for (bytes, part) in [
        (&whole[..1000], "cut short"),
        (&whole[..100], "cut short"),
        (&b"not a tar archive, certainly".repeat(40)[..], "checksum"),
        (&[0x1f, 0x8b, 9, 9, 9][..], "cut short"),
    ] {
        let fault = cut(bytes).unwrap_err();
        assert!(fault.to_string().contains(part), "{part}: {fault}");
    }
}

#[test]
fn an_abandoned_unpack_stops() {
    let tar = Tar::default().file("a", b"1").0;
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(&tar).unwrap();
    let target = tempfile::tempdir().unwrap();
    let fault = unpack(&Job {
        blob: &blob,
        lowers: &[],
        target: target.path(),
        diff_id: &Digest::of(&tar),
        bounds: BOUNDS,
        cancelled: &AtomicBool::new(true),
    })
    .unwrap_err();
    assert!(matches!(fault, Fault::Cancelled));
}
