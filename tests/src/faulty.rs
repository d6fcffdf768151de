//! A registry that misbehaves in one chosen way. It serves one image from memory,
//! so that faults can be put where a real registry would never have them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::image::{Blob, Image};
use crate::wait::PATIENCE;
use crate::world::World;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the good twin.
    None,
    /// Accepts connections and never answers.
    Hang,
    /// Answers everything with this status.
    Status(u16),
    /// Sends other bytes of the same length for every layer.
    WrongBytes,
    /// Closes the connection in the middle of every layer.
    Truncate,
}

/// The registry; dropped, it ends.
pub struct Faulty {
    /// Where it listens.
    pub address: SocketAddr,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Faulty {
    /// Serves `image` as `name:tag` in the network namespace of a world.
    pub fn start(world: &World, name: &str, image: &Image, fault: Fault) -> Result<Self> {
        let listener = world.enter(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let address = listener.local_addr()?;
        let store = Arc::new(Store::new(name, image, fault));
        let ending = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let ending = ending.clone();
            move || serve(&listener, &store, &ending)
        });
        Ok(Self {
            address,
            ending,
            thread: Some(thread),
        })
    }

    /// Ends it from inside the world, where its address is reachable.
    pub fn stop(mut self, world: &World) -> Result<()> {
        self.ending.store(true, Ordering::SeqCst);
        let address = self.address;
        // accept() has no time-out; a last connection wakes it.
        world.enter(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?))?;
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .ok()
                .context("the registry's thread panicked")?;
        }
        Ok(())
    }
}

struct Store {
    fault: Fault,
    manifests: HashMap<String, Blob>,
    blobs: HashMap<String, Blob>,
    layers: Vec<String>,
}

impl Store {
    fn new(name: &str, image: &Image, fault: Fault) -> Self {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let mut manifests = HashMap::new();
        for blob in image.manifests.iter().chain([&image.top]) {
            let path = format!("/v2/{repository}/manifests/{}", blob.digest);
            manifests.insert(path, blob.clone());
        }
        manifests.insert(
            format!("/v2/{repository}/manifests/{tag}"),
            image.top.clone(),
        );
        let blobs = image
            .blobs
            .iter()
            .map(|blob| {
                (
                    format!("/v2/{repository}/blobs/{}", blob.digest),
                    blob.clone(),
                )
            })
            .collect();
        let layers = image
            .blobs
            .iter()
            .filter(|blob| !blob.media_type.contains("config"))
            .map(|blob| blob.digest.clone())
            .collect();
        Self {
            fault,
            manifests,
            blobs,
            layers,
        }
    }
}

fn serve(listener: &TcpListener, store: &Store, ending: &AtomicBool) {
    // Connections of a hanging registry stay open until it ends.
    let mut held = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if ending.load(Ordering::SeqCst) {
            return;
        }
        if store.fault == Fault::Hang {
            held.push(stream);
            continue;
        }
        // A client that goes away is its own affair.
        let _ = answer(stream, store);
    }
}

fn answer(mut stream: TcpStream, store: &Store) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = first.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if let Fault::Status(status) = store.fault {
        let hint = match status {
            401 => "www-authenticate: Basic realm=\"test\"\r\n",
            429 => "retry-after: 1\r\n",
            _ => "",
        };
        let body = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"not today\"}]}";
        write!(
            stream,
            "HTTP/1.1 {status} Refused\r\n{hint}content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        return Ok(());
    }
    let found = store.manifests.get(path).or_else(|| store.blobs.get(path));
    let Some(blob) = found else {
        let status = if path == "/v2/" {
            "200 OK"
        } else {
            "404 Not Found"
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )?;
        return Ok(());
    };
    let is_layer = store.layers.contains(&blob.digest);
    let mut bytes = blob.bytes.clone();
    let length = bytes.len();
    if is_layer && store.fault == Fault::WrongBytes {
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    if is_layer && store.fault == Fault::Truncate {
        bytes.truncate(length / 2);
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ndocker-content-digest: {}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n",
        blob.media_type, blob.digest
    )?;
    if method != "HEAD" {
        stream.write_all(&bytes)?;
    }
    Ok(())
}
