//! What components may import beside WASI itself: drafts of `wasi:logging`, `wasi:config`,
//! `wasi:keyvalue` and `wasi:blobstore`.
//!
//! ```text
//!   logging    lines in the container's log
//!   config     the container's environment and files of mounted directories
//!   keyvalue   buckets in memory or on a volume
//!   blobs      wasi:blobstore on a volume
//!   names      names of guests as names of files
//!   files      files on a volume that several containers share
//! ```
//! An HTTP guest has an instance for each request, so what outlives a request is here, once
//! for a container. Nothing is opened before a guest asks. Drafts have no compatible versions:
//! an interface is linked under exactly the name that the component imports.

use std::sync::Arc;

use criw_engines::spec::ServicesSection;
use criw_engines::stdio::Output;
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceType};
use wasmtime::{Engine, Result};

use crate::host::State;
use crate::world::World;

mod blobs;
mod config;
mod files;
mod keyvalue;
mod logging;
mod names;

/// What all instances of one container share.
pub(crate) struct Services {
    stderr: Output,
    config: config::Source,
    keyvalue: Box<dyn keyvalue::Store>,
    blobs: blobs::Blobs,
}

impl Services {
    pub(crate) fn new(section: &ServicesSection, world: &World, stderr: Output) -> Arc<Self> {
        Arc::new(Self {
            stderr,
            config: config::Source::new(&section.config_dirs, world.env()),
            keyvalue: keyvalue::open(section.keyvalue_dir.as_deref()),
            blobs: blobs::Blobs::new(section.blobstore_dir.as_deref()),
        })
    }
}

/// Adds the functions of one interface under the name that the component imports.
type Add = fn(&mut LinkerInstance<'_, State>) -> Result<()>;

/// Interface, its versions, its functions. The drafts of `config` have the same types by
/// every name; Spin's has a date.
const INTERFACES: &[(&str, &[&str], Add)] = &[
    ("wasi:logging/logging", &["", "0.1.0-draft"], logging::add),
    ("wasi:config/store", CONFIG, config::add),
    ("wasi:config/runtime", CONFIG, config::add),
    ("wasi:keyvalue/store", DRAFT_1, keyvalue::draft1::store),
    ("wasi:keyvalue/atomics", DRAFT_1, keyvalue::draft1::atomics),
    ("wasi:keyvalue/batch", DRAFT_1, keyvalue::batch),
    ("wasi:keyvalue/store", DRAFT_2, keyvalue::draft2::store),
    ("wasi:keyvalue/atomics", DRAFT_2, keyvalue::draft2::atomics),
    ("wasi:keyvalue/batch", DRAFT_2, keyvalue::batch),
    ("wasi:blobstore/types", DRAFT_1, blobs::types),
    ("wasi:blobstore/container", DRAFT_1, blobs::container),
    ("wasi:blobstore/blobstore", DRAFT_1, blobs::blobstore),
];

const CONFIG: &[&str] = &["0.2.0-draft", "0.2.0-draft-2024-09-27", "0.2.0-rc.1"];
const DRAFT_1: &[&str] = &["0.2.0-draft"];
const DRAFT_2: &[&str] = &["0.2.0-draft2"];

fn find(import: &str) -> Option<Add> {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    INTERFACES
        .iter()
        .find(|(name, versions, _)| *name == interface && versions.contains(&version))
        .map(|(_, _, add)| *add)
}

/// Whether an import, by its whole name, is one of these.
pub(crate) fn provide(import: &str) -> bool {
    find(import).is_some()
}

/// The versions of an interface that is provided, but not by the name asked for.
pub(crate) fn other_versions(import: &str) -> Vec<&'static str> {
    let interface = import.split_once('@').map_or(import, |(name, _)| name);
    INTERFACES
        .iter()
        .filter(|(name, ..)| *name == interface)
        .flat_map(|(_, versions, _)| versions.iter().copied())
        .filter(|version| !version.is_empty())
        .collect()
}

/// Links what the component imports of them.
pub(crate) fn link(
    engine: &Engine,
    component: &Component,
    linker: &mut Linker<State>,
) -> Result<()> {
    for (name, _) in component.component_type().imports(engine) {
        if let Some(add) = find(name) {
            add(&mut linker.instance(name)?)?;
        }
    }
    Ok(())
}

/// A resource that lies in the instance's table.
fn resource<T: Send + 'static>(instance: &mut LinkerInstance<'_, State>, name: &str) -> Result<()> {
    instance.resource(name, ResourceType::host::<T>(), |mut store, rep| {
        let table = store.data_mut().table();
        table.delete(Resource::<T>::new_own(rep))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_found_by_their_whole_name() {
        for (import, expected) in [
            ("wasi:logging/logging", true),
            ("wasi:logging/logging@0.1.0-draft", true),
            ("wasi:logging/logging@0.1.0", false),
            ("wasi:config/store@0.2.0-rc.1", true),
            ("wasi:config/store", false),
            ("wasi:keyvalue/batch@0.2.0-draft2", true),
            ("wasi:keyvalue/watcher@0.2.0-draft", false),
            ("wasi:blobstore/types@0.2.0-draft", true),
        ] {
            assert_eq!(provide(import), expected, "{import}");
        }
        assert_eq!(
            other_versions("wasi:keyvalue/store@0.3.0"),
            ["0.2.0-draft", "0.2.0-draft2"]
        );
        assert!(other_versions("wasi:messaging/consumer@0.2.0-draft").is_empty());
    }
}
