//! The nft table: masquerade for pods, and maps that send host ports to pods.
//!
//! The table is made by the `nft` tool once per start of the daemon; what comes
//! and goes with pods are map elements, written by netlink in one transaction
//! per pod (an exec of `nft` costs 5 to 10 ms, an element 67 us).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};

use crate::error::NetError;
use crate::exec::{self, Program, RunError};
use crate::netlink::{Batch, Socket};
use crate::pod::PortMapping;
use crate::subnet::Subnet;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Ports of all addresses of the host; ports of one; pods that may meet themselves.
const PORTS: &str = "ports";
const PORTS_AT: &str = "ports_at";
const HAIRPIN: &str = "hairpin";

/// Makes or renews the table in one transaction; elements stay.
///
/// `link_prefix` names the host ends: a pod could otherwise reach services on
/// the host's loopback, which `route_localnet` opens for host ports.
pub(crate) fn script(table: &str, subnets: &[Subnet], link_prefix: &str) -> String {
    let subnets = subnets
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        r#"table ip {table} {{
  map {PORTS} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map {PORTS_AT} {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  set {HAIRPIN} {{ type ipv4_addr . ipv4_addr; }}
  chain shield {{ type filter hook prerouting priority raw; policy accept; }}
  chain arriving {{ type nat hook prerouting priority dstnat; policy accept; }}
  chain local {{ type nat hook output priority -100; policy accept; }}
  chain leaving {{ type nat hook postrouting priority srcnat; policy accept; }}
  chain publish {{ }}
}}
flush chain ip {table} shield
flush chain ip {table} arriving
flush chain ip {table} local
flush chain ip {table} leaving
flush chain ip {table} publish
table ip {table} {{
  chain shield {{
    iifname "{link_prefix}*" ip daddr 127.0.0.0/8 drop
  }}
  chain arriving {{
    fib daddr type local jump publish
  }}
  chain local {{
    fib daddr type local jump publish
  }}
  chain publish {{
    dnat ip to ip daddr . meta l4proto . th dport map @{PORTS_AT}
    dnat ip to meta l4proto . th dport map @{PORTS}
  }}
  chain leaving {{
    ip saddr . ip daddr @{HAIRPIN} masquerade
    ip saddr 127.0.0.0/8 ip daddr {{ {subnets} }} masquerade
    ip saddr {{ {subnets} }} ip daddr != {{ {subnets}, 224.0.0.0/4 }} masquerade
  }}
}}
"#
    )
}

/// Feeds a script to `nft`; all of it takes effect or nothing.
pub(crate) async fn apply(script: String, action: &str) -> Result<(), NetError> {
    let fail = |output: String| NetError::Tool {
        tool: "nft",
        action: action.to_owned(),
        output,
    };
    let path = find().ok_or_else(|| fail("it is not installed: install nftables".into()))?;
    let program = Program {
        path: &path,
        args: &["-f", "-"],
        env: Vec::new(),
        stdin: script.into_bytes(),
        timeout: TIMEOUT,
    };
    match exec::run(program).await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(fail(format!(
            "{}: {}",
            exec::describe(output.status),
            output.stderr.trim()
        ))),
        Err(RunError::Spawn(error)) => Err(fail(error.to_string())),
        Err(RunError::TimedOut { .. }) => {
            Err(fail(format!("still running after {} s", TIMEOUT.as_secs())))
        }
        Err(RunError::TooMuchOutput { stderr }) => Err(fail(stderr)),
    }
}

/// Where the tool is, if it is installed.
pub(crate) fn find() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(|d| Path::new(d).to_owned()))
        .map(|dir| dir.join("nft"))
        .find(|file| file.is_file())
}

/// One element with the set that it belongs to.
#[derive(Debug, PartialEq, Eq)]
struct Element {
    set: &'static str,
    key: Vec<u8>,
    data: Option<Vec<u8>>,
    /// Index of the port mapping, for messages.
    port: Option<usize>,
}

