//! What a reboot of the machine takes away from a node, done to a world whose daemon has
//! been killed; then the daemon is started with another boot id.

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use crate::leak;
use crate::world::World;

/// Environment of a daemon before a reboot; the real boot id does not change.
pub const FIRST: &[(&str, &str)] = &[("CRIW_BOOT_ID", "first-boot")];

/// And after it.
pub const SECOND: &[(&str, &str)] = &[("CRIW_BOOT_ID", "second-boot")];

/// Takes away all processes in the world's cgroups, and mounts and files below `/run`.
pub fn take_away(world: &World) -> Result<()> {
    // All processes at once: none may see another's end and write it down.
    for signal in [Signal::STOP, Signal::KILL] {
        for group in leak::cgroup::directories(&world.name) {
            for pid in leak::cgroup::members(&group) {
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }
    let run = world.path("run");
    let script = format!(
        "for m in $(awk '{{print $5}}' /proc/self/mountinfo | grep -E '^({run}|/run/netns/criw-)' | tac); do umount -l $m; done; rm -rf {run}/*; rm -f /run/netns/criw-*",
        run = run.display(),
    );
    world.run("sh", &["-c", &script])?;
    Ok(())
}
