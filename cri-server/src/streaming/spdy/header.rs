//! Header blocks: pairs of names and values, and the zlib stream that they travel in,
//! one for each direction of a connection. A block that grows past its limit is a bomb
//! and ends the connection; nothing is inflated beyond the limit.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary;
use super::frame::Malformed;

/// Bytes of one inflated block.
pub const MAX_BLOCK: usize = 16 * 1024;

/// Pairs in one block; the peers send at most four.
const MAX_PAIRS: usize = 64;

/// The headers of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value behind a (lower-case) name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// For tests and for other protocols that have no headers of their own.
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(pairs.iter().map(own).collect())
    }
}

/// Reads the blocks of one direction, in their order.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The next block. After an error the stream is lost.
    pub fn block(&mut self, mut compressed: &[u8]) -> Result<Headers, Malformed> {
        let mut text = Vec::with_capacity(512);
        let mut piece = [0; 1024];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self
                .0
                .decompress(compressed, &mut piece, FlushDecompress::Sync);
            let read = (self.0.total_in() - read) as usize;
            let written = (self.0.total_out() - written) as usize;
            compressed = &compressed[read..];
            text.extend_from_slice(&piece[..written]);
            if text.len() > MAX_BLOCK {
                return Err(Malformed(format!(
                    "a header block inflates to more than {MAX_BLOCK} bytes"
                )));
            }
            match result {
                Ok(Status::StreamEnd) => return Err(bad("ends its zlib stream")),
                // All is read and there was room left for more.
                Ok(_) if compressed.is_empty() && written < piece.len() => return parse(&text),
                Ok(_) if read + written == 0 => return Err(bad("is cut")),
                Ok(_) => {}
                Err(error) => match error.needs_dictionary() {
                    Some(dictionary::ID) => {
                        self.0
                            .set_dictionary(&dictionary::bytes())
                            .map_err(|_| bad("does not take the dictionary"))?;
                    }
                    Some(_) => return Err(bad("asks for an unknown dictionary")),
                    None => return Err(bad("is no zlib stream")),
                },
            }
        }
    }
}

fn bad(what: &str) -> Malformed {
    Malformed(format!("a header block {what}"))
}

fn parse(mut text: &[u8]) -> Result<Headers, Malformed> {
    let number = |text: &mut &[u8]| -> Result<usize, Malformed> {
        let (first, rest) = text.split_first_chunk::<4>().ok_or(bad("is short"))?;
        *text = rest;
        Ok(u32::from_be_bytes(*first) as usize)
    };
    let count = number(&mut text)?;
    if count > MAX_PAIRS {
        return Err(Malformed(format!(
            "{count} headers, over the limit of {MAX_PAIRS}"
        )));
    }
    let string = |text: &mut &[u8]| -> Result<String, Malformed> {
        let length = number(text)?;
        let (first, rest) = text.split_at_checked(length).ok_or(bad("is short"))?;
        *text = rest;
        String::from_utf8(first.to_vec()).map_err(|_| bad("is not text"))
    };
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = string(&mut text)?;
        let value = string(&mut text)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Malformed(format!("header name {name:?}")));
        }
        if headers.get(&name).is_some() {
            return Err(Malformed(format!("header {name:?} comes twice")));
        }
        headers.0.push((name, value));
    }
    if !text.is_empty() {
        return Err(bad("has bytes behind its last pair"));
    }
    Ok(headers)
}

/// Writes the blocks of one direction. They are a few bytes, so they are stored and
/// not compressed, which costs no memory for a compressor.
#[derive(Debug, Default)]
pub struct Blocks {
    begun: bool,
}

