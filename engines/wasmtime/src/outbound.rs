//! Outbound `wasi:http`: a request of the guest goes from the pod's network, by
//! HTTP/1.1 on a connection of its own, names resolved by [`crate::resolver`].

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::net::Net;
use crate::resolver::LookupError;

/// What a guest that sets no time-out waits for each step.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bytes of a response's head.
const MAX_HEAD: usize = 128 << 10;

type Finished = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Finished), Error>;

/// The seam to wasmtime-wasi-http.
pub(crate) struct Hooks {
    net: Arc<Net>,
}

impl Hooks {
    pub(crate) fn new(net: Arc<Net>) -> Self {
        Self { net }
    }

    pub(crate) fn net(&self) -> Arc<Net> {
        Arc::clone(&self.net)
    }
}

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Finished,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let net = self.net();
        Box::new(async move { send(&net, request, options.unwrap_or_default()).await })
    }
}

async fn send(net: &Net, mut request: Request<WasiBody>, options: RequestOptions) -> Sent {
    let secure = request.uri().scheme() == Some(&Scheme::HTTPS);
    let authority = request
        .uri()
        .authority()
        .cloned()
        .ok_or(Error::HttpRequestUriInvalid)?;
    let path = request.uri().path_and_query().cloned();
    // The server's name stands in the Host header; the request line has the path only.
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    let connect = connect(net, &authority, secure);
    let (mut sender, connection) = timeout(options.connect_timeout.unwrap_or(PATIENCE), connect)
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    let mut connection = Some(connection);
    let answer = {
        let first_byte = options.first_byte_timeout.unwrap_or(PATIENCE);
        let mut send = pin!(timeout(first_byte, sender.send_request(request)));
        // The connection moves only while somebody polls it.
        std::future::poll_fn(|context| {
            if let Poll::Ready(answer) = send.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            if let Some(driven) = connection.as_mut()
                && driven.as_mut().poll(context).is_ready()
            {
                connection = None;
                return send.as_mut().poll(context);
            }
            Poll::Pending
        })
        .await
    };
    let response = answer
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(Error::Hyper)?;
    let between = options
        .between_bytes_timeout
        .unwrap_or(PATIENCE)
        .max(Duration::from_millis(1));
    let response = response.map(|body| Paced::new(body, between).boxed_unsync());
    let finished = async move {
        match connection {
            Some(connection) => connection.await.map_err(Error::Hyper),
            None => Ok(()),
        }
    };
    Ok((response, Box::new(finished)))
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;
type Opened = Result<(http1::SendRequest<WasiBody>, Connection), Error>;

async fn connect(net: &Net, authority: &Authority, secure: bool) -> Opened {
    let port = authority
        .port_u16()
        .unwrap_or(if secure { 443 } else { 80 });
    let host = authority.host();
    let stream = reach(net, host, port).await?;
    // A request is written in one piece.
    let _ = stream.set_nodelay(true);
    if !secure {
        return handshake(stream).await;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let tls = net.tls().map_err(|_| Error::ConfigurationError)?;
    let stream = tls
        .connect(name, stream)
        .await
        .map_err(|error| tls_error(&error))?;
    handshake(stream).await
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Opened {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Error::Hyper)?;
    Ok((sender, Box::pin(connection)))
}

/// The first address that answers.
async fn reach(net: &Net, host: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses = net.lookup(host).await.map_err(|error| match error {
        LookupError::Invalid => Error::HttpRequestUriInvalid,
        LookupError::NotFound => Error::DnsError {
            rcode: Some("NXDOMAIN".to_owned()),
            info_code: None,
        },
        LookupError::Temporary => Error::DnsTimeout,
    })?;
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = connect_error(&error),
        }
    }
    Err(last)
}

fn connect_error(error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        ErrorKind::TimedOut => Error::ConnectionTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Error::DestinationIpUnroutable
        }
        ErrorKind::PermissionDenied => Error::DestinationIpProhibited,
        _ => Error::DestinationUnavailable,
    }
}

fn tls_error(error: &std::io::Error) -> Error {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        Some(_) => Error::TlsProtocolError,
        None => Error::ConnectionTerminated,
    }
}

/// A body whose pieces may not be too far apart. Time counts only while somebody waits.
struct Paced {
    body: Incoming,
    between: Duration,
    due: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(body: Incoming, between: Duration) -> Self {
        Self {
            body,
            between,
            due: None,
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.due = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)));
        }
        let between = self.between;
        let due = self
            .due
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(between)));
        due.as_mut()
            .poll(context)
            .map(|()| Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
