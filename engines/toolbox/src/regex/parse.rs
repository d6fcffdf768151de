//! Patterns to trees.

use super::Syntax;
use crate::glob::{decode, Set};

const DEPTH: u32 = 100;
/// of `{n}`
const MOST_REPEATS: u32 = 1000;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Char(u32),
    Any,
    Set(Set),
    Start,
    End,
    WordStart,
    WordEnd,
    Boundary,
    NotBoundary,
    Group(usize, Box<Node>),
    Reference(usize),
    Concat(Vec<Node>),
    Either(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Node {
    /// Text that each match begins with, and whether it is all of the match.
    pub(super) fn prefix(&self, ignore_case: bool) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let nodes = match self {
            Node::Concat(nodes) => nodes.as_slice(),
            node => std::slice::from_ref(node),
        };
        for node in nodes {
            match node {
                Node::Char(c) if !ignore_case => match char::from_u32(*c) {
                    Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => out.push((c - 0x11_0000) as u8),
                },
                _ => return (out, false),
            }
        }
        (out, true)
    }
}

pub(super) struct Parsed {
    pub(super) node: Node,
    pub(super) groups: usize,
    pub(super) references: bool,
}

pub(super) fn parse(pattern: &[u8], syntax: Syntax) -> Result<Parsed, String> {
    let mut parser = Parser {
        text: pattern,
        at: 0,
        extended: syntax.extended,
        groups: 0,
        open: Vec::new(),
        closed: Vec::new(),
        references: false,
        depth: 0,
    };
    let node = parser.either()?;
    if parser.at < pattern.len() {
        return Err("unmatched ) in a regular expression".to_owned());
    }
    Ok(Parsed {
        node,
        groups: parser.groups,
        references: parser.references,
    })
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    extended: bool,
    groups: usize,
    open: Vec<usize>,
    closed: Vec<usize>,
    references: bool,
    depth: u32,
}

