//! The leak snapshotter of all tests: everything on the machine that belongs to one
//! world and its daemon, as names that can be compared. What is there afterwards and
//! was not there before is a leak.
//!
//! Each kind has its own file or function; each has a test that plants a leak of the
//! kind and must see red.

pub mod cgroup;
mod files;
mod mounts;
mod network;
mod process;
mod sys;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::wait;
use crate::world::World;

/// A kind of thing that can be left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Processes in our cgroups or namespaces, or that name our directory.
    Process,
    /// Children of the daemon that nobody waited for.
    Zombie,
    /// Namespaces that a process, a mount or the daemon's descriptor keeps.
    Namespace,
    /// Mounts on the host, in the world, in the daemon, and in namespaces it keeps.
    Mount,
    /// Groups below our parent, in every hierarchy.
    Cgroup,
    /// Network interfaces of the world.
    Link,
    /// Routes of the world.
    Route,
    /// nft tables, chains, rules, sets and their elements in the world.
    Nft,
    /// Addresses that are given out.
    Lease,
    /// Descriptors of the daemon.
    Descriptor,
    /// Files below the daemon's root and state directories.
    File,
}

/// What is there, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Names within their kind.
    pub things: BTreeMap<Kind, BTreeSet<String>>,
}

impl Snapshot {
    /// What is here but not in `before`, one line each.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let nothing = BTreeSet::new();
        self.things
            .iter()
            .flat_map(|(kind, names)| {
                names
                    .difference(before.things.get(kind).unwrap_or(&nothing))
                    .map(move |name| format!("{kind:?}: {name}"))
            })
            .collect()
    }
}

/// Looks at everything once.
pub fn snapshot(world: &World, daemon: u32) -> Result<Snapshot> {
    let processes = process::of_world(world, daemon);
    let things = BTreeMap::from([
        (Kind::Process, process::names(&processes)),
        (Kind::Zombie, process::zombies(daemon)),
        (
            Kind::Namespace,
            mounts::namespaces(world, daemon, &processes),
        ),
        (Kind::Mount, mounts::all(world, daemon)),
        (Kind::Cgroup, cgroup::names(&world.name)),
        (Kind::Link, network::links(world)?),
        (Kind::Route, network::routes(world)?),
        (Kind::Nft, network::nft(world)?),
        (Kind::Lease, files::leases(world)),
        (Kind::Descriptor, process::descriptors(daemon)),
        (Kind::File, files::all(world)),
    ]);
    Ok(Snapshot { things })
}

/// Waits until nothing is left beyond `before`; else the list of what is.
pub fn settle(world: &World, daemon: u32, before: &Snapshot, patience: Duration) -> Result<()> {
    let mut left = vec!["nothing was looked at".to_owned()];
    let settled = wait::until("everything to be gone", patience, || {
        left = match snapshot(world, daemon) {
            Ok(now) => now.beyond(before),
            Err(error) => vec![format!("snapshot: {error:#}")],
        };
        left.is_empty().then_some(())
    });
    if settled.is_err() {
        bail!("left behind:\n  {}", left.join("\n  "));
    }
    Ok(())
}
