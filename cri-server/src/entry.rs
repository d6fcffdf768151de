//! What argv[0] of a container or exec stands for: a Wasm module, or a program that
//! the host's kernel runs.
//!
//! A name is looked up as in a Linux container: with a slash it is a path, else PATH
//! is searched; CRI mounts lie over the image. A file that begins with `\0asm` is a
//! module whatever its mode. `path#export` names another entry function. Links
//! are followed within the image or within the volume they lie in, never from one
//! into the other and never to the host. A masked file is there and cannot be run, one in a
//! masked directory is not there.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use criw_image_service::{Digest, Kind, WasmModule};
use criw_sandbox::host::rootview::RootView;
use criw_sandbox::model::{ImageVolume, Mount};
use tonic::Status;

use crate::error;
use crate::toolbox::Offer;

/// Where argv[0] is looked for.
#[derive(Debug)]
pub struct Place {
    /// For error texts.
    pub image: String,
    /// Layer directories, lowest first; empty for an artifact.
    pub lowers: Vec<PathBuf>,
    /// Modules of the image.
    pub modules: Vec<WasmModule>,
    /// What the chosen variant is for.
    pub kind: Kind,
    /// CRI mounts.
    pub mounts: Vec<Mount>,
    /// Paths that are masked in the container.
    pub masked: Vec<String>,
    /// PATH of the container.
    pub path: String,
    /// Its working directory.
    pub cwd: String,
    /// What answers where the image and the mounts have nothing.
    pub toolbox: Offer,
}

/// Why nothing runs.
#[derive(Debug)]
pub enum Unfit {
    /// The name stands for nothing.
    NotFound(String),
    /// It stands for what cannot run.
    NotExecutable(String),
    /// It stands for what is masked.
    Denied(String),
    /// It could not be looked up.
    Node(Status),
}

impl From<Unfit> for Status {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NotFound(text) | Unfit::NotExecutable(text) | Unfit::Denied(text) => {
                Self::invalid_argument(text)
            }
            Unfit::Node(status) => status,
        }
    }
}

impl From<Status> for Unfit {
    fn from(status: Status) -> Self {
        Self::Node(status)
    }
}

/// What runs.
#[derive(Debug)]
pub enum Program {
    /// A module, and its entry function when named.
    Wasm(Module, Option<String>),
    /// An ELF file or script; or nothing was found in a Linux image, which runc
    /// reports best.
    Native,
}

/// Where the module's bytes are.
#[derive(Debug)]
pub enum Module {
    /// In the image store, compiled when it was pulled.
    Stored(Digest),
    /// On a volume, or not recorded.
    File(File),
    /// The toolbox.
    Toolbox,
}

enum Look {
    Absent,
    Masked,
    Module(Module),
    Native,
    Unknown(String),
}

/// Blocks on disk: call it where that is allowed.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
pub fn find(place: &Place, word: &str, multicall: bool) -> Result<Program, Unfit> {
    let root = if place.lowers.is_empty() {
        None
    } else {
        Some(RootView::open(&place.lowers).map_err(|e| error::sandbox(&e))?)
    };
    for (name, export) in spellings(word) {
        for candidate in candidates(name, &place.path, &place.cwd) {
            match look(place, root.as_ref(), &candidate)? {
                Look::Absent => {}
                Look::Masked => {
                    return Err(Unfit::Denied(format!(
                        "{} of image {}: permission denied: it is masked in this container (maskedPaths of its security context)",
                        candidate.display(),
                        place.image
                    )));
                }
                Look::Module(module) => {
                    return Ok(Program::Wasm(module, export.map(str::to_owned)));
                }
                Look::Native if export.is_none() => return Ok(Program::Native),
                Look::Native => {
                    return Err(Unfit::NotExecutable(format!(
                        "{name} of image {} is a native program; only a Wasm module has exports to choose",
                        place.image
                    )));
                }
                Look::Unknown(what) => {
                    return Err(Unfit::NotExecutable(format!(
                        "{} of image {} is {what}: neither a Wasm module nor a program of this machine ({} ELF or a #! script)",
                        candidate.display(),
                        place.image,
                        std::env::consts::ARCH
                    )));
                }
            }
        }
    }
    if place.kind == Kind::Linux {
        return Ok(Program::Native);
    }
    match place.modules.as_slice() {
        [only] if multicall => {
            let export = spellings(word).last().and_then(|(_, export)| export);
            Ok(Program::Wasm(
                Module::Stored(only.digest.clone()),
                export.map(str::to_owned),
            ))
        }
        _ if place.toolbox.has(word) => Ok(Program::Wasm(Module::Toolbox, None)),
        modules => Err(Unfit::NotFound(not_found(place, word, modules))),
    }
}

