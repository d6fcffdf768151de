//! The node that all checks share: a machine, a kubelet on it, manifests, and what the
//! kubelet says about its pods.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use criw_tests::kubelet::{self, Kubelet};
use criw_tests::leak::Snapshot;
use criw_tests::machine::Machine;
use criw_tests::{binaries, image, images, wait};
use serde_json::{Value, json};

/// Longest wait for what a kubelet does within seconds, with all pods starting at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What the kubelet said lately is asked for again only after this time: dozens of
/// checks ask.
const FRESH: Duration = Duration::from_millis(100);

/// The gate for pod statistics from the runtime; without it they are cAdvisor's.
pub(crate) const STATISTICS: &str = "PodAndContainerStatsFromCRI";

type Pods = Arc<Vec<Value>>;

/// The node.
pub(crate) struct Node {
    /// The kubelet; `None` while it is down.
    pub(crate) kubelet: Option<Kubelet>,
    /// Daemon, registry, namespaces; after the kubelet, which lives in it.
    pub(crate) machine: Machine,
    /// What was on the machine before there was a kubelet.
    pub(crate) before: Snapshot,
    seen: Mutex<Option<(Instant, Pods)>>,
    statistics_from_cri: bool,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code.
    pub(crate) code: i64,
    /// `Completed`, `Error`, `Trap`, …
    pub(crate) reason: String,
    /// Termination message.
    pub(crate) message: String,
}

/// A certificate and its key, with the names that a Secret of the type kubernetes.io/tls has.
fn certificate(machine: &Machine, directory: &Path) -> Result<()> {
    std::fs::create_dir(directory)?;
    let certificate = directory.join("tls.crt").display().to_string();
    let key = directory.join("tls.key").display().to_string();
    let words =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=web";
    let mut args: Vec<&str> = words.split_whitespace().collect();
    args.extend(["-out", &certificate, "-keyout", &key]);
    machine.world.run("openssl", &args)?;
    Ok(())
}

impl Node {
    /// Starts daemon, registry and kubelet, and lays down the manifests of those pods.
    pub(crate) fn start(pods: &[&str]) -> Result<Self> {
        let machine = Machine::new()?;
        for (name, image) in [
            ("busybox:1", images::busybox()?),
            ("guests:1", images::guests()?),
            ("proxy:1", images::wasm("proxy.component")?),
            ("connect:1", images::wasm("connect")?),
            ("unknown_import:1", images::wasm("unknown_import")?),
            (
                "nothing:1",
                image::rootfs("linux/amd64", &[vec![]], &image::Settings::default())?,
            ),
        ] {
            machine.registry.push(&machine.world, name, &image)?;
        }
        let host = machine.world.subdir("host")?;
        std::fs::create_dir(host.join("sub"))?;
        std::fs::write(host.join("in"), "from the host\n")?;
        std::fs::write(host.join("sub/in"), "from below the host\n")?;
        certificate(&machine, &host.join("tls"))?;
        kubelet::prepare(&machine.world)?;
        machine.compile_toolbox(&machine.registry.reference("guests:1"))?;
        let before = machine.baseline()?;
        let mut node = Self {
            kubelet: None,
            machine,
            before,
            seen: Mutex::new(None),
            statistics_from_cri: true,
        };
        for pod in pods {
            node.lay_down(pod)?;
        }
        node.start_kubelet(&[STATISTICS])?;
        Ok(node)
    }

    /// Starts the kubelet with these feature gates on.
    pub(crate) fn start_kubelet(&mut self, gates: &[&str]) -> Result<()> {
        let on: serde_json::Map<String, Value> = gates
            .iter()
            .map(|gate| ((*gate).to_owned(), json!(true)))
            .collect();
        self.kubelet = Some(Kubelet::start(&self.machine.world, &on.into())?);
        self.statistics_from_cri = gates.contains(&STATISTICS);
        Ok(())
    }

