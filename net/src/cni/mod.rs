//! CNI networks: real conflists run with real plugin binaries.

mod conflist;
mod plugin;
mod quantity;
mod request;
mod result;
mod version;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::CniConfig;
use crate::attachment::{Attachment, CniRecord, Kind, RECORD_VERSION};
use crate::error::{NetError, NotReady, PluginFailure};
use crate::pod::PodNetwork;
use conflist::{Conflist, find_plugin, plugin_type};
use plugin::Call;
use version::Version;

const INTERFACE: &str = "eth0";
/// How long an answer to STATUS is believed: the kubelet asks every few
/// seconds, and each question costs a process per plugin.
const STATUS_VALID: Duration = Duration::from_secs(10);

pub(crate) struct Cni {
    config: CniConfig,
    asked: Mutex<Option<Asked>>,
}

/// What the plugins of a list said to STATUS, and when.
struct Asked {
    list: Conflist,
    at: Instant,
    answer: Result<(), NotReady>,
}

impl Cni {
    pub(crate) fn new(config: CniConfig) -> Self {
        Self {
            config,
            asked: Mutex::new(None),
        }
    }

    pub(crate) async fn status(&self) -> Result<(), NotReady> {
        let list = self.usable()?;
        if list.version < Version::GC_AND_STATUS {
            return Ok(());
        }
        if let Some(asked) = &*self.asked.lock().unwrap_or_else(|e| e.into_inner())
            && asked.list == list
            && asked.at.elapsed() < STATUS_VALID
        {
            return asked.answer.clone();
        }
        let answer = self.ask_plugins(&list).await;
        *self.asked.lock().unwrap_or_else(|e| e.into_inner()) = Some(Asked {
            list,
            at: Instant::now(),
            answer: answer.clone(),
        });
        answer
    }

    /// The network, if every plugin of it is installed.
    fn usable(&self) -> Result<Conflist, NotReady> {
        let list = conflist::find(&self.config.conf_dir)?;
        for plugin in &list.plugins {
            let kind = plugin_type(plugin);
            if find_plugin(kind, &self.config.bin_dirs).is_none() {
                let call = self.list_call("ADD", &list, &self.config.bin_dirs);
                let missing = PluginFailure::Missing {
                    dirs: self.config.bin_dirs.clone(),
                };
                return Err(NotReady {
                    reason: "CNIPluginMissing",
                    message: call.error(kind, missing).to_string(),
                });
            }
        }
        Ok(list)
    }

    async fn ask_plugins(&self, list: &Conflist) -> Result<(), NotReady> {
        let call = self.list_call("STATUS", list, &self.config.bin_dirs);
        for plugin in &list.plugins {
            let conf = request::configuration(
                plugin,
                &list.name,
                &list.version.to_string(),
                &Map::new(),
                None,
            );
            call.run(plugin_type(plugin), &conf)
                .await
                .map_err(|error| NotReady {
                    reason: "CNIPluginNotReady",
                    message: error.to_string(),
                })?;
        }
        Ok(())
    }

    pub(crate) fn plan(&self, pod: &PodNetwork) -> Result<Attachment, NetError> {
        let list = self.usable()?;
        if pod.netns_path.as_os_str().is_empty() {
            return Err(NetError::InvalidPod(
                "cni plugins need a path of the network namespace, but the pod has none".into(),
            ));
        }
        Ok(Attachment {
            version: RECORD_VERSION,
            pod_id: pod.id.clone(),
            interface: INTERFACE.into(),
            ips: Vec::new(),
            kind: Kind::Cni(CniRecord {
                conflist_file: list.file,
                network: list.name,
                cni_version: list.version.to_string(),
                disable_check: list.disable_check,
                plugins: list.plugins,
                bin_dirs: self.config.bin_dirs.clone(),
                netns_path: pod.netns_path.clone(),
                args: request::args(pod).map_err(NetError::InvalidPod)?,
                capabilities: request::capabilities(pod).map_err(NetError::InvalidPod)?,
                prev_result: None,
            }),
        })
    }