/// Host addresses are IPv4 here; a mapping to an IPv6 address of the host does
/// not concern this table.
fn elements(ip: Ipv4Addr, ports: &[PortMapping]) -> Vec<Element> {
    let mut all: Vec<Element> = ports
        .iter()
        .enumerate()
        .filter_map(|(i, port)| element(ip, port, i))
        .collect();
    if !all.is_empty() {
        let key = [ip.octets(), ip.octets()].concat();
        all.push(Element {
            set: HAIRPIN,
            key,
            data: None,
            port: None,
        });
    }
    all
}

fn element(ip: Ipv4Addr, port: &PortMapping, index: usize) -> Option<Element> {
    // Each part of a concatenation is padded to four bytes.
    let mut key = match port.host_ip {
        None => Vec::new(),
        Some(IpAddr::V4(at)) if at.is_unspecified() => Vec::new(),
        Some(IpAddr::V4(at)) => at.octets().to_vec(),
        Some(IpAddr::V6(at)) if at.is_unspecified() => Vec::new(),
        Some(IpAddr::V6(_)) => return None,
    };
    let set = if key.is_empty() { PORTS } else { PORTS_AT };
    let [high, low] = port.host_port.to_be_bytes();
    key.extend([port.protocol.number(), 0, 0, 0, high, low, 0, 0]);
    let [high, low] = port.container_port.to_be_bytes();
    let data = [ip.octets(), [high, low, 0, 0]].concat();
    Some(Element {
        set,
        key,
        data: Some(data),
        port: Some(index),
    })
}

/// Why ports could not be published.
pub(crate) enum PublishError {
    /// The mapping with this index is another pod's.
    Taken(usize),
    /// Somebody removed the table since it was made.
    NoTable,
    Failed(NetError),
}

/// Sends the pod's host ports to it: all of them or none.
pub(crate) fn publish(
    table: &str,
    ip: Ipv4Addr,
    ports: &[PortMapping],
) -> Result<(), PublishError> {
    let elements = elements(ip, ports);
    if elements.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    begin(&mut batch);
    for element in &elements {
        change(
            &mut batch,
            Change::Add {
                exclusive: element.data.is_some(),
            },
            table,
            element,
        );
    }
    end(&mut batch);
    let socket = Socket::netfilter().map_err(PublishError::Failed)?;
    socket.run(&batch).map_err(|refused| {
        match (
            refused.error.raw_os_error(),
            element_of(&elements, refused.index),
        ) {
            (Some(libc::EEXIST | libc::EBUSY), Some(port)) => PublishError::Taken(port),
            (Some(libc::ENOENT), _) => PublishError::NoTable,
            _ => PublishError::Failed(refused.into()),
        }
    })
}

/// The begin message is the first of a batch.
fn element_of(elements: &[Element], index: usize) -> Option<usize> {
    elements.get(index.checked_sub(1)?)?.port
}

