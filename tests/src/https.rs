//! The same minimal client over TLS, for a server that signed its own certificate.

use std::net::SocketAddr;
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

    /// Sends one request and reads the answer to its end.
    pub fn request(
        &self,
        address: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let what = || format!("{method} https://{address}{target}");
        let connection = ClientConnection::new(self.config.clone(), self.name.clone())?;
        let socket = http::connect(address).with_context(what)?;
        let mut stream = StreamOwned::new(connection, socket);
        http::exchange(&mut stream, address, method, target, headers, &[]).with_context(what)
    }
}
