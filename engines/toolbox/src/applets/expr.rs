//! `expr`

use crate::context::{Context, Fail, Outcome};
use crate::regex::{Regex, Syntax};

const DEPTH: u32 = 50;

struct Parser<'a> {
    words: &'a [String],
    at: usize,
    depth: u32,
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Text(2, text.into()))
}

fn number(text: &str) -> Result<i64, Fail> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => wrong(format!("'{text}': not a whole number")),
    }
}

fn truth(text: &str) -> bool {
    !text.is_empty() && text.parse::<i64>() != Ok(0)
}

const LEVELS: &[&[&str]] = &[
    &["|"],
    &["&"],
    &["=", "==", "!=", "<", "<=", ">", ">="],
    &["+", "-"],
    &["*", "/", "%"],
    &[":"],
];

impl Parser<'_> {
    fn level(&mut self, level: usize) -> Result<String, Fail> {
        let signs = match LEVELS.get(level) {
            None => return self.primary(),
            Some(signs) => signs,
        };
        let mut left = self.level(level + 1)?;
        while let Some(sign) = self
            .words
            .get(self.at)
            .filter(|word| signs.contains(&word.as_str()))
        {
            self.at += 1;
            let right = self.level(level + 1)?;
            left = apply(&left, sign, &right)?;
        }
        Ok(left)
    }

    fn word(&mut self) -> Result<String, Fail> {
        self.at += 1;
        match self.words.get(self.at - 1) {
            Some(word) => Ok(word.clone()),
            None => wrong("an operand is missing"),
        }
    }

    fn primary(&mut self) -> Result<String, Fail> {
        if self.depth >= DEPTH {
            return wrong("nested too deeply");
        }
        let word = self.word()?;
        self.depth += 1;
        let more = self.words.len() > self.at;
        let value = match word.as_str() {
            "(" => {
                let value = self.level(0)?;
                if self.word()? != ")" {
                    return wrong("missing )");
                }
                value
            }
            "length" if more => self.primary()?.chars().count().to_string(),
            "match" if more => {
                let (text, pattern) = (self.primary()?, self.primary()?);
                apply(&text, ":", &pattern)?
            }
            "index" if more => {
                let (text, set) = (self.primary()?, self.primary()?);
                text.chars()
                    .position(|c| set.contains(c))
                    .map_or(0, |at| at + 1)
                    .to_string()
            }
            "substr" if more => {
                let (text, start, length) = (
                    self.primary()?,
                    number(&self.primary()?)?,
                    number(&self.primary()?)?,
                );
                match start > 0 && length > 0 {
                    true => text
                        .chars()
                        .skip(start as usize - 1)
                        .take(length as usize)
                        .collect(),
                    false => String::new(),
                }
            }
            "+" if more => self.word()?,
            _ => word,
        };
        self.depth -= 1;
        Ok(value)
    }
}

fn apply(left: &str, sign: &str, right: &str) -> Result<String, Fail> {
    let order = || match (left.parse::<i64>(), right.parse::<i64>()) {
        (Ok(left), Ok(right)) => left.cmp(&right),
        _ => left.cmp(right),
    };
    let value = match sign {
        "|" if truth(left) => return Ok(left.to_owned()),
        "|" => {
            return Ok(if truth(right) {
                right.to_owned()
            } else {
                "0".to_owned()
            })
        }
        "&" => {
            return Ok(if truth(left) && truth(right) {
                left.to_owned()
            } else {
                "0".to_owned()
            })
        }
        "=" | "==" => order().is_eq().into(),
        "!=" => order().is_ne().into(),
        "<" => order().is_lt().into(),
        "<=" => order().is_le().into(),
        ">" => order().is_gt().into(),
        ">=" => order().is_ge().into(),
        ":" => {
            // anchored at the start
            let pattern = [b"^", right.strip_prefix('^').unwrap_or(right).as_bytes()].concat();
            let regex =
                Regex::new(&pattern, Syntax::default()).map_err(|text| Fail::Text(2, text))?;
            let found = regex
                .find(left.as_bytes(), 0)
                .map_err(|text| Fail::Text(2, text))?;
            let piece =
                |(start, end): (usize, usize)| left.get(start..end).unwrap_or_default().to_owned();
            return Ok(match (found, regex.groups) {
                (Some(groups), 0) => groups[0]
                    .map_or(0, |range| piece(range).chars().count())
                    .to_string(),
                (Some(groups), _) => groups
                    .get(1)
                    .copied()
                    .flatten()
                    .map_or(String::new(), piece),
                (None, 0) => "0".to_owned(),
                (None, _) => String::new(),
            });
        }
        _ => {
            let (left, right) = (number(left)?, number(right)?);
            let result = match sign {
                "+" => left.checked_add(right),
                "-" => left.checked_sub(right),
                "*" => left.checked_mul(right),
                _ if right == 0 => return wrong("division by zero"),
                "/" => left.checked_div(right),
                _ => left.checked_rem(right),
            };
            match result {
                Some(result) => result,
                None => return wrong("the result is too large"),
            }
        }
    };
    Ok(value.to_string())
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let words = match context.args.first().map(String::as_str) {
        Some("--") => &context.args[1..],
        _ => &context.args[..],
    };
    let mut parser = Parser {
        words,
        at: 0,
        depth: 0,
    };
    let value = parser.level(0)?;
    if let Some(word) = words.get(parser.at) {
        return wrong(format!("syntax error at '{word}'"));
    }
    writeln!(context.output, "{value}")?;
    Ok(i32::from(!truth(&value)))
}

#[cfg(test)]
mod tests {
    use crate::context::testing::run;

    #[test]
    fn expressions_have_values() {
        for (command, expected, code) in [
            ("expr 1 + 2 * 3", "7", 0),
            ("expr ( 1 + 2 ) * 3", "9", 0),
            ("expr 7 % 4 - 3", "0", 1),
            ("expr a = a", "1", 0),
            ("expr 10 > 9", "1", 0),
            ("expr b > a10", "1", 0),
            ("expr 0 | x", "x", 0),
            ("expr x & 0", "0", 1),
            ("expr abc : a\\(.*\\)", "bc", 0),
            ("expr abc : ab", "2", 0),
            ("expr abc : b", "0", 1),
            ("expr length äbc", "3", 0),
            ("expr substr hello 2 3", "ell", 0),
            ("expr index hello lo", "3", 0),
            ("expr + length", "length", 0),
        ] {
            assert_eq!(
                run(command, ""),
                (code, format!("{expected}\n"), String::new()),
                "{command}"
            );
        }
    }

    #[test]
    fn wrong_expressions_end_with_two() {
        let deep = format!("expr {}", "( ".repeat(1000).trim_end());
        let long = format!("expr {}", "length ".repeat(1000).trim_end());
        for command in [
            "expr",
            "expr 1 +",
            "expr a + 1",
            "expr 1 / 0",
            "expr 9223372036854775807 + 1",
            "expr -9223372036854775808 / -1",
            "expr ( 1",
            "expr 1 2",
            "expr a : \\(",
            &deep,
            &long,
        ] {
            assert_eq!(run(command, "").0, 2, "{command}");
        }
    }
}
