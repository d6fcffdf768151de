//! The images that critest 1.36 asks for, as substitutes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::image::{Entry, Image, Settings, file, rootfs};

/// Where `critest/images/build.sh` has put the parts, below the build directory.
const PARTS: &str = "critest/images";

const PLATFORM: &str = "linux/amd64";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Names of busybox, each a hard link: the spec of masked paths covers `/bin/ls` and
/// must not cover all of busybox by that.
const APPLETS: [&str; 27] = [
    "[", "brctl", "cat", "chmod", "dd", "echo", "env", "false", "grep", "hostname", "id", "kill",
    "ls", "mkdir", "mount", "netstat", "pidof", "ping", "ps", "rm", "sh", "sleep", "test", "top",
    "touch", "true", "umount",
];

/// An image and where the registry has it: the public name without its host.
pub struct Named {
    /// `repository:tag`
    pub name: String,
    /// The image.
    pub image: Image,
}

/// Every image that a spec asks for.
pub fn all() -> Result<Vec<Named>> {
    let parts = Parts::read()?;
    let mut all = Vec::new();
    let mut add = |name: &str, image: Image| {
        let name = name.to_owned();
        all.push(Named { name, image });
    };
    add(
        "e2e-test-images/busybox:1.29-2",
        parts.busybox(vec![], settings(&["sh"]))?,
    );
    add(
        "e2e-test-images/nginx:1.14-2",
        parts.server("nginx", &["nginx", "-g", "daemon off;"])?,
    );
    add(
        "k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
        // Loopback only: the machine's network is nobody's business.
        parts.server("nginx", &["nginx", "-l", "127.0.0.1", "12003"])?,
    );
    add(
        "e2e-test-images/httpd:2.4.39-4",
        parts.server("httpd", &["httpd"])?,
    );
    add(
        "e2e-test-images/nonewprivs:1.3",
        parts.program("nonewprivs", 0o4755, "")?,
    );
    add(
        "k8s-staging-cri-tools/test-image-predefined-group:latest",
        parts.predefined_group()?,
    );
    for (kind, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let name = format!("k8s-staging-cri-tools/test-image-user-{kind}:latest");
        let settings = Settings {
            user: user.into(),
            ..settings(&["/none"])
        };
        add(&name, rootfs(PLATFORM, &[vec![]], &settings)?);
    }
    for repository in [
        "test-image-1",
        "test-image-2",
        "test-image-3",
        "test-image-latest",
    ] {
        let name = format!("k8s-staging-cri-tools/{repository}:latest");
        add(&name, parts.program("pause", 0o755, repository)?);
    }
    for tag in ["1", "2", "3"] {
        let name = format!("k8s-staging-cri-tools/test-image-tags:{tag}");
        add(&name, parts.program("pause", 0o755, "test-image-tags")?);
    }
    for tag in ["test", "all"] {
        let name = format!("k8s-staging-cri-tools/test-image-tag:{tag}");
        add(&name, parts.program("pause", 0o755, &name)?);
    }
    add(
        "k8s-staging-cri-tools/test-image-digest:latest",
        by_digest()?,
    );
    // registry.k8s.io and k8s.gcr.io both lead here: one image from two registries.
    add("pause:3.9", parts.program("pause", 0o755, "pause")?);
    Ok(all)
}

/// The image that critest asks for by digest. It is never run, and it holds nothing
/// that differs between machines.
pub fn by_digest() -> Result<Image> {
    let layer = vec![file("digest", 0o644, "found by its digest\n")];
    rootfs(PLATFORM, &[layer], &settings(&["/none"]))
}

fn settings(cmd: &[&str]) -> Settings {
    Settings {
        cmd: cmd.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![PATH.into()],
        ..Settings::default()
    }
}

/// What the images are made of.
struct Parts {
    tools: Vec<u8>,
    base: Vec<Entry>,
}

impl Parts {
    fn read() -> Result<Self> {
        let dir = binaries::product(PARTS)?;
        let tools = read(&dir.join("tools"))?;
        let mut base: Vec<Entry> = [
            "bin", "etc", "lib", "lib64", "root", "usr", "usr/bin", "usr/sbin", "var", "var/run",
        ]
        .iter()
        .map(|path| Entry::Directory((*path).into(), 0o755))
        .collect();
        base.push(Entry::Directory("tmp".into(), 0o1777));
        base.push(file("etc/passwd", 0o644, PASSWD));
        base.push(file("etc/group", 0o644, GROUP));
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

    /// busybox, with a layer above it.
    fn busybox(&self, above: Vec<Entry>, settings: Settings) -> Result<Image> {
        rootfs(PLATFORM, &[self.base.clone(), above], &settings)
    }

    fn server(&self, name: &str, cmd: &[&str]) -> Result<Image> {
        let program = file(&format!("usr/sbin/{name}"), 0o755, self.tools.clone());
        self.busybox(vec![program], settings(cmd))
    }

    fn predefined_group(&self) -> Result<Image> {
        let passwd = format!("{PASSWD}default-user:x:1000:1000::/:/bin/sh\n");
        let group =
            format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
        let above = vec![
            file("etc/passwd", 0o644, passwd),
            file("etc/group", 0o644, group),
        ];
        let settings = Settings {
            user: "1000".into(),
            ..settings(&["sh"])
        };
        self.busybox(above, settings)
    }

    /// One of our tools alone; `mark` makes images of the same program differ.
    fn program(&self, name: &str, mode: u32, mark: &str) -> Result<Image> {
        let path = format!("/{name}");
        let layer = vec![file(name, mode, self.tools.clone())];
        let mut settings = Settings::entrypoint(&[&path]);
        if !mark.is_empty() {
            settings.env.push(format!("IMAGE={mark}"));
        }
        rootfs(PLATFORM, &[layer], &settings)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_asked_for_by_digest_is_the_same_at_each_build() {
        assert_eq!(
            by_digest().unwrap().top.digest,
            by_digest().unwrap().top.digest
        );
    }
}
