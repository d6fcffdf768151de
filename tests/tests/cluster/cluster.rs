//! The cluster that all checks share: one machine with a daemon and a kubelet, a control
//! plane on it, and what API server and kubectl say.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use criw_tests::config::Network;
use criw_tests::kubelet::{self, Kubelet, NODE, NODE_IP};
use criw_tests::leak::Snapshot;
use criw_tests::machine::Machine;
use criw_tests::registry::Registry;
use criw_tests::{binaries, http, image, images, reboot};
use serde_json::{Value, json};

use crate::control_plane::{self, ControlPlane};

/// Longest wait for what controllers, scheduler and kubelet do within seconds, with
/// everything starting at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Longest time for all checks together: after it each wait fails at once.
const LIMIT: Duration = Duration::from_secs(900);

/// What was asked lately is asked again only after this time: dozens of checks ask.
const FRESH: Duration = Duration::from_millis(150);

/// Pause between two looks at the API.
const PAUSE: Duration = Duration::from_millis(100);

type Seen = Mutex<HashMap<String, (Instant, Arc<Value>)>>;

/// The cluster. What ends first stands first.
pub(crate) struct Cluster {
    /// The kubelet; `None` while it is down.
    pub(crate) kubelet: Option<Kubelet>,
    /// All other programs of Kubernetes.
    pub(crate) plane: ControlPlane,
    /// A registry that asks for credentials.
    pub(crate) protected: Registry,
    /// Daemon, registry, namespaces.
    pub(crate) machine: Machine,
    /// What was on the machine before there was a control plane.
    pub(crate) before: Snapshot,
    begin: Instant,
    seen: Seen,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Exit code.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Cluster {
    /// Starts everything, and lays down those manifests.
    pub(crate) fn start(manifests: &[&str]) -> Result<Self> {
        let machine = Machine::with(Network::Builtin, reboot::FIRST)?;
        let protected = Registry::start_protected(&machine.world, 5001)?;
        push_images(&machine, &protected)?;
        kubelet::prepare(&machine.world)?;
        // Without a route to it, nobody on the node asks for a cluster address.
        let route = ["route", "add", "default", "dev", "node0"];
        machine.world.run("ip", &route)?;
        machine.compile_toolbox(&machine.registry.reference("guests:1"))?;
        let before = machine.baseline()?;
        let mut plane = ControlPlane::start(&machine.world)?;
        plane.check(&machine.world)?;
        let mut cluster = Self {
            kubelet: None,
            plane,
            protected,
            machine,
            before,
            begin: Instant::now(),
            seen: Seen::default(),
        };
        cluster.start_kubelet()?;
        // Pods are refused before its controller has made it.
        cluster.until("the default service account", || {
            cluster
                .get("/api/v1/namespaces/default/serviceaccounts/default")
                .ok()
        })?;
        let classes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/runtimeclasses.yaml");
        cluster.kubectl(&["apply", "-f", &classes.to_string_lossy()])?;
        // Services first: the environment of a pod names those that were there before it.
        let mut laid_down = Vec::new();
        for manifest in manifests {
            if !laid_down.contains(manifest) {
                cluster.apply(manifest)?;
                laid_down.push(manifest);
            }
        }
        Ok(cluster)
    }

    /// Starts the kubelet as a node of the API server.
    pub(crate) fn start_kubelet(&mut self) -> Result<()> {
        let world = &self.machine.world;
        let gates = json!({"PodAndContainerStatsFromCRI": true});
        let kubeconfig = world.path("kubelet.kubeconfig");
        self.kubelet = Some(Kubelet::join(world, &gates, &kubeconfig)?);
        Ok(())
    }

    /// Asks until there is an answer, within [`PATIENCE`] and what is left of [`LIMIT`].
    pub(crate) fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
        let begin = Instant::now();
        let left = LIMIT.saturating_sub(self.begin.elapsed()).min(PATIENCE);
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            if begin.elapsed() > left {
                bail!("waited {left:?} in vain for {what}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// An object or a list of the API, by its path.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let (status, text) = self.plane.get(&self.machine.world, path)?;
        ensure!(status == 200, "GET {path}: {status} {}", text.trim());
        serde_json::from_str(&text).with_context(|| format!("GET {path}"))
    }

    /// The same, or what was answered a moment ago.
    fn seen(&self, path: &str) -> Result<Arc<Value>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, value)) = seen.get(path)
            && when.elapsed() < FRESH
        {
            return Ok(value.clone());
        }
        let value = Arc::new(self.get(path)?);
        seen.insert(path.into(), (Instant::now(), value.clone()));
        Ok(value)
    }

    /// All pods of the default namespace whose label `app` is this.
    pub(crate) fn pods(&self, app: &str) -> Result<Vec<Value>> {
        let list = self.seen("/api/v1/namespaces/default/pods")?;
        Ok(list["items"]
            .as_array()
            .context("a list without items")?
            .iter()
            .filter(|pod| pod["metadata"]["labels"]["app"] == *app)
            .cloned()
            .collect())
    }

    /// One pod of the default namespace.
    pub(crate) fn pod(&self, name: &str) -> Result<Value> {
        let list = self.seen("/api/v1/namespaces/default/pods")?;
        list["items"]
            .as_array()
            .context("a list without items")?
            .iter()
            .find(|pod| pod["metadata"]["name"] == *name)
            .cloned()
            .with_context(|| format!("there is no pod {name}"))
    }

    /// Waits until a pod is as wanted; the error shows its last status.
    pub(crate) fn pod_until<T>(
        &self,
        name: &str,
        what: &str,
        mut wanted: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = Value::Null;
        self.until(&format!("{name} {what}"), || {
            last = self
                .pod(name)
                .unwrap_or_else(|error| json!(format!("{error:#}")));
            wanted(&last)
        })
        .with_context(|| last["status"].to_string())
    }

    /// Waits until a pod is ready; itself.
    pub(crate) fn ready(&self, name: &str) -> Result<Value> {
        self.pod_until(name, "to be ready", |pod| {
            is_ready(pod).then(|| pod.clone())
        })
    }

    /// Waits until a pod has ended in that phase; itself.
    pub(crate) fn phase(&self, name: &str, phase: &str) -> Result<Value> {
        self.pod_until(name, &format!("to be {phase}"), |pod| {
            (pod["status"]["phase"] == phase).then(|| pod.clone())
        })
    }

    /// Waits until so many pods of an app are there and all are ready; themselves.
    pub(crate) fn ready_pods(&self, app: &str, count: usize) -> Result<Vec<Value>> {
        let mut last = Vec::new();
        self.until(&format!("{count} ready pods of {app}"), || {
            last = self.pods(app).ok()?;
            (last.len() == count && last.iter().all(is_ready)).then(|| last.clone())
        })
        .with_context(|| format!("{last:?}"))
    }

    /// kubectl, not yet started.
    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.machine.world.command(binaries::kubernetes("kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.machine.world.path("admin.kubeconfig"))
            .arg("--cache-dir")
            .arg(self.machine.world.path("kubectl-cache"))
            .args(args);
        Ok(command)
    }

    /// Runs kubectl to its end, with that input.
    pub(crate) fn kubectl_said(&self, args: &[&str], input: &str) -> Result<Said> {
        self.said(self.kubectl_command(args)?, input)
    }

    /// Runs a command to its end, with that input.
    pub(crate) fn said(&self, mut command: Command, input: &str) -> Result<Said> {
        let what = format!("{command:?} to end");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let pid = child.id();
        let stdin = child.stdin.take().context("no stdin")?;
        let input = input.to_owned();
        let reader = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                let mut stdin = stdin;
                scope.spawn(move || {
                    // One that does not read its input closes it.
                    let _ = stdin.write_all(input.as_bytes());
                });
                child.wait_with_output()
            })
        });
        if let Err(error) = self.until(&what, || reader.is_finished().then_some(())) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            return Err(error);
        }
        let output = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs kubectl; what it printed, or an error with what it said.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        let said = self.kubectl_said(args, "")?;
        ensure!(
            said.code == Some(0),
            "kubectl {}: {:?} {}",
            args.join(" "),
            said.code,
            said.err.trim()
        );
        Ok(said.out)
    }

    /// Starts a kubectl that goes on; dropped, it ends.
    pub(crate) fn kubectl_running(&self, args: &[&str]) -> Result<Running> {
        let child = self
            .kubectl_command(args)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start kubectl")?;
        Ok(Running(child))
    }

    /// A manifest with this cluster's names in it.
    fn manifest(&self, name: &str) -> Result<String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/cluster/manifests")
            .join(format!("{name}.yaml"));
        Ok(std::fs::read_to_string(&source)
            .with_context(|| format!("read {}", source.display()))?
            .replace("PROTECTED", &self.protected.address.to_string())
            .replace("REGISTRY", &self.machine.registry.address.to_string()))
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, name: &str) -> Result<()> {
        self.apply_changed(name, "", "")
    }

    /// The same with a text replaced by another.
    pub(crate) fn apply_changed(&self, name: &str, old: &str, new: &str) -> Result<()> {
        let mut text = self.manifest(name)?;
        if !old.is_empty() {
            ensure!(text.contains(old), "{name} has no {old:?}");
            text = text.replace(old, new);
        }
        let said = self.kubectl_said(&["apply", "-f", "-"], &text)?;
        ensure!(said.code == Some(0), "apply {name}: {}", said.err.trim());
        Ok(())
    }

    /// Waits until `kubectl describe` of a pod says all of these; what it said.
    pub(crate) fn described(&self, pod: &str, wanted: &[&str]) -> Result<String> {
        let mut last = String::new();
        self.until(&format!("{wanted:?} in the description of {pod}"), || {
            last = self
                .kubectl(&["describe", "pod", pod])
                .unwrap_or_else(|error| format!("{error:#}"));
            wanted
                .iter()
                .all(|text| last.contains(text))
                .then(|| last.clone())
        })
        .with_context(|| last.clone())
    }

    /// Waits until a container's log contains a text; the log.
    pub(crate) fn logged(&self, pod: &str, container: &str, wanted: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/default/pods/{pod}/log?container={container}");
        let mut last = String::new();
        self.until(
            &format!("{wanted:?} in the log of {pod}/{container}"),
            || {
                let (_, text) = self.plane.get(&self.machine.world, &path).ok()?;
                last = text;
                last.contains(wanted).then(|| last.clone())
            },
        )
        .with_context(|| last.clone())
    }

    /// A `GET` from the node, tried until it is answered with 200.
    pub(crate) fn http(&self, address: &str, target: &str) -> Result<String> {
        let address = address.parse().with_context(|| address.to_owned())?;
        self.until(&format!("http://{address}{target}"), || {
            self.machine.world.enter(|| http::get(address, target)).ok()
        })
    }

    /// The cluster address of a Service of the default namespace.
    pub(crate) fn cluster_ip(&self, service: &str) -> Result<String> {
        let service = self.get(&format!("/api/v1/namespaces/default/services/{service}"))?;
        Ok(service["spec"]["clusterIP"]
            .as_str()
            .context("a service without an address")?
            .to_owned())
    }

    /// Keeps the logs of a failed run, which end with this directory, and says where.
    pub(crate) fn keep_logs(&self) -> Result<PathBuf> {
        let kept = binaries::build_dir().join("cluster-test");
        std::fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
        for name in control_plane::LOGS.iter().chain(&["kubelet", "criw"]) {
            let name = format!("{name}.log");
            std::fs::copy(self.machine.world.path(&name), kept.join(&name))
                .with_context(|| format!("keep {name}"))?;
        }
        Ok(kept)
    }
}

