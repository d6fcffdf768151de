//! The container's log file: lines as the kubelet reads them,
//! `<RFC3339Nano> <stdout|stderr> <F|P> <text>\n`.
//!
//! Whoever produces output writes the file itself, with one `write(2)` per batch
//! of lines: no pipe, no second copy, no other process. Three promises:
//!
//! - A line is in the file whole or not at all (`O_APPEND`, one write).
//! - Reopening makes no writer wait: the new file replaces the old one under the same
//!   descriptor number, so each write goes to one of the two, never to none. A write
//!   that was under way is waited for, so that the old file does not grow afterwards.
//! - A failing log never fails or blocks the guest: lines are dropped and counted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::attach::{Attach, Stream};
use crate::sys;

/// Bytes of text in one line; longer lines are continued (`P`).
pub const MAX_TEXT: usize = 16 * 1024;

/// Lines are handed to the kernel when this many bytes are waiting.
const MAX_BATCH: usize = 64 * 1024;

/// Bytes of `2026-11-22T17:45:10.123456789Z`.
const STAMP: usize = 30;

/// The open log file, shared by both streams and the control thread.
#[derive(Debug)]
pub struct Log {
    /// `None` when logging is off.
    file: Option<OwnedFd>,
    dropped: AtomicU64,
    /// The file ends in half a line, because the disk was full in the middle of one.
    torn: AtomicBool,
    /// One counter per stream, odd while that stream is in a write.
    turns: [AtomicU64; 2],
    /// Who gets a copy of the output.
    attach: Attach,
}

/// How long [`Log::reopen`] waits for a write that is stuck in the kernel.
const REOPEN_LIMIT: Duration = Duration::from_millis(500);

