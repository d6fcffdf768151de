//! One engine configuration for the compiler that writes code and the shim that
//! maps it. A difference makes loading fail with a text that names it.
//!
//! Components that serve HTTP are compiled with epochs: requests share threads, and a
//! request that computes for ever must let the others run and can be given up. All
//! other guests have a process to themselves, so for them the checks (3-280 % of a
//! guest's speed, measured) would buy nothing.
//!
//! Only what uses WASI 0.3 gets support for concurrency inside a component: the others would pay
//! for its bookkeeping in every store and call.

use wasmtime::{Config, Engine, PoolingAllocationConfig, Result, WasmBacktraceDetails};

/// Bytes of stack for Wasm frames; a guest that needs more traps.
const WASM_STACK: usize = 1 << 20;

/// Bytes of the stack that guest and host functions share; only touched pages cost.
const FIBER_STACK: usize = 4 << 20;

/// What the code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// It is instantiated for each request; else it runs once.
    pub serves: bool,
    /// Its functions may be async, as in WASI 0.3.
    pub concurrent: bool,
}

impl Purpose {
    /// A command, and any module.
    pub const RUN: Self = Self {
        serves: false,
        concurrent: false,
    };
    /// An HTTP server.
    pub const SERVE: Self = Self {
        serves: true,
        concurrent: false,
    };
    /// A command of WASI 0.3.
    pub const RUN_CONCURRENT: Self = Self {
        serves: false,
        concurrent: true,
    };
    /// An HTTP server of WASI 0.3.
    pub const SERVE_CONCURRENT: Self = Self {
        serves: true,
        concurrent: true,
    };
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RUN,
        Self::SERVE,
        Self::RUN_CONCURRENT,
        Self::SERVE_CONCURRENT,
    ];
}

/// Exports of a component that serves HTTP, up to the version's patch number.
pub const HANDLERS: [&str; 2] = ["wasi:http/incoming-handler@0.2", "wasi:http/handler@0.3."];

/// Whether an interface, by its whole name, is of a release of WASI 0.3 (no candidate).
pub fn is_preview_3(interface: &str) -> bool {
    interface.split_once('@').is_some_and(|(name, version)| {
        name.starts_with("wasi:") && version.starts_with("0.3.") && !version.contains('-')
    })
}

/// Whether the code counts what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// It does not.
    Without,
    /// It uses up fuel, about one unit for each instruction of Wasm, and traps when there
    /// is none left. Only for containers that ask for a bound, because it is slow.
    Fuel,
}

/// The configuration.
pub fn config(purpose: Purpose, meter: Meter) -> Config {
    let mut config = Config::new();
    config.max_wasm_stack(WASM_STACK);
    config.async_stack_size(FIBER_STACK);
    // Traps are found by frame pointers; unwind tables would only be registered
    // with libgcc at each start.
    config.native_unwind_info(false);
    // What a module carries of DWARF goes into its code's file and is read at a trap only.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config.epoch_interruption(purpose.serves);
    config.concurrency_support(purpose.concurrent);
    config.wasm_component_model_async(purpose.concurrent);
    config.consume_fuel(meter == Meter::Fuel);
    config
}

/// An engine with [`config`].
pub fn engine(purpose: Purpose, meter: Meter) -> Result<Engine> {
    Engine::new(&config(purpose, meter))
}

/// Memories, tables and core instances that a component may have to be pooled.
const POOLED_MEMORIES: u32 = 2;
const POOLED_TABLES: u32 = 8;
const POOLED_INSTANCES: u32 = 32;

/// Bytes of a memory or table that are cleared by hand and kept; the rest goes back to the
/// kernel.
const KEPT_MEMORY: usize = 128 << 10;

/// An engine with [`config`] that serves WASI 0.2, and keeps the address space of so many
/// instances: making and dropping it anew is most of what a short request costs. A
/// component of unusual shape does not fit, and loading it says so.
pub fn pooling_engine(instances: u32, meter: Meter) -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_stacks(instances)
        .total_gc_heaps(instances)
        .total_memories(instances * POOLED_MEMORIES)
        .max_memories_per_component(POOLED_MEMORIES)
        .total_tables(instances * POOLED_TABLES)
        .max_tables_per_component(POOLED_TABLES)
        .total_core_instances(instances * POOLED_INSTANCES)
        .max_core_instances_per_component(POOLED_INSTANCES)
        .linear_memory_keep_resident(KEPT_MEMORY)
        // Not by PAGEMAP_SCAN: asking the kernel what was written takes longer than
        // clearing this much (by 3 to 14 us of system time a request, measured).
        .table_keep_resident(KEPT_MEMORY);
    let mut config = config(Purpose::SERVE, meter);
    config.allocation_strategy(pool);
    Engine::new(&config)
}

/// Names the code that this compiler makes: entries of a cache with another
/// fingerprint are not for this shim. It covers Wasmtime's version, all settings that
/// change code, and the CPU features compiled for.
#[cfg(feature = "compiler")]
pub fn fingerprint(engines: &[Engine]) -> String {
    use std::hash::{Hash, Hasher};
    // Its keys are fixed. Wasmtime's exact version is part of what is hashed.
    let mut hasher = std::hash::DefaultHasher::new();
    for engine in engines {
        engine.precompile_compatibility_hash().hash(&mut hasher);
    }
    CPU_FEATURES
        .iter()
        .filter(|(_, present)| present())
        .for_each(|(name, _)| name.hash(&mut hasher));
    format!(
        "wasmtime-{}-{:016x}",
        std::env::consts::ARCH,
        hasher.finish()
    )
}

/// A name and the question whether this CPU has it.
#[cfg(feature = "compiler")]
type CpuFeature = (&'static str, fn() -> bool);

/// CPU features that Cranelift detects and uses.
#[cfg(all(feature = "compiler", target_arch = "x86_64"))]
const CPU_FEATURES: [CpuFeature; 12] = [
    ("sse3", || std::is_x86_feature_detected!("sse3")),
    ("ssse3", || std::is_x86_feature_detected!("ssse3")),
    ("sse4.1", || std::is_x86_feature_detected!("sse4.1")),
    ("sse4.2", || std::is_x86_feature_detected!("sse4.2")),
    ("popcnt", || std::is_x86_feature_detected!("popcnt")),
    ("avx", || std::is_x86_feature_detected!("avx")),
    ("avx2", || std::is_x86_feature_detected!("avx2")),
    ("fma", || std::is_x86_feature_detected!("fma")),
    ("bmi1", || std::is_x86_feature_detected!("bmi1")),
    ("bmi2", || std::is_x86_feature_detected!("bmi2")),
    ("avx512f", || std::is_x86_feature_detected!("avx512f")),
    ("lzcnt", || std::is_x86_feature_detected!("lzcnt")),
];