/// Takes the pod's host ports back; what is gone already is fine.
pub(crate) fn withdraw(table: &str, ip: Ipv4Addr, ports: &[PortMapping]) -> Result<(), NetError> {
    let elements = elements(ip, ports);
    if elements.is_empty() {
        return Ok(());
    }
    let socket = Socket::netfilter()?;
    for element in elements {
        // One transaction each: a missing element fails its whole transaction.
        let mut batch = Batch::default();
        begin(&mut batch);
        change(&mut batch, Change::Delete, table, &element);
        end(&mut batch);
        match socket.run(&batch) {
            Err(refused) if refused.error.raw_os_error() != Some(libc::ENOENT) => {
                return Err(refused.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the maps hold exactly these pods' ports, in one transaction.
pub(crate) fn replace<'a>(
    table: &str,
    pods: impl Iterator<Item = (Ipv4Addr, &'a [PortMapping])>,
) -> Result<(), NetError> {
    let mut batch = Batch::default();
    begin(&mut batch);
    for set in [PORTS, PORTS_AT, HAIRPIN] {
        let flush = Element {
            set,
            key: Vec::new(),
            data: None,
            port: None,
        };
        change(&mut batch, Change::Delete, table, &flush);
    }
    for (ip, ports) in pods {
        for element in elements(ip, ports) {
            change(
                &mut batch,
                Change::Add { exclusive: false },
                table,
                &element,
            );
        }
    }
    end(&mut batch);
    Ok(Socket::netfilter()?.run(&batch)?)
}

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h.
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

enum Change {
    Add { exclusive: bool },
    Delete,
}

fn begin(batch: &mut Batch) {
    batch.raw(
        BATCH_BEGIN,
        0,
        &header(NFPROTO_UNSPEC, SUBSYSTEM),
        "begin an nft transaction",
    );
}

fn end(batch: &mut Batch) {
    batch.raw(
        BATCH_END,
        0,
        &header(NFPROTO_UNSPEC, SUBSYSTEM),
        "end an nft transaction",
    );
}

fn change(batch: &mut Batch, change: Change, table: &str, element: &Element) {
    let mut body = [
        header(NFPROTO_IPV4, 0).to_vec(),
        attribute(LIST_TABLE, &text(table)),
        attribute(LIST_SET, &text(element.set)),
    ]
    .concat();
    // Without elements the kernel takes a removal as "all of them".
    if !element.key.is_empty() {
        let mut inner = attribute(ELEMENT_KEY | NESTED, &attribute(DATA_VALUE, &element.key));
        if let (Change::Add { .. }, Some(data)) = (&change, &element.data) {
            inner.extend(attribute(
                ELEMENT_DATA | NESTED,
                &attribute(DATA_VALUE, data),
            ));
        }
        body.extend(attribute(
            LIST_ELEMENTS | NESTED,
            &attribute(LIST_ELEMENT | NESTED, &inner),
        ));
    }
    // Refusals always come back; asking for an answer to each of thousands of
    // restored elements would overflow the socket's buffer.
    let (kind, flags, verb) = match change {
        Change::Add { exclusive: true } => (
            NEW_ELEMENT,
            NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
            "add an element to",
        ),
        Change::Add { exclusive: false } => (NEW_ELEMENT, NLM_F_CREATE, "add an element to"),
        Change::Delete => (DELETE_ELEMENT, NLM_F_ACK, "remove an element from"),
    };
    batch.raw(
        kind,
        flags,
        &body,
        format!("{verb} nft set {table} {}", element.set),
    );
}

fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("names and elements are a few dozen bytes");
    let mut whole = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    whole.resize(whole.len().next_multiple_of(4), 0);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Protocol;

    #[test]
    fn ports_become_elements() {
        let ip = Ipv4Addr::new(10, 88, 0, 2);
        let port = |host_ip: Option<&str>| PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: host_ip.map(|a| a.parse().unwrap()),
        };
        let data = vec![10, 88, 0, 2, 0, 80, 0, 0];
        for (host_ip, want) in [
            (None, Some((PORTS, vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0]))),
            (
                Some("0.0.0.0"),
                Some((PORTS, vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0])),
            ),
            (
                Some("::"),
                Some((PORTS, vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0])),
            ),
            (
                Some("127.0.0.1"),
                Some((PORTS_AT, vec![127, 0, 0, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0])),
            ),
            (Some("fd00::1"), None),
        ] {
            let got = element(ip, &port(host_ip), 3);
            let want = want.map(|(set, key)| Element {
                set,
                key,
                data: Some(data.clone()),
                port: Some(3),
            });
            assert_eq!(got, want, "{host_ip:?}");
        }
        assert_eq!(elements(ip, &[]), []);
        assert_eq!(elements(ip, &[port(None)])[1].set, HAIRPIN);
    }
}
