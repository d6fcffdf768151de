//! A real registry (Debian's docker-registry) on loopback of a world, and the push
//! side of the distribution API.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::http;
use crate::image::{Blob, Image};
use crate::wait;
use crate::world::World;

/// A running registry; dropped, it ends.
pub struct Registry {
    /// Where it listens.
    pub address: SocketAddr,
    process: Child,
}

/// User and password that [`Registry::start_protected`] accepts.
pub const CREDENTIALS: (&str, &str) = ("somebody", "hunter2");

/// bcrypt of the password, cost 4, as htpasswd writes it.
const HTPASSWD: &str = "somebody:$2y$04$8xQjPB8JzFoRdE7YfFSP6.L6.VILVay6von2t6/5HE4Ms6VNaE6a2\n";

impl Registry {
    /// Starts one that anybody may use.
    pub fn start(world: &World, port: u16) -> Result<Self> {
        Self::start_with(world, port, "")
    }

    /// Starts one that asks for [`CREDENTIALS`].
    pub fn start_protected(world: &World, port: u16) -> Result<Self> {
        let path = world.path(format!("htpasswd-{port}"));
        std::fs::write(&path, HTPASSWD)?;
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            path.display()
        );
        Self::start_with(world, port, &auth)
    }

    fn start_with(world: &World, port: u16, auth: &str) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let storage = world.subdir(&format!("registry-{port}"))?;
        let config = world.path(format!("registry-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{auth}",
            storage.display()
        );
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(world.path(format!("registry-{port}.log")))?;
        let process = world
            .command("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (Debian: apt-get install docker-registry)")?;
        let registry = Self { address, process };
        world.enter(|| {
            wait::until("the registry to listen", wait::PATIENCE, || {
                http::request(address, "GET", "/v2/", &[], &[]).ok()
            })
        })?;
        Ok(registry)
    }

    /// Reference of a name in this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes as `name:tag`; the manifest's digest.
    pub fn push(&self, world: &World, name: &str, image: &Image) -> Result<String> {
        world.enter(|| push(self.address, name, image, &[]))
    }

    /// Pushes with [`CREDENTIALS`].
    pub fn push_protected(&self, world: &World, name: &str, image: &Image) -> Result<String> {
        // "somebody:hunter2" in base64.
        let auth = [("authorization", "Basic c29tZWJvZHk6aHVudGVyMg==")];
        world.enter(|| push(self.address, name, image, &auth))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pushes `name:tag` to a registry reachable from this thread; the digest of the
/// manifest or index.
pub fn push(
    address: SocketAddr,
    name: &str,
    image: &Image,
    headers: &[(&str, &str)],
) -> Result<String> {
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    for blob in &image.blobs {
        push_blob(address, repository, blob, headers)?;
    }
    for manifest in &image.manifests {
        push_manifest(address, repository, &manifest.digest, manifest, headers)?;
    }
    push_manifest(address, repository, tag, &image.top, headers)?;
    Ok(image.top.digest.clone())
}

fn push_blob(
    address: SocketAddr,
    repository: &str,
    blob: &Blob,
    headers: &[(&str, &str)],
) -> Result<()> {
    let uploads = format!("/v2/{repository}/blobs/uploads/");
    let begun = http::request(address, "POST", &uploads, headers, &[])?;
    ensure!(begun.status == 202, "begin upload: {}", begun.text());
    let location = begun
        .header("location")
        .context("the registry named no upload location")?;
    // Absolute or relative: only path and query matter, the server is known.
    let target = location
        .strip_prefix(&format!("http://{address}"))
        .unwrap_or(location);
    let joint = if target.contains('?') { '&' } else { '?' };
    let target = format!("{target}{joint}digest={}", blob.digest);
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/octet-stream"));
    let done = http::request(address, "PUT", &target, &headers, &blob.bytes)?;
    ensure!(
        done.status == 201,
        "upload {}: {}",
        blob.digest,
        done.text()
    );
    Ok(())
}

fn push_manifest(
    address: SocketAddr,
    repository: &str,
    reference: &str,
    manifest: &Blob,
    headers: &[(&str, &str)],
) -> Result<()> {
    let target = format!("/v2/{repository}/manifests/{reference}");
    let mut headers = headers.to_vec();
    headers.push(("content-type", &manifest.media_type));
    let done = http::request(address, "PUT", &target, &headers, &manifest.bytes)?;
    ensure!(done.status == 201, "push {reference}: {}", done.text());
    Ok(())
}