impl Parser<'_> {
    fn starts_with(&self, sign: &[u8]) -> bool {
        self.text[self.at..].starts_with(sign)
    }

    fn eat(&mut self, sign: &[u8]) -> bool {
        let eaten = self.starts_with(sign);
        if eaten {
            self.at += sign.len();
        }
        eaten
    }

    /// A sign that has a backslash in basic patterns and none in extended ones.
    fn sign(&self, letter: u8) -> Vec<u8> {
        match self.extended {
            true => vec![letter],
            false => vec![b'\\', letter],
        }
    }

    fn either(&mut self) -> Result<Node, String> {
        if self.depth >= DEPTH {
            return Err("groups of a regular expression nest too deeply".to_owned());
        }
        self.depth += 1;
        let bar = self.sign(b'|');
        let mut branches = vec![self.concat()?];
        while self.eat(&bar) {
            branches.push(self.concat()?);
        }
        self.depth -= 1;
        Ok(match branches.len() {
            1 => branches.remove(0),
            _ => Node::Either(branches),
        })
    }

    fn concat(&mut self) -> Result<Node, String> {
        let (bar, close) = (self.sign(b'|'), self.sign(b')'));
        let mut nodes: Vec<Node> = Vec::new();
        // nothing to repeat yet: at the start, and behind an anchor of a basic pattern
        let mut fresh = true;
        while self.at < self.text.len() && !self.starts_with(&bar) {
            if self.starts_with(&close) {
                if self.open.is_empty() && !self.extended {
                    return Err("unmatched \\) in a regular expression".to_owned());
                }
                break;
            }
            if let Some((least, most)) = self.repeat(fresh)? {
                match nodes.pop() {
                    Some(node) => nodes.push(Node::Repeat(Box::new(node), least, most)),
                    None => {
                        return Err(
                            "a repetition in a regular expression repeats nothing".to_owned()
                        )
                    }
                }
                continue;
            }
            let node = self.atom(nodes.is_empty())?;
            fresh = !self.extended && node == Node::Start;
            nodes.push(node);
        }
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Concat(nodes),
        })
    }

    fn repeat(&mut self, fresh: bool) -> Result<Option<(u32, Option<u32>)>, String> {
        if self.starts_with(b"*") && (self.extended || !fresh) {
            self.at += 1;
            return Ok(Some((0, None)));
        }
        for (letter, range) in [(b'+', (1, None)), (b'?', (0, Some(1)))] {
            let sign = self.sign(letter);
            if self.eat(&sign) {
                return Ok(Some(range));
            }
        }
        let (open, close) = (self.sign(b'{'), self.sign(b'}'));
        let start = self.at;
        if !self.eat(&open) {
            return Ok(None);
        }
        let rest = &self.text[self.at..];
        let inner = match rest
            .windows(close.len())
            .position(|window| window == close.as_slice())
        {
            Some(length) => {
                self.at += length + close.len();
                String::from_utf8_lossy(&rest[..length]).into_owned()
            }
            None => String::new(),
        };
        let number = |text: &str| text.parse::<u32>().ok();
        let range = match inner.split_once(',') {
            None => number(&inner).map(|count| (count, Some(count))),
            Some(("", "")) => None,
            Some(("", most)) => number(most).map(|most| (0, Some(most))),
            Some((least, "")) => number(least).map(|least| (least, None)),
            Some((least, most)) => number(least)
                .zip(number(most))
                .map(|(least, most)| (least, Some(most))),
        };
        match range {
            None if self.extended => {
                // a brace that begins no repetition is itself
                self.at = start;
                Ok(None)
            }
            None => Err("wrong \\{ in a regular expression".to_owned()),
            Some((least, most))
                if least > MOST_REPEATS
                    || most.map_or(false, |most| most < least || most > MOST_REPEATS) =>
            {
                Err(format!(
                    "a repetition in a regular expression is not between 0 and {MOST_REPEATS}"
                ))
            }
            Some(range) => Ok(Some(range)),
        }
    }

    fn atom(&mut self, first: bool) -> Result<Node, String> {
        let open = self.sign(b'(');
        if self.eat(&open) {
            self.groups += 1;
            let group = self.groups;
            self.open.push(group);
            let node = self.either()?;
            let close = self.sign(b')');
            if !self.eat(&close) {
                return Err("unmatched ( in a regular expression".to_owned());
            }
            self.open.pop();
            self.closed.push(group);
            return Ok(Node::Group(group, Box::new(node)));
        }
        let byte = self.text[self.at];
        match byte {
            b'.' => {
                self.at += 1;
                Ok(Node::Any)
            }
            b'^' if self.extended || first => {
                self.at += 1;
                Ok(Node::Start)
            }
            b'$' if self.extended || self.at_end_of_branch() => {
                self.at += 1;
                Ok(Node::End)
            }
            b'[' => {
                let set = Set::parse(&self.text[self.at + 1..], b"^", false);
                let (set, length) = set.ok_or("unmatched [ in a regular expression")?;
                // the parser of sets takes an unknown class as letters
                let inner = &self.text[self.at + 1..self.at + 1 + length];
                if inner.starts_with(b"[:") || inner.starts_with(b"^[:") {
                    let class: Vec<u8> = inner
                        .iter()
                        .skip_while(|byte| **byte != b':')
                        .skip(1)
                        .take_while(|byte| **byte != b':')
                        .copied()
                        .collect();
                    if crate::glob::in_class(&class, 0).is_none() {
                        return Err(format!(
                            "[:{}:] is no class of characters",
                            String::from_utf8_lossy(&class)
                        ));
                    }
                }
                self.at += 1 + length;
                Ok(Node::Set(set))
            }
            b'\\' => self.escape(),
            _ => {
                let (c, length) = decode(&self.text[self.at..]);
                self.at += length;
                Ok(Node::Char(c))
            }
        }
    }

    fn at_end_of_branch(&self) -> bool {
        let rest = &self.text[self.at + 1..];
        rest.is_empty() || rest.starts_with(b"\\)") || rest.starts_with(b"\\|")
    }

    fn escape(&mut self) -> Result<Node, String> {
        let class = |text: &[u8]| match Set::parse(text, b"^", false) {
            Some((set, _)) => Ok(Node::Set(set)),
            None => Err("wrong class".to_owned()),
        };
        self.at += 1;
        let letter = match self.text.get(self.at) {
            Some(letter) => *letter,
            None => return Err("a regular expression ends in a backslash".to_owned()),
        };
        self.at += 1;
        Ok(match letter {
            b'w' => class(b"[:alnum:]_]")?,
            b'W' => class(b"^[:alnum:]_]")?,
            b's' => class(b"[:space:]]")?,
            b'S' => class(b"^[:space:]]")?,
            b'b' => Node::Boundary,
            b'B' => Node::NotBoundary,
            b'<' => Node::WordStart,
            b'>' => Node::WordEnd,
            b'`' => Node::Start,
            b'\'' => Node::End,
            b'n' => Node::Char(b'\n'.into()),
            b't' => Node::Char(b'\t'.into()),
            b'r' => Node::Char(b'\r'.into()),
            b'f' => Node::Char(12),
            b'v' => Node::Char(11),
            b'1'..=b'9' => {
                let group = usize::from(letter - b'0');
                if !self.closed.contains(&group) {
                    return Err(format!("\\{group} refers to a group that is not there"));
                }
                self.references = true;
                Node::Reference(group)
            }
            _ => {
                self.at -= 1;
                let (c, length) = decode(&self.text[self.at..]);
                self.at += length;
                Node::Char(c)
            }
        })
    }
}
