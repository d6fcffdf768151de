//! Tools about commands and their environment.

use crate::context::{usage, Context, Fail, Outcome};
use crate::host::{self, Errno, Request};
use crate::options;
use std::time::{Duration, Instant};

pub(crate) const SIGNALS: &[(u32, &str)] = &[
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (6, "ABRT"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (17, "CHLD"),
    (18, "CONT"),
    (19, "STOP"),
    (20, "TSTP"),
    (28, "WINCH"),
];

/// A signal by name, with or without SIG, or by number.
pub(crate) fn signal(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return (number <= 64).then_some(number);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(_, n)| *n == short)
        .map(|(number, _)| *number)
}

pub(crate) fn signal_name(number: u32) -> String {
    match SIGNALS.iter().find(|(n, _)| *n == number) {
        Some((_, name)) => (*name).to_owned(),
        None => number.to_string(),
    }
}

/// Starts a command with our own streams.
pub(super) fn spawn(
    context: &Context,
    argv: &[String],
    env: &[(String, String)],
    streams: [u32; 3],
) -> Result<host::Child, Fail> {
    let mut env: Vec<(String, String)> = env
        .iter()
        .filter(|(name, _)| name != "PWD")
        .cloned()
        .collect();
    env.push(("PWD".to_owned(), context.directory.clone()));
    let request = Request {
        argv,
        env: &env,
        directory: &context.directory,
        streams,
    };
    host::spawn(&request).map_err(|errno| {
        let name = argv.first().map_or("", String::as_str);
        match errno {
            Errno::NOENT => Fail::Text(127, format!("{name}: not found")),
            Errno::NOEXEC => Fail::Text(
                126,
                format!("{name}: not a WebAssembly command that runs here"),
            ),
            errno => Fail::Text(126, format!("{name}: {errno}")),
        }
    })
}

/// Runs a command with our own streams; its exit code.
pub(super) fn run_command(
    context: &mut Context,
    argv: &[String],
    env: &[(String, String)],
    streams: [u32; 3],
) -> Outcome {
    // what we have written comes before what it writes
    context.output.flush()?;
    let child = spawn(context, argv, env, streams)?;
    match host::wait_for(child) {
        Ok(status) => Ok(status as i32),
        Err(errno) => Err(Fail::Text(
            126,
            format!("can't wait for {}: {errno}", argv[0]),
        )),
    }
}

const OWN: [u32; 3] = [host::OWN; 3];

pub(super) fn env(context: &mut Context) -> Outcome {
    let long = [
        ("ignore-environment", 'i'),
        ("unset", 'u'),
        ("chdir", 'C'),
        ("null", '0'),
    ];
    let options = options::parse(&context.args, "+iu:0C:", &long)?;
    let mut env = if options.has('i') {
        Vec::new()
    } else {
        context.env.clone()
    };
    for name in options.values('u') {
        env.retain(|(other, _)| other != name);
    }
    if let Some(directory) = options.value('C') {
        context.directory = crate::files::logical(&context.directory, directory);
    }
    let mut words = options.rest.as_slice();
    if words.first().map_or(false, |word| word == "-") {
        env.clear();
        words = &words[1..];
    }
    while let Some((name, value)) = words.first().and_then(|word| word.split_once('=')) {
        env.retain(|(other, _)| other != name);
        env.push((name.to_owned(), value.to_owned()));
        words = &words[1..];
    }
    if !words.is_empty() {
        return run_command(context, words, &env, OWN);
    }
    let end = if options.has('0') { '\0' } else { '\n' };
    for (name, value) in env {
        write!(context.output, "{name}={value}{end}")?;
    }
    Ok(0)
}

pub(super) fn printenv(context: &mut Context) -> Outcome {
    if context.args.is_empty() {
        for (name, value) in &context.env {
            writeln!(context.output, "{name}={value}")?;
        }
        return Ok(0);
    }
    let mut code = 0;
    for name in context.args.clone() {
        match context.variable(&name).map(str::to_owned) {
            Some(value) => writeln!(context.output, "{value}")?,
            None => code = 1,
        }
    }
    Ok(code)
}

pub(super) fn kill(context: &mut Context) -> Outcome {
    match context.args.first().map(String::as_str) {
        Some("-l") => {
            let names: Vec<&str> = SIGNALS.iter().map(|(_, name)| *name).collect();
            writeln!(context.output, "{}", names.join(" "))?;
            Ok(0)
        }
        _ => usage("only a shell can signal, and only what it has started: use the kill of sh"),
    }
}

