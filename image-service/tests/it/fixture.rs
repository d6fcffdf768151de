//! Private stores, a private real registry, and images small enough to read.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criw_image_service::{Config, Digest, ImageService, Limits, PullRequest, Want};
use serde_json::{Value, json};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The smallest module there is.
pub(crate) const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A store in a private directory.
pub(crate) struct Home {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Home {
    pub(crate) fn new() -> Home {
        let directory = tempfile::tempdir().unwrap();
        let hosts = directory.path().join("hosts");
        fs::create_dir(&hosts).unwrap();
        let config = Config {
            root: directory.path().join("images"),
            state: directory.path().join("state"),
            hosts_dir: Some(hosts),
            compiler: None,
            compile_timeout: Duration::from_secs(20),
            compile_cgroup: Vec::new(),
            limits: Limits {
                stall_timeout: Duration::from_millis(500),
                connect_timeout: Duration::from_secs(2),
                ..Limits::default()
            },
        };
        Home { directory, config }
    }

    pub(crate) async fn open(&self) -> ImageService {
        ImageService::open(self.config.clone()).await.unwrap()
    }

    /// Waits until nothing is on disk but the empty store.
    pub(crate) async fn assert_empty(&self) {
        self.wait_for_files(0).await;
    }

    /// Waits until exactly so many blobs, layers, compiled and scratch files are there.
    pub(crate) async fn wait_for_files(&self, count: usize) {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut found = Vec::new();
            for directory in ["tmp", "blobs/sha256", "layers"] {
                found.extend(names(&self.config.root.join(directory)));
            }
            for fingerprint in names(&self.config.root.join("code")) {
                found.extend(names(&fingerprint));
            }
            if found.len() == count {
                return;
            }
            assert!(
                Instant::now() < end,
                "expected {count} files, found {found:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn names(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default()
}

pub(crate) fn request(reference: &str) -> PullRequest {
    PullRequest {
        reference: reference.to_owned(),
        auth: None,
        want: Want::Any,
    }
}

/// Debian's registry on a free loopback port with private storage.
pub(crate) struct Registry {
    child: Child,
    pub(crate) host: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, said aloud, where the machine has none.
    pub(crate) async fn start(htpasswd: Option<&str>) -> Option<Registry> {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let auth = match htpasswd {
            Some(lines) => {
                let file = directory.path().join("htpasswd");
                fs::write(&file, lines).unwrap();
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    file.display()
                )
            }
            None => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n{auth}",
            directory.path().join("data").display()
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), file.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: docker-registry is not installed (apt install docker-registry)");
            return None;
        };
        let registry = Registry {
            child,
            host,
            _directory: directory,
        };
        let end = Instant::now() + DEADLINE;
        while tokio::net::TcpStream::connect(&registry.host)
            .await
            .is_err()
        {
            assert!(Instant::now() < end, "the registry does not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(registry)
    }

    pub(crate) async fn push(&self, name: &str, tag: &str, push: &Push) -> Digest {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let with_auth =
            |request: reqwest::RequestBuilder| request.basic_auth("bob", Some("hunter2"));
        for blob in push.blobs.values() {
            let start = format!("http://{}/v2/{name}/blobs/uploads/", self.host);
            let answer = with_auth(client.post(start)).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 202);
            let location = answer.headers()["location"].to_str().unwrap().to_owned();
            let separator = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{separator}digest={}", Digest::of(blob));
            let answer = with_auth(client.put(url))
                .body(blob.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status().as_u16(), 201);
        }
        for (media_type, manifest) in &push.manifests {
            let last = std::ptr::eq(manifest, &push.manifests.last().unwrap().1);
            let target = if last {
                tag.to_owned()
            } else {
                Digest::of(manifest).to_string()
            };
            let url = format!("http://{}/v2/{name}/manifests/{target}", self.host);
            let request = client.put(url).header("content-type", media_type);
            let answer = with_auth(request)
                .body(manifest.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(
                answer.status().as_u16(),
                201,
                "{}",
                answer.text().await.unwrap()
            );
        }
        push.top()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is pushed: blobs first, then manifests, the last one under the tag.
#[derive(Default, Clone)]
pub(crate) struct Push {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) manifests: Vec<(String, Vec<u8>)>,
}

impl Push {
    pub(crate) fn top(&self) -> Digest {
        Digest::of(&self.manifests.last().unwrap().1)
    }

    pub(crate) fn descriptor(&mut self, media_type: &str, blob: Vec<u8>) -> Value {
        let digest = Digest::of(&blob);
        let value = json!({"mediaType": media_type, "digest": digest.as_str(), "size": blob.len()});
        self.blobs.insert(digest, blob);
        value
    }

    /// Adds an image; returns its config digest.
    pub(crate) fn image(&mut self, platform: &str, process: Value, layers: &[Vec<u8>]) -> Digest {
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::of(layer).to_string())
            .collect();
        let config = json!({"os": os, "architecture": architecture, "config": process,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let id = Digest::of(&config);
        let config = self.descriptor(OCI_CONFIG, config);
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.descriptor(TAR, layer.clone()))
            .collect();
        self.manifest(config, layers);
        id
    }

    pub(crate) fn manifest(&mut self, config: Value, layers: Vec<Value>) {
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.manifests.push((
            OCI_MANIFEST.to_owned(),
            serde_json::to_vec(&manifest).unwrap(),
        ));
    }

    /// An index over all manifests so far.
    pub(crate) fn index(&mut self, platforms: &[&str]) {
        let entries: Vec<Value> = self
            .manifests
            .iter()
            .zip(platforms)
            .map(|((media_type, manifest), platform)| {
                let (os, architecture) = platform.split_once('/').unwrap();
                json!({"mediaType": media_type, "digest": Digest::of(manifest).as_str(), "size": manifest.len(),
                    "platform": {"os": os, "architecture": architecture}})
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        self.manifests
            .push((media_type.to_owned(), serde_json::to_vec(&index).unwrap()));
    }
}

/// A tar archive of files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// One Wasm image of one layer.
pub(crate) fn wasm_image(module: &[u8]) -> Push {
    let mut push = Push::default();
    let layer = tar(&[("app.wasm", module), ("etc/data", b"data")]);
    push.image(
        "wasi/wasm",
        json!({"Entrypoint": ["/app.wasm"], "User": "1000:1"}),
        &[layer],
    );
    push
}
