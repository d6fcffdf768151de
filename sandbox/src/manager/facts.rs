//! What Wasm containers have done so far, as their shims tell. Asking wakes each shim, so
//! it is bounded: few at the same time, each for a moment, all within a limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use criw_engines::protocol::{Reply, Request, WasmFacts};

use super::{Container, Sandboxes};
use crate::id::{ContainerId, SandboxId};

/// Shims that are asked at the same time.
const AT_ONCE: usize = 4;

/// A healthy shim answers within a millisecond.
const EACH: Duration = Duration::from_millis(250);

/// One container and what its shim told.
#[derive(Debug, Clone)]
pub struct Told {
    /// The container.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox: SandboxId,
    /// Name of the container in its pod.
    pub name: String,
    /// From a process that runs foreign code: numbers and words are not to be trusted.
    pub facts: WasmFacts,
}

/// What was asked of how many.
#[derive(Debug, Default)]
pub struct AllTold {
    /// Those that answered, in no order.
    pub told: Vec<Told>,
    /// Shims that gave no answer in time. Those of an older version, which count nothing,
    /// are not among them.
    pub silent: u64,
}

impl Sandboxes {
    /// Asks the shims of all running Wasm containers, and returns within about this time.
    pub async fn wasm_facts(&self, within: Duration) -> AllTold {
        let end = Instant::now() + within;
        let running: Vec<_> = self
            .inner
            .index()
            .containers
            .values()
            .filter(|container| container.is_wasm() && container.state().is_running())
            .cloned()
            .collect();
        let asked = Arc::new(Mutex::new(running));
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (inner, asked) = (self.inner.clone(), asked.clone());
                tokio::task::spawn_blocking(move || {
                    let next = || asked.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let mut all = AllTold::default();
                    while let Some(container) = next() {
                        ask(&container, &inner.config.state, end, &mut all);
                    }
                    all
                })
            })
            .collect();
        let mut all = AllTold::default();
        for worker in workers {
            if let Ok(part) = worker.await {
                all.told.extend(part.told);
                all.silent += part.silent;
            }
        }
        all
    }
}

fn ask(container: &Container, state: &std::path::Path, end: Instant, all: &mut AllTold) {
    let left = end.saturating_duration_since(Instant::now()).min(EACH);
    let reply = match left.is_zero() {
        true => None,
        false => container
            .socket(state)
            .call(&Request::State, &[], left)
            .ok(),
    };
    match reply {
        Some(Reply::State {
            wasm: Some(facts), ..
        }) => all.told.push(Told {
            id: container.id.clone(),
            sandbox: container.sandbox.clone(),
            name: container.spec.name.clone(),
            facts,
        }),
        Some(Reply::State { .. }) => {}
        // One that has just ended is not silent.
        _ if !container.state().is_running() => {}
        _ => all.silent += 1,
    }
}
