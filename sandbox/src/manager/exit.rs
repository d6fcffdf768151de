//! How a container ended, and the one task per shim that records it.
//!
//! The shim writes an exit record as its last act. When it could not (SIGKILL, a
//! crash), the status of its process, the cgroup's OOM counter and what we did
//! ourselves say what happened; only when all of these are lost is it 255 `Unknown`.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use criw_engines::protocol::{ExitReason, ExitRecord};

use super::{Container, Inner, blocking, chain, now};
use crate::container_state::Exit;
use crate::fault;
use crate::host::boot::{self, WaitStatus};
use crate::readiness;
use crate::record::{ContainerRecord, directory};
use crate::view::Event;

/// After the tear-down failed, when to try again.
const RETRY: Duration = Duration::from_secs(5);

/// What is known when a shim is gone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// The shim's own words.
    pub(crate) record: Option<ExitRecord>,
    /// Status of the shim's process.
    pub(crate) status: Option<WaitStatus>,
    /// The cgroup killed somebody for memory.
    pub(crate) oom_kills: u64,
    /// A command that a guest had started reached the limit of linear memory: its words.
    pub(crate) command_out_of_memory: Option<String>,
    /// We sent SIGKILL.
    pub(crate) killed_by_us: bool,
    /// The shim is the container (Wasm), not its keeper (runc).
    pub(crate) shim_is_container: bool,
}

/// Weighs the evidence. Pure; `now` is used only when nobody else noted the time.
pub(crate) fn judge(evidence: &Evidence, now: i64) -> Exit {
    let exit = |code, reason: &str, message: String| Exit {
        code,
        reason: reason.to_owned(),
        message,
        finished_at: now,
    };
    let killed = 128 + libc::SIGKILL;
    if let Some(record) = &evidence.record {
        // A shell passes on how its last command ended.
        let out_of_memory = match record.code {
            code if code != killed || record.reason == ExitReason::OOMKilled => None,
            _ if evidence.oom_kills > 0 => Some(OOM_TEXT.to_owned()),
            _ => evidence.command_out_of_memory.clone(),
        };
        let (reason, message) = match out_of_memory {
            Some(text) => (ExitReason::OOMKilled, text),
            None => (record.reason, record.message.clone()),
        };
        return Exit {
            code: record.code,
            reason: reason.as_str().to_owned(),
            message,
            finished_at: record.finished_at,
        };
    }
    if evidence.oom_kills > 0 {
        return exit(killed, "OOMKilled", OOM_TEXT.to_owned());
    }
    if evidence.killed_by_us {
        return exit(killed, "Error", "killed (SIGKILL) on request".to_owned());
    }
    match evidence.status {
        Some(WaitStatus::Signal(signal)) if evidence.shim_is_container => exit(
            128 + signal,
            "Error",
            format!("the container's process was ended by signal {signal} from outside"),
        ),
        Some(WaitStatus::Code(code)) if evidence.shim_is_container && code != 0 => exit(
            code,
            "Error",
            format!("the container's process ended with {code} and left no exit record"),
        ),
        _ => exit(
            255,
            "Unknown",
            "the container ended while nobody watched, and its exit status is lost".to_owned(),
        ),
    }
}

const OOM_TEXT: &str = "the container reached its memory limit (cgroup); raise resources.limits.memory if it needs more";

impl Inner {
    /// Starts the task that records this container's exit. The only one that does.
    pub(crate) fn watch(self: &Arc<Self>, container: Arc<Container>, pidfd: OwnedFd) {
        let inner = self.clone();
        tokio::spawn(async move {
            let status = match readiness::register(pidfd) {
                Ok(pidfd) => {
                    // An error here means the runtime is shutting down: the next daemon watches.
                    if pidfd.readable().await.is_err() {
                        return;
                    }
                    boot::exit_status(pidfd.get_ref().as_fd()).ok().flatten()
                }
                Err(error) => {
                    tracing::error!(container = %container.id, %error, "watch the shim");
                    return;
                }
            };
            fault::point("exit/seen");
            // StartContainer may be waiting for the very answer this exit overtook:
            // it records Started first.
            let _life = container.life.lock().await;
            inner.settle(&container, status).await;
        });
    }

