//! The Wasmtime engine: from a descriptor of compiled code to a linked program.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use criw_engines::engine::{Engine, Program};
use criw_engines::spec::{EngineSection, Role, Spec, WasmSection};
use wasmtime::component::Component;
use wasmtime::{Module, Precompiled};

use crate::component::{self, ComponentProgram};
use crate::failure;
use crate::module::ModuleProgram;
use crate::proxy::{self, ProxyProgram};
use crate::roots;
use crate::settings::{self, Meter, Purpose};
use crate::world::World;
use crate::worlds;

/// The engine of `criw-shim-wasmtime`.
#[derive(Debug, Default)]
pub struct Wasmtime;

impl Engine for Wasmtime {
    fn prepare(&self, code: OwnedFd, spec: &Spec) -> Result<Box<dyn Program>, String> {
        let EngineSection::Wasm(wasm) = &spec.criw.engine else {
            return Err("the spec is not for a Wasm engine".to_owned());
        };
        open_randomness();
        let engine = new_engine(Purpose::RUN, meter(wasm))?;
        let world = World::new(spec.oci.process().as_ref());
        let file = File::from(code);
        match kind(&file)? {
            Precompiled::Module => {
                let module = load_module(&engine, file)?;
                Ok(Box::new(ModuleProgram::link(
                    &engine, &module, wasm, world,
                )?))
            }
            Precompiled::Component => {
                refuse_module_settings(wasm)?;
                let (engine, component) = load_component(engine, &file, wasm)?;
                if worlds::uses_http(&engine, &component) {
                    roots::open_randomness()?;
                }
                let entry = worlds::of(&engine, &component, wasm.export.as_deref())?;
                match entry {
                    worlds::World::Proxy | worlds::World::Service
                        if spec.criw.role == Role::Exec =>
                    {
                        Err(
                            "the component serves HTTP (wasi:http): it is a container's main program, not one to exec"
                                .to_owned(),
                        )
                    }
                    worlds::World::Proxy | worlds::World::Service => {
                        let linked = proxy::Linked::new(&engine, &component, &entry)?;
                        let program = ProxyProgram::new(&engine, linked, wasm, world)?;
                        Ok(Box::new(program))
                    }
                    _ => {
                        let linked = component::Linked::new(&engine, &component, entry)?;
                        let program = ComponentProgram::new(&engine, linked, wasm, world);
                        Ok(Box::new(program))
                    }
                }
            }
        }
    }
}

/// In a static binary the random number crates do not find the system call by name
/// and fall back to a device file, which they keep open. The guest's root has no
/// /dev, so they do that now.
fn open_randomness() {
    drop(wasmtime_wasi::thread_rng());
}

fn new_engine(purpose: Purpose, meter: Meter) -> Result<wasmtime::Engine, String> {
    settings::engine(purpose, meter).map_err(|error| failure::text(&error))
}

/// Which variant of the code the daemon hands over.
fn meter(wasm: &WasmSection) -> Meter {
    match wasm.fuel {
        Some(_) => Meter::Fuel,
        None => Meter::Without,
    }
}

fn kind(file: &File) -> Result<Precompiled, String> {
    match wasmtime::Engine::detect_precompiled_file(path_of(file)) {
        Ok(Some(kind)) => Ok(kind),
        // It is no ELF file, or another kind of one.
        Ok(None) | Err(_) => Err("the code is not what criw-compile writes".to_owned()),
    }
}

/// Some calls take only a path. The host's procfs is still there, and this name
/// leads to this very descriptor.
fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn load(error: &wasmtime::Error) -> String {
    format!("load compiled code: {}", failure::text(error))
}

#[allow(
    unsafe_code,
    reason = "compiled code is trusted as it is: only our compiler writes the cache that the daemon opens"
)]
fn load_module(engine: &wasmtime::Engine, file: File) -> Result<Module, String> {
    // SAFETY: the daemon opened a file of its cache, which only root and criw-compile
    // write, and whose entries never change.
    unsafe { Module::deserialize_open_file(engine, file) }.map_err(|error| load(&error))
}

/// A component is compiled for one of the purposes, and only its code knows which.
fn load_component(
    run: wasmtime::Engine,
    file: &File,
    wasm: &WasmSection,
) -> Result<(wasmtime::Engine, Component), String> {
    let first = match map_component(&run, file) {
        Ok(component) => return Ok((run, component)),
        Err(error) => error,
    };
    let try_with = |purpose| {
        let engine = new_engine(purpose, meter(wasm)).ok()?;
        let component = map_component(&engine, file).ok()?;
        Some((engine, component))
    };
    if let Some(found) = try_with(Purpose::RUN_CONCURRENT) {
        return Ok(found);
    }
    // With the room for all requests, and for the instance that is tried at the start.
    let instances = proxy::max_requests(&wasm.http).saturating_add(1);
    if let Ok(pool) = settings::pooling_engine(instances, meter(wasm))
        && let Ok(component) = map_component(&pool, file)
    {
        return Ok((pool, component));
    }
    // Of WASI 0.3 without a pool: how many stacks an instance needs is the guest's affair.
    [Purpose::SERVE, Purpose::SERVE_CONCURRENT]
        .into_iter()
        .find_map(try_with)
        .ok_or(first)
}

#[allow(
    unsafe_code,
    reason = "compiled code is trusted as it is: only our compiler writes the cache that the daemon opens"
)]
fn map_component(engine: &wasmtime::Engine, file: &File) -> Result<Component, String> {
    // SAFETY: as above.
    unsafe { Component::deserialize_file(engine, path_of(file)) }.map_err(|error| load(&error))
}

/// What only makes sense for a core module is not silently ignored.
fn refuse_module_settings(wasm: &WasmSection) -> Result<(), String> {
    if !wasm.listen.is_empty() {
        return Err(
            "the module is a component: it opens its own sockets (wasi:sockets), preopened listeners are for WASI preview 1"
                .to_owned(),
        );
    }
    Ok(())
}
