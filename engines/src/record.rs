//! The exit record's file: written once by the shim as its last act, read by any
//! daemon that finds it. An empty file means that the shim died without a word.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::protocol::{ExitReason, ExitRecord, MAX_MESSAGE_TEXT, VERSION};

/// Bytes of a record file; JSON escapes make a text at most six times as long.
pub const MAX_RECORD: usize = 6 * MAX_MESSAGE_TEXT + 1024;

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error("read exit record")]
    Read(#[source] io::Error),
    /// The shim wrote what is no record; treat the result as lost.
    #[error("exit record is not of the form that version {VERSION} writes")]
    Malformed(#[source] Option<serde_json::Error>),
}

impl ExitRecord {
    /// A record that says "now"; the text is cut to its limit.
    pub fn now(code: i32, reason: ExitReason, message: impl Into<String>) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            version: VERSION,
            code,
            reason,
            message: clip(message.into()),
            finished_at: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            dropped_log_lines: 0,
        }
    }

    /// Writes the record with one write at the file's start.
    pub fn write(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &json, 0))?;
        if written != json.len() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    /// Reads what a shim left behind; `None` when it wrote nothing. The content
    /// comes from a process that ran foreign code: bounded and parsed strictly.
    pub fn read(file: BorrowedFd<'_>) -> Result<Option<Self>, RecordError> {
        let mut bytes = vec![0; MAX_RECORD + 1];
        let mut length = 0;
        while length < bytes.len() {
            let count = rustix::io::retry_on_intr(|| {
                rustix::io::pread(file, &mut bytes[length..], length as u64)
            })
            .map_err(|error| RecordError::Read(error.into()))?;
            if count == 0 {
                break;
            }
            length += count;
        }
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_RECORD {
            return Err(RecordError::Malformed(None));
        }
        let record: Self = serde_json::from_slice(&bytes[..length])
            .map_err(|error| RecordError::Malformed(Some(error)))?;
        if record.version != VERSION || !(0..=255).contains(&record.code) {
            return Err(RecordError::Malformed(None));
        }
        Ok(Some(Self {
            message: clip(record.message),
            ..record
        }))
    }
}

/// Cuts a text meant for the user to [`MAX_MESSAGE_TEXT`] bytes, at a character's border.
pub fn clip(mut text: String) -> String {
    const MARK: &str = " [...]";
    if text.len() > MAX_MESSAGE_TEXT {
        let mut end = MAX_MESSAGE_TEXT - MARK.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

/// An error with its whole chain of causes as one text, cut to its limit.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    clip(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_record_survives_its_file() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(ExitRecord::read(file.as_fd()).unwrap(), None);
        let record = ExitRecord::now(134, ExitReason::Trap, "\u{1}".repeat(MAX_MESSAGE_TEXT));
        record.write(file.as_fd()).unwrap();
        assert_eq!(ExitRecord::read(file.as_fd()).unwrap(), Some(record));
    }

    #[test]
    fn hostile_records_are_refused() {
        let good = serde_json::to_string(&ExitRecord::now(0, ExitReason::Completed, "")).unwrap();
        for (bytes, what) in [
            (b"{".to_vec(), "half an object"),
            (vec![b' '; MAX_RECORD + 1], "too long"),
            (
                good.replace("\"version\":1", "\"version\":9").into_bytes(),
                "version",
            ),
            (
                good.replace("\"code\":0", "\"code\":256").into_bytes(),
                "code above a byte",
            ),
            (
                good.replace("Completed", "Vanished").into_bytes(),
                "unknown reason",
            ),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            assert!(
                matches!(
                    ExitRecord::read(file.as_fd()),
                    Err(RecordError::Malformed(_))
                ),
                "{what}"
            );
        }
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        for (length, expected) in [(10, 20), (MAX_MESSAGE_TEXT, MAX_MESSAGE_TEXT - 1)] {
            let text = clip("ä".repeat(length));
            assert!(text.len() <= MAX_MESSAGE_TEXT);
            assert!(text.len() >= expected.min(MAX_MESSAGE_TEXT - 8), "{length}");
        }
    }
}
