//! The images that critest 1.36 asks for, as substitutes, made of Linux programs or of Wasm.

mod linux;
mod wasm;

use anyhow::Result;

use crate::image::{Entry, Image, Settings, file, rootfs};

/// The image of most specs.
pub const BUSYBOX: &str = "e2e-test-images/busybox:1.29-2";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// What all images of a run are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Debian's busybox and one small C program.
    Linux,
    /// Wasm modules and components; what they lack, the toolbox answers.
    Wasm,
}

impl Family {
    /// By the name on the command line.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Linux, Self::Wasm]
            .into_iter()
            .find(|family| family.name() == name)
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Wasm => "wasm",
        }
    }
}

/// An image and where the registry has it: the public name without its host.
pub struct Named {
    /// `repository:tag`
    pub name: String,
    /// The image.
    pub image: Image,
}

/// How the images of one family are made.
trait Parts {
    /// `os/architecture`
    fn platform(&self) -> &'static str;
    /// A shell and the usual tools, with a layer above them.
    fn busybox(&self, above: Vec<Entry>, settings: Settings) -> Result<Image>;
    /// A web server on an address and a port.
    fn nginx(&self, address: &str, port: u16) -> Result<Image>;
    /// One on port 80 that says its name at the start.
    fn httpd(&self) -> Result<Image>;
    /// A program that waits; `mark` makes images of it differ.
    fn pause(&self, mark: &str) -> Result<Image>;
    /// A program that tells its effective user, in a file that is setuid root.
    fn nonewprivs(&self) -> Result<Option<Image>>;
}

/// Every image that a spec asks for.
pub fn all(family: Family) -> Result<Vec<Named>> {
    match family {
        Family::Linux => made_of(&linux::Linux::read()?),
        Family::Wasm => made_of(&wasm::Wasm::read()?),
    }
}

fn made_of(parts: &dyn Parts) -> Result<Vec<Named>> {
    let mut all = Vec::new();
    let mut add = |name: &str, image: Image| {
        let name = name.to_owned();
        all.push(Named { name, image });
    };
    add(BUSYBOX, parts.busybox(vec![], settings(&["sh"]))?);
    add("e2e-test-images/nginx:1.14-2", parts.nginx("0.0.0.0", 80)?);
    add(
        "k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
        // Loopback only: the machine's network is nobody's business.
        parts.nginx("127.0.0.1", 12003)?,
    );
    add("e2e-test-images/httpd:2.4.39-4", parts.httpd()?);
    if let Some(image) = parts.nonewprivs()? {
        add("e2e-test-images/nonewprivs:1.3", image);
    }
    add(
        "k8s-staging-cri-tools/test-image-predefined-group:latest",
        predefined_group(parts)?,
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
        add(&name, rootfs(parts.platform(), &[vec![]], &settings)?);
    }
    for repository in [
        "test-image-1",
        "test-image-2",
        "test-image-3",
        "test-image-latest",
    ] {
        let name = format!("k8s-staging-cri-tools/{repository}:latest");
        add(&name, parts.pause(repository)?);
    }
    for tag in ["1", "2", "3"] {
        let name = format!("k8s-staging-cri-tools/test-image-tags:{tag}");
        add(&name, parts.pause("test-image-tags")?);
    }
    for tag in ["test", "all"] {
        let name = format!("k8s-staging-cri-tools/test-image-tag:{tag}");
        add(&name, parts.pause(&name)?);
    }
    add(
        "k8s-staging-cri-tools/test-image-digest:latest",
        by_digest()?,
    );
    // registry.k8s.io and k8s.gcr.io both lead here: one image from two registries.
    add("pause:3.9", parts.pause("pause")?);
    Ok(all)
}

/// The image that critest asks for by digest, the same in each family. It is never run,
/// and it holds nothing that differs between machines.
pub fn by_digest() -> Result<Image> {
    let layer = vec![file("digest", 0o644, "found by its digest\n")];
    rootfs(linux::PLATFORM, &[layer], &settings(&["/none"]))
}

fn predefined_group(parts: &dyn Parts) -> Result<Image> {
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
    parts.busybox(above, settings)
}

fn settings(cmd: &[&str]) -> Settings {
    Settings {
        cmd: cmd.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![PATH.into()],
        ..Settings::default()
    }
}

/// Directories and user files that programs of both families expect.
fn skeleton() -> Vec<Entry> {
    let directories = [
        "bin", "etc", "lib", "lib64", "root", "usr", "usr/bin", "usr/sbin", "var", "var/run",
    ];
    let mut all: Vec<Entry> = directories
        .iter()
        .map(|path| Entry::Directory((*path).into(), 0o755))
        .collect();
    all.push(Entry::Directory("tmp".into(), 0o1777));
    all.push(file("etc/passwd", 0o644, PASSWD));
    all.push(file("etc/group", 0o644, GROUP));
    all
}

/// One program alone.
fn alone(platform: &str, name: &str, mode: u32, program: &[u8], mark: &str) -> Result<Image> {
    let path = format!("/{name}");
    let mut settings = Settings::entrypoint(&[&path]);
    if !mark.is_empty() {
        settings.env.push(format!("IMAGE={mark}"));
    }
    rootfs(platform, &[vec![file(name, mode, program)]], &settings)
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

    #[test]
    fn families_have_names() {
        for family in [Family::Linux, Family::Wasm] {
            assert_eq!(Family::parse(family.name()), Some(family));
        }
        assert_eq!(Family::parse("windows"), None);
    }
}
