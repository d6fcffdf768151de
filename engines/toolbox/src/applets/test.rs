//! `test` and `[`; `[[` of the shell matches patterns and regular expressions besides.

use crate::context::{Context, Fail, Outcome};
use crate::files;
use crate::glob::Pattern;
use std::fs::Metadata;

/// Parentheses and negations nest this deep.
const DEPTH: u32 = 50;

struct Test<'a> {
    words: &'a [String],
    at: usize,
    directory: &'a str,
    /// `[[`
    extended: bool,
    depth: u32,
}

/// The truth of an expression. `name` is how it was called: `[` wants its `]`.
pub(crate) fn evaluate(name: &str, words: &[String], directory: &str) -> Result<bool, String> {
    let mut words = words;
    let closing = match name {
        "[" => "]",
        "[[" => "]]",
        _ => "",
    };
    if !closing.is_empty() {
        words = match words.split_last() {
            Some((last, rest)) if last == closing => rest,
            _ => return Err(format!("missing {closing}")),
        };
    }
    if words.is_empty() {
        return Ok(false);
    }
    let mut test = Test {
        words,
        at: 0,
        directory,
        extended: name == "[[",
        depth: 0,
    };
    // POSIX decides by the number of words, so that `[ "$a" = "$b" ]` holds for any values
    match words {
        [one] => return Ok(!one.is_empty()),
        [not, one] if not == "!" => return Ok(one.is_empty()),
        [left, sign, right] if is_binary(sign) => return test.binary(left, sign, right),
        [not, left, sign, right] if not == "!" && is_binary(sign) => {
            return test.binary(left, sign, right).map(|value| !value)
        }
        [open, one, close] if open == "(" && close == ")" => return Ok(!one.is_empty()),
        _ => {}
    }
    let value = test.or()?;
    match words.get(test.at) {
        None => Ok(value),
        Some(word) => Err(format!("{word}: unexpected word")),
    }
}

fn is_binary(sign: &str) -> bool {
    const SIGNS: &[&str] = &[
        "=", "==", "!=", "<", ">", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef",
        "=~", "-a", "-o",
    ];
    SIGNS.contains(&sign)
}

