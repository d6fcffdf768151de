//! A request becomes an instance, an instance gives a response.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use criw_engines::engine::Outcome;
use criw_engines::facts::RequestEnd;
use criw_engines::stdio::Output;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wasmtime::{Engine, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::connection::Active;
use super::exchange::{Exchange, Failure, Patience, RequestBody, ResponseBody, from_guest};
use super::instances::{Bound, Instance, Instances};
use super::settings::Settings;
use super::ticker::Ticker;
use super::tls::Tls;
use super::{Linked, service};
use crate::failure;
use crate::host::State;
use crate::limits::MemoryLimit;
use crate::net::Net;
use crate::services::Services;
use crate::world::World;

/// How long a request waits for a place inside the guest.
const QUEUE_LIMIT: Duration = Duration::from_secs(5);

/// Requests that wait, for each place.
const QUEUE_FACTOR: usize = 8;

/// What all requests share.
pub(crate) struct Server {
    pub(super) engine: Engine,
    pub(super) linked: Linked,
    pub(super) world: World,
    pub(super) root: WasiFilesystemCtx,
    pub(super) outputs: (Output, Output),
    pub(super) net: Arc<Net>,
    pub(super) services: Arc<Services>,
    pub(super) memory: MemoryLimit,
    /// Of each request.
    pub(super) fuel: Option<u64>,
    pub(super) settings: Settings,
    pub(super) admission: Admission,
    pub(super) instances: Arc<Instances>,
    pub(super) ticker: Ticker,
    /// HTTPS, if that is asked for.
    pub(super) tls: Option<Tls>,
}

/// Who may come in.
pub(crate) struct Admission {
    pub(super) connections: Arc<Semaphore>,
    instances: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    next: AtomicU64,
}

impl Admission {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            instances: Arc::new(Semaphore::new(settings.max_requests)),
            waiting: AtomicUsize::new(0),
            max_waiting: settings.max_requests.saturating_mul(QUEUE_FACTOR),
            next: AtomicU64::new(0),
        }
    }

    /// A place inside the guest, if one is free soon.
    async fn instance(&self) -> Option<OwnedSemaphorePermit> {
        let instances = Arc::clone(&self.instances);
        if let Ok(permit) = Arc::clone(&instances).try_acquire_owned() {
            return Some(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // Dropped with the connection that waits.
        let _waits = Waits(&self.waiting);
        tokio::time::timeout(QUEUE_LIMIT, instances.acquire_owned())
            .await
            .ok()?
            .ok()
    }

    /// Requests inside the guest.
    pub(super) fn running(&self, settings: &Settings) -> usize {
        settings.max_requests - self.instances.available_permits()
    }

    /// Waits until every connection is closed and every instance gone.
    pub(super) async fn all_done(&self, settings: &Settings) {
        for (semaphore, all) in [
            (&self.connections, settings.max_connections),
            (&self.instances, settings.max_requests),
        ] {
            // The number was given to the semaphore, so it fits.
            let all = u32::try_from(all).unwrap_or(u32::MAX);
            let _ = semaphore.acquire_many(all).await;
        }
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) type Head = oneshot::Sender<Result<Response<HyperOutgoingBody>, ErrorCode>>;

impl Server {
    /// Whether the component can be instantiated at all.
    pub(super) async fn try_instance(&self) -> Result<(), Outcome> {
        let mut first = self.fresh(0).map_err(Outcome::start_error)?;
        let _busy = self.ticker.enter(&self.engine);
        let limit = self.settings.timeout;
        let made = async { first.guest(&self.linked).await.map(drop) };
        match tokio::time::timeout(limit, made).await {
            Ok(Ok(())) => {
                self.instances.put(first);
                Ok(())
            }
            Ok(Err(error)) => Err(failure::while_starting(&error)),
            Err(_) => Err(Outcome::start_error(format!(
                "instantiate: not done within {limit:?}"
            ))),
        }
    }

    /// For the request `id`: one that has served others, or a new one.
    fn instance(&self, id: u64) -> Result<Instance, String> {
        let mut instance = match self.instances.take() {
            Some(mut instance) => {
                // The epoch has moved on, and fuel is for each request.
                instance.store.set_epoch_deadline(1);
                failure::refuel(&mut instance.store, self.fuel)?;
                instance
            }
            None => self.fresh(id)?,
        };
        instance.begin();
        Ok(instance)
    }

    fn fresh(&self, id: u64) -> Result<Instance, String> {
        let store = self.store(id)?;
        Ok(Instance::new(store, self.memory.facts().instance()))
    }

    fn store(&self, id: u64) -> Result<Store<State>, String> {
        let (stdout, stderr) = self.outputs.clone();
        let wasi = self.world.for_request(id, stdout, stderr, &self.root);
        let state = State::new(
            wasi,
            Arc::clone(&self.net),
            Arc::clone(&self.services),
            self.memory.share(),
        );
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        failure::refuel(&mut store, self.fuel)?;
        Ok(store)
    }

    /// One request, from its head to the response's head. Never fails.
    pub(super) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        active: Active,
    ) -> Response<ResponseBody> {
        if let Some((status, text)) = refuse(&request, self.settings.max_body) {
            return plain(status, text);
        }
        let facts = self.memory.facts();
        let Some(permit) = self.admission.instance().await else {
            facts.request(RequestEnd::Refused);
            return unavailable();
        };
        let id = self.admission.next.fetch_add(1, Ordering::Relaxed);
        let exchange = Arc::new(Exchange::new());
        let (sender, receiver) = oneshot::channel();
        let call = Call {
            server: Arc::clone(self),
            id,
            method: request.method().clone(),
            uri: request.uri().clone(),
            exchange: Arc::clone(&exchange),
        };
        let guest = Guest(Some(Box::pin(async move {
            call.run(request, sender).await;
            drop(permit);
        })));
        match guest.head(receiver).await {
            // It failed right behind its head, of which nothing is sent yet.
            Ok(Ok(_)) if exchange.failure().is_some() => self.failed(&exchange),
            Ok(Ok(response)) => {
                exchange.begin_response();
                facts.request(RequestEnd::Answered);
                response.map(|body| from_guest(body, exchange, active))
            }
            Ok(Err(code)) => {
                self.log(&format!(
                    "request {id}: the guest answered with the error {code:?}"
                ));
                self.failed(&exchange)
            }
            Err(_) => self.failed(&exchange),
        }
    }

    /// What the client is told of a request without a response.
    fn failed(&self, exchange: &Exchange) -> Response<ResponseBody> {
        const ERROR: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;
        let (end, status, text) = match exchange.failure() {
            Some(Failure::Time) => (
                RequestEnd::TimedOut,
                StatusCode::GATEWAY_TIMEOUT,
                "the guest did not answer in time\n",
            ),
            Some(Failure::Fuel) => (RequestEnd::OutOfFuel, ERROR, "the guest used up its fuel\n"),
            Some(Failure::Guest) | None => (RequestEnd::Failed, ERROR, "the guest failed\n"),
        };
        self.memory.facts().request(end);
        plain(status, text)
    }

    fn scheme(&self) -> Scheme {
        match self.tls {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        }
    }

    /// A line where `kubectl logs` shows it.
    pub(super) fn log(&self, line: &str) {
        self.outputs
            .1
            .write(format!("{}\n", line.trim_end()).as_bytes());
    }
}

type Answer = Result<Result<Response<HyperOutgoingBody>, ErrorCode>, oneshot::error::RecvError>;

/// A guest at work. Its connection's task runs it until the response begins, which for a
/// short request is all there is; from then on, and when the client has left, it is a task
/// of its own, so that nothing stops it half-way.
struct Guest(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Guest {
    async fn head(
        mut self,
        mut receiver: oneshot::Receiver<Result<Response<HyperOutgoingBody>, ErrorCode>>,
    ) -> Answer {
        std::future::poll_fn(|context| {
            self.run(context);
            Pin::new(&mut receiver).poll(context)
        })
        .await
    }

    fn run(&mut self, context: &mut Context<'_>) {
        if let Some(guest) = &mut self.0
            && guest.as_mut().poll(context) == Poll::Ready(())
        {
            self.0 = None;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Without a runtime everything ends.
        if let (Some(guest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(guest);
        }
    }
}

/// One request inside the guest.
pub(super) struct Call {
    pub(super) server: Arc<Server>,
    id: u64,
    method: Method,
    uri: Uri,
    exchange: Arc<Exchange>,
}

impl Call {
    async fn run(self, request: Request<Incoming>, head: Head) {
        let server = &self.server;
        let mut instance = match server.instance(self.id) {
            Ok(instance) => instance,
            Err(text) => return self.log(&text),
        };
        let _busy = server.ticker.enter(&server.engine);
        let patience = Patience {
            still: server.settings.timeout,
            whole: server.settings.deadline,
        };
        let result = tokio::select! {
            // The guest first: most are done before there is anything to watch.
            biased;
            result = self.call(&mut instance, request, head) => Ok(result),
            why = self.exchange.overdue(patience) => Err(why),
        };
        match result {
            Ok(Ok(())) => return server.instances.put(instance),
            Ok(Err(error)) if failure::is_out_of_fuel(&error) => {
                self.exchange.fail(Failure::Fuel);
                self.log(&format!("{}\n{}", failure::OUT_OF_FUEL, text(&error)));
            }
            Ok(Err(error)) => {
                if let Some(trap) = error.downcast_ref() {
                    server.memory.facts().trap(failure::kind(*trap));
                }
                self.exchange.fail(Failure::Guest);
                self.log(&text(&error));
            }
            Err(why) => {
                self.exchange.fail(Failure::Time);
                self.log(&why);
            }
        }
        if self.exchange.has_begun() && self.exchange.failure().is_some() {
            server.memory.facts().request(RequestEnd::BrokenOff);
        }
        // It goes last: its end is what the client's side sees.
        drop(instance);
    }

    /// A line about this request.
    pub(super) fn log(&self, text: &str) {
        let Self { id, method, .. } = self;
        let path = self.uri.path();
        self.server
            .log(&format!("request {id} ({method} {path}): {text}"));
    }

    async fn call(
        &self,
        instance: &mut Instance,
        request: Request<Incoming>,
        head: Head,
    ) -> wasmtime::Result<()> {
        let exchange = Arc::clone(&self.exchange);
        let max = self.server.settings.max_body;
        let request = request.map(|body| RequestBody::new(body, max, exchange));
        match instance.guest(&self.server.linked).await? {
            (Bound::Proxy(guest), store) => {
                proxy(guest, store, self.server.scheme(), request, head).await
            }
            (Bound::Service(guest), store) => {
                service::answer(self, guest, store, request, head).await
            }
        }
    }
}

async fn proxy(
    guest: &Proxy,
    store: &mut Store<State>,
    scheme: Scheme,
    request: Request<RequestBody>,
    head: Head,
) -> wasmtime::Result<()> {
    let (request, out) = {
        let mut http = store.data_mut().http();
        (
            http.new_incoming_request(scheme, request)?,
            http.new_response_outparam(head)?,
        )
    };
    guest
        .wasi_http_incoming_handler()
        .call_handle(store, request, out)
        .await
}

/// An error of the guest for the log.
fn text(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => format!("the guest called exit({code})"),
        None => failure::text(error),
    }
}

/// Requests that no guest has to see.
fn refuse<B>(request: &Request<B>, max_body: Option<u64>) -> Option<(StatusCode, &'static str)> {
    if request.method() == Method::CONNECT {
        return Some((StatusCode::NOT_IMPLEMENTED, "CONNECT is not supported\n"));
    }
    let host = request.headers().get(header::HOST);
    let has_host = match (request.uri().authority(), host) {
        (Some(_), _) => true,
        (None, Some(host)) => host.to_str().is_ok_and(|host| !host.is_empty()),
        (None, None) => false,
    };
    if !has_host {
        return Some((StatusCode::BAD_REQUEST, "the request names no host\n"));
    }
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (length, max_body) {
        (Some(length), Some(max)) if length > max => Some((
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request's body is too large\n",
        )),
        _ => None,
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<ResponseBody> {
    let body = Full::new(text.into()).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn unavailable() -> Response<ResponseBody> {
    let mut response = plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many requests at the same time\n",
    );
    let soon = header::HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, soon);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_guest_has_to_see_is_refused() {
        let request = |method: Method, uri: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap()
        };
        let host = ("host", "a");
        for (request, max, expected) in [
            (request(Method::GET, "/", &[host]), None, None),
            (request(Method::GET, "http://a/", &[]), None, None),
            (request(Method::GET, "/", &[]), None, Some(400)),
            (request(Method::GET, "/", &[("host", "")]), None, Some(400)),
            (request(Method::CONNECT, "a:1", &[host]), None, Some(501)),
            (
                request(Method::POST, "/", &[host, ("content-length", "11")]),
                Some(10),
                Some(413),
            ),
            (
                request(Method::POST, "/", &[host, ("content-length", "10")]),
                Some(10),
                None,
            ),
        ] {
            let found = refuse(&request, max).map(|(status, _)| status.as_u16());
            assert_eq!(found, expected, "{request:?}");
        }
    }
}
