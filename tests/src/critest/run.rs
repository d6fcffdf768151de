//! One run: a machine of its own, critest in it with a bounded time, the verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use criw_proto::v1::{ListImagesRequest, RemoveImageRequest};

use super::expected::{Expected, Verdict};
use super::images::{self, Family};
use super::report::{self, Outcome, Spec};
use crate::binaries;
use crate::client::image_spec;
use crate::config::{self, Network};
use crate::daemon::Daemon;
use crate::leak::Snapshot;
use crate::machine::Machine;
use crate::registry::Registry;
use crate::wait;
use crate::world::World;

/// critest ends itself after this, with a report.
const LIMIT: Duration = Duration::from_secs(330);

/// How long it may take to end itself.
const GRACE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runtime handler that every pod asks for; empty is the default one.
    pub handler: String,
    /// What the images are made of.
    pub images: Family,
    /// Network of the pods.
    pub network: Network,
    /// Streams go over WebSockets in place of SPDY.
    pub websocket: bool,
    /// Regular expression of specs to run; all without it.
    pub focus: Option<String>,
    /// Number that the order of the specs comes from; another one each time without it.
    pub seed: Option<u32>,
}

/// Runs critest and says what happened; true if all was as expected.
pub fn run(options: &Options) -> Result<bool> {
    let expected = Expected::read(&expectations(options.images))?;
    let kept = kept(options)?;
    let begin = Instant::now();
    let machine = machine(options.network)?;
    let pushed = push(&machine, options.images)?;
    println!(
        "{pushed} images pushed, {:.1} s",
        begin.elapsed().as_secs_f64()
    );

    if options.images == Family::Wasm {
        machine.compile_toolbox(&machine.registry.reference(images::BUSYBOX))?;
    }
    let before = machine.baseline()?;
    let result = critest(&machine, options, expected.skip(), &kept);
    let left = cleared(&machine, &before);
    let log = std::fs::copy(machine.world.path("criw.log"), kept.join("criw.log"));
    let specs = result.and_then(|()| report::read(&kept.join("report.json")))?;
    log.context("keep the daemon's log")?;
    drop(machine);

    let mut verdict = expected.judge(&specs, options.focus.is_none());
    verdict
        .surprises
        .extend(left.err().map(|error| format!("{error:#}")));
    print(&specs, &expected, &verdict, options.focus.is_none());
    println!("reports and logs: {}", kept.display());
    println!("critest: {:.1} s in all", begin.elapsed().as_secs_f64());
    // A list that is not kept up counts like a failure.
    println!(
        "{} passed, {} failed, {} skipped",
        verdict.passed,
        verdict.surprises.len(),
        verdict.skipped + verdict.failing + verdict.left_out
    );
    Ok(verdict.surprises.is_empty())
}

/// `critest/expected` of the repository, or what stands below it for Wasm.
fn expectations(images: Family) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../critest/expected");
    match images {
        Family::Linux => all,
        Family::Wasm => all.join(images.name()),
    }
}

/// Where reports and logs stay.
fn kept(options: &Options) -> Result<PathBuf> {
    let mut name = "critest/report".to_owned();
    if options.images != Family::Linux {
        name = format!("{name}-{}", options.images.name());
    }
    if options.websocket {
        name.push_str("-websocket");
    }
    let dir = binaries::build_dir().join(name);
    // Nothing of an earlier run may be taken for this one's.
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", dir.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    dir.canonicalize().context("resolve the report directory")
}

/// A daemon in a world like a node's, which finds every public registry on loopback.
fn machine(network: Network) -> Result<Machine> {
    let world = World::like_a_node()?;
    config::write(&world, network)?;
    let registry = Registry::start(&world, 5000)?;
    let hosts = world.subdir("hosts.d/_default")?.join("hosts.toml");
    let mirror = format!(
        "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\n",
        address = registry.address
    );
    std::fs::write(&hosts, mirror).with_context(|| format!("write {}", hosts.display()))?;
    let (daemon, client) = Daemon::start(&world, &[])?;
    Ok(Machine {
        client,
        daemon,
        registry,
        world,
    })
}

fn push(machine: &Machine, family: Family) -> Result<usize> {
    let images = images::all(family)?;
    for images::Named { name, image } in &images {
        machine
            .registry
            .push(&machine.world, name, image)
            .with_context(|| format!("push {name}"))?;
    }
    Ok(images.len())
}

