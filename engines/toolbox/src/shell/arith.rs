//! `$(( … ))`: C's integer expressions on 64 bits, wrapping.

/// Nested deeper, an expression is refused; each level costs stack.
const DEPTH: u32 = 50;

pub(super) trait Variables {
    /// the text of a variable, none if unset
    fn get(&self, name: &[u8]) -> Option<Vec<u8>>;
    fn set(&mut self, name: &[u8], value: i64) -> Result<(), String>;
}

pub(super) fn evaluate(text: &[u8], variables: &mut dyn Variables) -> Result<i64, String> {
    let mut parser = Evaluator {
        text,
        at: 0,
        variables,
        depth: 0,
        skip: 0,
    };
    parser.blanks();
    if parser.at == text.len() {
        return Ok(0);
    }
    let value = parser.comma()?;
    if parser.at < text.len() {
        return Err(parser.wrong());
    }
    Ok(value)
}

/// A number as C writes it: decimal, octal by 0, hexadecimal by 0x; `base#digits` as in bash.
pub(super) fn number(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, base) = if let Some((base, digits)) = digits.split_once('#') {
        (
            digits,
            base.parse().ok().filter(|base| (2..=36).contains(base))?,
        )
    } else if let Some(hexadecimal) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        (hexadecimal, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (&digits[1..], 8)
    } else {
        (digits, 10)
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let value = match u64::from_str_radix(digits, base) {
        Ok(value) => value as i64,
        Err(error) if *error.kind() == std::num::IntErrorKind::PosOverflow => i64::MAX,
        Err(_) => return None,
    };
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

struct Evaluator<'a> {
    text: &'a [u8],
    at: usize,
    variables: &'a mut dyn Variables,
    depth: u32,
    /// above zero where C would not evaluate: no assignment, no division by zero
    skip: u32,
}

const BINARY: &[(&[u8], u32)] = &[
    (b"||", 1),
    (b"&&", 2),
    (b"|", 3),
    (b"^", 4),
    (b"&", 5),
    (b"==", 6),
    (b"!=", 6),
    (b"<=", 7),
    (b">=", 7),
    (b"<<", 8),
    (b">>", 8),
    (b"<", 7),
    (b">", 7),
    (b"+", 9),
    (b"-", 9),
    (b"**", 11),
    (b"*", 10),
    (b"/", 10),
    (b"%", 10),
];

