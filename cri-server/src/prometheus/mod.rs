//! What the daemon tells Prometheus: counters of calls and ends, and the state of the
//! node at the moment it is asked. Names are `criw_…`; docs/metrics.md explains each.
//!
//! Labels have few values: no image is one, and pods and containers only for what Wasm guests
//! that run now tell of themselves, since a node sees any number of them. What a single
//! container uses is told by the CRI (stats, `/metrics/cadvisor`).

mod guests;
mod node;
mod process;
mod server;

use std::sync::Arc;
use std::time::Duration;

use criw_sandbox::Event;
use criw_sandbox::container_state::ContainerState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::broadcast::error::RecvError;
use tonic::Code;

use crate::daemon::Daemon;

pub use server::{bind, serve};

/// Seconds: from a call that is served from memory to a pull that takes minutes.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0,
];

/// What a call is counted under when the service has no such method: a client may invent
/// any number of names.
const UNKNOWN: &str = "unknown";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    engine: String,
    reason: String,
}

#[derive(Clone)]
struct Times;

impl MetricConstructor<Histogram> for Times {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

/// The counters, and how all of it is read.
#[derive(Debug)]
pub struct Metrics {
    calls: Family<Call, Counter>,
    times: Family<Method, Histogram, Times>,
    ends: Family<End, Counter>,
    registry: Registry,
    guests: Option<Arc<guests::Guests>>,
}

impl std::fmt::Debug for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Times")
    }
}

impl Metrics {
    /// For this daemon, with all that it can be asked about its rooms.
    pub fn of(daemon: &Arc<Daemon>) -> Arc<Self> {
        let mut metrics = Self::empty();
        metrics
            .registry
            .register_collector(Box::new(node::Node(daemon.clone())));
        let guests = Arc::new(guests::Guests::new(daemon.clone()));
        metrics
            .registry
            .register_collector(Box::new(guests::Page(guests.clone())));
        metrics.guests = Some(guests);
        Arc::new(metrics)
    }

    /// Without a daemon: calls and ends only.
    pub fn empty() -> Self {
        let calls = Family::<Call, Counter>::default();
        let times = Family::<Method, Histogram, Times>::new_with_constructor(Times);
        let ends = Family::<End, Counter>::default();
        let mut registry = Registry::default();
        registry.register(
            "criw_cri_requests",
            "CRI calls by method and gRPC code",
            calls.clone(),
        );
        registry.register_with_unit(
            "criw_cri_request_duration",
            "How long CRI calls took until their answer, or until a stream began",
            Unit::Seconds,
            times.clone(),
        );
        registry.register(
            "criw_container_exits",
            "Containers that ended, by engine and reason",
            ends.clone(),
        );
        registry.register_collector(Box::new(process::Process));
        Self {
            calls,
            times,
            ends,
            registry,
            guests: None,
        }
    }

    /// Asks for what [`Metrics::text`] cannot read from memory; returns within seconds.
    pub(crate) async fn refresh(&self) {
        if let Some(guests) = &self.guests {
            guests.refresh().await;
        }
    }

    /// One call was answered. `path` is that of the request, `/package.Service/Method`.
    pub(crate) fn answered(&self, path: &str, code: Code, time: Duration) {
        let method = match code {
            Code::Unimplemented => UNKNOWN,
            _ => path.rsplit_once('/').map_or(UNKNOWN, |(_, method)| method),
        };
        let method = method.to_owned();
        self.times
            .get_or_create(&Method {
                method: method.clone(),
            })
            .observe(time.as_secs_f64());
        let code = format!("{code:?}");
        self.calls.get_or_create(&Call { method, code }).inc();
    }

    fn ended(&self, engine: &str, reason: &str) {
        let (engine, reason) = (engine.to_owned(), reason.to_owned());
        self.ends.get_or_create(&End { engine, reason }).inc();
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    ///
    /// # Errors
    /// Only if a number cannot be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts the ends of containers until the daemon ends.
    pub async fn watch(self: Arc<Self>, daemon: Arc<Daemon>) {
        let mut news = daemon.sandboxes.subscribe();
        let mut ending = daemon.ending.clone();
        loop {
            let event = tokio::select! {
                event = news.recv() => event,
                _ = ending.wait_for(|ending| *ending) => return,
            };
            match event {
                Ok(Event::Stopped(id)) => {
                    let Ok(Some(container)) = daemon.sandboxes.find_container(id.as_str()) else {
                        continue;
                    };
                    if let ContainerState::Exited { exit, .. } = &container.state {
                        self.ended(container.spec.engine.name(), &exit.reason);
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "criw_container_exits misses ends: too many at once");
                }
                Err(RecvError::Closed) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_ends_are_counted_under_few_names() {
        let metrics = Metrics::empty();
        for (path, code) in [
            ("/runtime.v1.RuntimeService/Status", Code::Ok),
            ("/runtime.v1.RuntimeService/Status", Code::Ok),
            (
                "/runtime.v1.RuntimeService/PodSandboxStatus",
                Code::NotFound,
            ),
            ("/runtime.v1.RuntimeService/Invented1", Code::Unimplemented),
            ("/runtime.v1.RuntimeService/Invented2", Code::Unimplemented),
        ] {
            metrics.answered(path, code, Duration::from_millis(3));
        }
        metrics.ended("wasmtime", "Trap");
        let text = metrics.text().unwrap();
        for line in [
            "criw_cri_requests_total{method=\"Status\",code=\"Ok\"} 2",
            "criw_cri_requests_total{method=\"PodSandboxStatus\",code=\"NotFound\"} 1",
            "criw_cri_requests_total{method=\"unknown\",code=\"Unimplemented\"} 2",
            "criw_cri_request_duration_seconds_bucket{le=\"0.005\",method=\"Status\"} 2",
            "criw_cri_request_duration_seconds_bucket{le=\"0.0025\",method=\"Status\"} 0",
            "criw_container_exits_total{engine=\"wasmtime\",reason=\"Trap\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("Invented"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
