//! The leak snapshotter itself: a planted leak of every kind turns it red, and
//! taking the leak away turns it green again. No daemon runs here; a shell and what
//! it becomes stand in for it.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use criw_tests::leak::{self, Kind, Snapshot};
use criw_tests::wait;
use criw_tests::world::World;

/// A world with a process that does as its stdin says.
struct Scene {
    world: World,
    actor: Child,
    before: Snapshot,
}

impl Scene {
    fn new() -> Self {
        let world = World::new().unwrap();
        for name in ["root", "run", "leases"] {
            world.subdir(name).unwrap();
        }
        let mut actor = world.command("sh").stdin(Stdio::piped()).spawn().unwrap();
        let pid = actor.id();
        // nsenter has become sh, in the world, when the link says so.
        writeln!(
            actor.stdin.as_mut().unwrap(),
            "touch {}",
            world.path("acts").display()
        )
        .unwrap();
        wait::until("the actor", wait::PATIENCE, || {
            world.path("acts").exists().then_some(())
        })
        .unwrap();
        let before = leak::snapshot(&world, pid).unwrap();
        let scene = Self {
            world,
            actor,
            before,
        };
        scene.assert_clean();
        scene
    }

    fn act(&mut self, line: &str) {
        writeln!(self.actor.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn sh(&self, script: &str) {
        self.world.run("sh", &["-c", script]).unwrap();
    }

    fn assert_clean(&self) {
        leak::settle(&self.world, self.actor.id(), &self.before, wait::PATIENCE).unwrap();
    }

    /// Within the deadline a leak of that kind is reported, and it lasts.
    fn assert_red(&self, kind: Kind) {
        let wanted = format!("{kind:?}: ");
        wait::until(&format!("a leak of {kind:?}"), wait::PATIENCE, || {
            let now = leak::snapshot(&self.world, self.actor.id()).unwrap();
            let left = now.beyond(&self.before);
            left.iter()
                .any(|line| line.starts_with(&wanted))
                .then_some(())
        })
        .unwrap();
        let error = leak::settle(
            &self.world,
            self.actor.id(),
            &self.before,
            Duration::from_millis(50),
        )
        .unwrap_err();
        assert!(error.to_string().contains(&wanted), "{error}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.actor.kill();
        let _ = self.actor.wait();
    }
}

#[test]
fn a_process_that_stays_is_seen() {
    let scene = Scene::new();
    let mut child = scene
        .world
        .command("cat")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    scene.assert_red(Kind::Process);
    child.kill().unwrap();
    child.wait().unwrap();
    scene.assert_clean();
}

#[test]
fn a_process_far_away_is_seen_by_its_cgroup() {
    let scene = Scene::new();
    let group = format!("/sys/fs/cgroup/freezer/{}/leaf", scene.world.name);
    if !std::path::Path::new("/sys/fs/cgroup/freezer").exists() {
        eprintln!("skipped: this machine has no freezer hierarchy");
        return;
    }
    std::fs::create_dir_all(&group).unwrap();
    let mut child = std::process::Command::new("cat")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::fs::write(format!("{group}/cgroup.procs"), child.id().to_string()).unwrap();
    scene.assert_red(Kind::Process);
    scene.assert_red(Kind::Cgroup);
    child.kill().unwrap();
    child.wait().unwrap();
    wait::until("the group to go", wait::PATIENCE, || {
        std::fs::remove_dir(&group).ok()
    })
    .unwrap();
    scene.assert_clean();
}

#[test]
fn a_zombie_of_the_daemon_is_seen() {
    let mut scene = Scene::new();
    // The shell becomes cat, which never waits for the child it inherits.
    scene.act("true & exec cat");
    scene.assert_red(Kind::Zombie);
}

#[test]
fn a_pinned_namespace_is_seen() {
    let scene = Scene::new();
    let pin = scene.world.path("pin");
    std::fs::write(&pin, "").unwrap();
    let pin = pin.display();
    scene.sh(&format!(
        "unshare --net mount --bind /proc/self/ns/net {pin}"
    ));
    scene.assert_red(Kind::Namespace);
    scene.sh(&format!("umount {pin}"));
    scene.assert_clean();
}

#[test]
fn a_mount_is_seen() {
    let scene = Scene::new();
    let place = scene.world.subdir("m").unwrap();
    let place = place.display();
    scene.sh(&format!("mount -t tmpfs none {place}"));
    scene.assert_red(Kind::Mount);
    scene.sh(&format!("umount {place}"));
    scene.assert_clean();
}

#[test]
fn a_mount_in_a_namespace_that_the_daemon_keeps_is_seen() {
    let mut scene = Scene::new();
    let (pin, place) = (scene.world.path("pin"), scene.world.subdir("m").unwrap());
    std::fs::write(&pin, "").unwrap();
    let (pin, place) = (pin.display(), place.display());
    // A mount namespace with nothing in it but what we put there, held by fd 9.
    scene.act(&format!(
        "mkfifo {pin}.f; unshare --mount --propagation private sh -c 'mount -t tmpfs none {place}; read go < {pin}.f' & \
         while ! grep -q {place} /proc/$!/mountinfo; do :; done; exec 9< /proc/$!/ns/mnt; echo go > {pin}.f; wait"
    ));
    scene.assert_red(Kind::Mount);
    scene.assert_red(Kind::Descriptor);
}

#[test]
fn a_cgroup_is_seen() {
    let scene = Scene::new();
    let hierarchy = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup"]
        .into_iter()
        .find(|path| std::fs::metadata(format!("{path}/cgroup.procs")).is_ok())
        .unwrap();
    let group = format!("{hierarchy}/{}/pod/leaf", scene.world.name);
    std::fs::create_dir_all(&group).unwrap();
    scene.assert_red(Kind::Cgroup);
    std::fs::remove_dir(&group).unwrap();
    std::fs::remove_dir(std::path::Path::new(&group).parent().unwrap()).unwrap();
    scene.assert_clean();
}

#[test]
fn a_link_and_its_route_are_seen() {
    let scene = Scene::new();
    scene.sh("ip link add left type veth peer name right && ip addr add 10.9.9.1/24 dev left && ip link set left up");
    scene.assert_red(Kind::Link);
    scene.assert_red(Kind::Route);
    scene.sh("ip link del left");
    scene.assert_clean();
}

#[test]
fn nft_rules_and_elements_are_seen() {
    let mut scene = Scene::new();
    scene.sh("nft add table inet t && nft add map inet t m '{ type inet_service : ipv4_addr; }'");
    scene.assert_red(Kind::Nft);
    // An element in a map that was there before is a leak of its own.
    scene.before = leak::snapshot(&scene.world, scene.actor.id()).unwrap();
    scene.sh("nft add element inet t m '{ 80 : 10.0.0.1 }'");
    scene.assert_red(Kind::Nft);
    scene.sh("nft delete element inet t m '{ 80 : 10.0.0.1 }'");
    scene.assert_clean();
}

#[test]
fn a_lease_is_seen() {
    let scene = Scene::new();
    let lease = scene.world.path("leases").join("10.88.0.7");
    std::fs::write(&lease, "pod").unwrap();
    scene.assert_red(Kind::Lease);
    std::fs::remove_file(&lease).unwrap();
    scene.assert_clean();
}

#[test]
fn a_descriptor_is_seen() {
    let mut scene = Scene::new();
    scene.act("exec 7< /dev/null");
    scene.assert_red(Kind::Descriptor);
    scene.act("exec 7<&-");
    scene.assert_clean();
}

#[test]
fn a_file_is_seen() {
    let scene = Scene::new();
    let file = scene.world.path("root").join("pods").join("x.json");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    scene.assert_clean();
    std::fs::write(&file, "{}").unwrap();
    scene.assert_red(Kind::File);
    std::fs::remove_file(&file).unwrap();
    scene.assert_clean();
    let bundle = file.with_file_name("0123456789abcdef".repeat(4));
    std::fs::create_dir(&bundle).unwrap();
    scene.assert_red(Kind::File);
    std::fs::remove_dir(&bundle).unwrap();
    scene.assert_clean();
}