    fn list_call<'a>(
        &self,
        verb: &'static str,
        list: &'a Conflist,
        bin_dirs: &'a [std::path::PathBuf],
    ) -> Call<'a> {
        Call {
            verb,
            conflist: &list.file,
            bin_dirs,
            timeout: self.config.plugin_timeout,
            env: Vec::new(),
        }
    }

    /// GC of the current network, if it knows that verb; the other networks of
    /// live pods are left alone.
    pub(crate) async fn gc(&self, live: &[&Attachment]) -> Result<(), NetError> {
        let Ok(list) = self.usable() else {
            return Ok(());
        };
        if list.version < Version::GC_AND_STATUS || list.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> = live
            .iter()
            .filter(|a| matches!(&a.kind, Kind::Cni(record) if record.network == list.name))
            .map(|a| json!({"containerID": a.pod_id, "ifname": a.interface}))
            .collect();
        let call = self.list_call("GC", &list, &self.config.bin_dirs);
        let mut first_error = None;
        for plugin in &list.plugins {
            let mut conf = request::configuration(
                plugin,
                &list.name,
                &list.version.to_string(),
                &Map::new(),
                None,
            );
            conf.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            if let Err(error) = call.run(plugin_type(plugin), &conf).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

fn version_of(record: &CniRecord) -> Result<Version, NetError> {
    Version::supported(&record.cni_version).ok_or_else(|| {
        NetError::InvalidPod(format!(
            "its record names cni version {:?}",
            record.cni_version
        ))
    })
}

fn pod_call<'a>(
    verb: &'static str,
    pod_id: &str,
    interface: &str,
    record: &'a CniRecord,
    netns: &Path,
    timeout: Duration,
) -> Call<'a> {
    let args = record
        .args
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(";");
    Call {
        verb,
        conflist: &record.conflist_file,
        bin_dirs: &record.bin_dirs,
        timeout,
        env: vec![
            ("CNI_CONTAINERID", pod_id.into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", interface.into()),
            ("CNI_ARGS", args.into()),
        ],
    }
}

/// ADD of every plugin in order. When one fails, it and those before it get DEL.
pub(crate) async fn attach(
    attachment: &mut Attachment,
    netns: OwnedFd,
    timeout: Duration,
) -> Result<(), NetError> {
    let (pod_id, interface) = (attachment.pod_id.clone(), attachment.interface.clone());
    let Kind::Cni(record) = &mut attachment.kind else {
        return Err(NetError::InvalidPod(
            "its record is not one of a cni network".into(),
        ));
    };
    crate::netns::on_fresh_thread(move || {
        crate::netns::enter(&netns)?;
        crate::builtin::link::loopback_up()
    })
    .await?;
    let mut reached = 0;
    let added = add(record, &pod_id, &interface, timeout, &mut reached).await;
    match added {
        Ok(ips) => {
            attachment.ips = ips;
            Ok(())
        }
        Err(attach) => match delete(
            record,
            reached,
            &pod_id,
            &interface,
            Some(&record.netns_path),
            timeout,
        )
        .await
        {
            Ok(()) => {
                record.prev_result = None;
                Err(attach)
            }
            Err(undo) => Err(NetError::Undo {
                attach: Box::new(attach),
                undo: Box::new(undo),
            }),
        },
    }
}

async fn add(
    record: &mut CniRecord,
    pod_id: &str,
    interface: &str,
    timeout: Duration,
    reached: &mut usize,
) -> Result<Vec<std::net::IpAddr>, NetError> {
    let version = version_of(record)?;
    record.prev_result = None;
    let plugins = record.plugins.clone();
    let mut last = Map::new();
    for plugin in &plugins {
        let call = pod_call(
            "ADD",
            pod_id,
            interface,
            record,
            &record.netns_path,
            timeout,
        );
        let conf = request::configuration(
            plugin,
            &record.network,
            &record.cni_version,
            &record.capabilities,
            record.prev_result.as_ref(),
        );
        *reached += 1;
        let output = call.run(plugin_type(plugin), &conf).await?;
        let parsed: Map<String, Value> = serde_json::from_slice(&output).map_err(|error| {
            call.error(
                plugin_type(plugin),
                PluginFailure::BadOutput {
                    reason: error.to_string(),
                    stderr: String::new(),
                },
            )
        })?;
        last = result::convert(parsed, version);
        record.prev_result = Some(last.clone().into());
    }
    let name = plugins.last().map(plugin_type).unwrap_or_default();
    result::pod_ips(&last, interface).map_err(|reason| {
        pod_call(
            "ADD",
            pod_id,
            interface,
            record,
            &record.netns_path,
            timeout,
        )
        .error(
            name,
            PluginFailure::BadOutput {
                reason,
                stderr: String::new(),
            },
        )
    })
}

/// DEL of the first `count` plugins, last one first. All get their turn even
/// when one fails; the first error is returned.
async fn delete(
    record: &CniRecord,
    count: usize,
    pod_id: &str,
    interface: &str,
    netns: Option<&Path>,
    timeout: Duration,
) -> Result<(), NetError> {
    let version = version_of(record)?;
    let prev = record
        .prev_result
        .as_ref()
        .filter(|_| request::del_has_result(version));
    let call = pod_call(
        "DEL",
        pod_id,
        interface,
        record,
        netns.unwrap_or(Path::new("")),
        timeout,
    );
    let mut first_error = None;
    for plugin in record.plugins.iter().take(count).rev() {
        let conf = request::configuration(
            plugin,
            &record.network,
            &record.cni_version,
            &record.capabilities,
            prev,
        );
        if let Err(error) = call.run(plugin_type(plugin), &conf).await {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

pub(crate) async fn detach(
    attachment: &Attachment,
    record: &CniRecord,
    netns_alive: bool,
    timeout: Duration,
) -> Result<(), NetError> {
    // Plugins take an empty CNI_NETNS for "gone", but fail on a path that is not there.
    let netns = Some(record.netns_path.as_path()).filter(|path| netns_alive && path.exists());
    delete(
        record,
        usize::MAX,
        &attachment.pod_id,
        &attachment.interface,
        netns,
        timeout,
    )
    .await
}

/// CHECK of every plugin, where the version knows it and the list allows it.
pub(crate) async fn check(
    attachment: &Attachment,
    record: &CniRecord,
    timeout: Duration,
) -> Result<(), NetError> {
    if version_of(record)? < Version::CHECK || record.disable_check {
        return Ok(());
    }
    let call = pod_call(
        "CHECK",
        &attachment.pod_id,
        &attachment.interface,
        record,
        &record.netns_path,
        timeout,
    );
    for plugin in &record.plugins {
        let conf = request::configuration(
            plugin,
            &record.network,
            &record.cni_version,
            &record.capabilities,
            record.prev_result.as_ref(),
        );
        call.run(plugin_type(plugin), &conf).await?;
    }
    Ok(())
}
