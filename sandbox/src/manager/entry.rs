//! A pod and a container in memory: the record, and the locks around it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use criw_engines::client::ShimSocket;
use tokio::sync::watch;

use super::{ContainerName, PodName, lock};
use crate::container_state::{ContainerEvent, ContainerState};
use crate::cpu_rate::CpuRate;
use crate::error::Result;
use crate::host::pins::PodNamespaces;
use crate::id::{ContainerId, SandboxId};
use crate::model::{ContainerSpec, EngineSpec, PodSpec};
use crate::record::{self, ContainerRecord, PodPhase, PodRecord};
use crate::view::{ContainerView, PodView};

/// A pod in memory.
pub(crate) struct Pod {
    pub(crate) id: SandboxId,
    pub(crate) spec: Arc<PodSpec>,
    record: Mutex<PodRecord>,
    /// Orders stop and remove; containers are created under it too, so that none
    /// appears in a pod that is being stopped.
    pub(crate) life: tokio::sync::Mutex<()>,
    namespaces: Mutex<Option<Arc<PodNamespaces>>>,
    pub(crate) cpu_rate: CpuRate,
}

impl Pod {
    pub(crate) fn new(record: PodRecord) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            spec: record.spec.clone(),
            record: Mutex::new(record),
            life: tokio::sync::Mutex::new(()),
            namespaces: Mutex::new(None),
            cpu_rate: CpuRate::default(),
        })
    }

    pub(super) fn name(&self) -> PodName {
        let s = &self.spec;
        (
            s.namespace.clone(),
            s.name.clone(),
            s.uid.clone(),
            s.attempt,
        )
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, PodRecord> {
        lock(&self.record)
    }

    /// Changes memory and file together; on a failed write neither changes.
    pub(crate) fn change(&self, root: &Path, edit: impl FnOnce(&mut PodRecord)) -> Result<()> {
        let mut guard = self.record();
        let mut next = guard.clone();
        edit(&mut next);
        record::write(root, &next)?;
        *guard = next;
        Ok(())
    }

    pub(crate) fn namespaces(&self) -> Option<Arc<PodNamespaces>> {
        lock(&self.namespaces).clone()
    }

    pub(crate) fn set_namespaces(&self, namespaces: Option<PodNamespaces>) {
        *lock(&self.namespaces) = namespaces.map(Arc::new);
    }

    /// `None` while it is being created.
    pub(crate) fn view(&self) -> Option<PodView> {
        let record = self.record();
        if record.phase == PodPhase::Creating {
            return None;
        }
        let ready = record.phase == PodPhase::Ready;
        let own_network = self.spec.namespaces.network == crate::model::Scope::Pod;
        let attachment = record.attachment.as_ref().filter(|_| ready);
        Some(PodView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            created_at: record.created_at,
            ready,
            ips: attachment.map(|a| a.ips().to_vec()).unwrap_or_default(),
            netns: (own_network && ready)
                .then(|| attachment.and_then(super::pods::visible_netns))
                .flatten(),
            pid: record.init.filter(|_| ready).map(|init| init.pid),
            message: record.message.clone(),
        })
    }
}

/// A container in memory.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) spec: Arc<ContainerSpec>,
    record: Mutex<ContainerRecord>,
    /// Orders create, start, remove and the recording of the exit.
    pub(crate) life: tokio::sync::Mutex<()>,
    /// True once EXITED is recorded.
    pub(crate) exited: watch::Sender<bool>,
    /// The stop signal is sent once, whoever else asks for a stop meanwhile.
    pub(crate) stop_sent: AtomicBool,
    /// Its writable layer as last measured; made at the first question.
    pub(crate) layer: OnceLock<crate::stats::Layer>,
    pub(crate) cpu_rate: CpuRate,
    /// What runs in it besides its first process: shims of commands, and their argv.
    pub(crate) execs: Mutex<HashMap<i32, Vec<String>>>,
    /// What the last command said that a guest of it started and that ended for want of
    /// memory. A daemon's end is the end of these commands, so no record needs it.
    pub(crate) command_out_of_memory: Mutex<Option<String>>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            spec: record.spec.clone(),
            exited: watch::Sender::new(record.state.is_exited()),
            record: Mutex::new(record),
            life: tokio::sync::Mutex::new(()),
            stop_sent: AtomicBool::new(false),
            layer: OnceLock::new(),
            cpu_rate: CpuRate::default(),
            execs: Mutex::default(),
            command_out_of_memory: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> ContainerName {
        (
            self.sandbox.clone(),
            self.spec.name.clone(),
            self.spec.attempt,
        )
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, ContainerRecord> {
        lock(&self.record)
    }

    pub(crate) fn state(&self) -> ContainerState {
        self.record().state.clone()
    }

    pub(crate) fn is_wasm(&self) -> bool {
        matches!(self.spec.engine, EngineSpec::Wasm { .. })
    }

    /// Changes memory and file together; on a failed write neither changes.
    pub(crate) fn change(
        &self,
        root: &Path,
        edit: impl FnOnce(&mut ContainerRecord),
    ) -> Result<()> {
        let mut guard = self.record();
        let mut next = guard.clone();
        edit(&mut next);
        record::write(root, &next)?;
        *guard = next;
        Ok(())
    }

    /// Applies an event of the state machine; a refusal becomes a sentence about this container.
    pub(crate) fn apply(&self, root: &Path, event: &ContainerEvent) -> Result<()> {
        let next = self.state().on(event).map_err(|refusal| {
            crate::error::Error::WrongState(format!("container {} {refusal}", self.id))
        })?;
        self.change(root, |record| record.state = next)
    }

    /// Records an exit. A fact is a fact: when the disk refuses (it may be full), memory
    /// still learns it, and the next daemon reads the shim's own exit record again.
    /// Returns whether this was the first exit.
    pub(crate) fn record_exit(&self, root: &Path, exit: &crate::Exit) -> bool {
        let event = ContainerEvent::Exit(exit.clone());
        let Ok(next) = self.state().on(&event) else {
            return false;
        };
        if let Err(error) = self.change(root, |record| record.state = next.clone()) {
            tracing::error!(container = %self.id, error = %super::chain(&error), "record exit; kept in memory");
            self.record().state = next;
        }
        true
    }

    /// Bundle: spec, socket, log of runc. Gone with the boot.
    pub(crate) fn bundle(&self, state: &Path) -> PathBuf {
        bundle(state, &self.id)
    }

    /// The container's shim, whichever daemon started it.
    pub(crate) fn socket(&self, state: &Path) -> ShimSocket {
        ShimSocket::at(&self.bundle(state))
    }

    /// `None` while it is being created.
    pub(crate) fn view(&self, state: &Path) -> Option<ContainerView> {
        let record = self.record();
        if record.state == ContainerState::Creating {
            return None;
        }
        Some(ContainerView {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            spec: self.spec.clone(),
            created_at: record.created_at,
            state: record.state.clone(),
            log_path: record.log_path.clone(),
            pid: record.state.pid(),
            resources: record.resources.clone(),
            bundle: bundle(state, &self.id),
        })
    }
}

/// Directory of a container that lasts as long as the boot.
pub(crate) fn bundle(state: &Path, id: &ContainerId) -> PathBuf {
    state.join("containers").join(id.as_str())
}
