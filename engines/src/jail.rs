//! How a Wasm shim locks itself up, in order, while it has one thread.
//!
//! Before this file: the shim was born in the pod's net, ipc, uts and PID
//! namespaces, joined its cgroup, read its spec, and the engine mapped and linked
//! the compiled code. Steps and why they stand where they stand:
//!
//! 1. [`bind_listeners`]: the addresses of the pod, ports below 1024 included, need
//!    privileges that go in step 4.
//! 2. [`enter_root`]: needs CAP_SYS_ADMIN. From its end on, no file of the host can be
//!    named; **no function of libc that reads files (resolver, passwd, iconv) may be
//!    called any more**, because a static glibc would load code from the image for it.
//! 3. rlimits: raising one needs CAP_SYS_RESOURCE.
//! 4. the pod's user namespace, if it has one: up to here everything needed privileges
//!    over the node, from here on there are none. Then capabilities, groups, user.
//! 5. not dumpable (a change of user resets it, so after that).
//! 6. the AppArmor profile or the SELinux label, if there is one: the steps above use what
//!    it may refuse. Its door was opened before step 2.
//! 7. no new privileges.
//! 8. seccomp, last, because the steps above use what it refuses. Code was mapped
//!    before: from here on nothing can be mapped executable.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::confinement::Confinement;
use crate::descriptors::Descriptors;
use crate::spec::{Role, Spec};
use crate::{masks, privileges, root, seccomp, sys};

/// What went wrong, as a sentence for the daemon's reply.
pub type Refusal = String;

fn step<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| format!("{what}: {error}")
}

/// Step 1: binds the guest's listening sockets in the network namespace that the
/// shim was born in. Addresses are numbers; names are not looked up.
pub fn bind_listeners(addresses: &[String]) -> Result<Vec<TcpListener>, Refusal> {
    addresses
        .iter()
        .map(|address| {
            let parsed: std::net::SocketAddr = address
                .parse()
                .map_err(|error| format!("listen on \"{address}\": {error}; give ip:port"))?;
            TcpListener::bind(parsed).map_err(|error| format!("listen on {parsed}: {error}"))
        })
        .collect()
}

/// Step 2.
pub fn enter_root(spec: &Spec, descriptors: &mut Descriptors) -> Result<(), Refusal> {
    match spec.criw.role {
        Role::Container => build_root(spec, descriptors),
        Role::Exec => {
            let mounts = descriptors
                .container_mounts
                .take()
                .ok_or("an exec needs the mount namespace of its container")?;
            rustix::thread::move_into_link_name_space(
                mounts.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )
            .map_err(step("enter the container's mount namespace"))?;
            rustix::process::chdir("/").map_err(step("change to the container's root"))
        }
    }
}

fn build_root(spec: &Spec, descriptors: &mut Descriptors) -> Result<(), Refusal> {
    // Opened while there still is a procfs to open it from.
    let process = rustix::fs::open(
        "/proc/self",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step("open /proc/self"))?;
    if let Some(template) = descriptors.mount_template.take() {
        rustix::thread::move_into_link_name_space(template.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(step("enter the template mount namespace"))?;
    }
    sys::unshare_namespaces(UnshareFlags::NEWNS).map_err(step("make a mount namespace"))?;
    // Nothing done here may show outside. Detached mounts keep the propagation
    // that the daemon gave them.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(step("make all mounts private"))?;
    let (masked, read_only) = paths(spec);
    // What lies over masked paths is in the template, which the new root covers.
    let covers = masks::Covers::open();
    let rootfs = descriptors
        .rootfs
        .take()
        .ok_or("a container needs a root file system")?;
    root::attach_root(rootfs.as_fd()).map_err(step("attach the root file system"))?;
    for (n, mount) in std::mem::take(&mut descriptors.mounts) {
        attach_volume(spec, rootfs.as_fd(), n, &mount)?;
    }
    // As runc does: what is masked below a read-only path stays masked.
    masks::make_read_only(rootfs.as_fd(), read_only).map_err(step("make paths read-only"))?;
    let done = covers.mask(rootfs.as_fd(), masked);
    done.map_err(step("mask paths"))?;
    drop(covers);
    root::pivot(rootfs.as_fd()).map_err(step("change to the new root"))?;
    // Only now, because mount points that the image lacks were made in it.
    if is_read_only(spec) {
        sys::make_mount_read_only(rootfs.as_fd()).map_err(step("make the root read-only"))?;
    }
    root::disarm_kernel_file_systems(process.as_fd())
        .map_err(step("make procfs and sysfs of volumes read-only"))
}

fn is_read_only(spec: &Spec) -> bool {
    let root = spec.oci.root().as_ref();
    root.and_then(|root| root.readonly()).unwrap_or(false)
}

/// Masked and read-only paths.
fn paths(spec: &Spec) -> (&[String], &[String]) {
    let linux = spec.oci.linux().as_ref();
    let masked = linux.and_then(|linux| linux.masked_paths().as_deref());
    let read_only = linux.and_then(|linux| linux.readonly_paths().as_deref());
    (masked.unwrap_or_default(), read_only.unwrap_or_default())
}

fn attach_volume(
    spec: &Spec,
    rootfs: std::os::fd::BorrowedFd<'_>,
    n: u32,
    mount: &OwnedFd,
) -> Result<(), Refusal> {
    let described = spec
        .oci
        .mounts()
        .as_ref()
        .and_then(|mounts| mounts.get(n as usize))
        .ok_or_else(|| format!("mount {n} is not in the spec"))?;
    let destination = described.destination();
    root::attach(rootfs, mount.as_fd(), destination)
        .map_err(|error| format!("mount at {}: {error}", destination.display()))
}

/// Steps 3 to 8. Afterwards this thread and all that it starts are locked up.
pub(crate) fn lock_up(
    process: &Process,
    user_namespace: Option<OwnedFd>,
    confinement: Confinement,
) -> Result<(), Refusal> {
    privileges::limit_resources(process).map_err(step("set resource limits"))?;
    if let Some(namespace) = user_namespace {
        let users = Some(LinkNameSpaceType::User);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), users)
            .map_err(step("enter the pod's user namespace"))?;
    }
    privileges::become_user(process).map_err(step("give up privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("make the process not dumpable"))?;
    confinement.enter()?;
    rustix::thread::set_no_new_privs(true).map_err(step("refuse new privileges"))?;
    sys::install_seccomp(&seccomp::filter()).map_err(step("install the seccomp filter"))
}
