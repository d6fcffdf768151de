//! Trees to programs, and the two machines that run them.

use super::parse::{Node, Parsed};
use super::Match;
use crate::glob::{decode, lower, Set};
use std::rc::Rc;

/// Larger programs are refused: nested repetitions multiply.
const LARGEST: usize = 20_000;
/// Steps of one match with back-references.
const STEPS: usize = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Look {
    Start,
    End,
    WordStart,
    WordEnd,
    Boundary,
    NotBoundary,
}

#[derive(Debug, Clone)]
enum Step {
    Char(u32),
    Any,
    Set(Rc<Set>),
    Look(Look),
    Save(usize),
    /// tries the first, then the second
    Split(usize, usize),
    Jump(usize),
    Reference(usize),
    Found,
}

pub(super) struct Program {
    steps: Vec<Step>,
    slots: usize,
    references: bool,
    ignore_case: bool,
}

pub(super) fn compile(parsed: &Parsed, ignore_case: bool) -> Result<Program, String> {
    let mut program = Program {
        steps: Vec::new(),
        slots: 2 * (parsed.groups + 1),
        references: parsed.references,
        ignore_case,
    };
    program.push(Step::Save(0))?;
    program.node(&parsed.node)?;
    program.push(Step::Save(1))?;
    program.push(Step::Found)?;
    Ok(program)
}

type Slots = Rc<Vec<usize>>;
const UNSET: usize = usize::MAX;

fn word_at(text: &[u8], at: usize) -> bool {
    text.get(at).map_or(false, |byte| {
        byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80
    })
}

fn look(look: Look, text: &[u8], at: usize) -> bool {
    let before = at > 0 && word_at(text, at - 1);
    let behind = word_at(text, at);
    match look {
        Look::Start => at == 0,
        Look::End => at == text.len(),
        Look::WordStart => !before && behind,
        Look::WordEnd => before && !behind,
        Look::Boundary => before != behind,
        Look::NotBoundary => before == behind,
    }
}

fn as_match(slots: &[usize]) -> Match {
    let group = |pair: &[usize]| (pair[0] != UNSET && pair[1] != UNSET).then(|| (pair[0], pair[1]));
    slots.chunks(2).map(group).collect()
}

/// Threads in order of priority, one for each place in the program.
struct Threads {
    list: Vec<(usize, Slots)>,
    /// in which round a place was last taken
    seen: Vec<u64>,
}

impl Program {
    fn push(&mut self, step: Step) -> Result<usize, String> {
        if self.steps.len() >= LARGEST {
            return Err("the regular expression is too large".to_owned());
        }
        self.steps.push(step);
        Ok(self.steps.len() - 1)
    }

    fn node(&mut self, node: &Node) -> Result<(), String> {
        match node {
            Node::Char(c) => {
                self.push(Step::Char(if self.ignore_case { lower(*c) } else { *c }))?
            }
            Node::Any => self.push(Step::Any)?,
            Node::Set(set) => self.push(Step::Set(Rc::new(set.clone())))?,
            Node::Start => self.push(Step::Look(Look::Start))?,
            Node::End => self.push(Step::Look(Look::End))?,
            Node::WordStart => self.push(Step::Look(Look::WordStart))?,
            Node::WordEnd => self.push(Step::Look(Look::WordEnd))?,
            Node::Boundary => self.push(Step::Look(Look::Boundary))?,
            Node::NotBoundary => self.push(Step::Look(Look::NotBoundary))?,
            Node::Reference(group) => self.push(Step::Reference(*group))?,
            Node::Group(number, inner) => {
                self.push(Step::Save(2 * number))?;
                self.node(inner)?;
                self.push(Step::Save(2 * number + 1))?
            }
            Node::Concat(nodes) => return nodes.iter().try_for_each(|node| self.node(node)),
            Node::Either(branches) => {
                let mut ends = Vec::new();
                for (number, branch) in branches.iter().enumerate() {
                    if number + 1 == branches.len() {
                        self.node(branch)?;
                        break;
                    }
                    let split = self.push(Step::Split(0, 0))?;
                    self.node(branch)?;
                    ends.push(self.push(Step::Jump(0))?);
                    self.steps[split] = Step::Split(split + 1, self.steps.len());
                }
                let end = self.steps.len();
                ends.iter().for_each(|at| self.steps[*at] = Step::Jump(end));
                return Ok(());
            }
            Node::Repeat(inner, least, most) => {
                for _ in 0..*least {
                    self.node(inner)?;
                }
                match most {
                    None => {
                        let split = self.push(Step::Split(0, 0))?;
                        self.node(inner)?;
                        self.push(Step::Jump(split))?;
                        self.steps[split] = Step::Split(split + 1, self.steps.len());
                    }
                    Some(most) => {
                        let mut splits = Vec::new();
                        for _ in *least..*most {
                            splits.push(self.push(Step::Split(0, 0))?);
                            self.node(inner)?;
                        }
                        let end = self.steps.len();
                        splits
                            .iter()
                            .for_each(|at| self.steps[*at] = Step::Split(at + 1, end));
                    }
                }
                return Ok(());
            }
        };
        Ok(())
    }

