//! `criw-shim-runc`: a Linux container, or one more process in it, by the runc binary.
//!
//! It is a process for each container in the host's namespaces; the container is its
//! child because it is a child subreaper. Two threads do the work: control answers
//! the daemon, the driver waits for runc and owns the mount namespace with the root.
//!
//! ```text
//!   arguments  the sub-command       control   requests and replies
//!   parts      what Create brings    driver    the life, step by step
//!   container, exec   the steps      mounts, users, console, pump, terminal   what they need
//!   runc, call, complaint   command lines, running them, what went wrong
//!   children, processes, ended, sys   the process table
//! ```

mod arguments;
mod call;
mod children;
mod complaint;
mod console;
mod container;
mod control;
mod driver;
mod ended;
mod exec;
mod memory;
mod mounts;
mod parts;
mod processes;
mod pump;
mod runc;
mod sys;
mod terminal;
mod users;

use std::process::ExitCode;

use runc::Runc;

fn main() -> ExitCode {
    let done = match arguments::delete(std::env::args_os().skip(1)) {
        Ok(None) => control::serve(),
        Ok(Some(delete)) => container::delete(&Runc::bare(delete.binary, delete.root), &delete.id)
            .map(|()| ExitCode::SUCCESS),
        Err(usage) => Err(usage),
    };
    done.unwrap_or_else(|text| {
        eprintln!("criw-shim-runc: {text}");
        ExitCode::FAILURE
    })
}
