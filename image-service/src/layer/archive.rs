//! A tar stream read entry by entry. Names, extended headers and sparse maps are
//! bounded before they are read into memory; nothing here touches the file system.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::Fault;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of the file when unpacked, holes included.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Offset and length of each piece of data of a sparse file.
    pub(crate) pieces: Option<Vec<(u64, u64)>>,
}

/// A path is at most this long; the kernel takes no more either.
const MAX_NAME: u64 = 4096;
/// Names, link targets and xattrs of one entry together.
const MAX_EXTENSION: u64 = 1 << 20;
const MAX_PIECES: usize = 65_536;
const BLOCK: usize = 512;

pub(crate) struct Archive<R> {
    reader: R,
    /// Data of the current entry that was not read yet.
    data_left: u64,
    padding: u64,
    /// Extended header that holds until the end.
    global: Vec<(String, Vec<u8>)>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Archive<R> {
        Archive {
            reader,
            data_left: 0,
            padding: 0,
            global: Vec::new(),
        }
    }

    /// The stream behind the archive, for what follows its end mark.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// The stored data of the current entry.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let most =
            usize::try_from(self.data_left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        match self.reader.read(&mut buffer[..most]) {
            Ok(0) => Err(cut()),
            Ok(count) => {
                self.data_left -= count as u64;
                Ok(count)
            }
            Err(error) => Err(damaged(&error)),
        }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let mut long_path = None;
        let mut long_link = None;
        let mut pax: Vec<(String, Vec<u8>)> = self.global.clone();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(header.entry_size(), "size")?;
            let entry_type = header.entry_type();
            match entry_type {
                EntryType::GNULongName => long_path = Some(self.text(size, MAX_NAME)?),
                EntryType::GNULongLink => long_link = Some(self.text(size, MAX_NAME)?),
                EntryType::XHeader => pax.extend(self.extension(size)?),
                EntryType::XGlobalHeader => {
                    // Only archives made by git have one (a comment): it holds for what follows.
                    let records = self.extension(size)?;
                    self.global.extend(records.iter().cloned());
                    if self.global.len() > 1024 {
                        return Err(Fault::Content(
                            "the archive has too many global headers".into(),
                        ));
                    }
                    pax.extend(records);
                }
                _ => {
                    return self
                        .entry(&header, size, long_path, long_link, pax)
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: Vec<(String, Vec<u8>)>,
    ) -> Result<Entry, Fault> {
        let path = long_path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&path)
            .chars()
            .take(256)
            .collect::<String>();
        let (kind, sparse) = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => {
                (Kind::Directory, false)
            }
            EntryType::Regular | EntryType::Continuous => (Kind::File, false),
            EntryType::GNUSparse => (Kind::File, true),
            EntryType::Directory => (Kind::Directory, false),
            EntryType::Symlink => (Kind::Symlink, false),
            EntryType::Link => (Kind::HardLink, false),
            EntryType::Char => (Kind::CharDevice, false),
            EntryType::Block => (Kind::BlockDevice, false),
            EntryType::Fifo => (Kind::Fifo, false),
            other => {
                return Err(Fault::Content(format!(
                    "the archive has an entry of unknown type {:?} at {shown:?}",
                    other.as_byte() as char
                )));
            }
        };
        let mut entry = Entry {
            kind,
            path,
            link: long_link
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .unwrap_or_default(),
            mode: number(header.mode(), "mode")? & 0o7777,
            uid: id(number(header.uid(), "uid")?)?,
            gid: id(number(header.gid(), "gid")?)?,
            mtime: (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0),
            size,
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => (
                    number(header.device_major(), "device")?.unwrap_or(0),
                    number(header.device_minor(), "device")?.unwrap_or(0),
                ),
                _ => (0, 0),
            },
            xattrs: Vec::new(),
            pieces: None,
        };
        let mut stored = size;
        for (key, value) in pax {
            match key.as_str() {
                "path" => entry.path = value,
                "linkpath" => entry.link = value,
                "size" => {
                    stored = decimal(&value, "size")?;
                    entry.size = stored;
                }
                "uid" => entry.uid = id(decimal(&value, "uid")?)?,
                "gid" => entry.gid = id(decimal(&value, "gid")?)?,
                "mtime" => entry.mtime = time(&value)?,
                _ if key.starts_with("GNU.sparse.") => {
                    return Err(Fault::Content(format!(
                        "{shown:?} is stored as a sparse file in the PAX format, which is not supported; \
                         build the layer without --sparse"
                    )));
                }
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        entry.xattrs.push((name.to_owned(), value));
                    }
                }
            }
        }
        if entry.path.len() as u64 > MAX_NAME || entry.link.len() as u64 > MAX_NAME {
            return Err(Fault::Content(
                "a path in the archive is longer than 4096 bytes".into(),
            ));
        }
        if kind != Kind::File {
            // Some writers give directories and links a size without data, as the standard says.
            entry.size = 0;
            if kind != Kind::Directory {
                stored = 0;
            }
        }
        self.data_left = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        if sparse {
            let (pieces, real) = self.sparse_map(header, stored)?;
            entry.pieces = Some(pieces);
            entry.size = real;
        }
        Ok(entry)
    }

    /// The pieces of an old GNU sparse file and its real size.
    fn sparse_map(
        &mut self,
        header: &Header,
        stored: u64,
    ) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| Fault::Content("a sparse entry has no GNU header".into()))?;
        let real = number(gnu.real_size(), "size")?;
        let mut pieces = Vec::new();
        let mut add = |block: &tar::GnuSparseHeader| -> Result<(), Fault> {
            if block.is_empty() {
                return Ok(());
            }
            let piece = (
                number(block.offset(), "offset")?,
                number(block.length(), "length")?,
            );
            pieces.push(piece);
            if pieces.len() > MAX_PIECES {
                return Err(Fault::Limit(format!(
                    "a sparse file has more than {MAX_PIECES} pieces"
                )));
            }
            Ok(())
        };
        for block in &gnu.sparse {
            add(block)?;
        }
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.reader
                .read_exact(block.as_mut_bytes())
                .map_err(|error| damaged(&error))?;
            for piece in &block.sparse {
                add(piece)?;
            }
            extended = block.is_extended();
        }
        let mut end = 0u64;
        let mut total = 0u64;
        for (offset, length) in &pieces {
            let next = offset
                .checked_add(*length)
                .filter(|next| *offset >= end && *next <= real);
            end =
                next.ok_or_else(|| Fault::Content("a sparse file has pieces out of order".into()))?;
            total += length;
        }
        if total != stored {
            return Err(Fault::Content(
                "a sparse file has another size than its pieces".into(),
            ));
        }
        Ok((pieces, real))
    }

    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut bytes[filled..]) {
                // Archives without an end mark are read by everyone.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(cut()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(damaged(&error)),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(Fault::Content(
                "the layer is no tar archive or is damaged (wrong header checksum)".into(),
            ));
        }
        Ok(Some(header))
    }

    fn bytes(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, Fault> {
        if size > limit {
            return Err(Fault::Limit(format!(
                "an extended header of the archive has {size} bytes, more than {limit}"
            )));
        }
        self.data_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read_data(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    fn text(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, Fault> {
        let mut text = self.bytes(size, limit + 1)?;
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<(String, Vec<u8>)>, Fault> {
        let bytes = self.bytes(size, MAX_EXTENSION)?;
        pax_records(&bytes)
            .ok_or_else(|| Fault::Content("an extended header of the archive is damaged".into()))
    }

    fn skip_rest(&mut self) -> Result<(), Fault> {
        let left = self.data_left + self.padding;
        (self.data_left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.reader.by_ref().take(left), &mut io::sink())
            .map_err(|error| damaged(&error))?;
        if skipped < left { Err(cut()) } else { Ok(()) }
    }
}

/// `<length> <key>=<value>\n` one after the other; values may hold anything.
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = String::from_utf8(record[..equals].to_vec()).ok()?;
        records.push((key, record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Some(records)
}

fn number<T>(value: io::Result<T>, what: &str) -> Result<T, Fault> {
    value.map_err(|_| Fault::Content(format!("a header of the archive has an unreadable {what}")))
}

fn decimal(value: &[u8], what: &str) -> Result<u64, Fault> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Fault::Content(format!("an extended header has an unreadable {what}")))
}

fn id(value: u64) -> Result<u32, Fault> {
    // u32::MAX would mean "leave as it is" to chown.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| {
            Fault::Content(format!(
                "an entry belongs to the impossible user or group {value}"
            ))
        })
}

fn time(value: &[u8]) -> Result<(i64, u32), Fault> {
    let unreadable = || Fault::Content("an extended header has an unreadable mtime".into());
    let text = std::str::from_utf8(value).map_err(|_| unreadable())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| unreadable())?;
    let digits: String = format!("{fraction:0<9}").chars().take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| unreadable())?;
    // Before the epoch the fraction counts backwards.
    Ok(match (text.starts_with('-'), nanos) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanos),
        _ => (seconds, nanos),
    })
}

