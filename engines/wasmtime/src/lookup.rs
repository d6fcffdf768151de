//! `wasi:sockets/ip-name-lookup` 0.2 and 0.3 on our own resolver.
//!
//! wasmtime-wasi's type of an address stream of 0.2 cannot be made outside of it. It only
//! names a handle, so ours lies in the table under the same number.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::Result;
use wasmtime::component::{Accessor, HasData, Resource};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{
    Host, HostResolveAddressStream, ResolveAddressStream,
};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, SocketError, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as lookup_3, types as types_3};
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi::sockets::WasiSocketsCtxView;

use crate::net::Net;
use crate::resolver::LookupError;

/// The host of one call.
pub(crate) struct LookupView<'a> {
    sockets: WasiSocketsCtxView<'a>,
    net: Arc<Net>,
}

impl<'a> LookupView<'a> {
    pub(crate) fn new(sockets: WasiSocketsCtxView<'a>, net: Arc<Net>) -> Self {
        Self { sockets, net }
    }
}

type Found = std::result::Result<std::vec::IntoIter<IpAddr>, LookupError>;

/// A lookup under way, or its addresses.
enum Addresses {
    Pending(AbortOnDropJoinHandle<std::result::Result<Vec<IpAddr>, LookupError>>),
    Ready(Found),
}

impl Addresses {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<&mut Found> {
        if let Self::Pending(handle) = self {
            let Poll::Ready(found) = Pin::new(handle).poll(context) else {
                return Poll::Pending;
            };
            *self = Self::Ready(found.map(Vec::into_iter));
        }
        match self {
            Self::Ready(found) => Poll::Ready(found),
            Self::Pending(_) => Poll::Pending,
        }
    }
}

#[async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll(context).map(|_| ())).await;
    }
}

fn code(error: LookupError) -> ErrorCode {
    match error {
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::NotFound => ErrorCode::NameUnresolvable,
        LookupError::Temporary => ErrorCode::TemporaryResolverFailure,
    }
}

// Errors and the network handle are wasmtime-wasi's own.
impl network::Host for LookupView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> Result<ErrorCode> {
        self.sockets.convert_error_code(error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> Result<Option<ErrorCode>> {
        self.sockets.network_error_code(error)
    }
}

impl network::HostNetwork for LookupView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> Result<()> {
        network::HostNetwork::drop(&mut self.sockets, network)
    }
}

impl Host for LookupView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> std::result::Result<Resource<ResolveAddressStream>, SocketError> {
        // The handle is the permission.
        self.sockets.table.get(&network)?;
        let net = Arc::clone(&self.net);
        let lookup = wasmtime_wasi::runtime::spawn(async move { net.lookup(&name).await });
        let ours = self.sockets.table.push(Addresses::Pending(lookup))?;
        Ok(Resource::new_own(ours.rep()))
    }
}

impl HostResolveAddressStream for LookupView<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> std::result::Result<Option<IpAddress>, SocketError> {
        let ours: Resource<Addresses> = Resource::new_borrow(stream.rep());
        let addresses = self.sockets.table.get_mut(&ours)?;
        match addresses.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(ErrorCode::WouldBlock.into()),
            Poll::Ready(Ok(found)) => Ok(found.next().map(Into::into)),
            Poll::Ready(Err(error)) => Err(code(*error).into()),
        }
    }

    fn subscribe(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> Result<Resource<DynPollable>> {
        let ours: Resource<Addresses> = Resource::new_borrow(stream.rep());
        subscribe(self.sockets.table, ours)
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> Result<()> {
        let ours: Resource<Addresses> = Resource::new_own(stream.rep());
        self.sockets.table.delete(ours)?;
        Ok(())
    }
}

/// Names the interface's host to the linker.
pub(crate) struct Lookup;

impl HasData for Lookup {
    type Data<'a> = LookupView<'a>;
}

impl<T> lookup_3::HostWithStore<T> for Lookup {
    async fn resolve_addresses(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> Result<std::result::Result<Vec<types_3::IpAddress>, lookup_3::ErrorCode>> {
        let net = accessor.with(|mut access| Arc::clone(&access.get().net));
        let found = net.lookup(&name).await;
        Ok(found
            .map(|addresses| addresses.into_iter().map(Into::into).collect())
            .map_err(|error| match error {
                LookupError::Invalid => lookup_3::ErrorCode::InvalidArgument,
                LookupError::NotFound => lookup_3::ErrorCode::NameUnresolvable,
                LookupError::Temporary => lookup_3::ErrorCode::TemporaryResolverFailure,
            }))
    }
}

impl lookup_3::Host for LookupView<'_> {}