fn not_found(place: &Place, word: &str, modules: &[WasmModule]) -> String {
    let names: Vec<String> = modules
        .iter()
        .map(|module| match &module.path {
            Some(path) => path.display().to_string(),
            None => format!("(unnamed layer {})", module.digest),
        })
        .take(20)
        .collect();
    let has = if names.is_empty() {
        "it has no Wasm module".to_owned()
    } else {
        format!("its Wasm modules are {}", names.join(", "))
    };
    format!(
        "command {word:?} is not found in image {} (PATH {}, working directory {}); {has}; {}",
        place.image, place.path, place.cwd, place.toolbox
    )
}

/// As it stands, then split at each `#`, the last one first: a component's functions inside
/// of an interface have one in their name.
pub fn spellings(word: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let splits = word
        .rmatch_indices('#')
        .map(|(at, _)| (&word[..at], &word[at + 1..]))
        .filter(|(name, export)| !name.is_empty() && !export.is_empty())
        .map(|(name, export)| (name, Some(export)));
    std::iter::once((word, None)).chain(splits)
}

/// Paths in the container, in the order of the search. The working directory comes last
/// for plain names, because Wasm images often name their module without a slash.
fn candidates(word: &str, path: &str, cwd: &str) -> Vec<PathBuf> {
    let cwd = Path::new("/").join(cwd);
    if word.contains('/') {
        return vec![normal(&cwd.join(word))];
    }
    path.split(':')
        .map(|directory| normal(&cwd.join(directory).join(word)))
        .chain([normal(&cwd.join(word))])
        .collect()
}

/// Without `.` and `..`, as if no component were a link: enough to tell which mount it is in.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
fn look(place: &Place, root: Option<&RootView>, path: &Path) -> Result<Look, Status> {
    let status = |e| error::sandbox(&e);
    if let Some((mount, rest)) = covering(&place.mounts, path) {
        return match volume_file(mount, &rest)? {
            Some(file) => match masked(place, root, path, None)? {
                Some(look) => Ok(look),
                None => inspect(file, Module::File),
            },
            None => Ok(Look::Absent),
        };
    }
    let Some(root) = root else {
        return Ok(Look::Absent);
    };
    let name = path.to_string_lossy();
    let Some(resolved) = root.resolve(&name).map_err(status)? else {
        return Ok(Look::Absent);
    };
    if !resolved.is_file {
        return Ok(Look::Absent);
    }
    let Some(file) = root.open_file(&name).map_err(status)? else {
        return Ok(Look::Absent);
    };
    if let Some(look) = masked(place, Some(root), path, Some(&resolved.path))? {
        return Ok(look);
    }
    let stored = place
        .modules
        .iter()
        .find(|module| module.path.as_deref() == Some(&resolved.path));
    inspect(file, |file| match stored {
        Some(module) => Module::Stored(module.digest.clone()),
        None => Module::File(file),
    })
}

/// What a file is that is there but for the masked paths, if one of them hides it: by its
/// own name, or `resolved` in the image by that of what they both lead to.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
fn masked(
    place: &Place,
    root: Option<&RootView>,
    path: &Path,
    resolved: Option<&Path>,
) -> Result<Option<Look>, Status> {
    for name in &place.masked {
        let mut hidden = vec![(path, normal(Path::new(name)))];
        if let (Some(root), Some(resolved)) = (root, resolved)
            && let Some(found) = root.resolve(name).map_err(|e| error::sandbox(&e))?
        {
            hidden.push((resolved, found.path));
        }
        for (path, hidden) in hidden {
            if path == hidden {
                return Ok(Some(Look::Masked));
            }
            if path.starts_with(&hidden) {
                return Ok(Some(Look::Absent));
            }
        }
    }
    Ok(None)
}

