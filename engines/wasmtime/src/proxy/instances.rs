//! Instances between two requests. With `criw.dev/http-reuse` an instance serves several
//! requests, never two at the same time; without it none is kept, and each request finds
//! the guest as it was compiled.
//!
//! ```text
//!   request -> take: the one used last, else a new one -> the guest returns -> put
//!   dropped: it trapped or took too long; it has served its number; it has kept something
//!            of its request; nobody wanted it for 10 s
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use criw_engines::facts;
use tokio::time::Instant;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::HostIncomingRequest;
use wasmtime_wasi_http::p3::bindings::Service;

use super::Linked;
use crate::host::State;

/// How long an instance waits for its next request.
const IDLE: Duration = Duration::from_secs(10);

/// What a request is given to.
pub(super) enum Bound {
    Proxy(Proxy),
    Service(Service),
}

/// A guest with all that is its own.
pub(super) struct Instance {
    pub(super) store: Store<State>,
    /// Made inside the time of the first request.
    guest: Option<Bound>,
    served: u32,
    _alive: facts::Instance,
}

impl Instance {
    pub(super) fn new(store: Store<State>, alive: facts::Instance) -> Self {
        Self {
            store,
            guest: None,
            served: 0,
            _alive: alive,
        }
    }

    /// The guest, instantiated at the first call, and its store.
    pub(super) async fn guest(
        &mut self,
        linked: &Linked,
    ) -> wasmtime::Result<(&Bound, &mut Store<State>)> {
        let guest = match &mut self.guest {
            Some(guest) => guest,
            none => none.insert(match linked {
                Linked::Proxy(linked) => {
                    Bound::Proxy(linked.instantiate_async(&mut self.store).await?)
                }
                Linked::Service(linked) => {
                    Bound::Service(linked.instantiate_async(&mut self.store).await?)
                }
            }),
        };
        Ok((guest, &mut self.store))
    }

    /// It is given one more request.
    pub(super) fn begin(&mut self) {
        self.served += 1;
    }

    /// Whether the guest still has a part of a request: bodies that it has forgotten end
    /// with it, and the client waits for that.
    fn holds_on(&mut self) -> bool {
        let mut entries = self.store.data_mut().table().iter_mut();
        entries.any(|entry| {
            entry.is::<HostOutgoingBody>()
                || entry.is::<HostIncomingRequest>()
                || entry.is::<HostIncomingBody>()
        })
    }
}

/// Those that wait.
pub(super) struct Instances {
    /// Requests that one serves.
    reuse: u32,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last is at the end.
    waiting: Vec<Waiting>,
    /// Somebody looks after those that wait for too long.
    watched: bool,
}

struct Waiting {
    instance: Instance,
    since: Instant,
}

impl Instances {
    pub(super) fn new(reuse: u32) -> Self {
        Self {
            reuse,
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that can serve.
    pub(super) fn take(&self) -> Option<Instance> {
        if self.reuse <= 1 {
            return None;
        }
        self.idle().waiting.pop().map(|last| last.instance)
    }

    /// One whose guest has returned from its request, or has not had any.
    pub(super) fn put(self: &Arc<Self>, mut instance: Instance) {
        if self.reuse <= 1 || instance.served >= self.reuse || instance.holds_on() {
            return;
        }
        let mut idle = self.idle();
        idle.waiting.push(Waiting {
            instance,
            since: Instant::now(),
        });
        if !std::mem::replace(&mut idle.watched, true) {
            tokio::spawn(Arc::clone(self).watch());
        }
    }

    /// Drops what nobody wants, as long as anything waits.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE).await;
            let mut idle = self.idle();
            // The longest waiting are first.
            let old = idle
                .waiting
                .partition_point(|one| one.since.elapsed() >= IDLE);
            let old: Vec<_> = idle.waiting.drain(..old).collect();
            idle.watched = !idle.waiting.is_empty();
            let watched = idle.watched;
            drop(idle);
            drop(old);
            if !watched {
                return;
            }
        }
    }
}
