//! What an applet sees of the world, and how it fails.

use std::io::{self, Read, Write};

/// An applet's arguments, environment, directory and streams.
pub(crate) struct Context {
    /// as the user called it, for messages
    pub(crate) name: String,
    /// without the name
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// the working directory, absolute: preview 1 has none
    pub(crate) directory: String,
    pub(crate) input: Box<dyn Read>,
    pub(crate) output: Box<dyn Write>,
    pub(crate) error: Box<dyn Write>,
}

impl Context {
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// A message on standard error, after the applet's name.
    pub(crate) fn warn(&mut self, text: impl AsRef<str>) {
        // a standard error that nobody reads loses messages, nothing else
        let _ = writeln!(self.error, "{}: {}", self.name, text.as_ref());
    }

    /// The absolute path of a name that the user gave.
    pub(crate) fn path(&self, name: &str) -> String {
        crate::files::absolute(&self.directory, name)
    }

    /// Standard input, once: what is left is empty.
    pub(crate) fn take_input(&mut self) -> Box<dyn Read> {
        std::mem::replace(&mut self.input, Box::new(io::empty()))
    }
}

/// Why an applet ends early.
#[derive(Debug)]
pub(crate) enum Fail {
    /// exit code and message
    Text(i32, String),
    /// nobody reads the output: as by SIGPIPE
    Pipe,
}

pub(crate) type Outcome = Result<i32, Fail>;

/// An early end with exit code 1.
pub(crate) fn fail<T>(text: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Text(1, text.into()))
}

/// Wrong use: exit code 2 would be the shell's, busybox and most tools take 1.
pub(crate) fn usage<T>(text: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Text(1, text.into()))
}

/// Only the output's errors become a `Fail` by `?`; those of files name the file.
impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Fail {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Fail::Pipe
        } else {
            Fail::Text(1, format!("write error: {}", reason(&error)))
        }
    }
}

/// The reason without std's number behind it: scripts look for "No such file or directory".
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    // WASI's "not capable" is what a path outside of the preopened directory gives
    if text.starts_with("Capabilities insufficient") {
        return "Permission denied".to_owned();
    }
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// "name: reason", as every tool says it.
pub(crate) fn about(name: &str, error: &io::Error) -> String {
    format!("{name}: {}", reason(error))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    pub(crate) struct Shared(pub(crate) Rc<RefCell<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs an applet in a directory; exit code, standard output, standard error.
    pub(crate) fn run_in(directory: &str, argv: &[&str], input: &[u8]) -> (i32, String, String) {
        let (output, error) = (Shared::default(), Shared::default());
        let context = Context {
            name: argv[0].to_owned(),
            args: argv[1..].iter().map(|&word| word.to_owned()).collect(),
            env: vec![
                ("HOME".to_owned(), "/root".to_owned()),
                ("A".to_owned(), "b".to_owned()),
            ],
            directory: directory.to_owned(),
            input: Box::new(io::Cursor::new(input.to_vec())),
            output: Box::new(output.clone()),
            error: Box::new(error.clone()),
        };
        let code = crate::applets::run(context);
        let text = |shared: &Shared| String::from_utf8_lossy(&shared.0.borrow()).into_owned();
        (code, text(&output), text(&error))
    }

    /// The same with a command of words without quotes.
    pub(crate) fn run(command: &str, input: &str) -> (i32, String, String) {
        let argv: Vec<&str> = command.split(' ').collect();
        run_in("/", &argv, input.as_bytes())
    }

    pub(crate) fn output(command: &str, input: &str) -> String {
        let (code, out, err) = run(command, input);
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        out
    }

    /// A directory of its own, removed at the end.
    pub(crate) struct Room(pub(crate) String);

    impl Room {
        pub(crate) fn new() -> Room {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("criw-toolbox-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).expect("a fresh directory");
            Room(path.to_string_lossy().into_owned())
        }

        pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            std::fs::write(format!("{}/{name}", self.0), content)
                .expect("write a file of the test");
        }

        pub(crate) fn read(&self, name: &str) -> String {
            std::fs::read_to_string(format!("{}/{name}", self.0)).expect("read a file of the test")
        }

        pub(crate) fn run(&self, command: &str, input: &str) -> (i32, String, String) {
            let argv: Vec<&str> = command.split(' ').collect();
            run_in(&self.0, &argv, input.as_bytes())
        }

        pub(crate) fn output(&self, command: &str) -> String {
            let (code, out, err) = self.run(command, "");
            assert_eq!((code, err.as_str()), (0, ""), "{command}");
            out
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