/// The mount that a path lies in, the deepest and of those the last, and the rest of the path.
fn covering<'a>(mounts: &'a [Mount], path: &Path) -> Option<(&'a Mount, PathBuf)> {
    mounts
        .iter()
        .filter_map(|mount| {
            let point = normal(Path::new(&mount.container_path));
            let rest = path.strip_prefix(&point).ok()?.to_owned();
            Some((point.components().count(), mount, rest))
        })
        .max_by_key(|(depth, ..)| *depth)
        .map(|(_, mount, rest)| (mount, rest))
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
fn volume_file(mount: &Mount, rest: &Path) -> Result<Option<File>, Status> {
    if let Some(volume) = &mount.image {
        return image_file(volume, rest);
    }
    // Not there yet: a directory will be made of it, in which there is nothing.
    let Ok(metadata) = std::fs::metadata(&mount.host_path) else {
        return Ok(None);
    };
    if rest.as_os_str().is_empty() {
        if !metadata.is_file() {
            return Ok(None);
        }
        return File::open(&mount.host_path).map(Some).map_err(|error| {
            Status::internal(format!("open {}: {error}", mount.host_path.display()))
        });
    }
    if !metadata.is_dir() {
        return Ok(None);
    }
    let view =
        RootView::open(std::slice::from_ref(&mount.host_path)).map_err(|e| error::sandbox(&e))?;
    view.open_file(&Path::new("/").join(rest).to_string_lossy())
        .map_err(|e| error::sandbox(&e))
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
fn image_file(volume: &ImageVolume, rest: &Path) -> Result<Option<File>, Status> {
    let inside = Path::new("/").join(&volume.sub_path).join(rest);
    if volume.lowers.is_empty() {
        let named = |(name, _): &&(String, PathBuf)| inside == Path::new("/").join(name);
        let Some((_, file)) = volume.files.iter().find(named) else {
            return Ok(None);
        };
        return File::open(file)
            .map(Some)
            .map_err(|error| Status::internal(format!("open {}: {error}", file.display())));
    }
    let view = RootView::open(&volume.lowers).map_err(|e| error::sandbox(&e))?;
    view.open_file(&inside.to_string_lossy())
        .map_err(|e| error::sandbox(&e))
}

#[allow(
    clippy::result_large_err,
    reason = "a status is what every caller answers with"
)]
fn inspect(mut file: File, module: impl FnOnce(File) -> Module) -> Result<Look, Status> {
    let mut head = Vec::with_capacity(20);
    (&mut file)
        .take(20)
        .read_to_end(&mut head)
        .and_then(|_| std::io::Seek::rewind(&mut file))
        .map_err(|error| Status::internal(format!("read a program's first bytes: {error}")))?;
    Ok(match magic(&head) {
        Magic::Wasm => Look::Module(module(file)),
        Magic::Native => Look::Native,
        Magic::Unknown(what) => Look::Unknown(what),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Magic {
    Wasm,
    Native,
    Unknown(String),
}

/// The operating system in ELF files that hold Wasmtime's compiled code (`.cwasm`).
const ELF_OSABI_WASMTIME: u8 = 200;

/// What a file is by its first 20 bytes.
fn magic(head: &[u8]) -> Magic {
    if head.starts_with(b"\0asm") {
        return Magic::Wasm;
    }
    if head.starts_with(b"#!") {
        return Magic::Native;
    }
    if !head.starts_with(b"\x7fELF") {
        let what = match head.trim_ascii_start() {
            [] if head.is_empty() => "an empty file",
            text if [&b"(module"[..], b"(component", b";;", b"(;"]
                .iter()
                .any(|start| text.starts_with(start)) =>
            {
                "WebAssembly text, which has to be made binary first (wasm-tools parse, wat2wasm)"
            }
            _ => "a file of an unknown kind",
        };
        return Magic::Unknown(what.to_owned());
    }
    if head.get(7) == Some(&ELF_OSABI_WASMTIME) {
        return Magic::Unknown(
            "code that Wasmtime compiled beforehand, which is never run from an image (put the .wasm there instead)"
                .to_owned(),
        );
    }
    // e_machine of ELF files for this machine; x86_64 kernels run i386 programs too.
    let ours: &[u16] = match std::env::consts::ARCH {
        "x86_64" => &[62, 3],
        "aarch64" => &[183],
        "riscv64" => &[243],
        "s390x" => &[22],
        "powerpc64" => &[21],
        _ => &[],
    };
    match head.get(18..20) {
        Some([low, high]) => {
            let machine = if head[5] == 2 {
                u16::from_be_bytes([*low, *high])
            } else {
                u16::from_le_bytes([*low, *high])
            };
            if ours.contains(&machine) {
                Magic::Native
            } else {
                Magic::Unknown(format!(
                    "an ELF file for another machine (number {machine})"
                ))
            }
        }
        _ => Magic::Unknown("a truncated ELF file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn elf(machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend(machine.to_le_bytes());
        bytes
    }

    fn own_machine() -> u16 {
        let exe = std::fs::read("/proc/self/exe").unwrap();
        u16::from_le_bytes([exe[18], exe[19]])
    }

    #[test]
    fn files_are_known_by_their_first_bytes() {
        assert_eq!(magic(b"\0asm\x01\0\0\0"), Magic::Wasm);
        assert_eq!(magic(b"#!/bin/sh\n"), Magic::Native);
        assert_eq!(magic(&elf(own_machine())), Magic::Native);
        let mut compiled = elf(own_machine());
        compiled[7] = ELF_OSABI_WASMTIME;
        for (bad, part) in [
            (&elf(40)[..], "another machine"),
            (&compiled, "compiled beforehand"),
            (b"\x7fELF", "truncated"),
            (b"hello", "unknown"),
            (b"", "empty"),
            (b" ", "unknown"),
            (b"\0as", "unknown"),
            (b"\n (module (memory 1))", "WebAssembly text"),
            (b";; text", "WebAssembly text"),
        ] {
            let found = magic(bad);
            assert!(
                matches!(&found, Magic::Unknown(what) if what.contains(part)),
                "{bad:?} {found:?}"
            );
        }
    }

    #[test]
    fn names_become_paths() {
        let paths = |word, path, cwd| -> Vec<String> {
            candidates(word, path, cwd)
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        assert_eq!(
            paths("x", "/bin:/usr/bin", "/srv"),
            ["/bin/x", "/usr/bin/x", "/srv/x"]
        );
        assert_eq!(paths("./x", "/bin", "/srv"), ["/srv/x"]);
        assert_eq!(paths("../../../x", "/bin", "/srv"), ["/x"]);
        assert_eq!(paths("/a/./b", "/bin", "/srv"), ["/a/b"]);
        let split: Vec<_> = spellings("/a#b#run").collect();
        assert_eq!(
            split,
            [
                ("/a#b#run", None),
                ("/a#b", Some("run")),
                ("/a", Some("b#run"))
            ]
        );
        assert_eq!(spellings("#run").count(), 1);
    }

    struct World {
        directory: tempfile::TempDir,
        place: Place,
    }

    fn world(kind: Kind) -> World {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        let volume = directory.path().join("volume");
        for path in ["layer/bin", "layer/opt", "volume/..data"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let wasm = b"\0asm\x01\0\0\0";
        std::fs::write(layer.join("bin/app"), wasm).unwrap();
        std::fs::write(layer.join("opt/other.wasm"), wasm).unwrap();
        std::fs::write(layer.join("bin/tool"), elf(own_machine())).unwrap();
        std::fs::write(layer.join("bin/foreign"), elf(40)).unwrap();
        std::fs::write(layer.join("hello.wasm"), wasm).unwrap();
        symlink("/opt/other.wasm", layer.join("bin/link")).unwrap();
        symlink("../../../../etc/passwd", layer.join("bin/escape")).unwrap();
        std::fs::write(volume.join("..data/job"), wasm).unwrap();
        symlink("..data/job", volume.join("job")).unwrap();
        std::fs::write(volume.join("text"), "hello").unwrap();
        let module = |path: &str| WasmModule {
            path: Some(path.into()),
            digest: Digest::of(path.as_bytes()),
            size: 8,
        };
        let mount = |container: &str, host: PathBuf| Mount {
            container_path: container.into(),
            host_path: host,
            ..Mount::default()
        };
        let place = Place {
            image: "test".into(),
            modules: vec![module("/bin/app"), module("/opt/other.wasm")],
            kind,
            mounts: vec![
                mount("/vol", volume.clone()),
                mount("/vol/one", volume.join("job")),
                mount("/later", directory.path().join("missing")),
            ],
            masked: Vec::new(),
            path: "/bin".into(),
            cwd: "/".into(),
            lowers: vec![layer],
            toolbox: Offer::of(&["sh", "tool"]),
        };
        World { directory, place }
    }

    #[test]
    fn modules_programs_and_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a view of layers needs CAP_SYS_ADMIN");
            return;
        }
        let world = world(Kind::Wasm);
        let show = |word: &str| match find(&world.place, word, true) {
            Ok(Program::Wasm(Module::Stored(digest), export)) => {
                let named = |m: &&WasmModule| m.digest == digest;
                let module = world.place.modules.iter().find(named).unwrap();
                let path = module.path.as_ref().unwrap().display().to_string();
                format!("{path} {}", export.unwrap_or_default())
            }
            Ok(Program::Wasm(Module::File(mut file), _)) => {
                let mut head = [0; 4];
                file.read_exact(&mut head).unwrap();
                assert_eq!(&head, b"\0asm");
                "file".to_owned()
            }
            Ok(Program::Wasm(Module::Toolbox, _)) => "toolbox".to_owned(),
            Ok(Program::Native) => "native".to_owned(),
            Err(unfit) => Status::from(unfit).message().to_owned(),
        };
        for (word, expected) in [
            ("app", "/bin/app "),
            ("/bin/app", "/bin/app "),
            ("app#run", "/bin/app run"),
            ("/bin/link", "/opt/other.wasm "),
            ("tool", "native"),
            ("hello.wasm", "file"),
            ("/vol/job", "file"),
            ("/vol/one", "file"),
            ("sh", "toolbox"),
            ("/usr/bin/sh", "toolbox"),
        ] {
            assert_eq!(show(word), expected, "{word}");
        }
        for (word, part) in [
            ("zsh", "its Wasm modules are /bin/app, /opt/other.wasm"),
            ("zsh", "the toolbox has no such command either"),
            ("sh/", "is not found"),
            ("/bin/escape", "is not found"),
            ("/later/x", "is not found"),
            ("/vol/none", "is not found"),
            ("/vol", "is not found"),
            ("foreign", "another machine"),
            ("/vol/text", "neither a Wasm module nor a program"),
            ("tool#run", "is a native program"),
        ] {
            assert!(show(word).contains(part), "{word}: {}", show(word));
        }
        drop(world.directory);
    }

    #[test]
    fn what_is_masked_does_not_run() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a view of layers needs CAP_SYS_ADMIN");
            return;
        }
        let mut world = world(Kind::Wasm);
        world.place.masked = [
            "/opt/other.wasm",
            "/vol/one",
            "/proc/kcore",
            "bin/../bin/tool",
        ]
        .map(str::to_owned)
        .into();
        let denied = |place: &Place, word: &str| match find(place, word, false) {
            Err(Unfit::Denied(text)) => text.contains("masked"),
            _ => false,
        };
        // By its name, by a link, on a volume.
        for word in ["/opt/other.wasm", "link", "/vol/one", "tool"] {
            assert!(denied(&world.place, word), "{word}");
        }
        for word in ["app", "/vol/job"] {
            assert!(find(&world.place, word, false).is_ok(), "{word}");
        }
        // In a masked directory nothing is there, and the toolbox answers for it.
        world.place.masked = vec!["/bin".into(), "/vol".into()];
        for word in ["app", "link", "/vol/job"] {
            let found = find(&world.place, word, false);
            assert!(matches!(found, Err(Unfit::NotFound(_))), "{word} {found:?}");
        }
        assert!(matches!(
            find(&world.place, "tool", false),
            Ok(Program::Wasm(Module::Toolbox, None))
        ));
        drop(world.directory);
    }

    #[test]
    fn one_module_answers_to_every_name_unless_it_is_an_exec() {
        let mut place = world(Kind::Wasm).place;
        place.lowers.clear();
        place.modules.truncate(1);
        assert!(matches!(find(&place, "cat#go", true), Ok(Program::Wasm(_, Some(e))) if e == "go"));
        assert!(find(&place, "cat", false).is_err());
        // The one module comes before the toolbox.
        assert!(matches!(
            find(&place, "sh", true),
            Ok(Program::Wasm(Module::Stored(_), None))
        ));
        assert!(matches!(
            find(&place, "sh", false),
            Ok(Program::Wasm(Module::Toolbox, None))
        ));
        place.modules.clear();
        assert!(matches!(
            find(&place, "sh", true),
            Ok(Program::Wasm(Module::Toolbox, None))
        ));
        let text = Status::from(find(&place, "cat", true).unwrap_err());
        assert!(text.message().contains("it has no Wasm module"), "{text}");
        place.kind = Kind::Linux;
        assert!(matches!(find(&place, "cat", true), Ok(Program::Native)));
    }
}