/// A program that goes on; dropped, it ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a pod that is not on its way out is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The address of a pod, with a port.
pub(crate) fn address(pod: &Value, port: u16) -> Result<String> {
    let ip = pod["status"]["podIP"].as_str().context("no address")?;
    Ok(format!("{ip}:{port}"))
}

/// The address of the node, with a port.
pub(crate) fn of_node(port: u16) -> String {
    format!("{NODE_IP}:{port}")
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Status of a container of any kind.
pub(crate) fn container(pod: &Value, name: &str) -> Result<Value> {
    [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ]
    .iter()
    .filter_map(|list| pod["status"][list].as_array())
    .flatten()
    .find(|status| status["name"] == *name)
    .cloned()
    .with_context(|| format!("no status of {name}: {}", pod["status"]))
}

/// The node's object.
pub(crate) fn node(cluster: &Cluster) -> Result<Value> {
    cluster.get(&format!("/api/v1/nodes/{NODE}"))
}

/// A component whose world nobody has.
const WEATHER: &str = r#"(component
    (import "acme:weather/today@1.0.0" (instance (export "temperature" (func (result float64))))))"#;

/// A Linux image of its own: names of the same image share its variants.
fn shell() -> Result<image::Image> {
    let layer = vec![
        image::Entry::Directory("bin".into(), 0o755),
        image::file("bin/sh", 0o755, std::fs::read("/bin/busybox")?),
    ];
    let settings = image::Settings {
        env: vec!["PATH=/bin".into()],
        ..image::Settings::default()
    };
    image::rootfs("linux/amd64", &[layer], &settings)
}

fn push_images(machine: &Machine, protected: &Registry) -> Result<()> {
    let proxy = binaries::guest("proxy.component")?;
    for (name, image) in [
        ("busybox:1", images::busybox()?),
        ("guests:1", images::guests()?),
        ("both:1", image::index(&[shell()?, images::wasm("hello")?])),
        ("proxy:1", image::artifact(&proxy)),
        ("net:1", image::artifact(&binaries::guest("net.component")?)),
        ("weather:1", image::artifact(&wat::parse_str(WEATHER)?)),
    ] {
        machine.registry.push(&machine.world, name, &image)?;
    }
    protected.push_protected(&machine.world, "guests:1", &images::guests()?)?;
    Ok(())
}