    pub(super) fn find(
        &self,
        text: &[u8],
        start: usize,
        prefix: &[u8],
    ) -> Result<Option<Match>, String> {
        if self.references {
            return self.try_and_go_back(text, start);
        }
        let threads = || Threads {
            list: Vec::new(),
            seen: vec![0; self.steps.len()],
        };
        let (mut now, mut next) = (threads(), threads());
        let mut best: Option<Slots> = None;
        let mut at = start;
        let mut round = 0;
        loop {
            if now.list.is_empty() {
                if best.is_some() {
                    break;
                }
                if !prefix.is_empty() {
                    match super::search(text, at, prefix) {
                        Some(found) => at = found,
                        None => break,
                    }
                }
            }
            round += 1;
            // this round's threads were added under its number by the last one
            if best.is_none() {
                self.add(
                    &mut now,
                    round,
                    0,
                    Rc::new(vec![UNSET; self.slots]),
                    text,
                    at,
                );
            }
            let (c, length) = decode(text.get(at..).unwrap_or_default());
            for (place, slots) in std::mem::take(&mut now.list) {
                // a match that begins later than the one we have is none
                if best.as_ref().map_or(false, |best| slots[0] > best[0]) {
                    continue;
                }
                let step = &self.steps[place];
                if matches!(step, Step::Found) {
                    let longer = best
                        .as_ref()
                        .map_or(true, |best| slots[0] < best[0] || slots[1] > best[1]);
                    if longer {
                        best = Some(slots);
                    }
                } else if length > 0 && self.takes(step, c) {
                    self.add(&mut next, round + 1, place + 1, slots, text, at + length);
                }
            }
            if length == 0 {
                break;
            }
            at += length;
            std::mem::swap(&mut now, &mut next);
        }
        Ok(best.map(|slots| as_match(&slots)))
    }

    fn takes(&self, step: &Step, c: u32) -> bool {
        match step {
            Step::Char(wanted) if self.ignore_case => *wanted == lower(c),
            Step::Char(wanted) => *wanted == c,
            Step::Any => true,
            Step::Set(set) => set.contains(c, self.ignore_case),
            _ => false,
        }
    }

    /// Follows all that takes no character. A stack of ours: programs are long.
    fn add(
        &self,
        threads: &mut Threads,
        round: u64,
        place: usize,
        slots: Slots,
        text: &[u8],
        at: usize,
    ) {
        let mut work = vec![(place, slots)];
        while let Some((place, slots)) = work.pop() {
            if std::mem::replace(&mut threads.seen[place], round) == round {
                continue;
            }
            match &self.steps[place] {
                Step::Jump(to) => work.push((*to, slots)),
                Step::Split(first, second) => {
                    work.push((*second, slots.clone()));
                    work.push((*first, slots));
                }
                Step::Save(slot) => {
                    let mut slots = slots;
                    Rc::make_mut(&mut slots)[*slot] = at;
                    work.push((place + 1, slots));
                }
                Step::Look(kind) => {
                    if look(*kind, text, at) {
                        work.push((place + 1, slots));
                    }
                }
                _ => threads.list.push((place, slots)),
            }
        }
    }

    fn try_and_go_back(&self, text: &[u8], start: usize) -> Result<Option<Match>, String> {
        let mut steps = 0;
        let mut first = start;
        loop {
            let mut best: Option<Slots> = None;
            let mut work = vec![(0, first, Rc::new(vec![UNSET; self.slots]))];
            while let Some((place, at, slots)) = work.pop() {
                steps += 1;
                if steps > STEPS || work.len() > STEPS / 10 {
                    return Err(
                        "the back-references of the regular expression need too many tries"
                            .to_owned(),
                    );
                }
                match &self.steps[place] {
                    Step::Found => {
                        if best.as_ref().map_or(true, |best| slots[1] > best[1]) {
                            best = Some(slots);
                        }
                    }
                    Step::Jump(to) => work.push((*to, at, slots)),
                    Step::Split(one, two) => {
                        work.push((*two, at, slots.clone()));
                        work.push((*one, at, slots));
                    }
                    Step::Save(slot) => {
                        let mut slots = slots;
                        Rc::make_mut(&mut slots)[*slot] = at;
                        work.push((place + 1, at, slots));
                    }
                    Step::Look(kind) => {
                        if look(*kind, text, at) {
                            work.push((place + 1, at, slots));
                        }
                    }
                    Step::Reference(group) => {
                        let (from, to) = (slots[2 * group], slots[2 * group + 1]);
                        if from != UNSET && to != UNSET && text[at..].starts_with(&text[from..to]) {
                            work.push((place + 1, at + to - from, slots));
                        }
                    }
                    step => {
                        let (c, length) = decode(&text[at..]);
                        if length > 0 && self.takes(step, c) {
                            work.push((place + 1, at + length, slots));
                        }
                    }
                }
            }
            if let Some(slots) = best {
                return Ok(Some(as_match(&slots)));
            }
            if first >= text.len() {
                return Ok(None);
            }
            first += decode(&text[first..]).1;
        }
    }
}
