//! The real crictl against a machine's daemon.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::machine::Machine;

/// Runs crictl to its end, whatever its exit code.
pub fn run(machine: &Machine, args: &[&str]) -> Result<Output> {
    command(machine, args)?
        .output()
        .with_context(|| format!("run crictl {}", args.join(" ")))
}

/// crictl, to be started by the caller.
pub fn command(machine: &Machine, args: &[&str]) -> Result<Command> {
    let endpoint = format!("unix://{}", machine.world.path("s").display());
    let mut command = machine.world.command(binaries::crictl()?);
    command
        // No /etc/crictl.yaml of the host; more patience than the default of 2 s,
        // because tests of many daemons share two cores.
        .args([
            "--config",
            "/dev/null",
            "--timeout",
            "30s",
            "-r",
            &endpoint,
            "-i",
            &endpoint,
        ])
        .args(args);
    Ok(command)
}

/// Runs crictl; stdout, or an error with stderr when it fails.
pub fn ok(machine: &Machine, args: &[&str]) -> Result<String> {
    let output = run(machine, args)?;
    ensure!(
        output.status.success(),
        "crictl {}: {}: {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs crictl, which must fail; what it said.
pub fn refused(machine: &Machine, args: &[&str]) -> Result<String> {
    let output = run(machine, args)?;
    ensure!(
        !output.status.success(),
        "crictl {} succeeded",
        args.join(" ")
    );
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
