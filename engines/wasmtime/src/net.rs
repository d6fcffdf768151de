//! What all instances of one container share to reach others: names, and TLS roots.

use std::net::IpAddr;
use std::sync::OnceLock;

use criw_engines::stdio::Output;
use tokio_rustls::TlsConnector;

use crate::resolver::{self, LookupError};
use crate::roots::{self, Sources};
use crate::world::World;

/// See the module.
pub(crate) struct Net {
    sources: Sources,
    /// Made at the first request by TLS; the text is why it could not be made.
    tls: OnceLock<Result<TlsConnector, String>>,
    stderr: Output,
}

impl Net {
    pub(crate) fn new(world: &World, stderr: Output) -> Self {
        let variable = |name| world.variable(name).map(str::to_owned);
        Self {
            sources: Sources {
                file: variable("SSL_CERT_FILE"),
                directory: variable("SSL_CERT_DIR"),
            },
            tls: OnceLock::new(),
            stderr,
        }
    }

    /// The client's side of TLS. A reason why there is none is also logged, once.
    pub(crate) fn tls(&self) -> Result<&TlsConnector, &str> {
        let made = self.tls.get_or_init(|| {
            let made = roots::connector(&self.sources);
            if let Err(text) = &made {
                self.stderr.write(format!("{text}\n").as_bytes());
            }
            made
        });
        made.as_ref().map_err(String::as_str)
    }

    /// Addresses of a name, as the container's hosts and resolv.conf say.
    pub(crate) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        resolver::lookup(name).await
    }
}
