//! A "host" that belongs to one test: a thread in new network and mount
//! namespaces, so that neither the machine nor other tests notice.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criw_net::{Attachment, NetError, Network, PodNetwork, PortMapping, Protocol};
use rustix::thread::UnshareFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Runs a test as if on a host of its own. Threads and processes that the
/// runtime starts inherit the namespaces of this thread.
pub(crate) fn on_own_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
            run("mount", &["--make-rprivate", "/"]);
            run("ip", &["link", "set", "lo", "up"]);
            let dir = tempfile::tempdir().unwrap();
            // iptables, which portmap runs, keeps its lock there.
            run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let limit = Duration::from_secs(120);
            runtime.block_on(async {
                tokio::time::timeout(limit, test(Host { dir }))
                    .await
                    .expect("the test ends in time")
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[allow(
    unsafe_code,
    reason = "unshare is unsafe for file tables only, which are not unshared here"
)]
fn unshare(flags: UnshareFlags) {
    // SAFETY: no file descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything of the network that could be left behind.
    pub(crate) fn snapshot(&self) -> String {
        // A bridge without ports changes its state a little later: names count.
        let mut all: String = run("ip", &["-br", "link"])
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(|name| {
                format!(
                    "{name}
"
                )
            })
            .collect();
        all.push_str(&run("ip", &["-4", "route", "show", "table", "all"]).replace(" linkdown", ""));
        all.push_str(&run("nft", &["-s", "list", "ruleset"]));
        for dir in [self.path("leases/criw"), self.path("ipam/test")] {
            let mut names: Vec<String> = std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "lock" && !name.starts_with("last_reserved_ip"))
                .collect();
            names.sort();
            all.push_str(&names.join("\n"));
        }
        all
    }
}

/// A pod's network namespace, pinned at a path below the test's directory.
pub(crate) struct Pod {
    pub(crate) netns: Option<OwnedFd>,
    pub(crate) network: PodNetwork,
}

impl Pod {
    pub(crate) fn new(host: &Host, number: u32) -> Self {
        let path = host.path(&format!("netns-{number}"));
        std::fs::write(&path, "").unwrap();
        let netns = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(UnshareFlags::NEWNET);
                    std::fs::File::open("/proc/thread-self/ns/net").unwrap()
                })
                .join()
                .unwrap()
        });
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&netns));
        rustix::mount::mount_bind(from, &path).unwrap();
        let network = PodNetwork {
            id: format!("{number:064x}"),
            name: format!("pod-{number}"),
            namespace: "default".into(),
            uid: format!("uid-{number}"),
            netns_path: path,
            ..PodNetwork::default()
        };
        Self {
            netns: Some(netns.into()),
            network,
        }
    }

    pub(crate) fn with_port(mut self, host_port: u16, container_port: u16) -> Self {
        self.network.ports.push(PortMapping {
            protocol: Protocol::Tcp,
            container_port,
            host_port,
            host_ip: None,
        });
        self
    }

    pub(crate) fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_ref().unwrap().as_fd()
    }

    pub(crate) async fn attach(&self, network: &Network) -> Result<Attachment, NetError> {
        let mut attachment = network.plan(&self.network)?;
        network.attach(&mut attachment, self.netns()).await?;
        Ok(attachment)
    }

    /// What the sandbox does after detach, or a reboot does before it.
    pub(crate) fn drop_netns(&mut self) {
        if self.netns.take().is_some() {
            rustix::mount::unmount(
                &self.network.netns_path,
                rustix::mount::UnmountFlags::DETACH,
            )
            .unwrap();
            std::fs::remove_file(&self.network.netns_path).unwrap();
        }
    }

    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    rustix::thread::move_into_link_name_space(self.netns(), None).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// A server in the pod that answers each connection with its peer's address.
    pub(crate) fn serve(&self, port: u16) {
        let listener =
            self.inside(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        serve(listener);
    }

    /// Connects from inside the pod and reads what the server says.
    pub(crate) async fn ask(&self, ip: IpAddr, port: u16) -> std::io::Result<String> {
        let stream = self.inside(|| {
            std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(5))
        })?;
        read(stream).await
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.drop_netns();
    }
}

pub(crate) fn serve(listener: std::net::TcpListener) {
    // Ends with the process; a connection is served in a moment.
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let _ = stream.write_all(peer.ip().to_string().as_bytes()).await;
        }
    });
}

pub(crate) async fn ask(ip: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    read(std::net::TcpStream::connect_timeout(
        &SocketAddr::new(ip.into(), port),
        Duration::from_secs(5),
    )?)
    .await
}

async fn read(stream: std::net::TcpStream) -> std::io::Result<String> {
    stream.set_nonblocking(true)?;
    let mut text = String::new();
    tokio::net::TcpStream::from_std(stream)?
        .read_to_string(&mut text)
        .await?;
    Ok(text)
}

/// Waits until links of dropped namespaces are gone: the kernel does that later.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the host looks as it did; shows the lines that differ if it never does.
pub(crate) async fn looks_again_like(host: &Host, before: &str) {
    let start = Instant::now();
    loop {
        let now = host.snapshot();
        if now == before {
            return;
        }
        if start.elapsed() > Duration::from_secs(20) {
            let only = |a: &str, b: &str| {
                a.lines()
                    .filter(|l| !b.lines().any(|o| o == *l))
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            panic!(
                "left behind:\n{}\ngone:\n{}",
                only(&now, before),
                only(before, &now)
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes an executable script: a fault to inject.
pub(crate) fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
