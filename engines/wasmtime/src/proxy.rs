//! A component of the world `wasi:http/proxy` 0.2 or `wasi:http/service` 0.3: served on the
//! pod's addresses, a fresh instance for each request unless the container asks for less.
//!
//! ```text
//!   settings    address and bounds, from environment and spec
//!   accept      listen, accept, refuse, drain
//!   connection  HTTP/1.1 and HTTP/2 on one connection
//!   server      a request -> an instance -> a response
//!   instances   those that wait for their next request
//!   service     the same for WASI 0.3
//!   tls         HTTPS with a certificate out of a volume
//!   exchange    what both sides of one request know: progress, failure; its bodies
//!   ticker      lets requests that compute take turns
//! ```
//! Threads: the guest's thread accepts. With one CPU it also serves; with more, as many
//! threads as CPUs do, made at the first connection.

use std::sync::Arc;
use std::time::Duration;

use criw_engines::drain::Drain;
use criw_engines::engine::{Outcome, Program, Surroundings};
use criw_engines::facts::Facts;
use criw_engines::spec::{ServicesSection, WasmSection};
use tokio::runtime::Runtime;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::failure;
use crate::host::{self, State};
use crate::limits::MemoryLimit;
use crate::net::Net;
use crate::roots;
use crate::services::Services;
use crate::world::{World, runtime};
use crate::worlds;

mod accept;
mod connection;
mod exchange;
mod instances;
mod patience;
mod server;
mod service;
mod settings;
mod ticker;
mod tls;

use instances::Instances;
use server::Server;
use settings::Settings;
pub(crate) use settings::max_requests;

/// What answers requests.
#[derive(Clone)]
pub(crate) enum Linked {
    Proxy(ProxyPre<State>),
    Service(ServicePre<State>),
}

impl Linked {
    pub(crate) fn new(
        engine: &Engine,
        component: &Component,
        entry: &worlds::World,
    ) -> Result<Self, String> {
        let linked = host::link(engine, component)?;
        let linked = match entry {
            worlds::World::Service => ServicePre::new(linked).map(Self::Service),
            _ => ProxyPre::new(linked).map(Self::Proxy),
        };
        linked.map_err(|error| format!("link wasi:http: {}", failure::text(&error)))
    }
}

/// A linked component that waits for "go".
pub(crate) struct ProxyProgram {
    engine: Engine,
    linked: Linked,
    world: World,
    settings: Settings,
    services: ServicesSection,
    memory: MemoryLimit,
    fuel: Option<u64>,
    settled: Option<(Runtime, Arc<Server>, Arc<Drain>)>,
}

impl ProxyProgram {
    pub(crate) fn new(
        engine: &Engine,
        linked: Linked,
        wasm: &WasmSection,
        mut world: World,
    ) -> Result<Self, String> {
        let settings = Settings::new(&mut world, &wasm.http)?;
        if settings.tls.is_some() {
            roots::open_randomness()?;
        }
        Ok(Self {
            engine: engine.clone(),
            linked,
            world,
            settings,
            services: wasm.services.clone(),
            memory: MemoryLimit::new(wasm.memory_limit, wasm.memory_grow_fails),
            fuel: wasm.fuel,
            settled: None,
        })
    }
}

impl Program for ProxyProgram {
    fn settle(&mut self, surroundings: Surroundings) -> Result<(), String> {
        let stdio = surroundings.stdio;
        let tls = self.settings.tls.as_ref();
        let tls = tls.map(|files| tls::Tls::new(files, stdio.stderr.clone()));
        let server = Server {
            engine: self.engine.clone(),
            linked: self.linked.clone(),
            net: Arc::new(Net::new(&self.world, stdio.stderr.clone())),
            root: self.world.root()?,
            services: Services::new(&self.services, &self.world, stdio.stderr.clone()),
            world: std::mem::take(&mut self.world),
            outputs: (stdio.stdout, stdio.stderr),
            memory: self.memory.share(),
            fuel: self.fuel,
            settings: self.settings.clone(),
            admission: server::Admission::new(&self.settings),
            instances: Arc::new(Instances::new(self.settings.reuse)),
            ticker: ticker::Ticker::default(),
            tls: tls.transpose()?,
        };
        self.settled = Some((runtime()?, Arc::new(server), surroundings.drain));
        Ok(())
    }

    fn facts(&self) -> Option<Arc<Facts>> {
        Some(Arc::clone(self.memory.facts()))
    }

    fn drains(&self) -> bool {
        true
    }

    fn run(self: Box<Self>, started: &dyn Fn()) -> Outcome {
        let Some((runtime, server, drain)) = self.settled else {
            return Outcome::start_error("run before settle".to_owned());
        };
        let outcome = runtime.block_on(async {
            // An instance that cannot be made would fail every request.
            if let Err(outcome) = server.try_instance().await {
                return outcome;
            }
            let listener = match accept::listen(&server.settings) {
                Ok(listener) => listener,
                Err(message) => return Outcome::start_error(message),
            };
            started();
            accept::serve(listener, &server, &drain).await
        });
        // What did not finish in time is not waited for.
        runtime.shutdown_timeout(Duration::ZERO);
        outcome
    }
}
