//! What the parser makes of a script.

use std::cell::RefCell;
use std::rc::Rc;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// as written, subject to globbing
    Literal(Vec<u8>),
    /// between single quotes, or behind a backslash
    Quoted(Vec<u8>),
    /// between double quotes
    Double(Vec<Part>),
    Parameter(Box<Parameter>),
    Command(Rc<List>),
    Arithmetic(Vec<Part>),
}

pub(super) type Word = Vec<Part>;

/// `$name`, `${name…}`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameter {
    pub(super) name: Vec<u8>,
    pub(super) operation: Operation,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operation {
    Plain,
    Length,
    /// `-`, `=`, `?`, `+`; with `:` an empty value counts as unset
    Test {
        colon: bool,
        kind: u8,
        word: Word,
    },
    /// `#`, `##` from the front; `%`, `%%` from the back
    Trim {
        back: bool,
        longest: bool,
        pattern: Word,
    },
    /// `:offset:length`
    Slice {
        offset: Vec<Part>,
        length: Option<Vec<Part>>,
    },
    /// `/pattern/text`, `//pattern/text`
    Replace {
        all: bool,
        pattern: Word,
        text: Word,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Target {
    /// `<` `>` `>>` `<>`
    Read(Word),
    Write(Word),
    Append(Word),
    ReadWrite(Word),
    /// `<&` and `>&`
    Duplicate(Word),
    /// `&>`: standard output and error
    Both(Word),
    /// the body of `<<`, filled in when its line is over
    Here(Rc<RefCell<Word>>),
    /// `<<<`
    String(Word),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Redirect {
    pub(super) fd: u32,
    pub(super) target: Target,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Simple {
    pub(super) assignments: Vec<(Vec<u8>, Word)>,
    pub(super) words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Simple(Simple),
    Group(List),
    Subshell(List),
    If {
        branches: Vec<(List, List)>,
        otherwise: Option<List>,
    },
    Loop {
        until: bool,
        condition: List,
        body: List,
    },
    For {
        name: Vec<u8>,
        words: Option<Vec<Word>>,
        body: List,
    },
    Case {
        subject: Word,
        arms: Vec<Arm>,
    },
    Function {
        name: Vec<u8>,
        body: Rc<Command>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    pub(super) patterns: Vec<Word>,
    pub(super) body: List,
    /// ends in `;&`: the next body runs too
    pub(super) falls_through: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    pub(super) kind: Kind,
    pub(super) redirects: Vec<Redirect>,
    pub(super) line: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    pub(super) negated: bool,
    pub(super) members: Vec<Command>,
}

/// Pipelines joined by `&&` and `||`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AndOr {
    pub(super) first: Pipeline,
    /// true for `&&`
    pub(super) rest: Vec<(bool, Pipeline)>,
    /// ends in `&`
    pub(super) background: bool,
}

pub(super) type List = Vec<AndOr>;
