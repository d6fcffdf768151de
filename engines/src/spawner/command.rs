//! A command as the guest writes it down. Pure.
//!
//! Little endian, `text` is a u32 length and bytes:
//!
//! ```text
//!   u32 count, count x text      argv
//!   u32 count, count x text      environment, NAME=value
//!   text                         working directory, absolute
//!   3 x u32                      standard input, output, error: 0 the caller's own, 1 empty,
//!                                2 as standard output (only for error), 16 + n handle n
//! ```

/// Bytes of a command.
pub const MAX_COMMAND: usize = 256 * 1024;

/// argv and environment together.
const MAX_TEXTS: usize = 4096;

const FIRST_HANDLE: u32 = 16;

/// Where one of a command's streams comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The caller's own.
    Own,
    /// `/dev/null`.
    Empty,
    /// The same as its standard output.
    Output,
    /// A handle of the caller.
    Handle(u32),
}

/// A parsed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// argv, never empty, its first word neither.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// Standard input, output and error.
    pub streams: [Source; 3],
}

/// Why bytes are no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadCommand {
    /// A text is not UTF-8: WASI's arguments and paths are.
    NotText,
    /// Anything else.
    Malformed,
}

impl Command {
    /// Reads a whole command; bytes that are left over are an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadCommand> {
        if bytes.len() > MAX_COMMAND {
            return Err(BadCommand::Malformed);
        }
        let mut rest = Rest(bytes);
        let args = rest.texts(MAX_TEXTS)?;
        let env = rest.texts(MAX_TEXTS - args.len())?;
        let cwd = rest.text()?;
        let mut streams = [Source::Own; 3];
        for (n, stream) in streams.iter_mut().enumerate() {
            *stream = match rest.number()? {
                0 => Source::Own,
                1 => Source::Empty,
                2 if n == 2 => Source::Output,
                number @ FIRST_HANDLE.. => Source::Handle(number - FIRST_HANDLE),
                _ => return Err(BadCommand::Malformed),
            };
        }
        let named = env
            .iter()
            .all(|pair| pair.find('=').is_some_and(|at| at > 0));
        let whole = rest.0.is_empty() && named && cwd.starts_with('/');
        if !whole || args.first().is_none_or(String::is_empty) {
            return Err(BadCommand::Malformed);
        }
        Ok(Self {
            args,
            env,
            cwd,
            streams,
        })
    }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn number(&mut self) -> Result<u32, BadCommand> {
        let (first, rest) = self.0.split_first_chunk().ok_or(BadCommand::Malformed)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*first))
    }

    fn text(&mut self) -> Result<String, BadCommand> {
        let length = self.number()? as usize;
        let (bytes, rest): (&'a [u8], _) = self
            .0
            .split_at_checked(length)
            .ok_or(BadCommand::Malformed)?;
        self.0 = rest;
        if bytes.contains(&0) {
            return Err(BadCommand::Malformed);
        }
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| BadCommand::NotText)
    }

    fn texts(&mut self, max: usize) -> Result<Vec<String>, BadCommand> {
        let count = self.number()? as usize;
        if count > max {
            return Err(BadCommand::Malformed);
        }
        (0..count).map(|_| self.text()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(args: &[&[u8]], env: &[&[u8]], cwd: &[u8], streams: [u32; 3]) -> Vec<u8> {
        let mut out = Vec::new();
        let text = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend(bytes);
        };
        for list in [args, env] {
            out.extend((list.len() as u32).to_le_bytes());
            for word in list {
                text(&mut out, word);
            }
        }
        text(&mut out, cwd);
        out.extend(streams.iter().flat_map(|stream| stream.to_le_bytes()));
        out
    }

    #[test]
    fn a_command_is_read() {
        let whole = bytes(&[b"sh", b"-c", b""], &[b"A=b=c"], b"/srv", [0, 1, 2]);
        let command = Command::parse(&whole).unwrap();
        assert_eq!(command.args, ["sh", "-c", ""]);
        assert_eq!(command.env, ["A=b=c"]);
        assert_eq!(command.cwd, "/srv");
        let streams = [Source::Own, Source::Empty, Source::Output];
        assert_eq!(command.streams, streams);
        let handles = bytes(&[b"x"], &[], b"/", [16, 17, 16 + 63]);
        let streams = [0, 1, 63].map(Source::Handle);
        assert_eq!(Command::parse(&handles).unwrap().streams, streams);
    }

    #[test]
    fn whatever_is_cut_off_or_added_is_refused() {
        let whole = bytes(&[b"sh"], &[b"A=b"], b"/", [0, 0, 0]);
        for length in 0..whole.len() {
            assert!(Command::parse(&whole[..length]).is_err(), "{length}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(Command::parse(&longer), Err(BadCommand::Malformed));
        // Any byte turned over: an error or another command, never a panic.
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut other = whole.clone();
                other[at] ^= 1 << bit;
                let _ = Command::parse(&other);
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let many = vec![&b"x"[..]; MAX_TEXTS];
        for (case, expected) in [
            (bytes(&[], &[], b"/", [0; 3]), BadCommand::Malformed),
            (bytes(&[b""], &[], b"/", [0; 3]), BadCommand::Malformed),
            (bytes(&[b"a\0b"], &[], b"/", [0; 3]), BadCommand::Malformed),
            (bytes(&[b"a\xff"], &[], b"/", [0; 3]), BadCommand::NotText),
            (
                bytes(&[b"a"], &[b"AB"], b"/", [0; 3]),
                BadCommand::Malformed,
            ),
            (
                bytes(&[b"a"], &[b"=B"], b"/", [0; 3]),
                BadCommand::Malformed,
            ),
            (bytes(&[b"a"], &[], b"srv", [0; 3]), BadCommand::Malformed),
            (bytes(&[b"a"], &[], b"", [0; 3]), BadCommand::Malformed),
            (bytes(&[b"a"], &[], b"/", [0, 2, 0]), BadCommand::Malformed),
            (bytes(&[b"a"], &[], b"/", [3, 0, 0]), BadCommand::Malformed),
            (bytes(&many, &[b"A="], b"/", [0; 3]), BadCommand::Malformed),
            (vec![0xff; 64], BadCommand::Malformed),
            (vec![0; MAX_COMMAND + 1], BadCommand::Malformed),
        ] {
            assert_eq!(Command::parse(&case), Err(expected));
        }
    }
}