/// Runs it to its end. That specs failed is not an error here: the report says which.
fn critest(machine: &Machine, options: &Options, skip: Option<String>, kept: &Path) -> Result<()> {
    let endpoint = format!("unix://{}", machine.world.path("s").display());
    let log = File::create(kept.join("critest.log")).context("create critest's log")?;
    let mut command = machine.world.command(binaries::critest()?);
    command
        // No /etc/crictl.yaml of the host.
        .args([
            "-config",
            "/dev/null",
            "-ginkgo.no-color",
            "-test.timeout=0",
        ])
        .args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint])
        .args(["-runtime-handler", &options.handler])
        .arg(format!("-ginkgo.timeout={}s", LIMIT.as_secs()))
        .arg(format!(
            "-ginkgo.json-report={}",
            kept.join("report.json").display()
        ))
        .arg(format!(
            "-ginkgo.junit-report={}",
            kept.join("junit.xml").display()
        ))
        .env("TMPDIR", machine.world.subdir("tmp")?)
        .current_dir(&machine.world.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if options.websocket {
        command.args([
            "-websocket-exec",
            "-websocket-attach",
            "-websocket-portforward",
        ]);
    }
    if let Some(focus) = &options.focus {
        command.arg(format!("-ginkgo.focus={focus}"));
    }
    if let Some(skip) = skip {
        command.arg(format!("-ginkgo.skip={skip}"));
    }
    if let Some(seed) = options.seed {
        command.arg(format!("-ginkgo.seed={seed}"));
    }
    let mut process = command.spawn().context("start critest")?;
    let ended = wait::until("critest to end", LIMIT + GRACE, || {
        process.try_wait().ok()?
    });
    if ended.is_err() {
        process.kill().context("kill critest")?;
        process.wait().context("wait for critest")?;
        bail!("critest was not done after {LIMIT:?} and was killed");
    }
    Ok(())
}

/// Takes away what critest did not, then looks for what the daemon left.
fn cleared(machine: &Machine, before: &Snapshot) -> Result<()> {
    machine.remove_all_pods()?;
    for image in machine
        .client
        .list_images(ListImagesRequest::default())?
        .images
    {
        let request = RemoveImageRequest {
            image: Some(image_spec(&image.id)),
        };
        machine.client.remove_image(request)?;
    }
    machine.assert_nothing_left(before)
}

/// Counts by group, what took longest, what is not expected to pass, what surprised.
fn print(specs: &[Spec], expected: &Expected, verdict: &Verdict, whole: bool) {
    let chosen = |spec: &&Spec| whole || spec.outcome != Outcome::LeftOut;
    let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for spec in specs.iter().filter(chosen) {
        let group = groups.entry(group(&spec.name)).or_default();
        group.0 += usize::from(spec.outcome == Outcome::Passed);
        group.1 += 1;
    }
    for (group, (passed, all)) in groups {
        println!("{passed:>5} of {all:>3} passed  {group}");
    }
    let conformance = specs
        .iter()
        .filter(chosen)
        .filter(|spec| spec.name.contains("[Conformance]"));
    let (passed, all) = conformance.fold((0, 0), |(passed, all), spec| {
        (
            passed + usize::from(spec.outcome == Outcome::Passed),
            all + 1,
        )
    });
    println!("{passed:>5} of {all:>3} passed  [Conformance]");

    let mut slowest: Vec<&Spec> = specs.iter().collect();
    slowest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for spec in slowest.iter().take(5) {
        println!("{:>7.1} s  {}", spec.seconds, spec.name);
    }
    for (kind, reason, names) in expected.exceptions() {
        println!("expected, {kind}: {} specs: {reason}", names.len());
    }
    for surprise in &verdict.surprises {
        // The whole dump of a failed spec stands in the report.
        let lines = if surprise.starts_with("failed") {
            1
        } else {
            usize::MAX
        };
        for line in surprise.lines().take(lines) {
            println!("{line}");
        }
    }
}

/// The part of a name that critest gives to a source file.
fn group(name: &str) -> &str {
    let end = [" runtime should", " image ", " should"]
        .iter()
        .filter_map(|start| name.find(start))
        .min();
    &name[..end.unwrap_or(name.len())]
}
