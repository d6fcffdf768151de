//! Traffic counters of a pod's interfaces.

use std::os::fd::BorrowedFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::error::NetError;
use crate::netlink::Socket;
use crate::netns;

/// Traffic of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads the counters of every interface of a namespace, `lo` included.
/// Blocks for a thread start and one netlink dump.
pub fn interface_counters(netns: BorrowedFd<'_>) -> Result<Vec<InterfaceCounters>, NetError> {
    netns::visit(netns, || {
        let links = Socket::route()?.dump(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            "read the interface counters",
        )?;
        Ok(links.into_iter().filter_map(counters).collect())
    })
}

fn counters(message: RouteNetlinkMessage) -> Option<InterfaceCounters> {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return None;
    };
    let mut found = InterfaceCounters::default();
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Stats64(s) => {
                found = InterfaceCounters {
                    name: found.name,
                    rx_bytes: s.rx_bytes,
                    rx_packets: s.rx_packets,
                    rx_errors: s.rx_errors,
                    rx_dropped: s.rx_dropped,
                    tx_bytes: s.tx_bytes,
                    tx_packets: s.tx_packets,
                    tx_errors: s.tx_errors,
                    tx_dropped: s.tx_dropped,
                }
            }
            _ => {}
        }
    }
    Some(found)
}
