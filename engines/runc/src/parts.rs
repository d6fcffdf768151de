//! What Create brings, as this engine needs it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use criw_engines::descriptors::Descriptors;
use criw_engines::spec::{EngineSection, RuncSection, Spec};

use crate::call::Streams;

/// All of it, checked.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) spec: Spec,
    pub(crate) section: RuncSection,
    pub(crate) log: Option<OwnedFd>,
    pub(crate) record: OwnedFd,
    pub(crate) rootfs: Option<OwnedFd>,
    /// By index of the spec's mounts.
    pub(crate) mounts: BTreeMap<u32, OwnedFd>,
    pub(crate) user_namespace: Option<OwnedFd>,
    pub(crate) streams: Streams,
}

impl Parts {
    /// Refuses what is not for this engine, and what it cannot do without.
    pub(crate) fn new(spec: Spec, given: Descriptors) -> Result<Self, String> {
        let EngineSection::Runc(section) = spec.criw.engine.clone() else {
            return Err("create: the spec is for another engine than runc".into());
        };
        if given.code.is_some()
            || given.mount_template.is_some()
            || given.container_mounts.is_some()
        {
            return Err("create: a descriptor came that is for Wasm containers only".into());
        }
        Ok(Self {
            spec,
            section,
            log: given.log,
            record: given
                .exit_record
                .ok_or("create: no descriptor for the exit record")?,
            rootfs: given.rootfs,
            mounts: given.mounts,
            user_namespace: given.user_namespace,
            streams: Streams {
                stdin: given.stdin,
                stdout: given.stdout,
                stderr: given.stderr,
            },
        })
    }
}
