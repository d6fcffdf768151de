//! HTTPS with a certificate that lies in the container's root, such as a mounted Secret of
//! the type `kubernetes.io/tls`.
//!
//! The files are looked at when a client comes, at most once a second, and read again when
//! they are others: the kubelet replaces all of a volume by exchanging one symbolic link. A
//! pair that does not fit together is not used; the one before stays, and the log says why.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use criw_engines::spec::TlsFiles;
use criw_engines::stdio::Output;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of one file; a Secret has at most a megabyte.
const MAX_FILE: u64 = 1 << 20;

/// What a client may choose, our preference first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// First byte of what a client of TLS sends.
const HANDSHAKE: u8 = 0x16;

/// See the module.
pub(super) struct Tls(TlsAcceptor);

/// What a client turned out to be.
pub(super) enum Client {
    /// It speaks TLS.
    Secure(Box<TlsStream<TcpStream>>),
    /// It does not know that this is HTTPS.
    Plain(TcpStream),
}

impl Tls {
    /// Reads the files. `log` is told when they are bad later on.
    pub(super) fn new(files: &TlsFiles, log: Output) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = Certificate::new(files, Arc::clone(&provider), log)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("set up TLS: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certificate));
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Client> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            return Ok(Client::Plain(stream));
        }
        let stream = self.0.accept(stream).await?;
        Ok(Client::Secure(Box::new(stream)))
    }
}

/// The files and what they held.
struct Certificate {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    log: Output,
    known: Mutex<Known>,
}

struct Known {
    pair: Arc<CertifiedKey>,
    /// Of the files that were read last, good or bad.
    stamps: [Option<Stamp>; 2],
    looked: Instant,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Certificate").field(&self.files).finish()
    }
}

impl Certificate {
    fn new(files: &TlsFiles, provider: Arc<CryptoProvider>, log: Output) -> Result<Self, String> {
        // Before they are read: who changes them meanwhile is noticed the next time.
        let stamps = stamps(files);
        let known = Known {
            pair: Arc::new(read(files, &provider)?),
            stamps,
            looked: Instant::now(),
        };
        Ok(Self {
            files: files.clone(),
            provider,
            log,
            known: Mutex::new(known),
        })
    }

    /// The pair of now.
    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(known.looked) >= LOOK {
            known.looked = now;
            let stamps = stamps(&self.files);
            if stamps != known.stamps {
                known.stamps = stamps;
                match read(&self.files, &self.provider) {
                    Ok(pair) => known.pair = Arc::new(pair),
                    Err(error) => {
                        let line = format!("the certificate from before stays in use: {error}\n");
                        self.log.write(line.as_bytes());
                    }
                }
            }
        }
        Arc::clone(&known.pair)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

/// Tells a file from the one that was there before: device, inode, time of change, size.
type Stamp = (u64, u64, i64, i64, u64);

fn stamps(files: &TlsFiles) -> [Option<Stamp>; 2] {
    [&files.certificate, &files.key].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((
            file.dev(),
            file.ino(),
            file.ctime(),
            file.ctime_nsec(),
            file.len(),
        ))
    })
}

fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let TlsFiles { certificate, key } = files;
    let failed = |path: &Path, error: String| {
        format!(
            "serve HTTPS: {}: {error} (annotation criw.dev/http-tls)",
            path.display()
        )
    };
    let chain = read_file(certificate)
        .and_then(|pem| {
            CertificateDer::pem_slice_iter(&pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| format!("read certificates in PEM: {error}"))
        })
        .map_err(|error| failed(certificate, error))?;
    if chain.is_empty() {
        let text = "it has no certificate in PEM (BEGIN CERTIFICATE)".to_owned();
        return Err(failed(certificate, text));
    }
    let secret = read_file(key)
        .and_then(|pem| {
            PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
                rustls::pki_types::pem::Error::NoItemsFound => {
                    "it has no private key in PEM (BEGIN PRIVATE KEY)".to_owned()
                }
                error => format!("read a private key in PEM: {error}"),
            })
        })
        .map_err(|error| failed(key, error))?;
    CertifiedKey::from_der(chain, secret, provider).map_err(|error| {
        let text = match error {
            rustls::Error::InconsistentKeys(_) => format!(
                "this key does not belong to the certificate in {}",
                certificate.display()
            ),
            error => format!("use it with {}: {error}", certificate.display()),
        };
        failed(key, text)
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| {
        match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the container's user may not read it; see the volume's defaultMode and the pod's fsGroup"
                .to_owned()
        }
        _ => error.to_string(),
    }
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    Ok(bytes)
}
