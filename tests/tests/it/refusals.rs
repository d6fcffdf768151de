//! `docs/refusals.md` against the code: a sentence that nobody says any more, or a test that
//! is gone, must not stand there.

use std::path::{Path, PathBuf};

/// What a sentence may leave out between its fixed parts.
const HOLE: char = '…';

/// Where refusals are said.
const SAID_IN: [&str; 4] = [
    "cri-server/src",
    "sandbox/src",
    "net/src",
    "image-service/src",
];

/// Where tests are.
const TESTED_IN: [&str; 5] = [
    "cri-server/src",
    "sandbox/src",
    "net/src",
    "image-service/src",
    "tests/tests/it",
];

/// All Rust code below a directory, with strings of several lines in one.
fn code(directory: &Path, all: &mut String) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            code(&path, all);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut lines = text.split("\\\n");
            all.push_str(lines.next().unwrap_or_default());
            lines.for_each(|line| all.push_str(line.trim_start()));
        }
    }
}

fn all_of(directories: &[&str]) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for directory in directories {
        code(&repository.join(directory), &mut all);
    }
    all
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn each_sentence_of_the_page_is_said_and_each_test_is_there() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/refusals.md");
    let page = std::fs::read_to_string(page).unwrap();
    let said = all_of(&SAID_IN).replace("\\\"", "\"");
    let tests = all_of(&TESTED_IN);
    let mut sentences = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [what, _, says, tested] = cells[..] else {
            panic!("{} cells in {row}", cells.len());
        };
        if what.trim() == "request" {
            continue;
        }
        for sentence in quoted(says) {
            sentences += 1;
            for part in sentence.split(HOLE).map(str::trim) {
                assert!(said.contains(part), "nobody says {part:?} ({what})");
            }
        }
        assert!(
            tested.contains("not tested") || quoted(tested).next().is_some(),
            "{row}"
        );
        for name in quoted(tested) {
            assert!(tests.contains(&format!("fn {name}()")), "no test {name}");
        }
    }
    assert!(sentences >= 40, "only {sentences} sentences were found");
}