impl Blocks {
    /// The next block. Its pairs must fit into 64 KiB.
    pub fn block(&mut self, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut text = (pairs.len() as u32).to_be_bytes().to_vec();
        for string in pairs.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(string.len() as u32).to_be_bytes());
            text.extend_from_slice(string.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            // Deflate with a window of 32 KiB, a dictionary follows; a multiple of 31.
            block.extend_from_slice(&[0x78, 0x20]);
            block.extend_from_slice(&dictionary::ID.to_be_bytes());
        }
        // A stored block that is not the last: kind, length and its complement.
        let length = text.len() as u16;
        block.push(0);
        block.extend_from_slice(&length.to_le_bytes());
        block.extend_from_slice(&(!length).to_le_bytes());
        block.extend_from_slice(&text);
        // An empty one, as a flush leaves it: Go's reader hands out nothing before it.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// As the Go peers do it: one compressor with the dictionary, flushed after each block.
    struct Deflater(Compress);

    impl Deflater {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary::bytes()).unwrap();
            Self(compress)
        }

        fn block(&mut self, text: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(text.len() + 1024);
            let before = self.0.total_in();
            self.0
                .compress_vec(text, &mut out, FlushCompress::Sync)
                .unwrap();
            assert_eq!(self.0.total_in() - before, text.len() as u64);
            out
        }
    }

    fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
        // Between the zlib head with the head of the stored block, and the empty one.
        let block = Blocks::default().block(pairs);
        block[11..block.len() - 5].to_vec()
    }

    #[test]
    fn blocks_of_a_connection_are_one_stream() {
        let mut deflater = Deflater::new();
        let mut blocks = Blocks::default();
        let (mut from_peer, mut from_us) = (Inflater::default(), Inflater::default());
        for pairs in [
            &[("streamtype", "error")][..],
            &[("streamtype", "data"), ("port", "80"), ("requestid", "0")],
            &[],
            &[("streamtype", "error")],
        ] {
            let expected = Headers::new(pairs);
            let block = deflater.block(&text(pairs));
            assert_eq!(from_peer.block(&block), Ok(expected.clone()));
            assert_eq!(from_us.block(&blocks.block(pairs)), Ok(expected));
        }
    }

    #[test]
    fn a_header_bomb_is_not_inflated() {
        let mut deflater = Deflater::new();
        let bomb = deflater.block(&vec![0; 8 << 20]);
        assert!(bomb.len() < super::super::frame::MAX_CONTROL);
        let mut inflater = Inflater::default();
        let error = inflater.block(&bomb).unwrap_err();
        assert!(error.to_string().contains("inflates"), "{error}");
        assert!(inflater.0.total_out() <= (MAX_BLOCK + 1024) as u64);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let good = text(&[("a", "b")]);
        let long = "x".repeat(20_000);
        let mut twice = text(&[("a", "b"), ("a", "c")]);
        for (what, bytes) in [
            ("short count", vec![0, 0]),
            ("many", vec![0xff; 4]),
            ("65 pairs", 65u32.to_be_bytes().to_vec()),
            ("cut", good[..good.len() - 1].to_vec()),
            (
                "longer than it is",
                [&good[..7], &[200], &good[8..]].concat(),
            ),
            ("behind the end", [&good[..], &[0]].concat()),
            ("upper case", text(&[("A", "b")])),
            ("no name", text(&[("", "b")])),
            ("twice", std::mem::take(&mut twice)),
            ("too long", text(&[("a", &long)])),
            ("no text", [&good[..good.len() - 1], &[0xff]].concat()),
        ] {
            let block = Deflater::new().block(&bytes);
            assert!(Inflater::default().block(&block).is_err(), "{what}");
        }
        for (what, block) in [
            ("nothing", &[][..]),
            ("no zlib", b"GET / HTTP/1.1"),
            ("half a head", &[0x78]),
            ("no dictionary", &[0x78, 0x9c, 1, 0, 0, 0xff, 0xff]),
            ("another dictionary", &[0x78, 0x20, 1, 2, 3, 4, 0, 0]),
            ("bad block", &[0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2, 0xff]),
        ] {
            assert!(Inflater::default().block(block).is_err(), "{what}");
        }
    }

    #[test]
    fn any_bytes_are_an_answer() {
        // A walk through blocks that are wrong in one byte: never a panic.
        let good = Deflater::new().block(&text(&[("streamtype", "data"), ("port", "80")]));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let _ = Inflater::default().block(&bytes);
            }
        }
    }
}
