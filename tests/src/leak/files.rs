//! Files of the daemon, and leases among them.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::world::World;

fn walk(top: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(path.to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        }
    }
}

/// Everything below root and state.
pub(super) fn all(world: &World) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["root", "run"] {
        walk(&world.path(name), &mut found);
    }
    // The plugins note the last address they gave out, for good.
    found.retain(|path| !path.contains("last_reserved_ip"));
    // Directories that are made once and kept (`containers`, `pods`) name nobody; one
    // that belonged to a pod, a container or an image has an id in its path.
    found.retain(|path| names_somebody(path) || !Path::new(path).is_dir());
    found
}

fn names_somebody(path: &str) -> bool {
    path.split(|byte: char| !byte.is_ascii_hexdigit())
        .any(|part| part.len() >= 32)
}

/// Files named by an address, wherever host-local's layout puts them.
pub(super) fn leases(world: &World) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["root", "run", "leases"] {
        walk(&world.path(name), &mut found);
    }
    found.retain(|path| {
        Path::new(path)
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.parse::<IpAddr>().is_ok())
    });
    found
}
