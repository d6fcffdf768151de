//! Whose a cgroup is, for those who watch cgroups: they find a leaf as soon as it is made,
//! before the pod or container whose it is can be listed.

use std::sync::Arc;

use super::Sandboxes;
use crate::container_state::ContainerState;
use crate::id::{ContainerId, SandboxId};
use crate::model::{ContainerSpec, PodSpec};
use crate::record::PodPhase;

/// Whose a leaf is. Times are nanoseconds since the epoch.
#[derive(Debug, Clone)]
pub enum Owner {
    /// A pod's, for its own process.
    Pod {
        /// As asked.
        spec: Arc<PodSpec>,
        /// When it was asked for.
        created_at: i64,
        /// Host pid of that process, once it is there and until the pod is stopped.
        pid: Option<i32>,
    },
    /// A container's.
    Container {
        /// As asked.
        spec: Arc<ContainerSpec>,
        /// Its pod.
        sandbox: SandboxId,
        /// When it was asked for.
        created_at: i64,
        /// Also `Creating`.
        state: ContainerState,
    },
}

impl Sandboxes {
    /// Whose a leaf is that is named by this whole id.
    pub fn owner(&self, id: &str) -> Option<Owner> {
        if let Ok(id) = ContainerId::try_from(id.to_owned()) {
            let container = self.inner.index().containers.get(&id).cloned();
            if let Some(container) = container {
                let record = container.record();
                return Some(Owner::Container {
                    spec: record.spec.clone(),
                    sandbox: record.sandbox.clone(),
                    created_at: record.created_at,
                    state: record.state.clone(),
                });
            }
        }
        let id = SandboxId::try_from(id.to_owned()).ok()?;
        let pod = self.inner.index().pods.get(&id).cloned()?;
        let record = pod.record();
        Some(Owner::Pod {
            spec: record.spec.clone(),
            created_at: record.created_at,
            pid: record
                .init
                .filter(|_| record.phase != PodPhase::NotReady)
                .map(|init| init.pid),
        })
    }
}
