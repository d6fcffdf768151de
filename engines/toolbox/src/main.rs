//! The shell and tools of Wasm containers whose image brings none.
//!
//! One WASI preview 1 command; the last path component of argv[0] names the applet. It
//! knows nothing of the daemon: what preview 1 lacks it asks of the `criw` imports, all in
//! `host`. There is no fork and no change of directory here: the shell keeps its own.

mod applets;
mod context;
mod files;
mod glob;
mod host;
mod options;
mod regex;
mod shell;
mod sys;

fn main() {
    // Lossy: the host hands over UTF-8 only.
    let text = |word: std::ffi::OsString| word.to_string_lossy().into_owned();
    let argv: Vec<String> = std::env::args_os().map(text).collect();
    let env: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    std::process::exit(applets::main(argv, env));
}
