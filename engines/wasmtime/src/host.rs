//! What a component's store holds, and the interfaces that it may import.

use std::sync::Arc;

use wasmtime::component::{Component, InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, Result};
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup;
use wasmtime_wasi::p3::bindings::sockets as sockets_3;
use wasmtime_wasi::sockets::WasiSocketsView;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::failure;
use crate::limits::MemoryLimit;
use crate::lookup::{Lookup, LookupView};
use crate::net::Net;
use crate::outbound::Hooks;
use crate::read_only;
use crate::services::{self, Services};
use crate::worlds;

/// Bytes of one set of headers as they lie in memory.
const MAX_FIELDS: usize = 128 << 10;

/// One instance's host side.
pub(crate) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: Hooks,
    pub(crate) services: Arc<Services>,
    pub(crate) memory: MemoryLimit,
}

impl State {
    pub(crate) fn new(
        wasi: WasiCtx,
        net: Arc<Net>,
        services: Arc<Services>,
        memory: MemoryLimit,
    ) -> Self {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_FIELDS);
        Self {
            wasi,
            table: ResourceTable::new(),
            http,
            hooks: Hooks::new(net),
            services,
            memory,
        }
    }

    /// What the instance has handles of.
    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

fn lookup(state: &mut State) -> LookupView<'_> {
    let net = state.hooks.net();
    LookupView::new(state.sockets(), net)
}

/// Links all that any of our worlds may import.
pub(crate) fn link(
    engine: &Engine,
    component: &Component,
) -> std::result::Result<InstancePre<State>, String> {
    let mut linker = Linker::<State>::new(engine);
    add_interfaces(engine, component, &mut linker)
        .and_then(|()| linker.instantiate_pre(component))
        .map_err(|error| {
            worlds::unknown_imports(engine, component)
                .unwrap_or_else(|| format!("link: {}", failure::text(&error)))
        })
}

fn add_interfaces(
    engine: &Engine,
    component: &Component,
    linker: &mut Linker<State>,
) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    // wasmtime-wasi asks libc for names, which must not happen inside the root.
    linker.allow_shadowing(true);
    ip_name_lookup::add_to_linker::<State, Lookup>(linker, lookup)?;
    read_only::components::link_two(linker)?;
    linker.allow_shadowing(false);
    let http = worlds::uses_http(engine, component);
    if http {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    }
    if worlds::uses_preview_3(engine, component) {
        add_preview_3(linker, http)?;
    }
    services::link(engine, component, linker)
}

/// WASI 0.3, beside which a component may use 0.2.
fn add_preview_3(linker: &mut Linker<State>, http: bool) -> Result<()> {
    wasmtime_wasi::p3::add_to_linker(linker)?;
    // For the reason above.
    linker.allow_shadowing(true);
    sockets_3::ip_name_lookup::add_to_linker::<State, Lookup>(linker, lookup)?;
    read_only::components::link_three(linker)?;
    linker.allow_shadowing(false);
    if http {
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
    }
    Ok(())
}