impl Log {
    /// Takes the file that the daemon opened; without one, everything is thrown away.
    pub fn new(file: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            file,
            dropped: AtomicU64::new(0),
            torn: AtomicBool::new(false),
            turns: [const { AtomicU64::new(0) }; 2],
            attach: Attach::default(),
        })
    }

    /// The clients that get a copy of all that is fed to the writers.
    pub fn attach(&self) -> &Attach {
        &self.attach
    }

    /// Writes to `new` from now on. When it returns, the old file grows no more; only
    /// a write that is stuck in the kernel for longer than half a second may follow.
    pub fn reopen(&self, new: OwnedFd) -> io::Result<()> {
        let old = self.file.as_ref().ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "this container has no log")
        })?;
        sys::replace(old.as_fd(), new.as_fd())?;
        self.torn.store(false, Ordering::Relaxed);
        // A writer makes its counter odd before the kernel looks its descriptor up: who
        // is even now, or was odd and moved on, looks it up after the replacement.
        let seen = self
            .turns
            .each_ref()
            .map(|turn| turn.load(Ordering::SeqCst));
        let end = Instant::now() + REOPEN_LIMIT;
        for (turn, seen) in self.turns.iter().zip(seen) {
            while seen % 2 == 1 && turn.load(Ordering::SeqCst) == seen && Instant::now() < end {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    /// Lines lost to write errors so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The writer of one stream; make each once, so that its half lines meet.
    pub fn stdout(self: &Arc<Self>) -> LogWriter {
        self.writer(Stream::Stdout)
    }

    /// See [`Log::stdout`].
    pub fn stderr(self: &Arc<Self>) -> LogWriter {
        self.writer(Stream::Stderr)
    }

    fn writer(self: &Arc<Self>, stream: Stream) -> LogWriter {
        LogWriter {
            log: Arc::clone(self),
            stream,
            lines: Mutex::new(Lines::default()),
        }
    }

    /// One write for all of `batch`, which holds `lines` whole lines. Writers of one
    /// stream take turns (see [`LogWriter`]), so its counter has one user.
    fn write(&self, stream: Stream, batch: &[u8], lines: u64) {
        let Some(file) = &self.file else { return };
        let turn = &self.turns[stream as usize];
        turn.fetch_add(1, Ordering::SeqCst);
        self.write_whole(file, batch, lines);
        turn.fetch_add(1, Ordering::SeqCst);
    }

    fn write_whole(&self, file: &OwnedFd, batch: &[u8], lines: u64) {
        if self.torn.swap(false, Ordering::Relaxed) {
            let _ = rustix::io::write(file, b"\n");
        }
        match rustix::io::retry_on_intr(|| rustix::io::write(file, batch)) {
            Ok(count) if count == batch.len() => {}
            Ok(count) => {
                let whole = batch[..count].iter().filter(|&&b| b == b'\n').count();
                self.torn
                    .store(count > 0 && batch[count - 1] != b'\n', Ordering::Relaxed);
                self.dropped
                    .fetch_add(lines - whole as u64, Ordering::Relaxed);
            }
            Err(_) => {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
        }
    }
}

/// One stream of one container. Thread-safe; writers of one stream take turns.
#[derive(Debug)]
pub struct LogWriter {
    log: Arc<Log>,
    stream: Stream,
    lines: Mutex<Lines>,
}

impl LogWriter {
    /// Takes output as it comes. Whole lines are in the file when this returns.
    pub fn feed(&self, bytes: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.log.attach.send(self.stream, bytes);
        self.feed_locked(&mut lines, bytes);
    }

    fn feed_locked(&self, lines: &mut MutexGuard<'_, Lines>, bytes: &[u8]) {
        if self.log.file.is_none() || lines.finished {
            return;
        }
        let mut stamp = [0; STAMP];
        format_stamp(now(), &mut stamp);
        lines.split(bytes, self.stream, &stamp, &mut |batch, count| {
            self.log.write(self.stream, batch, count);
        });
    }

    /// The stream ended: an unterminated last line is written as `P`, and later
    /// output is ignored. Waits at most `limit` for a writer that is stuck in the
    /// kernel, and gives up its half line then. Further calls do nothing.
    pub fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut lines = loop {
            match self.lines.try_lock() {
                Ok(lines) => break lines,
                Err(TryLockError::Poisoned(lines)) => break lines.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return,
                // The holder is in one write(2); there is nothing to wait on but time.
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        if lines.finished || self.log.file.is_none() {
            return;
        }
        let mut stamp = [0; STAMP];
        format_stamp(now(), &mut stamp);
        lines.end(self.stream, &stamp, &mut |batch, count| {
            self.log.write(self.stream, batch, count);
        });
        lines.finished = true;
    }
}

/// Splits a stream of bytes into log lines. Pure: the clock and the sink come from outside.
#[derive(Debug, Default)]
struct Lines {
    /// Text of the line whose end has not come yet, at most [`MAX_TEXT`] bytes.
    pending: Vec<u8>,
    /// Formatted lines on their way to the sink; empty between calls.
    batch: Vec<u8>,
    count: u64,
    finished: bool,
}

type Sink<'a> = dyn FnMut(&[u8], u64) + 'a;

impl Lines {
    fn split(&mut self, mut bytes: &[u8], stream: Stream, stamp: &[u8], sink: &mut Sink<'_>) {
        while !bytes.is_empty() {
            let room = MAX_TEXT - self.pending.len();
            // The byte after a full piece is looked at too: a newline there ends the line.
            let window = &bytes[..bytes.len().min(room + 1)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    let text = &bytes[..end];
                    bytes = &bytes[end + 1..];
                    self.line(text, b'F', stream, stamp);
                }
                None if window.len() > room => {
                    let text = &bytes[..room];
                    bytes = &bytes[room..];
                    self.line(text, b'P', stream, stamp);
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    break;
                }
            }
            if self.batch.len() >= MAX_BATCH {
                self.flush(sink);
            }
        }
        self.flush(sink);
    }

    fn end(&mut self, stream: Stream, stamp: &[u8], sink: &mut Sink<'_>) {
        if !self.pending.is_empty() {
            self.line(&[], b'P', stream, stamp);
        }
        self.flush(sink);
    }

    /// Formats `pending` and `text` as one line.
    fn line(&mut self, text: &[u8], tag: u8, stream: Stream, stamp: &[u8]) {
        self.batch.extend_from_slice(stamp);
        self.batch.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        self.batch.extend_from_slice(&[tag, b' ']);
        let begin = self.batch.len();
        self.batch.extend_from_slice(&self.pending);
        self.batch.extend_from_slice(text);
        // Terminals send CR LF; the kubelet expects the text without either.
        if tag == b'F' && self.batch.len() > begin && self.batch.ends_with(b"\r") {
            self.batch.pop();
        }
        self.batch.push(b'\n');
        self.count += 1;
        self.pending.clear();
    }

    fn flush(&mut self, sink: &mut Sink<'_>) {
        if self.count > 0 {
            sink(&self.batch, self.count);
            self.batch.clear();
            self.count = 0;
        }
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// `2026-11-22T17:45:10.123456789Z`: always nine digits and UTC, which the kubelet parses.
fn format_stamp(since_epoch: Duration, out: &mut [u8; STAMP]) {
    out.copy_from_slice(b"0000-00-00T00:00:00.000000000Z");
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let second_of_day = seconds % 86_400;
    for (at, width, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second_of_day / 3600),
        (14, 2, second_of_day / 60 % 60),
        (17, 2, second_of_day % 60),
        (20, 9, u64::from(since_epoch.subsec_nanos())),
    ] {
        let mut rest = value;
        for digit in out[at..at + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

/// Days since 1970-01-01 to (year, month, day) of the Gregorian calendar. Years
/// are counted from March, so that the leap day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    let days = days + 719_468; // since 0000-03-01
    let era = days / DAYS_PER_ERA;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;

    use super::*;

    const T: &[u8] = b"T";

    /// Feeds the chunks, ends the stream, and returns the lines without stamp and stream.
    fn lines(chunks: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        let mut lines = Lines::default();
        let mut sink = |batch: &[u8], count: u64| {
            let newlines = batch.iter().filter(|&&b| b == b'\n').count();
            assert_eq!(newlines as u64, count);
            all.extend_from_slice(batch);
        };
        for chunk in chunks {
            lines.split(chunk, Stream::Stdout, T, &mut sink);
            assert!(lines.pending.len() <= MAX_TEXT);
        }
        lines.end(Stream::Stdout, T, &mut sink);
        assert!(lines.pending.is_empty());
        all.split_inclusive(|&byte| byte == b'\n')
            .map(|line| {
                let line = line.strip_prefix(b"T stdout ").unwrap();
                (line[0], line[2..line.len() - 1].to_vec())
            })
            .collect()
    }

    #[test]
    fn lines_are_split_as_the_kubelet_expects() {
        let full = vec![b'x'; MAX_TEXT];
        let mut full_line = full.clone();
        full_line.push(b'\n');
        let mut over = full.clone();
        over.extend_from_slice(b"yz\n");
        type Expected<'a> = &'a [(u8, &'a [u8])];
        let table: &[(&[&[u8]], Expected<'_>)] = &[
            (&[], &[]),
            (&[b""], &[]),
            (&[b"\n"], &[(b'F', b"")]),
            (&[b"one\ntwo\n"], &[(b'F', b"one"), (b'F', b"two")]),
            (
                &[b"o", b"n", b"e\nt", b"wo"],
                &[(b'F', b"one"), (b'P', b"two")],
            ),
            (&[b"dos\r\n\r\n"], &[(b'F', b"dos"), (b'F', b"")]),
            (&[b"two\r\r\n"], &[(b'F', b"two\r")]),
            (&[b"a\rb\n"], &[(b'F', b"a\rb")]),
            (&[b"bytes \xff\x00\n"], &[(b'F', b"bytes \xff\x00")]),
            (&[&full_line], &[(b'F', &full)]),
            (&[&full, b"\n"], &[(b'F', &full)]),
            (&[&full], &[(b'P', &full)]),
            (&[&over], &[(b'P', &full), (b'F', b"yz")]),
            (&[&full, b"y", b"z\n"], &[(b'P', &full), (b'F', b"yz")]),
        ];
        for (chunks, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(tag, text)| (*tag, text.to_vec()))
                .collect();
            assert!(lines(chunks) == expected, "{:?}", chunks.first());
        }
    }

    #[test]
    fn any_cut_of_a_long_stream_gives_the_same_text() {
        let text: Vec<u8> = (0..100_000u32)
            .map(|n| {
                if n % 40_007 == 9 {
                    b'\n'
                } else {
                    b'a' + (n % 23) as u8
                }
            })
            .collect();
        let whole = lines(&[&text]);
        for size in [1, 7, 4096, MAX_TEXT - 1, MAX_TEXT, MAX_TEXT + 1, 70_000] {
            let chunks: Vec<_> = text.chunks(size).collect();
            assert!(lines(&chunks) == whole, "chunks of {size}");
        }
        let mut joined: Vec<u8> = Vec::new();
        for (tag, line) in whole {
            joined.extend(line);
            if tag == b'F' {
                joined.push(b'\n');
            }
        }
        assert!(joined == text);
    }

    #[test]
    fn stamps_are_utc_with_nine_digits() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (1_709_164_800, 999_999_999, "2024-02-29T00:00:00.999999999Z"),
            (1_795_369_510, 123_456_789, "2026-11-22T17:45:10.123456789Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let mut out = [0; STAMP];
            format_stamp(Duration::new(seconds, nanos), &mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
        }
    }

    fn temporary() -> (std::fs::File, OwnedFd) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let append = std::fs::File::options()
            .append(true)
            .open(file.path())
            .unwrap();
        (file.into_file(), append.into())
    }

    fn content(file: &mut std::fs::File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn reopen_under_load_loses_nothing() {
        const LINES: usize = 20_000;
        let (first, append) = temporary();
        let mut files = vec![first];
        let log = Log::new(Some(append));
        let number = log.file.as_ref().unwrap().as_raw_fd();
        let writer = Arc::new(log.stdout());
        let guest = std::thread::spawn({
            let writer = Arc::clone(&writer);
            move || (0..LINES).for_each(|n| writer.feed(format!("line {n}\n").as_bytes()))
        });
        // What the old file holds when reopen returns is all it will ever hold.
        let mut lengths = Vec::new();
        while !guest.is_finished() {
            let (file, append) = temporary();
            log.reopen(append).unwrap();
            lengths.push(content(files.last_mut().unwrap()).len());
            files.push(file);
        }
        guest.join().unwrap();
        assert_eq!(log.file.as_ref().unwrap().as_raw_fd(), number);
        assert_eq!(log.dropped(), 0);
        for (file, length) in files.iter_mut().zip(lengths) {
            assert_eq!(content(file).len(), length, "a file grew after reopen");
        }
        let all: String = files.iter_mut().map(content).collect();
        let mut numbers: Vec<usize> = all
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        numbers.sort_unstable();
        assert!(numbers == (0..LINES).collect::<Vec<_>>());
        assert!(files.len() > 1);
    }

    #[test]
    fn a_failing_log_drops_and_counts() {
        let full = std::fs::File::options()
            .append(true)
            .open("/dev/full")
            .unwrap();
        let log = Log::new(Some(full.into()));
        let writer = log.stderr();
        writer.feed(b"one\ntwo\nhalf");
        assert_eq!(log.dropped(), 2);
        let (mut file, append) = temporary();
        log.reopen(append).unwrap();
        writer.feed(b" line\n");
        writer.feed(b"last");
        writer.finish(Duration::from_secs(1));
        writer.feed(b"too late\n");
        writer.finish(Duration::from_secs(1));
        let text = content(&mut file);
        let texts: Vec<_> = text.lines().map(|line| &line[STAMP..]).collect();
        assert_eq!(texts, [" stderr F half line", " stderr P last"]);
        assert_eq!(log.dropped(), 2);
    }

    #[test]
    fn without_a_file_everything_is_thrown_away() {
        let log = Log::new(None);
        log.stdout().feed(b"x\n");
        assert_eq!(log.dropped(), 0);
        assert!(log.reopen(temporary().1).is_err());
    }
}
