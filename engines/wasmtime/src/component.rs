//! A component of the world `wasi:cli/command` 0.2.

use std::sync::Arc;

use criw_engines::engine::{Outcome, Program, Surroundings};
use criw_engines::spec::{ServicesSection, WasmSection};
use wasmtime::component::Component;
use wasmtime::{Engine, Store};
use wasmtime_wasi::p2::bindings::CommandPre;

use crate::failure;
use crate::host::{self, State};
use crate::limits::MemoryLimit;
use crate::net::Net;
use crate::services::Services;
use crate::world::{World, runtime};

/// A linked component that waits for "go".
pub(crate) struct ComponentProgram {
    engine: Engine,
    linked: CommandPre<State>,
    world: World,
    services: ServicesSection,
    memory: Option<MemoryLimit>,
    settled: Option<(tokio::runtime::Runtime, Store<State>)>,
}

impl ComponentProgram {
    pub(crate) fn link(
        engine: &Engine,
        component: &Component,
        wasm: &WasmSection,
        world: World,
    ) -> Result<Self, String> {
        let linked = host::link(engine, component)?;
        let linked = CommandPre::new(linked).map_err(|error| {
            format!(
                "the component is no command (wasi:cli/command): {}",
                failure::text(&error)
            )
        })?;
        Ok(Self {
            engine: engine.clone(),
            linked,
            world,
            services: wasm.services.clone(),
            memory: Some(MemoryLimit::new(wasm.memory_limit, wasm.memory_grow_fails)),
            settled: None,
        })
    }
}

impl Program for ComponentProgram {
    fn settle(&mut self, surroundings: Surroundings) -> Result<(), String> {
        let runtime = runtime()?;
        let net = Arc::new(Net::new(&self.world, surroundings.stdio.stderr.clone()));
        let services = Services::new(
            &self.services,
            &self.world,
            surroundings.stdio.stderr.clone(),
        );
        let wasi = {
            let _inside = runtime.enter();
            self.world.builder(surroundings.stdio, 1)?.build()
        };
        let memory = self.memory.take().ok_or("settled twice")?;
        let mut store = Store::new(&self.engine, State::new(wasi, net, services, memory));
        store.limiter(|state| &mut state.memory);
        self.settled = Some((runtime, store));
        Ok(())
    }

    fn run(self: Box<Self>, started: &dyn Fn()) -> Outcome {
        let Self {
            linked, settled, ..
        } = *self;
        let Some((runtime, mut store)) = settled else {
            return Outcome::start_error("run before settle".to_owned());
        };
        runtime.block_on(async {
            let command = match linked.instantiate_async(&mut store).await {
                Ok(command) => command,
                Err(error) => return failure::while_starting(&error),
            };
            started();
            match command.wasi_cli_run().call_run(&mut store).await {
                Ok(Ok(())) => Outcome::exit(0),
                Ok(Err(())) => Outcome::exit(1),
                Err(error) => failure::while_running(&error),
            }
        })
    }
}
