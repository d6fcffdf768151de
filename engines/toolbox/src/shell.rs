//! The shell: parser, expansion, execution.
//!
//! There is no fork in WASI. What other shells do in a forked copy is done in place with the
//! state put back afterwards (`( )`, `$( )`), and where two things must run at the same time
//! (pipelines, `&`) by commands of the host: an external one directly, shell code by another
//! `sh` that is handed the state as text (`print`).

mod arith;
mod ast;
mod builtins;
mod builtins_state;
mod exec;
mod expand;
mod jobs;
mod parameter;
mod parser;
mod print;
mod redirect;
mod simple;
mod start;
mod state;
mod streams;
mod words;

pub(crate) use start::main;
