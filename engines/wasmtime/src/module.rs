//! A core module: a WASI preview 1 command, or any exported function by name.

use std::sync::Arc;

use criw_engines::engine::{Outcome, Program, Surroundings};
use criw_engines::facts::{Facts, Instance};
use criw_engines::spec::WasmSection;
use wasmtime::{Engine, ExternType, ImportType, InstancePre, Linker, Module, Store};

use crate::limits::MemoryLimit;
use crate::overlay::{self, State};
use crate::sockets::Sockets;
use crate::toolbox::{self, Toolbox};
use crate::world::{World, runtime};
use crate::{failure, foreign};

/// Entry of a command.
const START: &str = "_start";

/// What a reactor wants to be called before any other export.
const INITIALIZE: &str = "_initialize";

/// A linked module that waits for "go".
pub(crate) struct ModuleProgram {
    engine: Engine,
    linked: InstancePre<State>,
    entry: String,
    /// A reactor that is entered by name is initialised first.
    initialize: bool,
    world: World,
    memory: Option<MemoryLimit>,
    fuel: Option<u64>,
    settled: Option<(tokio::runtime::Runtime, Store<State>, Instance)>,
}

impl ModuleProgram {
    pub(crate) fn link(
        engine: &Engine,
        module: &Module,
        wasm: &WasmSection,
        world: World,
    ) -> Result<Self, String> {
        let entry = wasm.export.as_deref().unwrap_or(START);
        check_entry(module, entry)?;
        let mut linker = Linker::new(engine);
        overlay::add_to_linker(&mut linker)
            .and_then(|()| match wasm.spawner {
                true => toolbox::add_to_linker(&mut linker),
                false => Ok(()),
            })
            .map_err(|error| format!("link: {}", failure::text(&error)))?;
        let linked = linker.instantiate_pre(module).map_err(|error| {
            unknown_imports(engine, &linker, module)
                .unwrap_or_else(|| format!("link: {}", failure::text(&error)))
        })?;
        Ok(Self {
            engine: engine.clone(),
            linked,
            entry: entry.to_owned(),
            initialize: entry != START && module.get_export(INITIALIZE).is_some(),
            world,
            memory: Some(MemoryLimit::new(wasm.memory_limit, wasm.memory_grow_fails)),
            fuel: wasm.fuel,
            settled: None,
        })
    }
}

/// The entry must be a function without parameters and results.
fn check_entry(module: &Module, entry: &str) -> Result<(), String> {
    match module.get_export(entry) {
        Some(ExternType::Func(function)) => {
            let parameters = function.params().len();
            let results = function.results().len();
            if parameters + results > 0 {
                return Err(format!(
                    "the entry function \"{entry}\" has {parameters} parameters and {results} results; it must have none"
                ));
            }
            Ok(())
        }
        Some(_) => Err(format!("the export \"{entry}\" is not a function")),
        None => {
            let functions: Vec<_> = module
                .exports()
                .filter(|export| matches!(export.ty(), ExternType::Func(_)))
                .map(|export| format!("\"{}\"", export.name()))
                .take(20)
                .collect();
            let imports: Vec<_> = module.imports().map(|import| name_of(&import)).collect();
            let exports = module.exports().map(|export| export.name());
            Err(format!(
                "the module has no entry function \"{entry}\"; it exports {}{}",
                if functions.is_empty() {
                    "no functions".to_owned()
                } else {
                    functions.join(", ")
                },
                foreign::hint(exports.chain(imports.iter().map(String::as_str)))
            ))
        }
    }
}

/// All imports that nobody provides, by name; linking itself names only the first.
fn unknown_imports(engine: &Engine, linker: &Linker<State>, module: &Module) -> Option<String> {
    let mut store = Store::new(engine, State::empty());
    let unknown: Vec<_> = module
        .imports()
        .filter(|import| linker.get_by_import(&mut store, import).is_none())
        .map(|import| name_of(&import))
        .collect();
    if unknown.is_empty() {
        return None;
    }
    Some(format!(
        "unknown imports: {} (this engine provides wasi_snapshot_preview1){}",
        unknown.join(", "),
        foreign::hint(unknown.iter().map(String::as_str))
    ))
}

fn name_of(import: &ImportType<'_>) -> String {
    format!("{}::{}", import.module(), import.name())
}

impl Program for ModuleProgram {
    fn settle(&mut self, surroundings: Surroundings) -> Result<(), String> {
        let runtime = runtime()?;
        let Surroundings {
            stdio,
            listeners,
            spawner,
            ..
        } = surroundings;
        let toolbox = spawner.map(|spawner| Toolbox::new(spawner, stdio.clone(), self.world.ids()));
        let outputs = (stdio.stdout.clone(), stdio.stderr.clone());
        let sockets = Sockets::new(&listeners)
            .map_err(|error| format!("hand listeners to the guest: {error}"))?;
        let wasi = {
            let _inside = runtime.enter();
            self.world
                .builder(stdio, 1 + sockets.listeners())?
                .build_p1()
        };
        let memory = self.memory.take().ok_or("settled twice")?;
        let instance = memory.facts().instance();
        let state = State::new(wasi, outputs, sockets, memory, toolbox);
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.memory);
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
            linked,
            entry,
            initialize,
            settled,
            ..
        } = *self;
        let Some((runtime, mut store, _instance)) = settled else {
            return Outcome::start_error("run before settle".to_owned());
        };
        runtime.block_on(async {
            let instance = match linked.instantiate_async(&mut store).await {
                Ok(instance) => instance,
                Err(error) => return failure::while_starting(&error),
            };
            started();
            let calls = initialize.then_some(INITIALIZE).into_iter();
            for name in calls.chain([entry.as_str()]) {
                let called = match instance.get_typed_func::<(), ()>(&mut store, name) {
                    Ok(function) => function.call_async(&mut store, ()).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = called {
                    return failure::while_running(&error);
                }
            }
            Outcome::exit(0)
        })
    }
}