pub(super) fn timeout(context: &mut Context) -> Outcome {
    let long = [
        ("signal", 's'),
        ("kill-after", 'k'),
        ("preserve-status", 'p'),
        ("foreground", 'f'),
    ];
    let options = options::parse(&context.args, "+s:k:pft:", &long).map_err(cannot_run)?;
    let name = options.value('s').unwrap_or("TERM");
    let signal = match signal(name) {
        Some(signal) => signal,
        None => return Err(Fail::Text(125, format!("{name}: bad signal"))),
    };
    // old busybox: timeout -t 5 command
    let (limit, argv) = match (options.value('t'), options.rest.as_slice()) {
        (Some(limit), argv @ [_, ..]) => (limit, argv),
        (None, [limit, argv @ ..]) if !argv.is_empty() => (limit.as_str(), argv),
        _ => {
            return Err(Fail::Text(
                125,
                "wants: timeout seconds command [arguments]".to_owned(),
            ))
        }
    };
    let limit = options::span(limit).map_err(cannot_run)?;
    let grace = options
        .value('k')
        .map(options::span)
        .transpose()
        .map_err(cannot_run)?;
    let child = spawn(context, argv, &context.env.clone(), OWN)?;
    let start = Instant::now();
    let mut late = false;
    loop {
        match host::wait(child, false) {
            Ok(status) if late && !options.has('p') && status != 137 => return Ok(124),
            Ok(status) => return Ok(status as i32),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => {
                return Err(Fail::Text(
                    125,
                    format!("can't wait for {}: {errno}", argv[0]),
                ))
            }
        }
        let passed = start.elapsed();
        // a limit of 0 is none
        if !late && !limit.is_zero() && passed >= limit {
            late = true;
            // it may be over in this moment
            let _ = host::signal(child, signal);
        } else if late && grace.map_or(false, |grace| passed >= limit + grace) {
            let _ = host::signal(child, 9);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cannot_run(fail: Fail) -> Fail {
    match fail {
        Fail::Text(_, text) => Fail::Text(125, text),
        Fail::Pipe => Fail::Pipe,
    }
}

pub(super) fn time(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "+p", &[])?;
    if options.rest.is_empty() {
        return usage("wants a command");
    }
    let start = Instant::now();
    let code = run_command(context, &options.rest, &context.env.clone(), OWN)?;
    let seconds = start.elapsed().as_secs_f64();
    let text = match options.has('p') {
        true => format!("real {seconds:.2}\n"),
        false => format!(
            "real\t{}m {:.2}s\n",
            (seconds / 60.0) as u64,
            seconds % 60.0
        ),
    };
    context.error.write_all(text.as_bytes())?;
    Ok(code)
}

pub(super) fn nohup(context: &mut Context) -> Outcome {
    if context.args.is_empty() {
        return usage("wants a command");
    }
    run_command(context, &context.args.clone(), &context.env.clone(), OWN)
}

pub(super) fn which(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "as", &[])?;
    let path = context
        .variable("PATH")
        .unwrap_or("/usr/local/bin:/usr/bin:/bin")
        .to_owned();
    let mut code = i32::from(options.rest.is_empty());
    for name in &options.rest {
        let mut found = 0;
        let directories: Vec<&str> = if name.contains('/') {
            vec![""]
        } else {
            path.split(':').collect()
        };
        for directory in directories {
            let file = if directory.is_empty() {
                name.clone()
            } else {
                crate::files::join(directory, name)
            };
            let data = std::fs::metadata(context.path(&file));
            if data.map_or(false, |data| data.is_file()) && (found == 0 || options.has('a')) {
                found += 1;
                writeln!(context.output, "{file}")?;
            }
        }
        if found == 0 && !name.contains('/') && super::find(name).is_some() {
            found = 1;
            writeln!(context.output, "{name}")?;
        }
        if found == 0 {
            code = 1;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::testing::{output, run};

    #[test]
    fn signals_have_names() {
        assert_eq!(
            (
                signal("sigterm"),
                signal("KILL"),
                signal("9"),
                signal("x"),
                signal("999")
            ),
            (Some(15), Some(9), Some(9), None, None)
        );
        assert_eq!(
            (signal_name(2), signal_name(63)),
            ("INT".to_owned(), "63".to_owned())
        );
    }

    #[test]
    fn the_environment_is_shown_and_changed() {
        assert_eq!(output("printenv A", ""), "b\n");
        assert_eq!(output("env -u HOME A=c B=d", ""), "A=c\nB=d\n");
        assert_eq!(output("env -i X=1", ""), "X=1\n");
        assert_eq!(run("printenv NONE", "").0, 1);
    }

    #[test]
    fn wrong_use_is_told() {
        for (command, expected) in [
            ("timeout", 125),
            ("timeout 1", 125),
            ("timeout x true", 125),
            ("timeout -s NONE 1 true", 125),
            ("time", 1),
            ("nohup", 1),
            ("which", 1),
            ("which nothing-of-that-name", 1),
            ("kill 1", 1),
            ("kill", 1),
            ("env -q", 1),
            ("env /nonexistent/command", 127),
        ] {
            assert_eq!(run(command, "").0, expected, "{command}");
        }
    }
}
