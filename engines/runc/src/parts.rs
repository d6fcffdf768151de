//! What a Create request brings, sorted.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use criw_engines::protocol::FdRole;
use criw_engines::record::chain;
use criw_engines::spec::{EngineSection, MAX_SPEC, RuncSection, Spec};

use crate::call::Streams;

/// Descriptors by role.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) spec: Spec,
    pub(crate) section: RuncSection,
    pub(crate) log: Option<OwnedFd>,
    pub(crate) record: OwnedFd,
    pub(crate) rootfs: Option<OwnedFd>,
    /// By index of the spec's mounts.
    pub(crate) mounts: Vec<(u32, OwnedFd)>,
    pub(crate) streams: Streams,
}

/// Sorts them, refuses what this engine cannot use, and reads the spec.
pub(crate) fn sort(roles: Vec<FdRole>, fds: Vec<OwnedFd>) -> Result<Parts, String> {
    let (mut spec, mut log, mut record, mut rootfs) = (None, None, None, None);
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    let mut mounts = Vec::new();
    for (role, fd) in roles.into_iter().zip(fds) {
        let place = match role {
            FdRole::Spec => &mut spec,
            FdRole::Log => &mut log,
            FdRole::ExitRecord => &mut record,
            FdRole::Rootfs => &mut rootfs,
            FdRole::Stdin => &mut stdin,
            FdRole::Stdout => &mut stdout,
            FdRole::Stderr => &mut stderr,
            FdRole::Mount(n) => {
                mounts.push((n, fd));
                continue;
            }
            FdRole::Code | FdRole::MountTemplate | FdRole::ContainerMounts => {
                return Err(format!("descriptor {role:?} is not for a runc container"));
            }
        };
        if place.replace(fd).is_some() {
            return Err(format!("two descriptors {role:?}"));
        }
    }
    let spec = read(spec.ok_or("no descriptor Spec")?)?;
    let EngineSection::Runc(section) = spec.criw.engine.clone() else {
        return Err("the spec is for another engine than runc".into());
    };
    Ok(Parts {
        spec,
        section,
        log,
        record: record.ok_or("no descriptor ExitRecord")?,
        rootfs,
        mounts,
        streams: Streams {
            stdin,
            stdout,
            stderr,
        },
    })
}

fn read(fd: OwnedFd) -> Result<Spec, String> {
    let error = |error| format!("read spec: {error}");
    let mut file = File::from(fd);
    // Whoever wrote it may have left the position at its end; a pipe has none.
    match file.rewind() {
        Err(source) if source.raw_os_error() != Some(libc::ESPIPE) => return Err(error(source)),
        _ => {}
    }
    let mut json = Vec::new();
    file.take(MAX_SPEC as u64 + 1)
        .read_to_end(&mut json)
        .map_err(error)?;
    Spec::parse(&json).map_err(|error| chain(&error))
}
