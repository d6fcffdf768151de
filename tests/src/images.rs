//! The images that most tests use, by name.

use anyhow::{Context, Result};

use crate::binaries::guest;
use crate::image::{Entry, Image, Settings, file, index, rootfs};

/// A `wasi/wasm` image with one guest at `/<name>.wasm` as entrypoint.
pub fn wasm(name: &str) -> Result<Image> {
    wasm_module(name, &guest(name)?)
}

/// The same for any bytes.
pub fn wasm_module(name: &str, module: &[u8]) -> Result<Image> {
    let path = format!("{name}.wasm");
    rootfs(
        "wasi/wasm",
        &[vec![
            Entry::Directory("etc".into(), 0o755),
            Entry::Directory("data".into(), 0o755),
            file("etc/passwd", 0o644, PASSWD),
            file("etc/group", 0o644, GROUP),
            file(&path, 0o755, module),
        ]],
        &Settings::entrypoint(&[&format!("/{path}")]),
    )
}

/// One image with every C guest in `/bin`, `hello` as entrypoint: exec and most
/// scenarios choose by `command:`.
pub fn guests() -> Result<Image> {
    let mut layer = vec![
        Entry::Directory("bin".into(), 0o755),
        Entry::Directory("etc".into(), 0o755),
        Entry::Directory("data".into(), 0o755),
        file("etc/passwd", 0o644, PASSWD),
        file("etc/group", 0o644, GROUP),
        file("etc/motd", 0o644, "a file of the image\n"),
    ];
    for name in GUESTS {
        layer.push(file(&format!("bin/{name}"), 0o755, guest(name)?));
    }
    let settings = Settings {
        env: vec!["PATH=/bin".into(), "FROM_IMAGE=yes".into()],
        ..Settings::entrypoint(&["/bin/hello"])
    };
    rootfs("wasi/wasm", &[layer], &settings)
}

/// What [`guests`] holds.
pub const GUESTS: [&str; 10] = [
    "hello", "idle", "spin", "trap", "hog", "print", "procmem", "cat", "server", "health",
];

const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nguest:x:1000:1000:guest:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n";

/// A Linux image: one static busybox under the names that tests use.
pub fn busybox() -> Result<Image> {
    let path = "/bin/busybox";
    let binary = std::fs::read(path)
        .with_context(|| format!("read {path} (Debian: apt-get install busybox-static)"))?;
    let mut layer = vec![
        Entry::Directory("bin".into(), 0o755),
        Entry::Directory("etc".into(), 0o755),
        Entry::Directory("data".into(), 0o755),
        Entry::Directory("tmp".into(), 0o1777),
        file("etc/passwd", 0o644, PASSWD),
        file("etc/group", 0o644, GROUP),
        file("etc/motd", 0o644, "a file of the image\n"),
        file("bin/busybox", 0o755, binary),
    ];
    for applet in APPLETS {
        layer.push(Entry::Symlink(format!("bin/{applet}"), "busybox".into()));
    }
    let settings = Settings {
        env: vec!["PATH=/bin".into(), "FROM_IMAGE=yes".into()],
        cmd: vec!["sh".into()],
        ..Settings::default()
    };
    rootfs("linux/amd64", &[layer], &settings)
}

const APPLETS: [&str; 23] = [
    "sh", "cat", "echo", "env", "httpd", "id", "ip", "kill", "ln", "ls", "mount", "nc", "ps", "rm",
    "sleep", "touch", "true", "wget", "dd", "hostname", "yes", "tar", "grep",
];

/// Wasm and Linux in one index.
pub fn both() -> Result<Image> {
    Ok(index(&[busybox()?, wasm("hello")?]))
}
