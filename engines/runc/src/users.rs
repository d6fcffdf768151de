//! Containers in a user namespace: their root is somebody else on the node.

use std::io;
use std::os::fd::OwnedFd;

use criw_engines::spec::Spec;
use oci_spec::runtime::{LinuxIdMapping, Spec as Oci};
use rustix::process::{Gid, Uid};

/// Gives a stream of the container to its root: a pipe of ours would be nobody's in there, and
/// could be written to but not opened, as programs do that log to /dev/stdout.
pub(crate) fn give(stream: &OwnedFd, spec: &Spec) -> io::Result<()> {
    let Some((uid, gid)) = root_on_node(&spec.oci) else {
        return Ok(());
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::fchown(stream, Some(uid), Some(gid))?)
}

/// Whom the container's root stands for, if that is not said to be root.
fn root_on_node(spec: &Oci) -> Option<(u32, u32)> {
    let linux = spec.linux().as_ref()?;
    let root = |maps: &Option<Vec<LinuxIdMapping>>| {
        let of_root = |map: &&LinuxIdMapping| map.container_id() == 0;
        maps.iter()
            .flatten()
            .find(of_root)
            .map(LinuxIdMapping::host_id)
    };
    Some((root(linux.uid_mappings())?, root(linux.gid_mappings())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_container_is_found_in_its_maps() {
        for (linux, expected) in [
            ("{}", None),
            (
                r#"{"uidMappings":[{"containerID":0,"hostID":7,"size":9}]}"#,
                None,
            ),
            (
                r#"{"uidMappings":[{"containerID":5,"hostID":1,"size":9},{"containerID":0,"hostID":7,"size":5}],
                    "gidMappings":[{"containerID":0,"hostID":8,"size":9}]}"#,
                Some((7, 8)),
            ),
        ] {
            let json = format!(r#"{{"ociVersion":"1","linux":{linux}}}"#);
            let spec: Oci = serde_json::from_str(&json).unwrap();
            assert_eq!(root_on_node(&spec), expected, "{linux}");
        }
    }
}
