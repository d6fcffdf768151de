//! SPDY/3.1 frames, as far as the peers of a node speak them: no SETTINGS and no flow
//! control; frames of those kinds are read and ignored. Pure: bytes in, frames out.
//!
//! ```text
//!   data      0 | stream id (31)                | flags (8) | length (24) | payload
//!   control   1 | version (15) | type (16)      | flags (8) | length (24) | payload
//! ```

/// Bytes before every payload.
pub const HEAD: usize = 8;

/// Bytes of a control frame's payload. Header blocks of a stream are some dozen bytes.
pub const MAX_CONTROL: usize = 16 * 1024;

const VERSION: u16 = 3;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// What a peer sent is no SPDY: the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed SPDY frame: {0}")]
pub struct Malformed(pub String);

/// Status of RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// What was asked makes no sense.
    ProtocolError = 1,
    /// No more streams.
    Refused = 3,
    /// No longer wanted.
    Cancel = 5,
}

/// The first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// `length` bytes for a stream follow.
    Data {
        /// Which stream.
        stream: u32,
        /// The peer sends no more on it.
        fin: bool,
        /// Bytes.
        length: usize,
    },
    /// A control frame of `length` bytes follows.
    Control {
        /// Its type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Bytes, at most [`MAX_CONTROL`].
        length: usize,
    },
}

/// A control frame; header blocks are still compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control<'a> {
    /// A new stream.
    SynStream {
        /// Its id.
        stream: u32,
        /// The peer will send nothing on it.
        fin: bool,
        /// The peer will read nothing from it.
        unidirectional: bool,
        /// Compressed headers.
        block: &'a [u8],
    },
    /// SYN_REPLY or HEADERS: the block must be read for the sake of the zlib stream.
    Headers {
        /// Which stream.
        stream: u32,
        /// The peer sends no more on it.
        fin: bool,
        /// Compressed headers.
        block: &'a [u8],
    },
    /// The stream is over, both ways.
    Reset {
        /// Which stream.
        stream: u32,
    },
    /// To be sent back, if its id is odd.
    Ping {
        /// Its id.
        id: u32,
    },
    /// The peer opens no more streams.
    GoAway,
    /// SETTINGS, WINDOW_UPDATE, and what may come.
    Ignored,
}

/// Reads the first eight bytes.
pub fn head(bytes: [u8; HEAD]) -> Result<Head, Malformed> {
    let word = u32_at(&bytes, 0);
    let (flags, length) = (bytes[4], (u32_at(&bytes, 4) & 0x00ff_ffff) as usize);
    if word & 0x8000_0000 == 0 {
        if word == 0 {
            return Err(Malformed("data for stream 0".into()));
        }
        return Ok(Head::Data {
            stream: word,
            fin: flags & FIN != 0,
            length,
        });
    }
    let (version, kind) = ((word >> 16) as u16 & 0x7fff, word as u16);
    if version != VERSION {
        return Err(Malformed(format!("version {version}, not {VERSION}")));
    }
    if length > MAX_CONTROL {
        return Err(Malformed(format!(
            "control frame of {length} bytes, over the limit of {MAX_CONTROL}"
        )));
    }
    Ok(Head::Control {
        kind,
        flags,
        length,
    })
}

/// Reads a control frame's payload.
pub fn control(kind: u16, flags: u8, payload: &[u8]) -> Result<Control<'_>, Malformed> {
    let need = |bytes: usize| {
        if payload.len() < bytes {
            return Err(Malformed(format!(
                "control frame of type {kind} with {} bytes, needs {bytes}",
                payload.len()
            )));
        }
        Ok(())
    };
    let stream = || match u32_at(payload, 0) & 0x7fff_ffff {
        0 => Err(Malformed(format!("frame of type {kind} for stream 0"))),
        stream => Ok(stream),
    };
    Ok(match kind {
        SYN_STREAM => {
            need(10)?;
            Control::SynStream {
                stream: stream()?,
                fin: flags & FIN != 0,
                unidirectional: flags & UNIDIRECTIONAL != 0,
                block: &payload[10..],
            }
        }
        SYN_REPLY | HEADERS => {
            need(4)?;
            Control::Headers {
                stream: stream()?,
                fin: flags & FIN != 0,
                block: &payload[4..],
            }
        }
        RST_STREAM => {
            need(8)?;
            Control::Reset { stream: stream()? }
        }
        PING => {
            need(4)?;
            Control::Ping {
                id: u32_at(payload, 0),
            }
        }
        GOAWAY => {
            need(8)?;
            Control::GoAway
        }
        _ => Control::Ignored,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Head of a data frame. `length` must be below 2^24.
pub fn data(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    debug_assert!(length < 1 << 24);
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&stream.to_be_bytes());
    head[4..].copy_from_slice(&(length as u32).to_be_bytes());
    head[4] = if fin { FIN } else { 0 };
    head
}

/// Accepts a stream; `block` holds the (empty) headers.
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend_from_slice(block);
    whole(SYN_REPLY, &payload)
}

