//! Runs scripts in the real shell, whose commands are processes here, and compares what
//! they print. `scripts.txt` has the scripts, their exit codes and outputs; all but the
//! lines that say so are what POSIX, and dash, give.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Room {
        let path = std::env::temp_dir().join(format!("criw-toolbox-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Room(path)
    }

    fn command(&self, applet: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_criw-toolbox"));
        command.arg(applet).current_dir(&self.0).env_clear();
        command
            .env("PWD", &self.0)
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/root")
            .env("TMPDIR", &self.0);
        command
    }

    fn script(&self, script: &str) -> Output {
        let mut command = self.command("sh");
        command
            .args(["-c", script, "name", "p1", "p2"])
            .stdin(Stdio::null());
        command.output().expect("the shell starts")
    }

    /// Gives a command its input; what it prints.
    fn fed(&self, mut command: Command, input: &[u8]) -> Output {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the shell starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || pipe.write_all(&input));
        let output = child.wait_with_output().expect("the shell ends");
        // a shell that ends early breaks the pipe
        let _ = writer.join().expect("the writer ends");
        output
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn scripts_do_what_they_do_elsewhere() {
    let room = Room::new("scripts");
    let mut failed = Vec::new();
    let all = include_str!("scripts.txt");
    for case in all.split("@@\n") {
        let (script, rest) = case.split_once("\n=> ").expect("a script and its result");
        let (code, expected) = rest.split_once('\n').expect("an exit code");
        let output = room.script(script);
        let place = room.0.to_string_lossy().into_owned();
        let printed = text(&output.stdout).replace(&place, "ROOM");
        if output.status.code() != code.parse().ok() || printed != expected {
            failed.push(format!(
                "{script}\n  wanted {code} {expected:?}\n  got {:?} {printed:?} {:?}",
                output.status.code(),
                text(&output.stderr)
            ));
        }
    }
    assert!(all.split("@@\n").count() > 150);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let left: Vec<_> = std::fs::read_dir(&room.0).expect("the room").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn what_only_some_shells_have() {
    let room = Room::new("more");
    for (script, code, expected) in [
        ("x=hello; echo ${x:1:3} ${x: -2} ${x/l/L} ${x//l/L}", 0, "ell lo heLlo heLLo\n"),
        ("cat <<<word", 0, "word\n"),
        ("ls /none &>both; cat both", 0, "ls: /none: No such file or directory\n"),
        ("echo $'a\\tb'", 0, "a\tb\n"),
        ("function f { echo $1; }; f x", 0, "x\n"),
        ("[[ abc == a* ]] && echo fits; [[ abc =~ b.$ ]] && echo regex", 0, "fits\nregex\n"),
        ("set -o pipefail; false | true; echo $?", 0, "1\n"),
        ("source /none || echo $?", 0, "1\n"),
        ("let x=2+3; echo $x; let 0; echo $?", 0, "5\n1\n"),
        ("ls /none |& cat", 0, "ls: /none: No such file or directory\n"),
        ("set -- a b c d; echo ${@:2:2}", 0, "b c\n"),
        ("read -n 2 x <<<hello; echo $x", 0, "he\n"),
        ("case a in a) echo 1;& b) echo 2;; c) echo 3;; esac", 0, "1\n2\n"),
        ("type ls cd if; echo $?", 0, ""),
        ("exec echo gone; echo never", 0, "gone\n"),
        ("(exec sh -c 'exit 7'); echo $?", 0, "7\n"),
        ("printf 'echo $1 $0' >s; chmod +x s; ./s arg; rm s", 0, "arg "),
        ("printf '#!/bin/sh -e\\nfalse\\necho never' >s; ./s; echo $?; rm s", 0, "1\n"),
        ("f() { f; }; f; echo never", 2, ""),
        ("x=$(head -c 300000 /dev/zero | tr '\\0' x); echo ${#x}", 0, "300000\n"),
        ("x=$(head -c 300000 /dev/zero | tr '\\0' x); echo $x | wc -c", 0, "300001\n"),
        ("x=$(head -c 100000 /dev/zero | tr '\\0' x); cat <<EOF | wc -c\n$x\nEOF", 0, "100001\n"),
        ("yes | while read x; do echo $x; break; done", 0, "y\n"),
        ("while true; do echo y; done | head -n 1", 0, "y\n"),
        ("{ echo out; cat nothing; } 2>&1 >/dev/null | wc -l", 0, "1\n"),
        ("x=$(cat nothing 2>&1); echo \"[$x]\"", 0, "[cat: nothing: No such file or directory]\n"),
        ("cat >&2 <<<err; ls >&2", 0, ""),
        ("x=$( (echo a; echo b >&2) 3>&1 1>&2 2>&3 ); echo $x", 0, "b\n"),
        ("sleep 0.05 | echo first; echo second", 0, "first\nsecond\n"),
        ("a() { b; }; b() { echo \"$1$x$v\"; }; v='q\"'\\''$'; x=1; a | cat; { b z; } & wait", 0, "1q\"'$\nz1q\"'$\n"),
        ("x=$(sleep 0.05 & echo fast); echo $x", 0, "fast\n"),
        ("{ for i in 3 1 2; do (echo $i) & done; wait; } | sort; echo all", 0, "1\n2\n3\nall\n"),
        ("timeout 0.1 sleep 5; echo $?", 0, "124\n"),
        ("timeout 5 sh -c 'exit 3'; echo $?", 0, "3\n"),
        ("echo a b c | xargs -n 1 echo -", 0, "- a\n- b\n- c\n"),
        ("printf 'a b\\nc\\n' | xargs -I X echo '<X>'", 0, "<a b>\n<c>\n"),
        ("touch f1 f2; find . -name 'f*' -exec echo got {} \\; ; find . -type f -exec rm {} +; ls", 0, "got ./f1\ngot ./f2\n"),
        ("echo data | tee one | cat; cat one; rm one", 0, "data\ndata\n"),
        ("env X=1 sh -c 'echo $X'; env -i sh -c 'echo [$HOME]'", 0, "1\n[]\n"),
        ("time -p true 2>/dev/null; echo $?", 0, "0\n"),
        ("PATH=/none; echo $(basename /a/b) $(expr 1 + 2); mkdir d && rmdir d && echo made", 0, "b 3\nmade\n"),
        ("umask 077; echo $?; umask", 0, "1\n0022\n"),
        ("kill -0 $$ && echo alive; kill -9 1; echo $?", 0, "alive\n1\n"),
        ("(kill -15 $$; echo never); echo $?", 0, "143\n"),
        ("sleep 5 & kill %%; wait $!; echo $?", 0, "143\n"),
    ] {
        let output = room.script(script);
        let printed = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{script}\n{}", text(&output.stderr));
        // a prefix, where the rest depends on the machine
        assert!(printed.starts_with(expected) && (printed == expected || expected.ends_with(' ') || expected.is_empty()), "{script}\n{printed:?}\n{}", text(&output.stderr));
    }
}

#[test]
fn commands_come_from_the_input_and_share_it() {
    let room = Room::new("input");
    let output = room.fed(
        room.command("sh"),
        b"echo one\nread x\nthe line\necho \"got $x\"\ncat\nrest\nof it\n",
    );
    assert_eq!(text(&output.stdout), "one\ngot the line\nrest\nof it\n");
    let output = room.fed(
        room.command("sh"),
        b"if true\nthen\necho 'two\nlines'\nfi\nexit 5\necho never\n",
    );
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("two\nlines\n", Some(5))
    );
    let output = room.fed(room.command("sh"), b"echo before\nif (\n");
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("before\n", Some(2))
    );
    assert!(text(&output.stderr).contains("syntax error"));
    let mut command = room.command("sh");
    command.args(["-s", "a", "b"]);
    assert_eq!(text(&room.fed(command, b"echo $2 $#\n").stdout), "b 2\n");
    // an interactive shell goes on after what ends a script, and throws away a line with Ctrl-C
    let mut command = room.command("sh");
    command.arg("-i");
    let output = room.fed(
        command,
        b"echo $((1/0))\n${x?gone}\nfoo (\necho thrown\x03 away\necho st $?\nexit 4\n",
    );
    assert_eq!(output.status.code(), Some(4));
    assert!(
        text(&output.stdout).ends_with("st 127\n"),
        "{}",
        text(&output.stdout)
    );
    assert!(!text(&output.stdout).contains("thrown"));
}

