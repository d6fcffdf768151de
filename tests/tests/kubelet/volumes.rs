//! Volumes, users, limits: what a pod is given, as its containers see it and as it is on
//! the machine.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use criw_tests::kubelet::NODE_IP;
use criw_tests::leak;

use crate::checks::{Check, beside};
use crate::node::{Node, bare_id};

pub(crate) const CHECKS: &[Check] = &[
    beside(
        "volumes::containers_share_an_empty_dir",
        &["volumes"],
        |node| {
            done(node, "wasm-empty-dir", "")?;
            done(node, "linux-empty-dir", "written by wasm\n")
        },
    ),
    beside(
        "volumes::an_empty_dir_in_memory_is_a_tmpfs_of_its_size",
        &["volumes"],
        |node| {
            done(node, "wasm-memory", "")?;
            done(node, "linux-memory", "written by wasm\n")?;
            done(node, "linux-memory", "size=1024k")
        },
    ),
    beside(
        "volumes::a_host_path_is_read_and_written",
        &["volumes"],
        |node| {
            done(node, "wasm-host-path", "from the host\n")?;
            holds(node, "wasm", "written by wasm\n")
        },
    ),
    beside(
        "volumes::a_read_only_mount_refuses_a_wasm_guest",
        &["volumes"],
        |node| {
            let ended = node.ended("volumes", "wasm-read-only")?;
            ensure!((ended.code, &*ended.reason) == (4, "Error"), "{ended:?}");
            ensure!(!node.machine.world.path("host/refused").exists());
            Ok(())
        },
    ),
    beside("volumes::a_single_file_is_mounted", &["volumes"], |node| {
        done(node, "wasm-file", "from the host\n")
    }),
    beside(
        "volumes::a_sub_path_is_all_that_is_seen",
        &["volumes"],
        |node| {
            done(node, "wasm-sub-path", "from below the host\n")?;
            done(node, "wasm-sub-path-file", "from below the host\n")?;
            done(node, "linux-sub-path-expression", "")?;
            holds(node, "sub/wasm", "written by wasm\n")?;
            holds(node, "volumes-node/logs/linux", "by linux\n")
        },
    ),
    beside(
        "volumes::the_downward_api_tells_names_addresses_and_limits",
        &["volumes"],
        downward,
    ),
    beside(
        "volumes::users_and_groups_are_what_was_asked",
        &["users"],
        users,
    ),
    beside(
        "volumes::requests_and_limits_are_in_the_cgroups",
        &["limits"],
        limits,
    ),
];

/// It ended well and said this.
fn done(node: &Node, container: &str, said: &str) -> Result<()> {
    let ended = node.ended("volumes", container)?;
    ensure!(
        ended.code == 0,
        "{ended:?} {:?}",
        node.log("volumes", container, "")
    );
    node.logged("volumes", container, said).map(drop)
}

fn holds(node: &Node, file: &str, text: &str) -> Result<()> {
    let path = node.machine.world.path("host").join(file);
    let found = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(found == text, "{}: {found:?}", path.display());
    Ok(())
}

fn downward(node: &Node) -> Result<()> {
    let ip = node.address("volumes")?;
    for said in [
        "arg[1]=volumes-node".to_owned(),
        "env POD_NAME=volumes-node".to_owned(),
        format!("env POD_IP={ip}"),
        format!("env HOST_IP={NODE_IP}"),
        format!("env LIMIT={}", 64 << 20),
        "app=\"volumes\"\ncolour=\"green\"".to_owned(),
    ] {
        done(node, "wasm-downward", &said)?;
    }
    for said in ["colour=\"green\"", "volumes-node", "-r--------"] {
        done(node, "linux-downward", said)?;
    }
    Ok(())
}

fn users(node: &Node) -> Result<()> {
    // 4: the guest could not write.
    for (container, code) in [
        ("wasm-group", 0),
        ("wasm-not-root", 4),
        ("wasm-read-only-root", 4),
        ("wasm-root", 0),
        ("linux-id", 0),
        ("linux-no-privileges", 0),
    ] {
        let ended = node.ended("users", container)?;
        ensure!(ended.code == code, "{container}: {ended:?}");
    }
    let id = node.logged("users", "linux-id", "uid=1000")?;
    ensure!(id.contains("gid=1000") && id.contains("2000"), "{id}");
    let status = node.logged("users", "linux-no-privileges", "Seccomp:")?;
    for line in ["CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(line), "{line:?}: {status}");
    }
    let file = node.empty_dir("users", "work")?.join("wasm");
    let owner = rustix::fs::stat(&file).with_context(|| file.display().to_string())?;
    ensure!((owner.st_uid, owner.st_gid) == (1000, 2000), "{owner:?}");
    Ok(())
}

/// The groups of a container, one for each hierarchy.
fn groups(node: &Node, id: &str) -> Vec<PathBuf> {
    leak::cgroup::directories(&node.machine.world.name)
        .into_iter()
        .filter(|group| group.ends_with(id))
        .collect()
}

/// A value of any of those groups, under its v1 or its v2 name.
fn value(groups: &[PathBuf], names: [&str; 2]) -> Option<String> {
    groups
        .iter()
        .flat_map(|group| names.map(|name| group.join(name)))
        .find_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
}

fn limits(node: &Node) -> Result<()> {
    node.ready("limits", "wasm", true)?;
    let pod = node.pod("limits")?;
    let uid = pod["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    for (container, memory, cpu, requested) in [
        ("wasm", 64_u64 << 20, 200, 100),
        ("linux", 48 << 20, 500, 250),
    ] {
        node.ready("limits", container, true)?;
        let status = node.container("limits", container)?;
        let groups = groups(node, &bare_id(&status)?);
        let parent = format!("kubepods/burstable/pod{uid}");
        ensure!(
            !groups.is_empty()
                && groups
                    .iter()
                    .all(|group| group.to_string_lossy().contains(&parent)),
            "{groups:?}"
        );
        let limit = value(&groups, ["memory.limit_in_bytes", "memory.max"]);
        ensure!(limit == Some(memory.to_string()), "{container}: {limit:?}");
        let quota = value(&groups, ["cpu.cfs_quota_us", "cpu.max"]);
        let wanted = (cpu * 100).to_string();
        ensure!(
            quota.as_ref().and_then(|text| text.split(' ').next()) == Some(&wanted),
            "{container}: {quota:?}"
        );
        if let Some(shares) = value(&groups, ["cpu.shares"; 2]) {
            let wanted = (requested * 1024 / 1000).to_string();
            ensure!(shares == wanted, "{container}: {shares}");
        }
        // What the kubelet read back from the runtime.
        let seen = &status["resources"]["limits"];
        ensure!(seen["cpu"] == format!("{cpu}m"), "{status}");
    }
    Ok(())
}
