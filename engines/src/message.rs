//! One message = one datagram of a `SOCK_SEQPACKET` socket, descriptors beside it.
//! Both directions are bounded; what does not fit is refused, never cut.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::protocol::{MAX_FDS, MAX_MESSAGE};

/// Sends one message with its descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "message of {} bytes with {} descriptors is over the limit of {MAX_MESSAGE} bytes and {MAX_FDS} descriptors",
                bytes.len(),
                fds.len()
            ),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("descriptors do not fit into the message"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    if sent != bytes.len() {
        return Err(io::Error::other("the kernel cut a datagram"));
    }
    Ok(())
}

/// Receives one message; an empty one means that the peer closed. Received
/// descriptors are close-on-exec. A message that was cut is an `InvalidData`
/// error (its descriptors are closed).
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // One byte more than allowed, so that an oversized message is seen as such.
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes > MAX_MESSAGE
        || received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message over the limit of {MAX_MESSAGE} bytes or {MAX_FDS} descriptors"),
        ));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (left, right) = pair();
        let files: Vec<_> = (0..MAX_FDS)
            .map(|n| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(n as u64).unwrap();
                file
            })
            .collect();
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        send(left.as_fd(), b"hello", &fds).unwrap();
        let (bytes, received) = receive(right.as_fd()).unwrap();
        assert_eq!(bytes, b"hello");
        assert_eq!(received.len(), MAX_FDS);
        for (n, fd) in received.iter().enumerate() {
            assert_eq!(rustix::fs::fstat(fd).unwrap().st_size, n as i64);
            assert!(
                rustix::io::fcntl_getfd(fd)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
        }
    }

    #[test]
    fn limits_hold_on_both_sides() {
        let (left, right) = pair();
        send(left.as_fd(), &vec![b'x'; MAX_MESSAGE], &[]).unwrap();
        assert_eq!(receive(right.as_fd()).unwrap().0.len(), MAX_MESSAGE);
        let error = send(left.as_fd(), &vec![b'x'; MAX_MESSAGE + 1], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        rustix::net::send(&left, &vec![b'x'; MAX_MESSAGE + 7], SendFlags::empty()).unwrap();
        let error = receive(right.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_closed_peer_is_an_empty_message() {
        let (left, right) = pair();
        drop(left);
        assert!(receive(right.as_fd()).unwrap().0.is_empty());
    }
}
