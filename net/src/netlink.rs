//! A netlink socket that sends several messages with one system call.
//!
//! The kernel works a batch off inside `send`, so that all answers are queued
//! when it returns: the socket never blocks and needs no deadline.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto,
    socket_with,
};

use crate::error::NetError;

const HEADER: usize = 16;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

pub(crate) struct Socket(OwnedFd);

/// Messages to be sent together, each with words for its error text.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    actions: Vec<String>,
}

/// The first message that the kernel refused.
pub(crate) struct Refused {
    pub(crate) index: usize,
    pub(crate) action: String,
    pub(crate) error: io::Error,
}

impl From<Refused> for NetError {
    fn from(refused: Refused) -> Self {
        NetError::io(refused.action, refused.error)
    }
}

impl Batch {
    /// `flags` besides REQUEST and ACK.
    pub(crate) fn route(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Into<String>,
    ) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.next_sequence();
        message.finalize();
        let start = self.bytes.len();
        self.bytes
            .resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.bytes[start..]);
        self.actions.push(action.into());
    }

    /// A message of a family that has no typed messages: the body after the header.
    pub(crate) fn raw(&mut self, kind: u16, flags: u16, body: &[u8], action: impl Into<String>) {
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        let sequence = self.next_sequence();
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.actions.push(action.into());
    }

    fn next_sequence(&self) -> u32 {
        u32::try_from(self.actions.len()).unwrap_or(u32::MAX)
    }
}

impl Socket {
    pub(crate) fn route() -> Result<Self, NetError> {
        // NETLINK_ROUTE is protocol 0, which rustix writes as none.
        Self::open(None, "route")
    }

    pub(crate) fn netfilter() -> Result<Self, NetError> {
        Self::open(Some(rustix::net::netlink::NETFILTER), "netfilter")
    }

    fn open(protocol: Option<Protocol>, name: &str) -> Result<Self, NetError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map(Self)
            .map_err(|e| NetError::io(format!("open a netlink {name} socket"), e.into()))
    }

    /// The index of a link in the socket's namespace.
    pub(crate) fn index_of(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Sends all and reads all answers.
    pub(crate) fn run(&self, batch: &Batch) -> Result<(), Refused> {
        let refused = |index: usize, error| Refused {
            index,
            action: batch.actions[index].clone(),
            error,
        };
        if batch.actions.is_empty() {
            return Ok(());
        }
        self.send(&batch.bytes).map_err(|e| refused(0, e))?;
        let mut first: Option<(usize, i32)> = None;
        let mut answered = false;
        self.answers(|kind, sequence, payload| {
            let index = sequence as usize;
            if kind == TYPE_ERROR && index < batch.actions.len() {
                answered = true;
                let code = payload.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                if code != 0 && first.is_none_or(|(i, _)| index < i) {
                    first = Some((index, -code));
                }
            }
            true
        })
        .map_err(|e| refused(0, e))?;
        match first {
            Some((index, code)) => Err(refused(index, io::Error::from_raw_os_error(code))),
            None if !answered => Err(refused(0, io::Error::other("the kernel did not answer"))),
            None => Ok(()),
        }
    }

    /// Every object that a dump request yields.
    pub(crate) fn dump(
        &self,
        request: RouteNetlinkMessage,
        action: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let fail = |e| NetError::io(action, e);
        self.send(&bytes).map_err(fail)?;
        let mut objects = Vec::new();
        let mut failed = None;
        self.answers_whole(|kind, whole| {
            match kind {
                TYPE_DONE => return false,
                TYPE_ERROR => {
                    let code = whole
                        .get(HEADER..HEADER + 4)
                        .and_then(|c| c.first_chunk())
                        .map_or(0, |c| i32::from_ne_bytes(*c));
                    failed = Some(io::Error::from_raw_os_error(-code));
                    return false;
                }
                _ => {}
            }
            // An object that the library cannot read is newer than it; the
            // others still count.
            if let Ok(NetlinkMessage {
                payload: NetlinkPayload::InnerMessage(object),
                ..
            }) = NetlinkMessage::deserialize(whole)
            {
                objects.push(object);
            }
            true
        })
        .map_err(fail)?;
        failed.map_or(Ok(objects), |e| Err(fail(e)))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // A transaction must go out whole, whatever the default buffer is.
        const ALWAYS_FITS: usize = 64 << 10;
        if bytes.len() > ALWAYS_FITS {
            rustix::net::sockopt::set_socket_send_buffer_size_force(
                &self.0,
                bytes.len().saturating_mul(2),
            )?;
        }
        sendto(
            &self.0,
            bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        Ok(())
    }

    /// `(type, sequence, payload)` of each answer until the queue is empty or
    /// the callback returns false.
    fn answers(&self, mut each: impl FnMut(u16, u32, &[u8]) -> bool) -> io::Result<()> {
        self.answers_whole(|kind, whole| {
            let sequence = whole[8..]
                .first_chunk()
                .map_or(0, |c| u32::from_ne_bytes(*c));
            each(kind, sequence, &whole[HEADER..])
        })
    }

    fn answers_whole(&self, mut each: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            let n = match recv(self.0.as_fd(), buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((n, _)) => n,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = &buffer[..n];
            while let (Some(length), Some(kind)) = (
                rest.first_chunk::<4>(),
                rest.get(4..6).and_then(|k| k.first_chunk::<2>()),
            ) {
                let length = (u32::from_ne_bytes(*length) as usize).min(rest.len());
                if length < HEADER {
                    break;
                }
                if !each(u16::from_ne_bytes(*kind), &rest[..length]) {
                    return Ok(());
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}