    /// Ends it and starts it anew with other gates.
    pub(crate) fn restart_kubelet(&mut self, gates: &[&str]) -> Result<()> {
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.terminate()?;
        }
        self.start_kubelet(gates)
    }

    /// Ends it and starts it anew with default gates, and with a socket for its cAdvisor.
    pub(crate) fn restart_kubelet_beside(&mut self, cadvisor: &Path) -> Result<()> {
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.terminate()?;
        }
        let world = &self.machine.world;
        self.kubelet = Some(Kubelet::start_beside(world, &json!({}), cadvisor)?);
        self.statistics_from_cri = false;
        Ok(())
    }

    /// Whether the kubelet was last started with pod statistics from the runtime.
    pub(crate) fn kubelet_asks_the_runtime(&self) -> bool {
        self.statistics_from_cri
    }

    /// Puts a manifest where the kubelet looks, with this node's names in it.
    pub(crate) fn lay_down(&self, name: &str) -> Result<()> {
        self.lay_down_changed(name, "", "")
    }

    /// The same with a text replaced by another.
    pub(crate) fn lay_down_changed(&self, name: &str, old: &str, new: &str) -> Result<()> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/kubelet/pods")
            .join(format!("{name}.yaml"));
        let mut text = std::fs::read_to_string(&source)
            .with_context(|| format!("read {}", source.display()))?
            .replace("REGISTRY", &self.machine.registry.address.to_string())
            .replace("DIRECTORY", &self.machine.world.dir.to_string_lossy());
        if !old.is_empty() {
            anyhow::ensure!(text.contains(old), "{} has no {old:?}", source.display());
            text = text.replace(old, new);
        }
        // Whole or not at all: the kubelet watches the directory.
        let unfinished = self.machine.world.path(format!("{name}.new"));
        std::fs::write(&unfinished, text)?;
        std::fs::rename(unfinished, self.manifest(name))?;
        Ok(())
    }

    /// Takes a manifest away.
    pub(crate) fn take_away(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.manifest(name)).with_context(|| format!("remove {name}"))
    }

    /// Names of the manifests that are there.
    pub(crate) fn laid_down(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.machine.world.path("manifests"))? {
            let path = entry?.path();
            if let Some(name) = path.file_stem() {
                names.push(name.to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.machine
            .world
            .path("manifests")
            .join(format!("{name}.yaml"))
    }

    /// A `GET` of the kubelet's API.
    pub(crate) fn get(&self, target: &str) -> Result<String> {
        self.kubelet
            .as_ref()
            .context("the kubelet is down")?
            .get(&self.machine.world, target)
    }

    /// All pods as the kubelet sees them.
    pub(crate) fn pods(&self) -> Result<Pods> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, pods)) = &*seen
            && when.elapsed() < FRESH
        {
            return Ok(pods.clone());
        }
        let mut list: Value = serde_json::from_str(&self.get("/pods")?)?;
        let pods = match list["items"].take() {
            Value::Array(pods) => Arc::new(pods),
            // Go's nil slice.
            Value::Null => Pods::default(),
            other => bail!("/pods has items {other}"),
        };
        *seen = Some((Instant::now(), pods.clone()));
        Ok(pods)
    }

    /// One pod, by the name in its manifest.
    pub(crate) fn pod(&self, name: &str) -> Result<Value> {
        let full = format!("{name}-{}", kubelet::NODE);
        self.pods()?
            .iter()
            .find(|pod| pod["metadata"]["name"] == *full)
            .cloned()
            .with_context(|| format!("the kubelet knows no pod {name}"))
    }

    /// Status of a container, also of an init container.
    pub(crate) fn container(&self, pod: &str, name: &str) -> Result<Value> {
        let pod = self.pod(pod)?;
        ["containerStatuses", "initContainerStatuses"]
            .iter()
            .filter_map(|list| pod["status"][list].as_array())
            .flatten()
            .find(|status| status["name"] == *name)
            .cloned()
            .with_context(|| format!("no status of {name}: {}", pod["status"]))
    }

    /// Waits until a container's status is as wanted; the error shows the last one.
    pub(crate) fn container_until<T>(
        &self,
        pod: &str,
        name: &str,
        what: &str,
        mut wanted: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = Value::Null;
        wait::until(&format!("{pod}/{name} {what}"), PATIENCE, || {
            last = self
                .container(pod, name)
                .unwrap_or_else(|error| json!(format!("{error:#}")));
            wanted(&last)
        })
        .with_context(|| last.to_string())
    }

    /// Waits until a container is ready, or is not.
    pub(crate) fn ready(&self, pod: &str, name: &str, ready: bool) -> Result<()> {
        let what = if ready { "is ready" } else { "is not ready" };
        self.container_until(pod, name, what, |status| {
            let runs = !status["state"]["running"].is_null();
            (runs && status["ready"] == ready).then_some(())
        })
    }

    /// Waits until a container has ended for good.
    pub(crate) fn ended(&self, pod: &str, name: &str) -> Result<Ended> {
        self.container_until(pod, name, "has ended", |status| {
            ended(&status["state"]["terminated"])
        })
    }

    /// Waits until a container was restarted so often; how it had ended the last time.
    pub(crate) fn restarted(&self, pod: &str, name: &str, times: i64) -> Result<Ended> {
        self.container_until(pod, name, "was restarted", |status| {
            let count = status["restartCount"].as_i64()?;
            let last = ended(&status["lastState"]["terminated"])?;
            (count >= times).then_some(last)
        })
    }

    /// Waits until the kubelet says why a container does not run; reason and message.
    pub(crate) fn refused(&self, pod: &str, name: &str, reason: &str) -> Result<String> {
        self.container_until(pod, name, &format!("waits for {reason}"), |status| {
            let waiting = &status["state"]["waiting"];
            (waiting["reason"] == reason)
                .then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// Waits for a phase of a pod.
    pub(crate) fn phase(&self, pod: &str, phase: &str) -> Result<()> {
        wait::until(&format!("{pod} to be {phase}"), PATIENCE, || {
            (self.pod(pod).ok()?["status"]["phase"] == phase).then_some(())
        })
        .with_context(|| format!("{:?}", self.pod(pod)))
    }

    /// A container's log through the kubelet's API.
    pub(crate) fn log(&self, pod: &str, container: &str, query: &str) -> Result<String> {
        self.get(&format!(
            "/containerLogs/default/{pod}-{}/{container}?{query}",
            kubelet::NODE
        ))
    }

    /// Waits until a container's log contains a text.
    pub(crate) fn logged(&self, pod: &str, container: &str, wanted: &str) -> Result<String> {
        let mut last = String::new();
        wait::until(
            &format!("{wanted:?} in the log of {pod}/{container}"),
            PATIENCE,
            || {
                last = self
                    .log(pod, container, "")
                    .unwrap_or_else(|error| format!("{error:#}"));
                last.contains(wanted).then(|| last.clone())
            },
        )
        .with_context(|| last.clone())
    }

    /// The pod's address, once it has one.
    pub(crate) fn address(&self, pod: &str) -> Result<std::net::IpAddr> {
        wait::until(&format!("an address of {pod}"), PATIENCE, || {
            self.pod(pod).ok()?["status"]["podIP"]
                .as_str()?
                .parse()
                .ok()
        })
    }

    /// Where the kubelet keeps what belongs to a pod.
    pub(crate) fn directory(&self, pod: &str) -> Result<PathBuf> {
        let pod = self.pod(pod)?;
        let id = pod["metadata"]["uid"]
            .as_str()
            .context("a pod without uid")?;
        Ok(kubelet::root(&self.machine.world).join("pods").join(id))
    }

    /// An emptyDir as the host sees it, once the pod has it.
    pub(crate) fn empty_dir(&self, pod: &str, volume: &str) -> Result<PathBuf> {
        wait::until(&format!("volume {volume} of {pod}"), PATIENCE, || {
            let dir = self.directory(pod).ok()?;
            let volume = dir.join("volumes/kubernetes.io~empty-dir").join(volume);
            volume.is_dir().then_some(volume)
        })
    }

    /// Keeps the logs of a failed run, which end with this directory, and says where.
    pub(crate) fn keep_logs(&self) -> Result<PathBuf> {
        let kept = binaries::build_dir().join("kubelet-test");
        std::fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
        for log in ["kubelet.log", "criw.log"] {
            std::fs::copy(self.machine.world.path(log), kept.join(log))
                .with_context(|| format!("keep {log}"))?;
        }
        Ok(kept)
    }
}

fn ended(terminated: &Value) -> Option<Ended> {
    let text = |key: &str| terminated[key].as_str().unwrap_or_default().to_owned();
    Some(Ended {
        code: terminated["exitCode"].as_i64()?,
        reason: text("reason"),
        message: text("message"),
    })
}

/// A container's id without the runtime's name before it.
pub(crate) fn bare_id(status: &Value) -> Result<String> {
    let id = status["containerID"].as_str().unwrap_or_default();
    let bare = id
        .strip_prefix("criw://")
        .with_context(|| format!("container id {id:?}"))?;
    Ok(bare.to_owned())
}
