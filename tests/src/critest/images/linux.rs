//! Images of Linux programs: Debian's busybox, and one program of ours under many names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Parts, alone, settings, skeleton};
use crate::binaries;
use crate::image::{Entry, Image, Settings, file, rootfs};

/// Where `critest/images/build.sh` has put the parts, below the build directory.
const DIRECTORY: &str = "critest/images";

pub(super) const PLATFORM: &str = "linux/amd64";

/// Names of busybox, each a hard link: the spec of masked paths covers `/bin/ls` and
/// must not cover all of busybox by that.
const APPLETS: [&str; 27] = [
    "[", "brctl", "cat", "chmod", "dd", "echo", "env", "false", "grep", "hostname", "id", "kill",
    "ls", "mkdir", "mount", "netstat", "pidof", "ping", "ps", "rm", "sh", "sleep", "test", "top",
    "touch", "true", "umount",
];

pub(super) struct Linux {
    tools: Vec<u8>,
    base: Vec<Entry>,
}

impl Linux {
    pub(super) fn read() -> Result<Self> {
        let dir = binaries::product(DIRECTORY)?;
        let tools = read(&dir.join("tools"))?;
        let mut base = skeleton();
        let libraries = files_below(&dir.join("lib"))?;
        ensure!(
            !libraries.is_empty(),
            "{} holds no library; remove the directory and run critest/images/build.sh again",
            dir.join("lib").display()
        );
        for (path, bytes) in libraries {
            base.push(file(&path, 0o755, bytes));
        }
        base.push(file("bin/busybox", 0o755, read(&dir.join("busybox"))?));
        for applet in APPLETS {
            base.push(Entry::Hardlink(
                format!("bin/{applet}"),
                "bin/busybox".into(),
            ));
        }
        for tool in ["pgrep", "ipcs"] {
            base.push(file(&format!("usr/bin/{tool}"), 0o755, tools.clone()));
        }
        Ok(Self { tools, base })
    }

    fn server(&self, name: &str, cmd: &[&str]) -> Result<Image> {
        let program = file(&format!("usr/sbin/{name}"), 0o755, self.tools.clone());
        self.busybox(vec![program], settings(cmd))
    }
}

impl Parts for Linux {
    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn busybox(&self, above: Vec<Entry>, settings: Settings) -> Result<Image> {
        rootfs(PLATFORM, &[self.base.clone(), above], &settings)
    }

    fn nginx(&self, address: &str, port: u16) -> Result<Image> {
        let port = port.to_string();
        self.server(
            "nginx",
            &["nginx", "-g", "daemon off;", "-l", address, &port],
        )
    }

    fn httpd(&self) -> Result<Image> {
        self.server("httpd", &["httpd"])
    }

    fn pause(&self, mark: &str) -> Result<Image> {
        alone(PLATFORM, "pause", 0o755, &self.tools, mark)
    }

    fn nonewprivs(&self) -> Result<Option<Image>> {
        alone(PLATFORM, "nonewprivs", 0o4755, &self.tools, "").map(Some)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .with_context(|| format!("read {} (made by critest/images/build.sh)", path.display()))
}

/// Files by their path below `top`, in the order of their names: the same parts make
/// the same image.
fn files_below(top: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(top)?.to_string_lossy().into_owned();
                found.push((name, read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}
