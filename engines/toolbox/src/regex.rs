//! POSIX regular expressions, basic and extended, with GNU's additions.
//!
//! A match takes time in proportion to text times pattern (`vm`), whatever the pattern; only
//! patterns with back-references need to try and go back, and give up after a bound.

mod parse;
mod vm;

#[derive(Clone, Copy, Default)]
pub(crate) struct Syntax {
    pub(crate) extended: bool,
    pub(crate) ignore_case: bool,
}

impl Syntax {
    pub(crate) fn extended() -> Syntax {
        Syntax {
            extended: true,
            ignore_case: false,
        }
    }
}

/// Where a match is, and its groups; none for a group that took no part.
pub(crate) type Match = Vec<Option<(usize, usize)>>;

pub(crate) struct Regex {
    program: vm::Program,
    /// the whole pattern is this text
    literal: Option<Vec<u8>>,
    /// each match begins with this text
    prefix: Vec<u8>,
    pub(crate) groups: usize,
}

impl Regex {
    pub(crate) fn new(pattern: &[u8], syntax: Syntax) -> Result<Regex, String> {
        let parsed = parse::parse(pattern, syntax)?;
        let (prefix, whole) = parsed.node.prefix(syntax.ignore_case);
        let program = vm::compile(&parsed, syntax.ignore_case)?;
        Ok(Regex {
            program,
            literal: (whole && !prefix.is_empty()).then(|| prefix.clone()),
            prefix,
            groups: parsed.groups,
        })
    }

    /// The leftmost longest match at or behind `start`. An error: the pattern gave up.
    pub(crate) fn find(&self, text: &[u8], start: usize) -> Result<Option<Match>, String> {
        if let Some(literal) = &self.literal {
            return Ok(search(text, start, literal).map(|at| vec![Some((at, at + literal.len()))]));
        }
        self.program.find(text, start, &self.prefix)
    }

    pub(crate) fn is_match(&self, text: &[u8]) -> Result<bool, String> {
        Ok(self.find(text, 0)?.is_some())
    }
}

