//! A component that runs once: of the world `wasi:cli/command` 0.2 or 0.3, or any function of
//! it without parameters.

use std::sync::Arc;

use criw_engines::engine::{Outcome, Program, Surroundings};
use criw_engines::facts::{Facts, Instance};
use criw_engines::spec::{ServicesSection, WasmSection};
use wasmtime::component::{Component, InstancePre, Val};
use wasmtime::{Engine, Result, Store};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as AsyncCommandPre;

use crate::failure;
use crate::host::{self, State};
use crate::limits::MemoryLimit;
use crate::net::Net;
use crate::services::Services;
use crate::world::{World, runtime};
use crate::worlds;

/// What is called.
pub(crate) enum Linked {
    Command(CommandPre<State>),
    AsyncCommand(AsyncCommandPre<State>),
    /// By its names from the outside in.
    Function(InstancePre<State>, Vec<String>),
}

impl Linked {
    pub(crate) fn new(
        engine: &Engine,
        component: &Component,
        entry: worlds::World,
    ) -> std::result::Result<Self, String> {
        let linked = host::link(engine, component)?;
        let linked = match entry {
            worlds::World::Function(path) => Ok(Self::Function(linked, path)),
            worlds::World::AsyncCommand => AsyncCommandPre::new(linked).map(Self::AsyncCommand),
            _ => CommandPre::new(linked).map(Self::Command),
        };
        linked.map_err(|error| {
            format!(
                "the component is no command (wasi:cli/command): {}",
                failure::text(&error)
            )
        })
    }

    /// Instantiates, tells, calls. What the guest says is an exit code and, for an entry
    /// function of its own, a text.
    async fn run(&self, store: &mut Store<State>, started: &dyn Fn()) -> Outcome {
        let ended = match self {
            Self::Command(linked) => match linked.instantiate_async(&mut *store).await {
                Ok(command) => {
                    started();
                    command.wasi_cli_run().call_run(store).await.map(plain)
                }
                Err(error) => return failure::while_starting(&error),
            },
            Self::AsyncCommand(linked) => match linked.instantiate_async(&mut *store).await {
                Ok(command) => {
                    started();
                    let run = store.run_concurrent(async |accessor| {
                        let result = command.wasi_cli_run().call_run(accessor).await;
                        // A task that has returned may go on.
                        std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                        result
                    });
                    run.await.flatten().map(plain)
                }
                Err(error) => return failure::while_starting(&error),
            },
            Self::Function(linked, path) => match linked.instantiate_async(&mut *store).await {
                Ok(instance) => {
                    started();
                    call(&instance, store, path).await
                }
                Err(error) => return failure::while_starting(&error),
            },
        };
        match ended {
            Ok(Ok(())) => Outcome::exit(0),
            Ok(Err(text)) => Outcome {
                message: text,
                ..Outcome::exit(1)
            },
            Err(error) => failure::while_running(&error),
        }
    }
}

/// How a guest says that it ended: well, or not and perhaps why.
type Ended = std::result::Result<(), String>;

fn plain(ended: std::result::Result<(), ()>) -> Ended {
    ended.map_err(|()| String::new())
}

/// Calls a function that [`worlds`] has checked.
async fn call(
    instance: &wasmtime::component::Instance,
    store: &mut Store<State>,
    path: &[String],
) -> Result<Ended> {
    let mut index = None;
    for name in path {
        index = instance.get_export_index(&mut *store, index.as_ref(), name);
    }
    let function = index
        .and_then(|index| instance.get_func(&mut *store, index))
        .ok_or_else(|| wasmtime::format_err!("the export {path:?} is not there"))?;
    let count = function.ty(&*store).results().len();
    let mut results = vec![Val::Bool(false); count];
    function.call_async(&mut *store, &[], &mut results).await?;
    Ok(match results.into_iter().next() {
        Some(Val::Result(Err(value))) => Err(match value.as_deref() {
            None => String::new(),
            Some(Val::String(text)) => text.clone(),
            Some(other) => format!("the guest ended with the error {other:?}"),
        }),
        _ => Ok(()),
    })
}

/// A linked component that waits for "go".
pub(crate) struct ComponentProgram {
    engine: Engine,
    linked: Linked,
    world: World,
    services: ServicesSection,
    memory: Option<MemoryLimit>,
    fuel: Option<u64>,
    settled: Option<(tokio::runtime::Runtime, Store<State>, Instance)>,
}

impl ComponentProgram {
    pub(crate) fn new(engine: &Engine, linked: Linked, wasm: &WasmSection, world: World) -> Self {
        Self {
            engine: engine.clone(),
            linked,
            world,
            services: wasm.services.clone(),
            memory: Some(MemoryLimit::new(wasm.memory_limit, wasm.memory_grow_fails)),
            fuel: wasm.fuel,
            settled: None,
        }
    }
}

impl Program for ComponentProgram {
    fn settle(&mut self, surroundings: Surroundings) -> std::result::Result<(), String> {
        let runtime = runtime()?;
        let stderr = &surroundings.stdio.stderr;
        let net = Arc::new(Net::new(&self.world, stderr.clone()));
        let services = Services::new(&self.services, &self.world, stderr.clone());
        let wasi = {
            let _inside = runtime.enter();
            self.world.builder(surroundings.stdio, 1)?.build()
        };
        let memory = self.memory.take().ok_or("settled twice")?;
        let instance = memory.facts().instance();
        let mut store = Store::new(&self.engine, State::new(wasi, net, services, memory));
        store.limiter(|state| &mut state.memory);
        // Code of a component that also serves looks at the epoch, which nobody moves here.
        store.set_epoch_deadline(1);
        failure::refuel(&mut store, self.fuel)?;
        self.settled = Some((runtime, store, instance));
        Ok(())
    }

    fn facts(&self) -> Option<Arc<Facts>> {
        self.memory
            .as_ref()
            .map(|memory| Arc::clone(memory.facts()))
    }

    fn run(self: Box<Self>, started: &dyn Fn()) -> Outcome {
        let Self {
            linked, settled, ..
        } = *self;
        let Some((runtime, mut store, _instance)) = settled else {
            return Outcome::start_error("run before settle".to_owned());
        };
        runtime.block_on(linked.run(&mut store, started))
    }
}