impl Test<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn or(&mut self) -> Result<bool, String> {
        let mut value = self.and()?;
        while self.peek() == Some("-o") {
            self.at += 1;
            value |= self.and()?;
        }
        Ok(value)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut value = self.not()?;
        while self.peek() == Some("-a") {
            self.at += 1;
            value &= self.not()?;
        }
        Ok(value)
    }

    fn not(&mut self) -> Result<bool, String> {
        let next_is_binary = self.words.get(self.at + 1).map_or(false, |sign| {
            is_binary(sign) && sign != "-a" && sign != "-o"
        });
        if self.peek() == Some("!") && !next_is_binary {
            self.at += 1;
            return self.deeper(Self::not).map(|value| !value);
        }
        self.primary()
    }

    fn deeper(&mut self, parse: fn(&mut Self) -> Result<bool, String>) -> Result<bool, String> {
        if self.depth >= DEPTH {
            return Err("nested too deeply".to_owned());
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn primary(&mut self) -> Result<bool, String> {
        let words = self.words;
        let word = match words.get(self.at) {
            None => return Err("an expression is missing".to_owned()),
            Some(word) => word,
        };
        if let (Some(sign), Some(right)) = (words.get(self.at + 1), words.get(self.at + 2)) {
            if is_binary(sign) && sign != "-a" && sign != "-o" {
                self.at += 3;
                return self.binary(word, sign, right);
            }
        }
        self.at += 1;
        if word == "(" {
            let value = self.deeper(Self::or)?;
            if self.peek() != Some(")") {
                return Err("missing )".to_owned());
            }
            self.at += 1;
            return Ok(value);
        }
        let letter = word
            .strip_prefix('-')
            .filter(|letter| letter.len() == 1 && "abcdefghknprstuwxzGLOS".contains(*letter));
        match (letter, words.get(self.at)) {
            (Some(letter), Some(operand)) => {
                self.at += 1;
                self.unary(letter, operand)
            }
            _ => Ok(!word.is_empty()),
        }
    }

    fn data(&self, name: &str) -> Option<Metadata> {
        (!name.is_empty())
            .then(|| std::fs::metadata(files::absolute(self.directory, name)).ok())
            .flatten()
    }

    fn unary(&self, letter: &str, operand: &str) -> Result<bool, String> {
        let path = files::absolute(self.directory, operand);
        let data = || self.data(operand);
        Ok(match letter {
            "n" => !operand.is_empty(),
            "z" => operand.is_empty(),
            "t" => {
                matches!(operand, "0" | "1" | "2")
                    && crate::sys::is_terminal(operand.parse().unwrap_or(0))
            }
            "a" | "e" => data().is_some() || (files::is_null(&path)),
            "f" => data().map_or(false, |data| data.is_file()),
            "d" => data().map_or(false, |data| data.is_dir()),
            "h" | "L" => {
                !operand.is_empty()
                    && files::lookup(&path).map_or(false, |data| data.file_type().is_symlink())
            }
            "s" => data().map_or(false, |data| data.len() > 0),
            // preview 1 has no mode bits; opening shows what may be done
            "r" => data().map_or(false, |data| {
                data.is_dir() || std::fs::File::open(&path).is_ok()
            }),
            "w" => data().map_or(false, |data| {
                data.is_dir() || std::fs::OpenOptions::new().write(true).open(&path).is_ok()
            }),
            "x" => data().is_some(),
            "c" => files::is_null(&path),
            "O" | "G" => data().is_some(),
            // block devices, pipes, sockets, set-id and sticky bits: none that WASI tells of
            _ => false,
        })
    }

    fn binary(&self, left: &str, sign: &str, right: &str) -> Result<bool, String> {
        let number = |text: &str| -> Result<i64, String> {
            text.trim()
                .parse()
                .map_err(|_| format!("{text}: not a whole number"))
        };
        let time = |name: &str| self.data(name).and_then(|data| data.modified().ok());
        Ok(match sign {
            "=" | "==" if self.extended => Pattern::new(right.as_bytes()).matches(left.as_bytes()),
            "!=" if self.extended => !Pattern::new(right.as_bytes()).matches(left.as_bytes()),
            "=~" => {
                let regex =
                    crate::regex::Regex::new(right.as_bytes(), crate::regex::Syntax::extended())?;
                regex.find(left.as_bytes(), 0)?.is_some()
            }
            "=" | "==" => left == right,
            "!=" => left != right,
            "<" => left < right,
            ">" => left > right,
            "-eq" => number(left)? == number(right)?,
            "-ne" => number(left)? != number(right)?,
            "-lt" => number(left)? < number(right)?,
            "-le" => number(left)? <= number(right)?,
            "-gt" => number(left)? > number(right)?,
            "-ge" => number(left)? >= number(right)?,
            "-nt" => time(left) > time(right),
            "-ot" => time(left) < time(right),
            "-ef" => {
                let same =
                    |name: &str| std::fs::canonicalize(files::absolute(self.directory, name)).ok();
                same(left).is_some() && same(left) == same(right)
            }
            "-a" => !left.is_empty() && !right.is_empty(),
            _ => !left.is_empty() || !right.is_empty(),
        })
    }
}

pub(crate) fn run(context: &mut Context) -> Outcome {
    match evaluate(&context.name, &context.args, &context.directory) {
        Ok(value) => Ok(i32::from(!value)),
        Err(text) => Err(Fail::Text(2, text)),
    }
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{run, Room};

    #[test]
    fn expressions_have_the_truth_of_posix() {
        for (command, expected) in [
            ("test", 1),
            ("test a", 0),
            ("test ! a", 1),
            ("test -n", 0),
            ("test -z a", 1),
            ("test a = a", 0),
            ("test a != a", 1),
            ("test ! = !", 0),
            ("test -n = -n", 0),
            ("test ( = (", 0),
            ("test 3 -gt 20", 1),
            ("test 3 -lt 20", 0),
            ("test -1 -eq -1", 0),
            ("test a -a b", 0),
            ("test a = b -o c = c", 0),
            ("test ( a = b -o c = c ) -a d", 0),
            ("test ! ( a = a )", 1),
            ("test -d /", 0),
            ("test -f /", 1),
            ("test -e /nonexistent", 1),
            ("[ a = a ]", 0),
            ("test a -o", 2),
            ("test -e /dev/null", 0),
        ] {
            assert_eq!(run(command, "").0, expected, "{command}");
        }
    }

    #[test]
    fn wrong_expressions_end_with_two() {
        let deep = format!("test {}a", "( ".repeat(1000));
        let not = format!("test {}a b", "! ".repeat(1000));
        for command in [
            "[ a = a",
            "[",
            "test a b",
            "test x -eq 1",
            "test ( a",
            "test a = b c",
            &deep,
            &not,
        ] {
            let (code, _, error) = run(command, "");
            assert_eq!(code, 2, "{command}");
            assert!(
                error.starts_with("test: ") || error.starts_with("[: "),
                "{error}"
            );
        }
    }

    #[test]
    fn files_are_looked_at() {
        let room = Room::new();
        room.write("f", "x");
        room.write("empty", "");
        for (command, expected) in [
            ("test -f f", 0),
            ("test -s f", 0),
            ("test -s empty", 1),
            ("test -r f", 0),
            ("test -w f", 0),
            ("test f -ef ./f", 0),
            ("test f -ef empty", 1),
            ("test f -ot none", 1),
            ("test f -nt none", 0),
        ] {
            assert_eq!(room.run(command, "").0, expected, "{command}");
        }
        assert_eq!(room.read("f"), "x");
    }
}
