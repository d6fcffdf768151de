//! `criw-shim-runc`: a Linux container, or one more process in it, by the runc binary.
//!
//! It is a process for each container in the host's namespaces; the container is its
//! child because it is a child subreaper. Two threads do the work: control answers
//! the daemon, the driver waits for runc and owns the mount namespace with the root.
//!
//! ```text
//!   arguments  what to do            control   requests and replies
//!   parts      what Create brings    driver    the life, step by step
//!   container, exec   the steps      mounts, console, pump, terminal   what they need
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
mod mounts;
mod parts;
mod processes;
mod pump;
mod runc;
mod sys;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

use arguments::Arguments;
use children::Children;
use runc::Runc;

/// The number under which the daemon hands over the listening socket.
const SOCKET: i32 = criw_engines::protocol::SOCKET_FD;

fn main() -> ExitCode {
    let done = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Arguments::Serve { cgroups }) => serve(cgroups),
        Ok(Arguments::Delete { binary, root, id }) => {
            container::delete(&Runc::bare(binary, root), &id).map(|()| ExitCode::SUCCESS)
        }
        Err(usage) => Err(usage),
    };
    done.unwrap_or_else(|text| {
        eprintln!("criw-shim-runc: {text}");
        ExitCode::FAILURE
    })
}

fn serve(cgroups: Vec<PathBuf>) -> Result<ExitCode, String> {
    let listener = sys::inherited(SOCKET)
        .map_err(|error| format!("take socket from descriptor {SOCKET}: {error}"))?;
    for directory in cgroups {
        let file = directory.join("cgroup.procs");
        std::fs::write(&file, "0")
            .map_err(|error| format!("join cgroup {}: {error}", file.display()))?;
    }
    let children = Children::adopt().map_err(|error| format!("become a subreaper: {error}"))?;
    control::serve(listener, children).map_err(|error| format!("serve the socket: {error}"))
}