/// The first place of some bytes at or behind `start`.
pub(crate) fn search(text: &[u8], start: usize, wanted: &[u8]) -> Option<usize> {
    let first = match wanted.first() {
        Some(first) => *first,
        None => return (start <= text.len()).then_some(start),
    };
    let mut at = start;
    while at + wanted.len() <= text.len() {
        at += text[at..=text.len() - wanted.len()]
            .iter()
            .position(|byte| *byte == first)?;
        if text[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pattern: &str, text: &str, extended: bool) -> Option<Vec<Option<String>>> {
        let regex = Regex::new(
            pattern.as_bytes(),
            Syntax {
                extended,
                ignore_case: false,
            },
        )
        .expect("a pattern");
        let found = regex.find(text.as_bytes(), 0).expect("no bound is met")?;
        Some(
            found
                .iter()
                .map(|group| group.map(|(start, end)| text[start..end].to_owned()))
                .collect(),
        )
    }

    #[test]
    fn patterns_find_what_posix_says() {
        for (pattern, text, expected) in [
            ("abc", "xabcx", Some("abc")),
            ("a.c", "xaäc", Some("aäc")),
            ("a*", "aaa", Some("aaa")),
            ("a*", "baa", Some("")),
            ("a+b?", "aac", Some("aa")),
            ("a|ab", "abc", Some("ab")),
            ("(a|ab)(c|bcd)", "abcd", Some("abcd")),
            ("^b", "ab", None),
            ("b$", "ab", Some("b")),
            ("^$", "", Some("")),
            ("[0-9]{2,3}", "12345", Some("123")),
            ("[0-9]{2}", "1", None),
            ("x{,2}", "xxx", Some("xx")),
            ("a{2,}", "aaaa", Some("aaaa")),
            ("[^a-c]+", "abcxyz", Some("xyz")),
            ("[[:upper:]]+", "abCDe", Some("CD")),
            ("[]a]+", "x]a", Some("]a")),
            ("\\.", "a.b", Some(".")),
            ("\\bfoo\\b", "a foo b", Some("foo")),
            ("\\<oo", "foo oops", Some("oo")),
            ("\\w+", "-ab_1-", Some("ab_1")),
            ("\\s", "a b", Some(" ")),
            ("(foo|bar)+baz", "foobarbaz", Some("foobarbaz")),
            ("(a*)*b", "aab", Some("aab")),
            ("(|a)+", "aaa", Some("aaa")),
            ("()", "x", Some("")),
            ("a{x", "a{x", Some("a{x")),
            ("ab|cd|ef", "xxef", Some("ef")),
            ("x*$", "axx", Some("xx")),
            ("(a+)\\1", "aaaa", Some("aaaa")),
            ("(.)\\1", "abccd", Some("cc")),
        ] {
            let found =
                find(pattern, text, true).map(|groups| groups[0].clone().expect("the whole"));
            assert_eq!(found.as_deref(), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn basic_patterns_quote_the_other_way() {
        for (pattern, text, expected) in [
            ("a\\+", "aa", Some("aa")),
            ("a+", "aa+", Some("a+")),
            ("\\(a\\|b\\)*c", "abac", Some("abac")),
            ("*a", "x*a", Some("*a")),
            ("a\\{2\\}", "aaa", Some("aa")),
            ("a^b$c", "a^b$c", Some("a^b$c")),
            ("\\(^a\\)", "ba", None),
            ("(a)", "(a)", Some("(a)")),
            ("a\\?b", "b", Some("b")),
            ("\\(ab*\\)\\1", "abbabb", Some("abbabb")),
        ] {
            let found =
                find(pattern, text, false).map(|groups| groups[0].clone().expect("the whole"));
            assert_eq!(found.as_deref(), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn groups_are_told() {
        let groups = find("(\\w+)@(\\w+)(x)?", "me@home", true).expect("fits");
        assert_eq!(
            groups,
            [
                Some("me@home".to_owned()),
                Some("me".to_owned()),
                Some("home".to_owned()),
                None
            ]
        );
    }

    #[test]
    fn case_is_ignored_when_asked() {
        let regex = Regex::new(
            "straße[a-f]".as_bytes(),
            Syntax {
                extended: true,
                ignore_case: true,
            },
        )
        .expect("a pattern");
        assert!(regex.is_match("STRAßEF".as_bytes()).expect("no bound"));
    }

    #[test]
    fn wrong_patterns_are_told() {
        let deep = "(".repeat(5000) + &")".repeat(5000);
        let large = "((((a{1,200}){1,200}){1,200}){1,200})".to_owned();
        for pattern in [
            "(",
            ")",
            "a)",
            "[a",
            "a{2,1}",
            "*",
            "a{9999}",
            "\\",
            "[[:none:]",
            "\\9",
            "+a",
            &deep,
            &large,
        ] {
            assert!(
                Regex::new(pattern.as_bytes(), Syntax::extended()).is_err(),
                "{pattern:.20}"
            );
        }
        for pattern in ["\\(", "\\)", "a\\{1", "[", "\\1"] {
            assert!(
                Regex::new(pattern.as_bytes(), Syntax::default()).is_err(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn evil_patterns_take_no_time_and_random_ones_do_not_panic() {
        let text = "a".repeat(2000);
        assert!(find("(a*)*(a*)*(a|aa)+b", &text, true).is_none());
        let regex = Regex::new(b"(a*)*\\1b", Syntax::extended()).expect("a pattern");
        assert!(
            regex.find(text.as_bytes(), 0).is_err(),
            "a back-reference gives up"
        );
        let mut seed = 12345u32;
        let alphabet = b"ab*+?(){}[]|^$.\\1,:-2\xc3\xa4";
        for _ in 0..20_000 {
            let mut pattern = Vec::new();
            for _ in 0..8 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                pattern.push(alphabet[(seed >> 16) as usize % alphabet.len()]);
            }
            for extended in [false, true] {
                if let Ok(regex) = Regex::new(
                    &pattern,
                    Syntax {
                        extended,
                        ignore_case: seed & 1 == 0,
                    },
                ) {
                    let _ = regex.find(b"abab\xc3\xa4a1\xff2", 0);
                }
            }
        }
    }
}
