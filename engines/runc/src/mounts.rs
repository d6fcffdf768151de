//! The mount namespace that runc sees: a copy of the host's in which the container's
//! root is mounted at the bundle. It ends with the process, and its mounts with it:
//! nobody has to unmount anything, however the shim dies.
//!
//! Mounts made on the host later still arrive (a volume may be mounted late), so the
//! copy is a slave. Sources of mounts with propagation to the host stay peers of the
//! host's: that is what `Bidirectional` asks for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use crate::sys;

/// A mount that the daemon hands over detached.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) tree: OwnedFd,
    pub(crate) target: PathBuf,
}

/// A namespace as a mount of its own: so runc finds it by a path that nobody else has.
pub(crate) fn of_namespace(namespace: &OwnedFd, target: PathBuf) -> io::Result<Detached> {
    std::fs::File::create(&target)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(namespace, "", flags)?;
    Ok(Detached { tree, target })
}

/// Builds the namespace for the calling thread and its children; the error tells
/// the step that failed.
pub(crate) fn enter(detached: Vec<Detached>, peers: &[PathBuf]) -> Result<(), String> {
    sys::unshare_mounts().map_err(|error| format!("unshare mount namespace: {error}"))?;
    let mut kept = Vec::with_capacity(peers.len());
    for path in peers {
        let tree = open_tree(
            CWD,
            path,
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .map_err(|error| format!("open mount {}: {error}", path.display()))?;
        kept.push(Detached {
            tree,
            target: path.clone(),
        });
    }
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|error| format!("make mounts slaves of the host's: {error}"))?;
    for mount in kept.into_iter().chain(detached) {
        attach(&mount).map_err(|error| format!("mount at {}: {error}", mount.target.display()))?;
    }
    Ok(())
}

fn attach(mount: &Detached) -> io::Result<()> {
    Ok(move_mount(
        mount.tree.as_fd(),
        "",
        CWD,
        &mount.target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Sources of the mounts whose events must reach the host.
pub(crate) fn peers(spec: &Spec) -> Vec<PathBuf> {
    spec.mounts()
        .iter()
        .flatten()
        .filter(|mount| {
            mount
                .options()
                .iter()
                .flatten()
                .any(|option| matches!(option.as_str(), "shared" | "rshared"))
        })
        .filter_map(|mount| mount.source().clone())
        .filter(|source| source.is_absolute())
        .collect()
}

/// Where the daemon's mount for `mounts[n]` goes: to that mount's source, which runc
/// then binds into the container.
pub(crate) fn source(spec: &Spec, n: u32) -> Option<PathBuf> {
    let mounts = spec.mounts().as_ref()?;
    mounts.get(usize::try_from(n).ok()?)?.source().clone()
}

/// The directory that `root.path` of the spec names.
pub(crate) fn rootfs(spec: &Spec, bundle: &Path) -> PathBuf {
    let path = spec.root().as_ref().map(|root| root.path().clone());
    bundle.join(path.unwrap_or_else(|| "rootfs".into()))
}

/// Whether all processes of the container end with its first one: it has a PID
/// namespace that nobody else has.
pub(crate) fn has_own_pids(spec: &Spec) -> bool {
    use oci_spec::runtime::LinuxNamespaceType::Pid;
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten()
        .any(|one| one.typ() == Pid && one.path().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn facts_of_a_spec() {
        let plain = spec(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(peers(&plain), Vec::<PathBuf>::new());
        assert_eq!(source(&plain, 0), None);
        assert_eq!(rootfs(&plain, Path::new("/b")), Path::new("/b/rootfs"));
        let full = spec(
            r#"{"ociVersion":"1.0.2","root":{"path":"/elsewhere"},"mounts":[
                {"destination":"/a","source":"/sa","options":["rbind","rshared"]},
                {"destination":"/b","source":"/sb","options":["bind","rslave"]},
                {"destination":"/c","source":"tmpfs","options":["shared"]},
                {"destination":"/d"}]}"#,
        );
        assert_eq!(peers(&full), [Path::new("/sa")]);
        assert_eq!(source(&full, 1), Some("/sb".into()));
        assert_eq!(source(&full, 3), None);
        assert_eq!(source(&full, 4), None);
        assert_eq!(rootfs(&full, Path::new("/b")), Path::new("/elsewhere"));
    }

    #[test]
    fn pid_namespaces() {
        for (namespaces, own) in [
            ("null", false),
            ("[]", false),
            (r#"[{"type":"network"}]"#, false),
            (r#"[{"type":"pid"}]"#, true),
            (r#"[{"type":"pid","path":"/proc/7/ns/pid"}]"#, false),
        ] {
            let json = format!(r#"{{"ociVersion":"1","linux":{{"namespaces":{namespaces}}}}}"#);
            assert_eq!(has_own_pids(&spec(&json)), own, "{namespaces}");
        }
    }
}
