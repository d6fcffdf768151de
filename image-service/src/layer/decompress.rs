//! Layers come as plain tar, gzip or zstd; the bytes tell, media types often lie.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// The uncompressed stream of `source`.
pub(crate) fn open<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(128 << 10, source);
    let head = source.fill_buf()?;
    let zstd = head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]);
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(source))
    } else if zstd {
        Box::new(Zstd::Between(source))
    } else {
        Box::new(source)
    })
}

/// All frames of a zstd stream one after the other, skippable ones skipped
/// (zstd:chunked layers end with some).
enum Zstd<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Broken,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Zstd::Broken) {
                Zstd::Between(mut source) => {
                    if source.fill_buf()?.is_empty() {
                        *self = Zstd::Between(source);
                        return Ok(0);
                    }
                    *self = next_frame(source)?;
                }
                Zstd::Within(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 {
                        *self = Zstd::Within(decoder);
                        return Ok(count);
                    }
                    *self = Zstd::Between(decoder.into_inner());
                }
                Zstd::Broken => return Err(io::Error::other("the zstd stream is damaged")),
            }
        }
    }
}

fn next_frame<R: BufRead>(mut source: R) -> io::Result<Zstd<R>> {
    // A skippable frame is found by its magic, because the decoder keeps the reader on error.
    let head = source.fill_buf()?;
    if head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18] {
        let mut header = [0; 8];
        source.read_exact(&mut header)?;
        let length = u64::from(u32::from_le_bytes([
            header[4], header[5], header[6], header[7],
        ]));
        let skipped = io::copy(&mut source.by_ref().take(length), &mut io::sink())?;
        if skipped < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(Zstd::Between(source));
    }
    match StreamingDecoder::new(source) {
        Ok(decoder) => Ok(Zstd::Within(Box::new(decoder))),
        Err(FrameDecoderError::ReadFrameHeaderError(
            ReadFrameHeaderError::MagicNumberReadError(error),
        )) => Err(io::Error::new(
            error.kind(),
            "the zstd stream ends within a frame",
        )),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write as _;

    #[test]
    fn all_encodings_give_the_same_bytes() {
        let data: Vec<u8> = (0..300_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let zstd = |part: &[u8]| compress_to_vec(part, CompressionLevel::Fastest);
        let (first, second) = data.split_at(data.len() / 3);
        let mut frames = zstd(first);
        frames.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        frames.extend(zstd(second));
        for encoded in [data.clone(), gzip.finish().unwrap(), zstd(&data), frames] {
            let mut decoded = Vec::new();
            open(&encoded[..])
                .unwrap()
                .read_to_end(&mut decoded)
                .unwrap();
            assert!(decoded == data);
        }
    }

    #[test]
    fn cut_streams_are_errors() {
        let data = vec![7u8; 100_000];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let zstd = compress_to_vec(&data[..], CompressionLevel::Fastest);
        for encoded in [gzip.finish().unwrap(), zstd] {
            let cut = &encoded[..encoded.len() - 5];
            let mut decoded = Vec::new();
            assert!(
                open(cut)
                    .and_then(|mut s| s.read_to_end(&mut decoded))
                    .is_err()
            );
        }
    }
}
