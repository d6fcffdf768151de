//! TLS for outbound requests: rustls with ring, and whom a guest trusts.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` of the guest's environment, else the places
//! where distributions keep their bundle, all inside the container's root; Mozilla's
//! roots that are linked in only if none of these exists.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// Bundles of Debian and Alpine, Fedora, and others that follow OpenSSL.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Where a Secret or ConfigMap with single certificates is mounted.
const DIRECTORY: &str = "/etc/ssl/certs";

/// Bytes of one file; today's bundles have a quarter of a megabyte.
const MAX_FILE: u64 = 8 << 20;

/// Files of one directory.
const MAX_FILES: usize = 4096;

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<String>,
    pub(crate) directory: Option<String>,
}

/// The random numbers of TLS. In a static binary they may come from a device file,
/// which has to be opened while there is one.
pub(crate) fn open_randomness() -> Result<(), String> {
    let mut bytes = [0; 1];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|error| format!("get random numbers: {error:?}"))
}

/// A client's side of TLS that trusts these.
pub(crate) fn connector(sources: &Sources) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("set up TLS: {error}"))?
        .with_root_certificates(store(sources)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn store(sources: &Sources) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(file) = &sources.file {
        // Asked for by name: it must be there.
        add_file(&mut store, Path::new(file))
            .map_err(|error| format!("trust SSL_CERT_FILE {file}: {error}"))?;
        places.push(file.into());
    }
    if let Some(directory) = &sources.directory {
        // As OpenSSL reads it: a list like PATH.
        for directory in directory.split(':').filter(|part| !part.is_empty()) {
            add_directory(&mut store, Path::new(directory))
                .map_err(|error| format!("trust SSL_CERT_DIR {directory}: {error}"))?;
            places.push(directory.into());
        }
    }
    if places.is_empty() {
        if let Some(bundle) = BUNDLES.iter().map(Path::new).find(|path| path.exists()) {
            add_file(&mut store, bundle)
                .map_err(|error| format!("trust {}: {error}", bundle.display()))?;
            places.push(bundle.to_owned());
        } else if Path::new(DIRECTORY).is_dir() {
            add_directory(&mut store, Path::new(DIRECTORY))
                .map_err(|error| format!("trust {DIRECTORY}: {error}"))?;
            // An empty directory is in many images, and says nothing.
            if !store.is_empty() {
                places.push(DIRECTORY.into());
            }
        }
    }
    if places.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else if store.is_empty() {
        let places: Vec<_> = places
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(format!(
            "trust {}: there is no certificate in it; put PEM certificates there",
            places.join(" and ")
        ));
    }
    Ok(store)
}

fn add_directory(store: &mut RootCertStore, directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)?.take(MAX_FILES) {
        // One file that is no certificate spoils no other.
        let _ = add_file(store, &entry?.path());
    }
    Ok(())
}

fn add_file(store: &mut RootCertStore, path: &Path) -> std::io::Result<()> {
    // The image may have put a pipe there: opening must not wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    // Unknown algorithms and expired roots are in every bundle.
    let certificates = CertificateDer::pem_slice_iter(&text).flatten();
    store.add_parsable_certificates(certificates);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_must_hold_certificates() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("empty"), "no certificate\n").unwrap();
        std::fs::create_dir(path("none")).unwrap();
        for (file, folder, part) in [
            (Some("missing"), None, "SSL_CERT_FILE"),
            (Some("none"), None, "not a regular file"),
            (Some("empty"), None, "no certificate"),
            (None, Some("missing"), "SSL_CERT_DIR"),
            (None, Some("none"), "no certificate"),
        ] {
            let sources = Sources {
                file: file.map(path),
                directory: folder.map(path),
            };
            let text = store(&sources).unwrap_err();
            assert!(text.contains(part), "{text}");
        }
    }
}
