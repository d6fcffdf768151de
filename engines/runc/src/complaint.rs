//! What a failed call of runc says to the user: its JSON log and its stderr, made
//! one sentence.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use criw_engines::record::clip;

/// How a call ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The binary could not be executed.
    NotStarted(io::Error),
    /// By itself or by somebody's signal.
    Status(ExitStatus),
    /// It was killed because it took longer than this.
    TimedOut(Duration),
}

/// The text; `what` completes "runc {what}".
pub(crate) fn text(binary: &Path, what: &str, end: &End, log: &[u8], stderr: &[u8]) -> String {
    let runc = binary.display();
    let said = said(log, stderr);
    clip(match end {
        End::NotStarted(error) => format!(
            "execute {runc} for {what}: {error}; install runc or set its path in [runc] of the configuration"
        ),
        End::TimedOut(limit) => {
            let said = said.map_or_else(String::new, |said| format!("; it said: {said}"));
            format!("{runc} {what} did not end in {limit:?} and was killed{said}")
        }
        End::Status(status) => match (said, status.signal()) {
            (Some(said), None) => format!("{runc} {what}: {said}"),
            (Some(said), Some(signal)) => {
                format!("{runc} {what} was killed by signal {signal}: {said}")
            }
            (None, Some(signal)) => {
                format!("{runc} {what} was killed by signal {signal} and gave no reason")
            }
            (None, None) => format!(
                "{runc} {what} ended with code {} and gave no reason",
                status.code().unwrap_or(-1)
            ),
        },
    })
}

/// The last error of the log; then stderr, unless it only repeats that.
fn said(log: &[u8], stderr: &[u8]) -> Option<String> {
    // Without --log the log lines are in stderr.
    let logged = last_error(log).or_else(|| last_error(stderr));
    let stderr: Vec<_> = String::from_utf8_lossy(stderr)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && message(line).is_none())
        .filter(|line| {
            logged
                .as_deref()
                .is_none_or(|logged| !logged.contains(line))
        })
        .map(str::to_owned)
        .collect();
    let mut all: Vec<_> = logged.into_iter().collect();
    if !stderr.is_empty() {
        all.push(stderr.join(" / "));
    }
    (!all.is_empty()).then(|| all.join("; "))
}

fn last_error(log: &[u8]) -> Option<String> {
    String::from_utf8_lossy(log).lines().rev().find_map(message)
}

/// The message of a log line of level error or worse.
fn message(line: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    matches!(line.level.as_str(), "error" | "fatal" | "panic").then_some(line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOPE: &str = r#"{"level":"error","msg":"runc create failed: exec: \"nope\": not found","time":"2026-11-22T17:52:13Z"}"#;
    const WARNING: &str = r#"{"level":"warning","msg":"cgroup is odd","time":""}"#;

    #[test]
    fn what_runc_said() {
        let nope = "runc create failed: exec: \"nope\": not found";
        for (log, stderr, expected) in [
            (String::new(), "", None),
            (NOPE.into(), "", Some(nope.to_owned())),
            (
                NOPE.into(),
                "runc create failed: exec: \"nope\": not found\n",
                Some(nope.into()),
            ),
            (format!("{NOPE}\n{WARNING}\n"), "", Some(nope.into())),
            (format!("{WARNING}\n"), "", None),
            (
                format!("{{\"level\":\"error\",\"msg\":\"old\"}}\n{NOPE}"),
                "",
                Some(nope.into()),
            ),
            (format!("{NOPE}\n{{\"level\":\"err"), "", Some(nope.into())),
            (
                NOPE.into(),
                "panic: x\n\n  goroutine 1\n",
                Some(format!("{nope}; panic: x / goroutine 1")),
            ),
            (String::new(), NOPE, Some(nope.into())),
            (
                "not json".into(),
                "flag provided but not defined",
                Some("flag provided but not defined".into()),
            ),
            ("\u{1}\n{}\n[]".into(), "", None),
        ] {
            assert_eq!(
                said(log.as_bytes(), stderr.as_bytes()),
                expected,
                "{log:?} {stderr:?}"
            );
        }
        assert!(said(b"", b"\xff\xfe").is_some());
    }

    #[test]
    fn sentences() {
        let runc = Path::new("/x/runc");
        let of = |end: &End, log: &str| text(runc, "create", end, log.as_bytes(), b"");
        let code_one = || End::Status(ExitStatus::from_raw(1 << 8));
        let missing = || End::NotStarted(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(
            of(&missing(), ""),
            "execute /x/runc for create: No such file or directory (os error 2); install runc or set its path in [runc] of the configuration"
        );
        assert_eq!(
            of(&End::TimedOut(Duration::from_secs(60)), ""),
            "/x/runc create did not end in 60s and was killed"
        );
        assert_eq!(
            of(&End::Status(ExitStatus::from_raw(9)), ""),
            "/x/runc create was killed by signal 9 and gave no reason"
        );
        assert_eq!(
            of(&code_one(), ""),
            "/x/runc create ended with code 1 and gave no reason"
        );
        assert_eq!(
            of(&code_one(), NOPE),
            "/x/runc create: runc create failed: exec: \"nope\": not found"
        );
        let long = format!(r#"{{"level":"error","msg":"{}"}}"#, "ä".repeat(9000));
        assert!(of(&code_one(), &long).len() <= criw_engines::protocol::MAX_MESSAGE_TEXT);
    }
}
