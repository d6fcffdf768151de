//! A raw SPDY/3.1 client, which can also break the protocol: what crictl, a good
//! client, never does.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compress, Compression, FlushCompress};

use crate::wait::PATIENCE;

/// A connection after its upgrade.
pub struct Spdy {
    /// The socket, for what no method does.
    pub socket: TcpStream,
    deflate: Compress,
    next: u32,
    /// What came on each stream.
    pub data: HashMap<u32, Vec<u8>>,
    /// Streams that the server sends nothing more on.
    pub ended: Vec<u32>,
    /// Streams that the server gave up.
    pub reset: Vec<u32>,
    /// Streams that the server accepted.
    pub accepted: Vec<u32>,
}

/// Splits `http://ip:port/path`.
pub fn parse_url(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("url {url:?} is not absolute"))?;
    let (address, path) = rest.split_once('/').context("url without a path")?;
    Ok((address.parse()?, format!("/{path}")))
}

/// Sends the head of an upgrade request; the socket, and the head of the answer.
pub fn upgrade(url: &str, headers: &[(&str, &str)]) -> Result<(TcpStream, String)> {
    let (address, path) = parse_url(url)?;
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        ensure!(socket.read(&mut byte)? == 1, "the server closed");
        answer.push(byte[0]);
    }
    Ok((socket, String::from_utf8_lossy(&answer).to_lowercase()))
}

/// The dictionary of SPDY/3 is named and not sent. A compressor that does not use it
/// needs not know it.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

impl Spdy {
    /// Upgrades to a sub-protocol.
    pub fn connect(url: &str, protocol: &str) -> Result<Self> {
        let (socket, answer) = upgrade(
            url,
            &[
                ("connection", "Upgrade"),
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", protocol),
            ],
        )?;
        ensure!(answer.starts_with("http/1.1 101"), "{answer}");
        ensure!(answer.contains("connection: upgrade"), "{answer}");
        ensure!(
            answer.contains(&format!("x-stream-protocol-version: {protocol}")),
            "{answer}"
        );
        Ok(Self {
            socket,
            deflate: Compress::new(Compression::fast(), false),
            next: 1,
            data: HashMap::new(),
            ended: Vec::new(),
            reset: Vec::new(),
            accepted: Vec::new(),
        })
    }

    /// Opens a stream and waits until it is accepted; its id.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(word.len() as u32).to_be_bytes());
            text.extend_from_slice(word.as_bytes());
        }
        let stream = self.send_open(&text)?;
        while !self.accepted.contains(&stream) {
            ensure!(!self.reset.contains(&stream), "stream {stream} is refused");
            ensure!(self.step()?, "the server closed");
        }
        Ok(stream)
    }

    /// Opens a stream with any bytes as its header block.
    pub fn send_open(&mut self, text: &[u8]) -> Result<u32> {
        let stream = self.next;
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        if stream == 1 {
            payload.extend_from_slice(&[0x78, 0x20]);
            payload.extend_from_slice(&DICTIONARY_ID);
        }
        let mut block = Vec::with_capacity(text.len() + 1024);
        self.deflate
            .compress_vec(text, &mut block, FlushCompress::Sync)?;
        payload.extend_from_slice(&block);
        self.next += 2;
        self.control(1, &payload)?;
        Ok(stream)
    }

    /// Sends a control frame.
    pub fn control(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).context("send a frame")
    }

    /// Sends data.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) -> Result<()> {
        self.frame(stream, 0, bytes)
    }

    /// Sends no more on a stream.
    pub fn end(&mut self, stream: u32) -> Result<()> {
        self.frame(stream, 1, &[])
    }

    fn frame(&mut self, stream: u32, flags: u8, bytes: &[u8]) -> Result<()> {
        let mut frame = stream.to_be_bytes().to_vec();
        let length = (bytes.len() as u32).to_be_bytes();
        frame.extend_from_slice(&[flags, length[1], length[2], length[3]]);
        frame.extend_from_slice(bytes);
        self.socket.write_all(&frame).context("send data")
    }

    /// Reads one frame; false when the server closed.
    pub fn step(&mut self) -> Result<bool> {
        let mut head = [0; 8];
        match self.socket.read_exact(&mut head) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error).context("read a frame"),
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload)?;
        let fin = head[4] & 1 != 0;
        if word >> 31 == 0 {
            self.data.entry(word).or_default().extend(payload);
            if fin {
                self.ended.push(word);
            }
            return Ok(true);
        }
        let stream = || -> Result<u32> {
            let bytes = payload.first_chunk::<4>().context("a short frame")?;
            Ok(u32::from_be_bytes(*bytes))
        };
        match word & 0xffff {
            2 => self.accepted.push(stream()?),
            3 => self.reset.push(stream()?),
            // Good-bye and pings.
            6 | 7 => {}
            other => bail!("frame of type {other}"),
        }
        Ok(true)
    }

    /// Whether a frame, or the end, is there to be read.
    pub fn has_more(&self) -> Result<bool> {
        self.socket
            .set_read_timeout(Some(Duration::from_millis(20)))?;
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_read_timeout(Some(PATIENCE))?;
        match peeked {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error).context("look for a frame"),
        }
    }

    /// Reads until the server sends no more on a stream; what came on it.
    pub fn all(&mut self, stream: u32) -> Result<Vec<u8>> {
        while !self.ended.contains(&stream) && !self.reset.contains(&stream) {
            ensure!(self.step()?, "the server closed before the end of {stream}");
        }
        Ok(self.data.remove(&stream).unwrap_or_default())
    }

    /// Sends much, in pieces as other clients send it.
    pub fn send_all(&mut self, stream: u32, bytes: &[u8]) -> Result<()> {
        let mut pieces = bytes.chunks(32 << 10);
        pieces.try_for_each(|piece| self.send(stream, piece))
    }

    /// As [`Spdy::all`], for much: what comes on the stream goes to where there is room for it.
    pub fn all_into(&mut self, stream: u32, into: &mut Vec<u8>) -> Result<()> {
        while !self.ended.contains(&stream) && !self.reset.contains(&stream) {
            ensure!(self.step()?, "the server closed before the end of {stream}");
            if let Some(piece) = self.data.get_mut(&stream) {
                into.append(piece);
            }
        }
        Ok(())
    }

    /// Reads until the server closes; whether it does.
    pub fn closed(&mut self) -> Result<bool> {
        while self.step()? {}
        Ok(true)
    }
}
