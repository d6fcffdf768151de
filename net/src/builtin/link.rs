//! Links, addresses and routes of the built-in network, by netlink.
//!
//! A veth pair per pod, no bridge: the pod has a /32 and a default route over
//! its gateway, the host end has the gateway's address and a /32 route to the
//! pod. Both ends answer ARP for what they own, so nothing else is needed.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::NetError;
use crate::netlink::{Batch, Socket};
use crate::subnet::Subnet;

const LOOPBACK: u32 = 1;

/// Creates the pair, pod end already inside the pod, and the host's half of
/// the configuration. The calling thread is in the host's namespace.
pub(crate) fn connect_host(
    host: &Socket,
    host_end: &str,
    pod_end: &str,
    netns: impl AsFd,
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Result<(), NetError> {
    // The kernel refuses to create the peer up (ENOTCONN): it is brought up
    // from inside.
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod_end.into()),
        LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()),
    ];
    let mut pair = up(0);
    pair.attributes = vec![
        LinkAttribute::IfName(host_end.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::NewLink(pair),
        create,
        format!("create the veth pair {host_end} and {pod_end}"),
    );
    host.run(&batch)?;
    let index = host
        .index_of(host_end)
        .map_err(|e| NetError::io(format!("look up {host_end}"), e))?;
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::NewAddress(address(index, gateway)),
        create,
        format!("give {gateway} to {host_end}"),
    );
    batch.route(
        RouteNetlinkMessage::NewRoute(route(ip, 32, index, None, None)),
        create,
        format!("route {ip} to {host_end}"),
    );
    Ok(host.run(&batch)?)
}

/// The pod's half. The calling thread is in the pod's namespace.
pub(crate) fn connect_pod(pod_end: &str, ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), NetError> {
    let pod = Socket::route()?;
    let index = pod
        .index_of(pod_end)
        .map_err(|e| NetError::io(format!("look up {pod_end} in the pod"), e))?;
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::SetLink(up(LOOPBACK)),
        0,
        "bring up lo in the pod",
    );
    batch.route(
        RouteNetlinkMessage::SetLink(up(index)),
        0,
        format!("bring up {pod_end} in the pod"),
    );
    batch.route(
        RouteNetlinkMessage::NewAddress(address(index, ip)),
        create,
        format!("give {ip} to {pod_end}"),
    );
    batch.route(
        RouteNetlinkMessage::NewRoute(route(gateway, 32, index, None, Some(ip))),
        create,
        format!("route {gateway} in the pod"),
    );
    batch.route(
        RouteNetlinkMessage::NewRoute(route(Ipv4Addr::UNSPECIFIED, 0, index, Some(gateway), None)),
        create,
        "set the pod's default route",
    );
    Ok(pod.run(&batch)?)
}

/// Brings `lo` up in the calling thread's namespace.
pub(crate) fn loopback_up() -> Result<(), NetError> {
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::SetLink(up(LOOPBACK)),
        0,
        "bring up lo in the pod",
    );
    Ok(Socket::route()?.run(&batch)?)
}

/// Takes the host's route to a pod away, so that its address may go to
/// another; no link or no route is fine.
pub(crate) fn unroute(host_end: &str, ip: Ipv4Addr) -> Result<(), NetError> {
    let host = Socket::route()?;
    // The pod's own link is named in the request: another pod's route to the
    // same address must survive a detach that is repeated late.
    let Ok(index) = host.index_of(host_end) else {
        return Ok(());
    };
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::DelRoute(route(ip, 32, index, None, None)),
        0,
        format!("remove the route of {ip} to {host_end}"),
    );
    match host.run(&batch) {
        Err(refused)
            if !matches!(
                refused.error.raw_os_error(),
                Some(libc::ESRCH | libc::ENODEV)
            ) =>
        {
            Err(refused.into())
        }
        _ => Ok(()),
    }
}

/// Names of the links that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Result<Vec<String>, NetError> {
    let links = Socket::route()?.dump(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        "list the host's links",
    )?;
    Ok(links
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.into_iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
                    _ => None,
                })
            }
            _ => None,
        })
        .collect())
}

/// Deletes a link at once; takes the kernel about 20 ms, so never on a pod's path.
pub(crate) fn delete(name: &str) -> Result<(), NetError> {
    let host = Socket::route()?;
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.into())];
    let mut batch = Batch::default();
    batch.route(
        RouteNetlinkMessage::DelLink(link),
        0,
        format!("delete link {name}"),
    );
    match host.run(&batch) {
        Err(refused) if refused.error.raw_os_error() != Some(libc::ENODEV) => Err(refused.into()),
        _ => Ok(()),
    }
}

/// Every IPv4 prefix that the host has a route for, the default route aside.
pub(crate) fn routed_prefixes() -> Result<Vec<Subnet>, NetError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let routes = Socket::route()?.dump(
        RouteNetlinkMessage::GetRoute(request),
        "list the host's routes",
    )?;
    Ok(routes
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(route) = message else {
                return None;
            };
            let prefix = route.header.destination_prefix_length;
            let to = route.attributes.into_iter().find_map(|a| match a {
                RouteAttribute::Destination(to) => Some(to),
                _ => None,
            });
            match to {
                Some(netlink_packet_route::route::RouteAddress::Inet(to)) if prefix > 0 => {
                    Some(Subnet::new(to, prefix))
                }
                _ => None,
            }
        })
        .collect())
}

fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn address(index: u32, ip: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(ip)),
        AddressAttribute::Address(IpAddr::V4(ip)),
    ];
    message
}

fn route(
    to: Ipv4Addr,
    prefix: u8,
    index: u32,
    via: Option<Ipv4Addr>,
    from: Option<Ipv4Addr>,
) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if via.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(index)];
    if prefix > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(IpAddr::V4(to).into()));
    }
    if let Some(via) = via {
        message
            .attributes
            .push(RouteAttribute::Gateway(IpAddr::V4(via).into()));
    }
    if let Some(from) = from {
        message
            .attributes
            .push(RouteAttribute::PrefSource(IpAddr::V4(from).into()));
    }
    message
}
