//! The same minimal client over TLS, for a server that signed its own certificate.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::http::{self, Answer};

/// What makes a server trusted, and the name in its certificate.
#[derive(Debug, Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Trust {
    /// Trusts the certificates of a PEM file.
    pub fn file(path: &Path, name: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("read {}", path.display()))?;
        for certificate in certificates {
            let certificate =
                certificate.with_context(|| format!("a certificate of {}", path.display()))?;
            roots
                .add(certificate)
                .with_context(|| format!("trust {}", path.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from(name.to_owned())
                .with_context(|| format!("server name {name:?}"))?,
        })
    }

    /// A connection for what the server chooses among these protocols (ALPN). The handshake
    /// is over.
    pub fn connect(
        &self,
        address: SocketAddr,
        protocols: &[&str],
    ) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let mut connection = ClientConnection::new(Arc::new(config), self.name.clone())?;
        let mut socket = http::connect(address)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    /// Sends one request and reads the answer to its end.
    pub fn request(
        &self,
        address: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let what = || format!("{method} https://{address}{target}");
        let mut stream = self.connect(address, &[]).with_context(what)?;
        http::exchange(&mut stream, address, method, target, headers, &[]).with_context(what)
    }
}

/// A door on a loopback address of the caller's network namespace through which clients
/// without TLS reach a server: each connection is one to the server. Open while it lives.
#[derive(Debug)]
pub struct Door {
    /// Where to connect to.
    pub address: SocketAddr,
    end: tokio::sync::watch::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Door {
    /// Opens it, on a thread that is born in the caller's namespace.
    pub fn open(trust: &Trust, server: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("open a door")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (end, ended) = tokio::sync::watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (config, name) = (trust.config.clone(), trust.name.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve(listener, config, name, server, ended));
        });
        Ok(Self {
            address,
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.end.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    server: SocketAddr,
    mut ended: tokio::sync::watch::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let mut client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(_) => return,
            },
            _ = ended.changed() => return,
        };
        let (connector, name) = (connector.clone(), name.clone());
        // What fails here its client sees as a connection that ends.
        connections.spawn(async move {
            let socket = tokio::net::TcpStream::connect(server).await?;
            let mut server = connector.connect(name, socket).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}