fn cut() -> Fault {
    Fault::Content("the layer is cut short".into())
}

fn damaged(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut(),
        // Set by the reader that enforces the limits.
        io::ErrorKind::FileTooLarge => Fault::Limit(error.to_string()),
        _ => Fault::Content(format!("the layer cannot be decompressed: {error}")),
    }
}

/// The fault that a failed read of the stream behind the archive stands for.
pub(crate) fn stream_fault(error: &io::Error) -> Fault {
    damaged(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_fractions_are_read() {
        for (text, expected) in [
            ("12", (12, 0)),
            ("12.5", (12, 500_000_000)),
            ("12.123456789123", (12, 123_456_789)),
            ("-1.25", (-2, 750_000_000)),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), expected, "{text}");
        }
        assert!(time(b"x").is_err() && time(b"1.-5").is_err());
    }

    #[test]
    fn pax_records_may_hold_anything() {
        assert_eq!(
            pax_records(b"9 a=b\n=c\n10 key=v\x00\n"),
            Some(vec![
                ("a".into(), b"b\n=c".to_vec()),
                ("key".into(), b"v\0".to_vec())
            ])
        );
        for bad in [&b"x"[..], b"99 a=b\n", b"5 a=b", b"0 a=b\n", b"6 ab\n\n"] {
            assert_eq!(pax_records(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_huge_extended_header_is_refused_before_it_is_read() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let fault = Archive::new(&header.as_bytes()[..]).next().unwrap_err();
        assert!(matches!(fault, Fault::Limit(_)), "{fault}");
    }
}
