//! What running Wasm guests have done, as their shims tell. They are asked before the page
//! is written, with bounds, and not again for a moment: many scrapers cost as much as one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use criw_engines::facts::RequestEnd;
use criw_engines::protocol::WasmFacts;
use criw_sandbox::SandboxId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::daemon::Daemon;

/// How long asking all shims may take; Prometheus waits ten seconds by default.
const LIMIT: Duration = Duration::from_secs(2);

/// How long an answer is good.
const FRESH: Duration = Duration::from_secs(1);

/// Kinds of traps of one container, and letters of each: a shim tells words, and runs
/// foreign code.
const MAX_TRAPS: usize = 16;
const MAX_WORD: usize = 32;

/// See the module.
pub(super) struct Guests {
    daemon: Arc<Daemon>,
    last: tokio::sync::Mutex<Option<Instant>>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    guests: Vec<Guest>,
    silent: u64,
}

/// One container.
struct Guest {
    namespace: String,
    pod: String,
    container: String,
    facts: WasmFacts,
}

impl Guests {
    pub(super) fn new(daemon: Arc<Daemon>) -> Self {
        Self {
            daemon,
            last: tokio::sync::Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// Asks the shims, unless that was done just now.
    pub(super) async fn refresh(&self) {
        let mut last = self.last.lock().await;
        if last.is_some_and(|last| last.elapsed() < FRESH) {
            return;
        }
        let all = self.daemon.sandboxes.wasm_facts(LIMIT).await;
        let pods: HashMap<SandboxId, _> = self
            .daemon
            .sandboxes
            .pods()
            .into_iter()
            .map(|pod| (pod.id, pod.spec))
            .collect();
        let guests = all.told.into_iter().filter_map(|told| {
            let pod = pods.get(&told.sandbox)?;
            Some(Guest {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: told.name,
                facts: told.facts,
            })
        });
        let mut guests: Vec<_> = guests.collect();
        // Two attempts of one container do not run at the same time, but a client may make
        // any names; a page with the same line twice is refused as a whole.
        guests.sort_by(|a, b| a.labels().cmp(&b.labels()));
        guests.dedup_by(|a, b| a.labels() == b.labels());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Found {
            guests,
            silent: all.silent,
        };
        *last = Some(Instant::now());
    }
}

impl Guest {
    fn labels(&self) -> [(&'static str, &str); 3] {
        [
            ("namespace", &self.namespace),
            ("pod", &self.pod),
            ("container", &self.container),
        ]
    }

    fn labels_with<'a>(&'a self, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 4] {
        let [namespace, pod, container] = self.labels();
        [namespace, pod, container, (name, value)]
    }

    /// Those with a name that we know: what ends are there does not change often.
    fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RequestEnd::ALL.into_iter().filter_map(move |end| {
            let count = self.facts.requests.get(end.as_str())?;
            Some((end.as_str(), *count))
        })
    }

    fn traps(&self) -> impl Iterator<Item = (&str, u64)> {
        let is_word = |word: &str| {
            let letters = |b: u8| b.is_ascii_lowercase() || b == b'_';
            (1..=MAX_WORD).contains(&word.len()) && word.bytes().all(letters)
        };
        self.facts
            .traps
            .iter()
            .filter(move |(kind, _)| is_word(kind))
            .map(|(kind, count)| (kind.as_str(), *count))
            .take(MAX_TRAPS)
    }
}

impl std::fmt::Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guests")
    }
}

/// What the registry holds of them.
#[derive(Debug)]
pub(super) struct Page(pub(super) Arc<Guests>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let found = self.0.found.lock().unwrap_or_else(PoisonError::into_inner);
        write(&found, &mut encoder)
    }
}

/// A gauge: its name, what it says, and the number of a guest.
type Gauge = (&'static str, &'static str, fn(&WasmFacts) -> u64);

fn write(found: &Found, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let gauges: [Gauge; 2] = [
        (
            "criw_wasm_linear_memory_bytes",
            "Linear memory of all instances of a running Wasm container",
            |facts| facts.memory_bytes,
        ),
        (
            "criw_wasm_instances",
            "Instances of a running Wasm container",
            |facts| facts.instances,
        ),
    ];
    for (name, help, number) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for guest in &found.guests {
            let labels = guest.labels();
            ConstGauge::new(number(&guest.facts)).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "criw_wasm_requests",
        "Requests to a component that serves HTTP, by how they ended",
        None,
        MetricType::Counter,
    )?;
    for guest in &found.guests {
        for (end, count) in guest.requests() {
            let labels = guest.labels_with("result", end);
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "criw_wasm_traps",
        "Traps that cost a request, by kind",
        None,
        MetricType::Counter,
    )?;
    for guest in &found.guests {
        for (kind, count) in guest.traps() {
            let labels = guest.labels_with("trap", kind);
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let silent = encoder.encode_descriptor(
        "criw_wasm_silent_shims",
        "Running Wasm containers whose shim did not answer in time",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(found.silent).encode(silent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prometheus_client::registry::Registry;

    use super::*;

    struct Sample(Found);

    impl std::fmt::Debug for Sample {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Sample")
        }
    }

    impl Collector for Sample {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            write(&self.0, &mut encoder)
        }
    }

    #[test]
    fn a_hostile_shim_adds_few_lines() {
        let count = |words: &[&str]| -> BTreeMap<String, u64> {
            words.iter().map(|word| ((*word).to_owned(), 7)).collect()
        };
        let mut traps = count(&["unreachable", "a\"} 1\nb{", "", "UPPER"]);
        traps.extend((0..100).map(|n| (format!("x{}", "y".repeat(n)), 1)));
        let guest = Guest {
            namespace: "n".to_owned(),
            pod: "p\"\n".to_owned(),
            container: "c".to_owned(),
            facts: WasmFacts {
                memory_bytes: u64::MAX,
                instances: 2,
                requests: count(&["answered", "invented"]),
                traps,
            },
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Sample(Found {
            guests: vec![guest],
            silent: 3,
        })));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = r#"namespace="n",pod="p\"\n",container="c""#;
        for line in [
            format!("criw_wasm_linear_memory_bytes{{{labels}}} {}", u64::MAX),
            format!("criw_wasm_instances{{{labels}}} 2"),
            format!("criw_wasm_requests_total{{{labels},result=\"answered\"}} 7"),
            format!("criw_wasm_traps_total{{{labels},trap=\"unreachable\"}} 7"),
            "criw_wasm_silent_shims 3".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for part in ["invented", "UPPER", "b{"] {
            assert!(!text.contains(part), "{part}\n{text}");
        }
        let traps = text
            .lines()
            .filter(|line| line.starts_with("criw_wasm_traps_total"));
        assert!(traps.count() <= MAX_TRAPS);
    }
}