/// Ends a stream, both ways.
pub fn reset(stream: u32, why: Reset) -> Vec<u8> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&(why as u32).to_be_bytes());
    whole(RST_STREAM, &payload)
}

/// Answers a ping.
pub fn ping(id: u32) -> Vec<u8> {
    whole(PING, &id.to_be_bytes())
}

/// Says that the connection ends; `protocol_error` when the peer is to blame.
pub fn goaway(last: u32, protocol_error: bool) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend_from_slice(&u32::from(protocol_error).to_be_bytes());
    whole(GOAWAY, &payload)
}

fn whole(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + payload.len());
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let control_head = |kind, flags, length| {
            Ok(Head::Control {
                kind,
                flags,
                length,
            })
        };
        let data_head = |stream, fin, length| {
            Ok(Head::Data {
                stream,
                fin,
                length,
            })
        };
        for (bytes, expected) in [
            ([0, 0, 0, 1, 0, 0, 0, 5], data_head(1, false, 5)),
            ([0, 0, 0, 3, 1, 0, 0, 0], data_head(3, true, 0)),
            (
                [0x7f, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff],
                data_head(0x7fff_ffff, true, 0xff_ffff),
            ),
            ([0x80, 3, 0, 1, 2, 0, 0, 20], control_head(1, 2, 20)),
            ([0x80, 3, 0, 1, 0, 0, 0x40, 0], control_head(1, 0, 16384)),
            ([0x80, 3, 0, 1, 0, 0, 0x40, 1], Err(())),
            ([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], Err(())),
            ([0x80, 2, 0, 1, 0, 0, 0, 20], Err(())),
            ([0xff, 0xff, 0, 1, 0, 0, 0, 20], Err(())),
            ([0, 0, 0, 0, 0, 0, 0, 5], Err(())),
            (*b"GET / HT", data_head(0x4745_5420, true, 0x20_4854)),
        ] {
            assert_eq!(head(bytes).map_err(drop), expected, "{bytes:?}");
        }
    }

    #[test]
    fn control_payloads() {
        let syn = [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 9, 9];
        for (kind, flags, payload, expected) in [
            (
                1,
                1,
                &syn[..],
                Ok(Control::SynStream {
                    stream: 5,
                    fin: true,
                    unidirectional: false,
                    block: &[9, 9],
                }),
            ),
            (
                1,
                2,
                &syn[..10],
                Ok(Control::SynStream {
                    stream: 5,
                    fin: false,
                    unidirectional: true,
                    block: &[],
                }),
            ),
            (1, 0, &syn[..9], Err(())),
            (1, 0, &[0; 10], Err(())),
            (
                2,
                0,
                &[0, 0, 0, 7],
                Ok(Control::Headers {
                    stream: 7,
                    fin: false,
                    block: &[],
                }),
            ),
            (
                8,
                1,
                &[0x80, 0, 0, 7, 1],
                Ok(Control::Headers {
                    stream: 7,
                    fin: true,
                    block: &[1],
                }),
            ),
            (8, 0, &[0, 0, 7], Err(())),
            (
                3,
                0,
                &[0, 0, 0, 1, 0, 0, 0, 5],
                Ok(Control::Reset { stream: 1 }),
            ),
            (3, 0, &[0, 0, 0, 1], Err(())),
            (3, 0, &[0; 8], Err(())),
            (6, 0, &[0, 0, 1, 1], Ok(Control::Ping { id: 257 })),
            (6, 0, &[], Err(())),
            (7, 0, &[0; 8], Ok(Control::GoAway)),
            (7, 0, &[0; 7], Err(())),
            (4, 0, &[0; 4], Ok(Control::Ignored)),
            (9, 0, &[], Ok(Control::Ignored)),
            (4711, 255, &[1; 3], Ok(Control::Ignored)),
        ] {
            let found = control(kind, flags, payload).map_err(drop);
            assert_eq!(found, expected, "type {kind} flags {flags} {payload:?}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        fn read(frame: &[u8]) -> Control<'_> {
            let (first, payload) = frame.split_at(HEAD);
            match head(first.try_into().unwrap()).unwrap() {
                Head::Control {
                    kind,
                    flags,
                    length,
                } => {
                    assert_eq!(length, payload.len());
                    control(kind, flags, payload).unwrap()
                }
                Head::Data { .. } => panic!("data"),
            }
        }
        let reply = syn_reply(3, &[1, 2]);
        let headers = Control::Headers {
            stream: 3,
            fin: false,
            block: &[1, 2],
        };
        assert_eq!(read(&reply), headers);
        assert_eq!(read(&reset(9, Reset::Cancel)), Control::Reset { stream: 9 });
        assert_eq!(read(&ping(7)), Control::Ping { id: 7 });
        assert_eq!(read(&goaway(7, true)), Control::GoAway);
        assert_eq!(
            head(data(9, true, 70_000)).unwrap(),
            Head::Data {
                stream: 9,
                fin: true,
                length: 70_000
            }
        );
    }
}
