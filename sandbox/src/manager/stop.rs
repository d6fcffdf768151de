//! Start, stop, remove, log rotation and resize of a container.

use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use criw_engines::client::CallError;
use criw_engines::protocol::{ExitReason, FdRole, Reply, Request};
use criw_engines::record::clip;

use super::{Container, Inner, Sandboxes, blocking, now};
use crate::container_state::{ContainerEvent, ContainerState, Exit, Refusal};
use crate::error::{Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::model::Resources;
use crate::record::{self, ContainerRecord};
use crate::view::Event;

/// Start answers when the guest is instantiated or after a second; runc needs 40 ms.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The control thread never waits for the guest, so it answers within a scheduling delay.
const CONTROL_DEADLINE: Duration = Duration::from_secs(5);

impl Sandboxes {
    /// Says "go".
    ///
    /// # Errors
    /// `WrongState` for a container that runs or ended; `StartFailed` with the text for
    /// the user when the guest could not be instantiated: the container is EXITED 128 then.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        self.whole(async move {
            let _life = container.life.lock().await;
            inner.start(&container).await
        })
        .await
    }

    /// Stop signal, then SIGKILL after `grace` (zero: at once); returns when the exit is
    /// recorded. Created, ended and unknown containers are success without effect. A
    /// second call meanwhile sends no second signal, but its own shorter grace counts.
    pub async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let inner = self.inner.clone();
        let Ok(container) = inner.container(id) else {
            return Ok(());
        };
        self.whole(async move { inner.stop(&container, grace).await })
            .await
    }

    /// Kills if need be, then forgets the container and its writable layer. Idempotent.
    pub async fn remove(&self, id: &ContainerId) -> Result<()> {
        let inner = self.inner.clone();
        let Ok(container) = inner.container(id) else {
            return Ok(());
        };
        self.whole(async move { inner.remove_container(&container).await })
            .await
    }

    /// Opens the log path anew and switches to it before returning.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<()> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        self.whole(async move { blocking(move || inner.reopen_log(&container)).await })
            .await
    }

    /// Changes limits; zero and empty fields stay as they are. All or nothing. An ended
    /// container is success without effect.
    pub async fn update(&self, id: &ContainerId, resources: Resources) -> Result<()> {
        let inner = self.inner.clone();
        let container = inner.container(id)?;
        self.whole(async move {
            let _life = container.life.lock().await;
            if container.state().is_exited() {
                return Ok(());
            }
            let merged = merge(&container.record().resources, &resources);
            let updated = container.clone();
            blocking(move || {
                let leaf = updated.record().leaf.clone();
                inner.leaf(&leaf)?.apply(&merged)?;
                updated.change(&inner.config.root, |r| r.resources = merged)
            })
            .await
        })
        .await
    }
}

impl Inner {
    async fn start(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let refused =
            |why: Refusal| Error::WrongState(format!("start container {}: it {why}", container.id));
        match container.state() {
            ContainerState::Created { .. } => {}
            ContainerState::Creating => return Err(refused(Refusal::NotCreated)),
            ContainerState::Running { .. } => return Err(refused(Refusal::AlreadyRunning)),
            ContainerState::Exited { .. } => return Err(refused(Refusal::AlreadyExited)),
        }
        let at = now();
        let socket = container.socket(&self.config.state);
        let reply =
            tokio::task::spawn_blocking(move || socket.call(&Request::Start, &[], START_DEADLINE))
                .await
                .map_err(|e| Error::node("run blocking work", e))?;
        fault::point("start/sent");
        let message = match reply {
            Ok(Reply::Started) => {
                container.apply(&self.config.root, &ContainerEvent::Started { at })?;
                fault::point("start/recorded");
                tracing::info!(container = %container.id, pod = %container.sandbox, name = %container.spec.name, "container started");
                self.publish(Event::Started(container.id.clone()));
                return Ok(());
            }
            Ok(Reply::StartFailed { message } | Reply::Failed { message }) => message,
            Ok(other) => format!("the shim answered {other:?} to Start"),
            // The shim ended before it could answer (it may have been killed): its exit is
            // recorded by the watcher, which waits for us to let go.
            Err(CallError::Gone { .. }) => {
                "the container's process ended before it could start".to_owned()
            }
            Err(error) => super::chain(&error),
        };
        let message = clip(message);
        self.settle_failed_start(container, &message).await;
        Err(Error::StartFailed(format!(
            "start container {}: {message}",
            container.id
        )))
    }

    /// EXITED 128 `StartError`, whatever state the shim is in.
    async fn settle_failed_start(self: &Arc<Self>, container: &Arc<Container>, message: &str) {
        if let Err(error) = self.take_container_down(container).await {
            tracing::error!(container = %container.id, error = %super::chain(&error), "take down a container that could not start");
        }
        let exit = Exit {
            code: 128,
            reason: ExitReason::StartError.as_str().to_owned(),
            message: message.to_owned(),
            finished_at: now(),
        };
        if container.record_exit(&self.config.root, &exit) {
            tracing::info!(container = %container.id, pod = %container.sandbox, name = %container.spec.name, message, "container could not start");
            container.exited.send_replace(true);
            self.publish(Event::Stopped(container.id.clone()));
        }
    }