impl Evaluator<'_> {
    fn blanks(&mut self) {
        while self
            .text
            .get(self.at)
            .map_or(false, u8::is_ascii_whitespace)
        {
            self.at += 1;
        }
    }

    fn wrong(&self) -> String {
        let rest = String::from_utf8_lossy(&self.text[self.at..]).into_owned();
        if rest.trim().is_empty() {
            return "arithmetic: the expression ends too early".to_owned();
        }
        format!(
            "arithmetic: syntax error at \"{}\"",
            rest.chars().take(20).collect::<String>()
        )
    }

    fn eat(&mut self, sign: &[u8]) -> bool {
        let eaten = self.text[self.at..].starts_with(sign);
        if eaten {
            self.at += sign.len();
            self.blanks();
        }
        eaten
    }

    fn comma(&mut self) -> Result<i64, String> {
        let mut value = self.assignment()?;
        while self.eat(b",") {
            value = self.assignment()?;
        }
        Ok(value)
    }

    fn name(&mut self) -> Option<Vec<u8>> {
        let rest = &self.text[self.at..];
        if rest.first().map_or(true, |byte| byte.is_ascii_digit()) {
            return None;
        }
        let length = rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            .unwrap_or(rest.len());
        if length == 0 {
            return None;
        }
        self.at += length;
        self.blanks();
        Some(rest[..length].to_vec())
    }

    fn value(&self, name: &[u8]) -> Result<i64, String> {
        let mut text = match self.variables.get(name) {
            None => return Ok(0),
            Some(text) => text,
        };
        // a variable may hold the name of another; not for ever
        for _ in 0..20 {
            let trimmed = String::from_utf8_lossy(&text).trim().to_owned();
            if trimmed.is_empty() {
                return Ok(0);
            }
            if let Some(value) = number(trimmed.as_bytes()) {
                return Ok(value);
            }
            text = match super::parser::is_name(trimmed.as_bytes()) {
                true => self.variables.get(trimmed.as_bytes()).unwrap_or_default(),
                false => break,
            };
        }
        Err(format!(
            "arithmetic: {} is no number",
            String::from_utf8_lossy(&text)
        ))
    }

    fn store(&mut self, name: &[u8], value: i64) -> Result<(), String> {
        match self.skip {
            0 => self.variables.set(name, value),
            _ => Ok(()),
        }
    }

    fn deeper<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        if self.depth >= DEPTH {
            return Err("arithmetic: nested too deeply".to_owned());
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn assignment(&mut self) -> Result<i64, String> {
        self.deeper(|this| {
            let start = this.at;
            if let Some(name) = this.name() {
                for sign in [
                    &b"="[..],
                    b"+=",
                    b"-=",
                    b"*=",
                    b"/=",
                    b"%=",
                    b"<<=",
                    b">>=",
                    b"&=",
                    b"|=",
                    b"^=",
                ] {
                    let rest = &this.text[this.at..];
                    if rest.starts_with(sign) && !(sign == b"=" && rest.starts_with(b"==")) {
                        this.eat(sign);
                        let right = this.assignment()?;
                        let value = match sign {
                            b"=" => right,
                            _ => {
                                let left = this.value(&name)?;
                                this.apply(&sign[..sign.len() - 1], left, right)?
                            }
                        };
                        this.store(&name, value)?;
                        return Ok(value);
                    }
                }
            }
            this.at = start;
            this.ternary()
        })
    }

    fn skipping<T>(
        &mut self,
        skip: bool,
        parse: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        self.skip += u32::from(skip);
        let result = parse(self);
        self.skip -= u32::from(skip);
        result
    }

    fn ternary(&mut self) -> Result<i64, String> {
        let condition = self.binary(1)?;
        if !self.eat(b"?") {
            return Ok(condition);
        }
        let yes = self.skipping(condition == 0, Self::assignment)?;
        if !self.eat(b":") {
            return Err(self.wrong());
        }
        let no = self.skipping(condition != 0, Self::assignment)?;
        Ok(if condition != 0 { yes } else { no })
    }

    fn operator(&self, least: u32) -> Option<(&'static [u8], u32)> {
        let rest = &self.text[self.at..];
        // the longest sign wins; an assignment is none
        let mut best: Option<(&'static [u8], u32)> = None;
        for (sign, level) in BINARY {
            if rest.starts_with(sign) && best.map_or(true, |(other, _)| sign.len() > other.len()) {
                best = Some((sign, *level));
            }
        }
        best.filter(|(sign, level)| {
            *level >= least
                && (rest.get(sign.len()) != Some(&b'=')
                    || matches!(*sign, b"==" | b"!=" | b"<=" | b">="))
        })
    }

    fn binary(&mut self, least: u32) -> Result<i64, String> {
        let mut left = self.unary()?;
        while let Some((sign, level)) = self.operator(least) {
            self.eat(sign);
            let skip = (sign == b"&&" && left == 0) || (sign == b"||" && left != 0);
            // powers bind to the right
            let next = if sign == b"**" { level } else { level + 1 };
            let right = self.skipping(skip, |this| this.deeper(|this| this.binary(next)))?;
            left = self.apply(sign, left, right)?;
        }
        Ok(left)
    }

    fn apply(&self, sign: &[u8], left: i64, right: i64) -> Result<i64, String> {
        let truth = |value: bool| i64::from(value);
        Ok(match sign {
            b"||" => truth(left != 0 || right != 0),
            b"&&" => truth(left != 0 && right != 0),
            b"|" => left | right,
            b"^" => left ^ right,
            b"&" => left & right,
            b"==" => truth(left == right),
            b"!=" => truth(left != right),
            b"<=" => truth(left <= right),
            b">=" => truth(left >= right),
            b"<" => truth(left < right),
            b">" => truth(left > right),
            b"<<" => left.wrapping_shl(right as u32),
            b">>" => left.wrapping_shr(right as u32),
            b"+" => left.wrapping_add(right),
            b"-" => left.wrapping_sub(right),
            b"*" => left.wrapping_mul(right),
            b"/" | b"%" if right == 0 && self.skip > 0 => 0,
            b"/" | b"%" if right == 0 => return Err("arithmetic: division by zero".to_owned()),
            b"/" => left.wrapping_div(right),
            b"%" => left.wrapping_rem(right),
            _ if right < 0 => return Err("arithmetic: exponent below zero".to_owned()),
            _ => left.wrapping_pow(right.min(u32::MAX.into()) as u32),
        })
    }

    fn unary(&mut self) -> Result<i64, String> {
        self.deeper(|this| {
            for (sign, step) in [(&b"++"[..], 1), (b"--", -1)] {
                if this.text[this.at..].starts_with(sign) {
                    let start = this.at;
                    this.eat(sign);
                    if let Some(name) = this.name() {
                        let value = this.value(&name)?.wrapping_add(step);
                        this.store(&name, value)?;
                        return Ok(value);
                    }
                    this.at = start;
                }
            }
            if this.eat(b"+") {
                return this.unary();
            }
            if this.eat(b"-") {
                return Ok(this.unary()?.wrapping_neg());
            }
            if this.eat(b"!") {
                return Ok(i64::from(this.unary()? == 0));
            }
            if this.eat(b"~") {
                return Ok(!this.unary()?);
            }
            this.primary()
        })
    }

    fn primary(&mut self) -> Result<i64, String> {
        if self.eat(b"(") {
            let value = self.comma()?;
            return if self.eat(b")") {
                Ok(value)
            } else {
                Err(self.wrong())
            };
        }
        if let Some(name) = self.name() {
            let value = self.value(&name)?;
            for (sign, step) in [(&b"++"[..], 1), (b"--", -1)] {
                if self.eat(sign) {
                    self.store(&name, value.wrapping_add(step))?;
                }
            }
            return Ok(value);
        }
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'#')
            .unwrap_or(rest.len());
        match number(&rest[..length]) {
            Some(value) => {
                self.at += length;
                self.blanks();
                Ok(value)
            }
            None => Err(self.wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    impl Variables for HashMap<Vec<u8>, Vec<u8>> {
        fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
            HashMap::get(self, name).cloned()
        }
        fn set(&mut self, name: &[u8], value: i64) -> Result<(), String> {
            self.insert(name.to_vec(), value.to_string().into_bytes());
            Ok(())
        }
    }

    #[test]
    fn expressions_are_those_of_c() {
        let mut variables = HashMap::new();
        variables.insert(b"x".to_vec(), b"5".to_vec());
        variables.insert(b"name".to_vec(), b"x".to_vec());
        for (text, expected) in [
            ("", 0),
            ("1+2*3", 7),
            ("(1+2)*3", 9),
            ("2**3**2", 512),
            ("7/2%2", 1),
            ("-7/2", -3),
            ("1<<4|1", 17),
            ("3>2&&2>1", 1),
            ("0||0", 0),
            ("!3", 0),
            ("~0", -1),
            ("0x1F + 010", 39),
            ("2#101", 5),
            ("x", 5),
            ("name+1", 6),
            ("unset", 0),
            ("x=3, x+=4, x", 7),
            ("x++ + x", 15),
            ("--x", 7),
            ("1 ? 2 : 3", 2),
            ("0 ? 1/0 : 3", 3),
            ("0 && (x=100)", 0),
            ("x", 7),
            ("- - 1", 1),
            ("1==1", 1),
            ("5 - -3", 8),
            ("9223372036854775807 + 1", i64::MIN),
            ("1 << 64", 1),
            ("x == 7 ? 1 : 0", 1),
        ] {
            assert_eq!(
                evaluate(text.as_bytes(), &mut variables),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_expression_is_told() {
        let mut variables = HashMap::new();
        variables.insert(b"loop".to_vec(), b"loop".to_vec());
        variables.insert(b"word".to_vec(), b"a b".to_vec());
        let deep = "(".repeat(10_000);
        let minus = "-".repeat(10_000) + "1";
        for text in [
            "1+", "1/0", "1%0", "(1", "1)", "a b", "08", "1 2", "?", "=1", "2**-1", "loop", "word",
            "ä", &deep, &minus,
        ] {
            assert!(evaluate(text.as_bytes(), &mut variables).is_err(), "{text}");
        }
        let minimum = format!("{} / -1", i64::MIN);
        assert!(evaluate(minimum.as_bytes(), &mut variables).is_ok());
    }
}