#[test]
fn files_are_run_with_their_arguments() {
    let room = Room::new("files");
    std::fs::write(room.0.join("script"), "echo $0 $# \"$2\"\nnosuchcommand\n").expect("a script");
    let mut command = room.command("sh");
    command.args(["script", "a", "b c"]);
    let output = command.output().expect("the shell starts");
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("script 2 b c\n", Some(127))
    );
    assert_eq!(
        text(&output.stderr),
        "script: line 2: nosuchcommand: not found\n"
    );
    let output = room
        .command("sh")
        .arg("none")
        .output()
        .expect("the shell starts");
    assert_eq!(output.status.code(), Some(127));
}

#[test]
fn bytes_that_are_no_text_survive() {
    let room = Room::new("bytes");
    let output = room.script("x=$(printf 'a\\377b'); echo \"$x\"; f() { echo \"$x\"; }; f | cat; { echo \"$x\"; } & wait");
    assert_eq!(output.stdout, b"a\xffb\na\xffb\na\xffb\n");
}

/// 200,000 random scripts would take minutes as processes; the parser's own test has those.
#[test]
fn random_input_never_breaks_the_shell() {
    let room = Room::new("random");
    let mut seed = 4711u32;
    let mut next = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 16
    };
    // nothing here can write a file or start a process
    let words = [
        "echo", "if", "then", "fi", "(", ")", "{", "}", ";", "&&", "||", "$x", "${x", "'", "\"",
        "`", "$((", "))", "\n", "case", "in", "esac", "for", "do", "done", "!", "=", "x=", "<<A",
        "A", "\\", "#", "*", "1", "\u{1}", "é",
    ];
    for _ in 0..150 {
        let script: String = (0..12)
            .map(|_| format!("{} ", words[next() as usize % words.len()]))
            .collect();
        let mut command = room.command("timeout");
        command
            .args([
                "20",
                env!("CARGO_BIN_EXE_criw-toolbox"),
                "sh",
                "-n",
                "-c",
                &script,
            ])
            .stdin(Stdio::null());
        let output = command.output().expect("the shell starts");
        let code = output.status.code();
        assert!(
            matches!(code, Some(0 | 1 | 2 | 126 | 127)),
            "{script:?} {code:?} {}",
            text(&output.stderr)
        );
    }
}