    async fn stop(self: &Arc<Self>, container: &Arc<Container>, grace: Duration) -> Result<()> {
        if !container.state().is_running() {
            return Ok(());
        }
        if grace.is_zero() {
            return self.kill_container(container).await;
        }
        let first = !container.stop_sent.swap(true, Ordering::SeqCst);
        if first {
            let socket = container.socket(&self.config.state);
            let request = Request::Signal {
                signal: container.spec.stop_signal,
                stop: true,
                grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            };
            let sent =
                tokio::task::spawn_blocking(move || socket.call(&request, &[], CONTROL_DEADLINE))
                    .await
                    .map_err(|e| Error::node("run blocking work", e))?;
            fault::point("stop/signalled");
            match sent {
                Ok(Reply::Done) | Err(CallError::Gone { .. }) => {}
                other => {
                    tracing::warn!(container = %container.id, answer = ?other, "deliver the stop signal; SIGKILL follows after the grace");
                }
            }
        }
        if self.exited_within(container, grace).await {
            return Ok(());
        }
        tracing::info!(container = %container.id, ?grace, "grace is over, kill");
        self.kill_container(container).await
    }

    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<()> {
        self.kill_container(container).await?;
        let _life = container.life.lock().await;
        if self.container(&container.id).is_err() {
            return Ok(());
        }
        fault::point("remove/begun");
        self.take_container_down(container).await?;
        let root = self.config.root.clone();
        let id = container.id.clone();
        blocking(move || record::remove::<ContainerRecord>(&root, id.as_str())).await?;
        fault::point("remove/files-gone");
        self.forget_container(container);
        self.publish(Event::Removed(container.id.clone()));
        tracing::info!(container = %container.id, pod = %container.sandbox, "container removed");
        Ok(())
    }

    fn reopen_log(&self, container: &Container) -> Result<()> {
        if !container.state().is_running() {
            return Err(Error::WrongState(format!(
                "reopen log: container {} is not running",
                container.id
            )));
        }
        let Some(path) = container.record().log_path.clone() else {
            return Ok(());
        };
        let log = self.open_log(container, &path, self.shim_label(container)?.as_deref())?;
        let request = Request::ReopenLog {
            fds: vec![FdRole::Log],
        };
        let what = || {
            format!(
                "reopen log {} of container {}",
                path.display(),
                container.id
            )
        };
        match container
            .socket(&self.config.state)
            .call(&request, &[log.as_fd()], CONTROL_DEADLINE)
        {
            Ok(Reply::Done) => Ok(()),
            Ok(other) => Err(Error::node(what(), format!("the shim answered {other:?}"))),
            Err(error) => Err(Error::node(what(), error)),
        }
    }
}

/// Opens a log for appending; a symlink in its place is refused, because the kubelet
/// reads what stands there. Missing directories are made.
pub(crate) fn open_log(path: &Path) -> Result<std::fs::File> {
    let failed = |e: std::io::Error| Error::node(format!("open log {}", path.display()), e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)
}

/// The kubelet always sends a full set, crictl zeros for what it leaves untouched.
fn merge(old: &Resources, new: &Resources) -> Resources {
    fn number(old: i64, new: i64) -> i64 {
        if new == 0 { old } else { new }
    }
    fn text(old: &str, new: &str) -> String {
        if new.is_empty() { old } else { new }.to_owned()
    }
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    Resources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit: number(old.memory_limit, new.memory_limit),
        memory_swap_limit: match new.memory_swap_limit {
            // It counts memory and swap together: what there is of swap stays as it is.
            0 if new.memory_limit > 0 && old.memory_limit > 0 && old.memory_swap_limit > 0 => {
                let swap = old.memory_swap_limit.saturating_sub(old.memory_limit);
                new.memory_limit.saturating_add(swap)
            }
            limit => number(old.memory_swap_limit, limit),
        },
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() {
            old.hugepage_limits.clone()
        } else {
            new.hugepage_limits.clone()
        },
        unified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refused once, because 200 was more than the 100 of both together.
    #[test]
    fn a_new_memory_limit_leaves_the_swap_as_it_was() {
        let limits = |memory_limit, memory_swap_limit| Resources {
            memory_limit,
            memory_swap_limit,
            ..Resources::default()
        };
        for (old, new, expected) in [
            (limits(100, 100), limits(200, 0), 200),
            (limits(100, 150), limits(200, 0), 250),
            (limits(100, 150), limits(50, 0), 100),
            (limits(100, 150), limits(200, 300), 300),
            (limits(100, -1), limits(200, 0), -1),
            (limits(100, 0), limits(200, 0), 0),
            (limits(100, 150), limits(0, 0), 150),
        ] {
            let merged = merge(&old, &new);
            assert_eq!(merged.memory_swap_limit, expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn zeros_leave_limits_untouched() {
        let old = Resources {
            cpu_shares: 100,
            memory_limit: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Resources::default()
        };
        let new = Resources {
            cpu_shares: 200,
            cpu_quota: -1,
            ..Resources::default()
        };
        let merged = merge(&old, &new);
        assert_eq!(merged.cpu_shares, 200);
        assert_eq!(merged.cpu_quota, -1);
        assert_eq!(merged.memory_limit, 1 << 20);
        assert_eq!(merged.cpuset_cpus, "0");
    }

    #[test]
    fn a_log_is_never_opened_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("c").join("0.log");
        open_log(&log).unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("1.log")).unwrap();
        let error = open_log(&dir.path().join("1.log")).unwrap_err();
        assert!(error.to_string().contains("open log"), "{error}");
    }
}