    /// Records the exit of a container whose shim is gone and takes the rest down.
    /// The caller holds `life`.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        container: &Arc<Container>,
        status: Option<WaitStatus>,
    ) {
        if container.state().is_exited() {
            return;
        }
        let mut evidence = self.evidence(container, status);
        if let Err(error) = self.take_container_down(container).await {
            tracing::error!(container = %container.id, error = %chain(&error), "take an ended container down; will try again");
            self.retry_tear_down(container.clone());
        }
        // A shim that was killed may have left the container running until just now.
        evidence.record = evidence.record.or_else(|| self.read_exit_record(container));
        let exit = judge(&evidence, now());
        if container.record_exit(&self.config.root, &exit) {
            fault::point("exit/recorded");
            tracing::info!(
                container = %container.id, pod = %container.sandbox, name = %container.spec.name,
                code = exit.code, reason = %exit.reason, "container exited"
            );
            container.exited.send_replace(true);
            self.publish(Event::Stopped(container.id.clone()));
        }
    }

    /// Gathers what is known before the cgroup goes.
    fn evidence(&self, container: &Container, status: Option<WaitStatus>) -> Evidence {
        let (leaf, killed_by_us) = {
            let record = container.record();
            (record.leaf.clone(), record.killed_by_us)
        };
        Evidence {
            record: self.read_exit_record(container),
            status,
            oom_kills: self
                .leaf(&leaf)
                .and_then(|leaf| leaf.oom_kills())
                .unwrap_or_default(),
            command_out_of_memory: super::lock(&container.command_out_of_memory).clone(),
            killed_by_us,
            shim_is_container: container.is_wasm(),
        }
    }

    fn read_exit_record(&self, container: &Container) -> Option<ExitRecord> {
        let path = exit_file(&self.config.root, container.id.as_str());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(container = %container.id, %error, "open exit record");
                return None;
            }
        };
        match ExitRecord::read(file.as_fd()) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(container = %container.id, error = %chain(&error), "read exit record");
                None
            }
        }
    }

    fn retry_tear_down(self: &Arc<Self>, container: Arc<Container>) {
        let inner = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                if inner.container(&container.id).is_err() {
                    return;
                }
                let _life = container.life.lock().await;
                if inner.take_container_down(&container).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// Ends a container at once and waits until the exit is recorded. Idempotent.
    pub(crate) async fn kill_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> crate::Result<()> {
        if container.state().shim().is_none() {
            return Ok(());
        }
        // Written before the signal: a daemon that dies in between still tells the truth.
        container.change(&self.config.root, |r| r.killed_by_us = true)?;
        fault::point("stop/kill-noted");
        let inner = self.clone();
        let leaf = container.record().leaf.clone();
        blocking(move || inner.leaf(&leaf)?.kill(super::tear_down::KILL_DEADLINE)).await?;
        if self
            .exited_within(container, super::tear_down::KILL_DEADLINE)
            .await
        {
            return Ok(());
        }
        // The keeper of a Linux container did not notice: end it too.
        let inner = self.clone();
        let shim_leaf = container.record().shim_leaf.clone();
        blocking(move || match shim_leaf {
            Some(leaf) => inner.leaf(&leaf)?.kill(super::tear_down::KILL_DEADLINE),
            None => Ok(()),
        })
        .await?;
        if self
            .exited_within(container, super::tear_down::KILL_DEADLINE)
            .await
        {
            return Ok(());
        }
        Err(crate::Error::Deadline(format!(
            "container {} got SIGKILL and did not end within {:?}; is a process of it stuck in the kernel?",
            container.id,
            2 * super::tear_down::KILL_DEADLINE
        )))
    }

    /// Waits for the recorded exit; false when the time passed first.
    pub(crate) async fn exited_within(&self, container: &Container, limit: Duration) -> bool {
        let mut exited = container.exited.subscribe();
        tokio::time::timeout(limit, exited.wait_for(|ended| *ended))
            .await
            .is_ok()
    }
}

/// File that the shim writes its exit record to; it lasts longer than the boot.
pub(crate) fn exit_file(root: &std::path::Path, id: &str) -> std::path::PathBuf {
    directory::<ContainerRecord>(root, id).join("exit.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, reason: ExitReason) -> Option<ExitRecord> {
        Some(ExitRecord {
            version: 1,
            code,
            reason,
            message: "m".into(),
            finished_at: 5,
            dropped_log_lines: 0,
        })
    }

    #[test]
    fn the_evidence_is_weighed_in_order() {
        let wasm = Evidence {
            shim_is_container: true,
            ..Evidence::default()
        };
        let signaled = Some(WaitStatus::Signal(9));
        let table = [
            (
                "own words",
                Evidence {
                    record: said(3, ExitReason::Error),
                    ..wasm.clone()
                },
                3,
                "Error",
            ),
            (
                "own words beat our kill",
                Evidence {
                    record: said(0, ExitReason::Completed),
                    killed_by_us: true,
                    ..wasm.clone()
                },
                0,
                "Completed",
            ),
            (
                "runc saw the OOM killer's signal",
                Evidence {
                    record: said(137, ExitReason::Error),
                    oom_kills: 1,
                    ..Evidence::default()
                },
                137,
                "OOMKilled",
            ),
            (
                "a shell passed on that its command wanted too much",
                Evidence {
                    record: said(137, ExitReason::Error),
                    command_out_of_memory: Some("out of memory".to_owned()),
                    ..wasm.clone()
                },
                137,
                "OOMKilled",
            ),
            (
                "a command wanted too much long ago",
                Evidence {
                    record: said(1, ExitReason::Error),
                    command_out_of_memory: Some("out of memory".to_owned()),
                    ..wasm.clone()
                },
                1,
                "Error",
            ),
            (
                "a command wanted too much long ago, then we killed the shell",
                Evidence {
                    status: signaled,
                    killed_by_us: true,
                    command_out_of_memory: Some("out of memory".to_owned()),
                    ..wasm.clone()
                },
                137,
                "Error",
            ),
            (
                "a child was killed for memory, the main process went on",
                Evidence {
                    record: said(0, ExitReason::Completed),
                    oom_kills: 1,
                    ..Evidence::default()
                },
                0,
                "Completed",
            ),
            (
                "OOM killer took the shim",
                Evidence {
                    status: signaled,
                    oom_kills: 2,
                    ..wasm.clone()
                },
                137,
                "OOMKilled",
            ),
            (
                "we did it",
                Evidence {
                    status: signaled,
                    killed_by_us: true,
                    ..wasm.clone()
                },
                137,
                "Error",
            ),
            (
                "somebody else did it",
                Evidence {
                    status: signaled,
                    ..wasm.clone()
                },
                137,
                "Error",
            ),
            (
                "the shim crashed",
                Evidence {
                    status: Some(WaitStatus::Signal(6)),
                    ..wasm.clone()
                },
                134,
                "Error",
            ),
            (
                "the keeper died, the container's end is lost",
                Evidence {
                    status: signaled,
                    ..Evidence::default()
                },
                255,
                "Unknown",
            ),
            ("all lost", wasm, 255, "Unknown"),
        ];
        for (what, evidence, code, reason) in table {
            let exit = judge(&evidence, 99);
            assert_eq!((exit.code, exit.reason.as_str()), (code, reason), "{what}");
        }
    }
}
