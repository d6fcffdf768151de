//! A request of WASI 0.3: the guest's function is async and returns its response; what it
//! began goes on until the response's body is sent and its tasks are done.

use http::header;
use http::uri::Scheme;
use http::{HeaderValue, Request};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p3::Request as GuestRequest;
use wasmtime_wasi_http::p3::bindings::Service;

use super::exchange::{RequestBody, Watched};
use super::server::{Call, Head};
use crate::host::State;

/// Never ends before the response's body does, which moves only while this is polled.
pub(super) async fn answer(
    call: &Call,
    service: &Service,
    store: &mut Store<State>,
    request: Request<RequestBody>,
    head: Head,
) -> wasmtime::Result<()> {
    let authority = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => authority(request.headers().get(header::HOST)),
    };
    let (mut request, sent) = {
        let http = store.data_mut().http();
        GuestRequest::from_http(http.hooks, request)
    };
    request.scheme = Some(match call.server.tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    });
    request.authority = authority;
    let answered = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
        let response = match service.handle(accessor, request).await? {
            Ok(response) => response,
            Err(code) => {
                // Without a head the client is told that the guest failed.
                call.log(&format!("the guest answered with the error {code:?}"));
                return Ok(());
            }
        };
        let response = accessor.with(|access| response.into_http(access, sent))?;
        let (over, is_over) = oneshot::channel();
        let response = response.map(|body| Watched::new(body, over).boxed_unsync());
        // A client that left takes no response; its body ends here and now.
        let _ = head.send(Ok(response));
        let _ = is_over.await;
        std::future::poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        Ok(())
    });
    answered.await.flatten()
}

fn authority(host: Option<&HeaderValue>) -> Option<http::uri::Authority> {
    host?.to_str().ok()?.parse().ok()
}
