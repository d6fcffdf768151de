//! Mounts: what the shim's own mount namespace must let through, and what not.

use std::fs;
use std::path::Path;

use criw_engines::protocol::Reply;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use serde_json::json;

use crate::fixture::{bundle, wait_until};

/// A shared mount on the host, unmounted with all that came to lie on it.
struct Shared<'a>(&'a Path);

impl<'a> Shared<'a> {
    fn at(path: &'a Path) -> Self {
        fs::create_dir(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        let shared = Self(path);
        mount_change(path, MountPropagationFlags::SHARED).unwrap();
        for name in ["host", "container"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        shared
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        for name in ["host", "container", ""] {
            // Not mounted when the test failed before.
            let _ = unmount(self.0.join(name), UnmountFlags::DETACH);
        }
    }
}

#[test]
fn propagation_goes_where_the_pod_asks() {
    // The container mounts a file system on its volume, then waits for the host's.
    let script = "mount -t tmpfs none /data/container && echo x > /data/container/x; echo up; \
                  until [ -e /data/host/x ] || [ -e /data/stop ]; do sleep 0.01; done; [ -e /data/host/x ]";
    for (option, to_host, to_container) in [
        ("rshared", true, true),
        ("rslave", false, true),
        ("rprivate", false, false),
    ] {
        let Some(mut bundle) = bundle(&["sh", "-c", script]) else {
            return;
        };
        let volume = bundle.path("volume");
        let _shared = Shared::at(&volume);
        bundle.config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", option],
        }));
        if option != "rprivate" {
            bundle.config["linux"]["rootfsPropagation"] = json!(option);
        }
        let capabilities = json!(["CAP_SYS_ADMIN"]);
        bundle.config["process"]["capabilities"] = json!({
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        });
        let shim = bundle.run();
        wait_until("the container has mounted", || !shim.lines().is_empty());
        assert_eq!(shim.lines(), ["stdout F up"], "{option}");
        assert_eq!(volume.join("container/x").exists(), to_host, "{option}");
        mount(
            "tmpfs",
            volume.join("host"),
            "tmpfs",
            MountFlags::empty(),
            None,
        )
        .unwrap();
        fs::write(volume.join("host/x"), "").unwrap();
        fs::write(volume.join("stop"), "").unwrap();
        assert_eq!(shim.ended().0 == 0, to_container, "{option}");
        drop(_shared);
        bundle.assert_clean();
    }
}

#[test]
fn nothing_of_the_root_is_seen_on_the_host() {
    let Some(bundle) = bundle(&["sh", "-c", "exec sleep 1000"]) else {
        return;
    };
    let (shim, reply) = bundle.create();
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&bundle.id));
    assert_eq!(
        fs::read_dir(bundle.path("bundle/rootfs")).unwrap().count(),
        0
    );
    shim.signal(libc::SIGKILL);
    assert_eq!(shim.ended().0, 137);
    bundle.assert_clean();
}
