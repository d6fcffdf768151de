//! The smallest tools.

use crate::context::{fail, usage, Context, Outcome};
use crate::{files, options};

pub(super) fn yes_true(_: &mut Context) -> Outcome {
    Ok(0)
}

pub(super) fn no(_: &mut Context) -> Outcome {
    Ok(1)
}

pub(super) fn pwd(context: &mut Context) -> Outcome {
    writeln!(context.output, "{}", context.directory)?;
    Ok(0)
}

pub(super) fn sleep(context: &mut Context) -> Outcome {
    if context.args.is_empty() {
        return usage("wants a time, as in: sleep 1.5");
    }
    let mut total = std::time::Duration::ZERO;
    for word in &context.args {
        total += options::span(word)?;
    }
    std::thread::sleep(total.min(options::FOREVER));
    Ok(0)
}

pub(super) fn yes(context: &mut Context) -> Outcome {
    let line = if context.args.is_empty() {
        "y".to_owned()
    } else {
        context.args.join(" ")
    } + "\n";
    let block = line.repeat((4096 / line.len()).max(1));
    loop {
        context.output.write_all(block.as_bytes())?;
    }
}

pub(super) fn basename(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "+as:z",
        &[("multiple", 'a'), ("suffix", 's')],
    )?;
    let all = options.has('a') || options.has('s');
    let (names, suffix) = match options.rest.as_slice() {
        [] => return usage("wants a path"),
        [name, suffix] if !all => (std::slice::from_ref(name), suffix.as_str()),
        [_, _, third, ..] if !all => return usage(format!("extra operand '{third}'")),
        names => (names, options.value('s').unwrap_or("")),
    };
    for name in names {
        let base = files::base_name(name);
        let short = base
            .strip_suffix(suffix)
            .filter(|short| !short.is_empty())
            .unwrap_or(base);
        writeln!(context.output, "{short}")?;
    }
    Ok(0)
}

pub(super) fn parent(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rfind('/') {
        None if trimmed.is_empty() && path.starts_with('/') => "/",
        None => ".",
        Some(at) => match trimmed[..at].trim_end_matches('/') {
            "" => "/",
            parent => parent,
        },
    }
}

pub(super) fn dirname(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "+z", &[])?;
    if options.rest.is_empty() {
        return usage("wants a path");
    }
    for path in &options.rest {
        writeln!(context.output, "{}", parent(path))?;
    }
    Ok(0)
}

pub(super) fn seq(context: &mut Context) -> Outcome {
    // a number may begin with a minus, so options are looked for by hand
    let mut words: Vec<&str> = context.args.iter().map(String::as_str).collect();
    let (mut separator, mut wide) = ("\n".to_owned(), false);
    while let Some(first) = words.first().copied() {
        match first {
            "-w" => wide = true,
            "-s" if words.len() > 1 => separator = words.remove(1).to_owned(),
            "--" => {
                words.remove(0);
                break;
            }
            _ if first.starts_with("-s") => separator = first[2..].to_owned(),
            _ => break,
        }
        words.remove(0);
    }
    let (first, step, last) = match words.as_slice() {
        [last] => ("1", "1", *last),
        [first, last] => (*first, "1", *last),
        [first, step, last] => (*first, *step, *last),
        _ => return usage("wants: seq [first [step]] last"),
    };
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let precision = decimals(first).max(decimals(step));
    let number = |text: &str| match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => usage(format!("invalid number '{text}'")),
    };
    let (start, by, end) = (number(first)?, number(step)?, number(last)?);
    if by == 0.0 {
        return fail("the step must not be zero");
    }
    let width = match wide {
        true => format!("{start:.precision$}")
            .len()
            .max(format!("{end:.precision$}").len()),
        false => 0,
    };
    // counted, not added: the error of a sum would grow
    let mut count = 0u64;
    loop {
        let value = start + by * count as f64;
        let past = by * f64::EPSILON * count as f64;
        if (by > 0.0 && value > end + past) || (by < 0.0 && value < end + past) {
            break;
        }
        if count > 0 {
            context.output.write_all(separator.as_bytes())?;
        }
        let text = format!("{value:0width$.precision$}");
        let text = if text.trim_start_matches(['-', '0', '.']).is_empty() {
            text.replacen('-', "", 1)
        } else {
            text
        };
        context.output.write_all(text.as_bytes())?;
        count += 1;
    }
    if count > 0 {
        context.output.write_all(b"\n")?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run};

    #[test]
    fn names_are_cut() {
        for (command, expected) in [
            ("basename /a/b.c", "b.c\n"),
            ("basename /a/b.c .c", "b\n"),
            ("basename .c .c", ".c\n"),
            ("basename /", "/\n"),
            ("basename -a x/y z", "y\nz\n"),
            ("basename -s .c a.c b.c", "a\nb\n"),
            ("dirname /a/b", "/a\n"),
            ("dirname /a", "/\n"),
            ("dirname a", ".\n"),
            ("dirname a//b//", "a\n"),
            ("dirname /", "/\n"),
            ("dirname //", "/\n"),
        ] {
            assert_eq!(output(command, ""), expected, "{command}");
        }
    }

    #[test]
    fn sequences_end_where_they_should() {
        for (command, expected) in [
            ("seq 3", "1\n2\n3\n"),
            ("seq 2 4", "2\n3\n4\n"),
            ("seq 5 -2 1", "5\n3\n1\n"),
            ("seq 0 0.1 0.3", "0.0\n0.1\n0.2\n0.3\n"),
            ("seq -1 1", "-1\n0\n1\n"),
            ("seq -s, 3", "1,2,3\n"),
            ("seq -w 8 10", "08\n09\n10\n"),
            ("seq 3 1", ""),
        ] {
            assert_eq!(output(command, ""), expected, "{command}");
        }
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "seq",
            "seq x",
            "seq 1 0 2",
            "seq nan",
            "seq 1 2 3 4",
            "basename",
            "basename a b c",
            "dirname",
            "sleep",
            "sleep x",
            "sleep -1",
        ] {
            let (code, out, error) = run(command, "");
            assert_eq!((code, out.as_str()), (1, ""), "{command}");
            assert!(error.len() > 5, "{command}");
        }
        assert_eq!(run("false", "").0, 1);
        assert_eq!(run("sleep 0 0.001", ""), (0, String::new(), String::new()));
    }
}
