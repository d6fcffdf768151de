//! Who and where we are: what preview 1 does not tell comes from the host.

use crate::context::{fail, usage, Context, Fail, Outcome};
use crate::{host, options};

fn info(kind: u32, what: &str) -> Result<String, Fail> {
    host::info(kind).map_err(|errno| Fail::Text(1, format!("can't ask for {what}: {errno}")))
}

pub(super) fn hostname(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "sfid", &[])?;
    if !options.rest.is_empty() {
        return fail("a Wasm container cannot change its host name: set it in the pod");
    }
    let name = info(host::INFO_HOST_NAME, "the host name")?;
    let name = name.trim_end();
    let short = name.split('.').next().unwrap_or(name);
    writeln!(
        context.output,
        "{}",
        if options.has('s') { short } else { name }
    )?;
    Ok(0)
}

/// The name behind a number in /etc/passwd or /etc/group.
fn name_of(file: &str, number: &str) -> Option<String> {
    let text = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    })
}

fn group_of_user(name: &str) -> Option<(String, String)> {
    let text = std::fs::read("/etc/passwd").ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.first() == Some(&name))
            .then(|| Some((fields.get(2)?.to_string(), fields.get(3)?.to_string())))?
    })
}

struct Ids {
    user: String,
    group: String,
    /// all, the primary one first
    groups: Vec<String>,
}

fn ids() -> Result<Ids, Fail> {
    let text = info(host::INFO_IDS, "user and groups")?;
    let mut numbers = text.split_whitespace().map(str::to_owned);
    match (numbers.next(), numbers.next()) {
        (Some(user), Some(group)) => {
            let mut groups = vec![group.clone()];
            for more in numbers {
                if !groups.contains(&more) {
                    groups.push(more);
                }
            }
            Ok(Ids {
                user,
                group,
                groups,
            })
        }
        _ => fail(format!("the host answered \"{text}\" for user and groups")),
    }
}

pub(super) fn id(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "ugGnr",
        &[
            ("user", 'u'),
            ("group", 'g'),
            ("groups", 'G'),
            ("name", 'n'),
        ],
    )?;
    let ids = match options.rest.first() {
        None => ids()?,
        Some(name) => match group_of_user(name) {
            Some((user, group)) => Ids {
                user,
                group: group.clone(),
                groups: vec![group],
            },
            None => return fail(format!("{name}: no such user")),
        },
    };
    let named = |file: &str, number: &str| match options.has('n') {
        true => name_of(file, number).unwrap_or_else(|| number.to_owned()),
        false => number.to_owned(),
    };
    let line = match options.last_of("ugG") {
        Some('u') => named("/etc/passwd", &ids.user),
        Some('g') => named("/etc/group", &ids.group),
        Some(_) => ids
            .groups
            .iter()
            .map(|group| named("/etc/group", group))
            .collect::<Vec<_>>()
            .join(" "),
        None => {
            let both = |file: &str, number: &str| match name_of(file, number) {
                Some(name) => format!("{number}({name})"),
                None => number.to_owned(),
            };
            let groups: Vec<String> = ids
                .groups
                .iter()
                .map(|group| both("/etc/group", group))
                .collect();
            let (user, group) = (
                both("/etc/passwd", &ids.user),
                both("/etc/group", &ids.group),
            );
            format!("uid={user} gid={group} groups={}", groups.join(","))
        }
    };
    writeln!(context.output, "{line}")?;
    Ok(0)
}

pub(super) fn whoami(context: &mut Context) -> Outcome {
    let ids = ids()?;
    writeln!(
        context.output,
        "{}",
        name_of("/etc/passwd", &ids.user).unwrap_or(ids.user)
    )?;
    Ok(0)
}

pub(super) fn groups(context: &mut Context) -> Outcome {
    let names: Vec<String> = ids()?
        .groups
        .iter()
        .map(|group| name_of("/etc/group", group).unwrap_or_else(|| group.clone()))
        .collect();
    writeln!(context.output, "{}", names.join(" "))?;
    Ok(0)
}

pub(super) fn uname(context: &mut Context) -> Outcome {
    let long = [
        ("all", 'a'),
        ("kernel-name", 's'),
        ("nodename", 'n'),
        ("machine", 'm'),
        ("operating-system", 'o'),
    ];
    let options = options::parse(&context.args, "asnrvmpio", &long)?;
    if !options.rest.is_empty() {
        return usage("takes options only");
    }
    let wanted = |letter| {
        options.has('a') || options.has(letter) || (letter == 's' && context.args.is_empty())
    };
    let mut words = Vec::new();
    // the truth about what runs here: a Wasm machine, not the node's
    for (letter, word) in [
        ('s', "WASI"),
        ('n', ""),
        ('r', "0.1"),
        ('v', "preview1"),
        ('m', "wasm32"),
        ('o', "WASI"),
    ] {
        if wanted(letter) {
            words.push(match letter {
                'n' => info(host::INFO_HOST_NAME, "the host name")?
                    .trim_end()
                    .to_owned(),
                _ => word.to_owned(),
            });
        }
    }
    writeln!(context.output, "{}", words.join(" "))?;
    Ok(0)
}

/// One process as the host tells it.
struct Process {
    pid: String,
    user: String,
    state: String,
    seconds: f64,
    memory: String,
    command: String,
}

fn processes() -> Result<Vec<Process>, Fail> {
    let text = info(host::INFO_PROCESSES, "the processes")?;
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.splitn(6, '\t').map(str::to_owned);
        Some(Process {
            pid: fields.next()?,
            user: fields.next()?,
            state: fields.next()?,
            seconds: fields.next()?.parse().unwrap_or(0.0),
            memory: fields.next()?,
            command: fields.next()?,
        })
    });
    Ok(rows.collect())
}

pub(super) fn ps(context: &mut Context) -> Outcome {
    // dashes are optional in front of ps's options, and all of them list all there is
    let letters: String = context.args.iter().map(String::as_str).collect();
    let columns = context
        .args
        .iter()
        .position(|word| word == "-o")
        .and_then(|at| context.args.get(at + 1))
        .cloned();
    let wide = letters.contains('f') || letters.contains('u') || letters.contains('l');
    let default = if wide {
        "user,pid,stat,rss,time,args"
    } else {
        "pid,user,time,args"
    };
    let columns = columns.unwrap_or_else(|| default.to_owned());
    let mut table: Vec<Vec<String>> = Vec::new();
    let mut head = Vec::new();
    let columns: Vec<&str> = columns
        .split(',')
        .map(|column| column.split('=').next().unwrap_or(column).trim())
        .collect();
    for column in &columns {
        head.push(match *column {
            "pid" | "user" | "stat" | "rss" | "time" | "comm" => column.to_uppercase(),
            "args" | "cmd" | "command" => "COMMAND".to_owned(),
            "uid" | "state" | "s" => column.to_uppercase(),
            column => {
                return usage(format!(
                    "unknown column '{column}'; there are pid user uid stat rss time comm args"
                ))
            }
        });
    }
    table.push(head);
    for process in processes()? {
        let row = columns.iter().map(|column| match *column {
            "pid" => process.pid.clone(),
            "user" => name_of("/etc/passwd", &process.user).unwrap_or_else(|| process.user.clone()),
            "uid" => process.user.clone(),
            "stat" | "state" | "s" => process.state.clone(),
            "rss" => process.memory.clone(),
            "time" => format!(
                "{}:{:02}",
                process.seconds as u64 / 60,
                process.seconds as u64 % 60
            ),
            "comm" => {
                let first = process.command.split(' ').next().unwrap_or("");
                crate::files::base_name(first).to_owned()
            }
            _ => process.command.clone(),
        });
        table.push(row.collect());
    }
    print_table(context, &table)?;
    Ok(0)
}

/// A process's own name: of its first word, or of the tool behind the toolbox's own name.
fn own_name(command: &str) -> &str {
    let mut words = command.split(' ').map(crate::files::base_name);
    match words.next() {
        Some("criw-toolbox") => words.next().unwrap_or("criw-toolbox"),
        first => first.unwrap_or(""),
    }
}

pub(super) fn pgrep(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "flxoncv",
        &[("full", 'f'), ("list-name", 'l'), ("exact", 'x')],
    )?;
    let pattern = match options.rest.as_slice() {
        [pattern] => pattern,
        _ => return Err(Fail::Text(2, "wants one pattern".to_owned())),
    };
    let source = if options.has('x') {
        format!("^({pattern})$")
    } else {
        pattern.clone()
    };
    let regex = crate::regex::Regex::new(source.as_bytes(), crate::regex::Syntax::extended());
    let regex = regex.map_err(|text| Fail::Text(2, text))?;
    let mut found = Vec::new();
    for process in processes()? {
        let name = own_name(&process.command);
        let text = if options.has('f') {
            process.command.as_str()
        } else {
            name
        };
        let fits = regex
            .is_match(text.as_bytes())
            .map_err(|text| Fail::Text(2, text))?;
        // we are one of them
        if fits != options.has('v') && name != "pgrep" {
            found.push(if options.has('l') {
                format!("{} {name}", process.pid)
            } else {
                process.pid.clone()
            });
        }
    }
    if options.has('c') {
        writeln!(context.output, "{}", found.len())?;
    } else {
        for line in &found {
            writeln!(context.output, "{line}")?;
        }
    }
    Ok(i32::from(found.is_empty()))
}

pub(super) fn pidof(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "s", &[])?;
    let found: Vec<String> = processes()?
        .into_iter()
        .filter(|process| {
            options
                .rest
                .iter()
                .any(|name| name == own_name(&process.command))
        })
        .map(|process| process.pid)
        .collect();
    if found.is_empty() {
        return Ok(1);
    }
    let shown = if options.has('s') {
        &found[..1]
    } else {
        &found[..]
    };
    writeln!(context.output, "{}", shown.join(" "))?;
    Ok(0)
}

/// Prints the processes again and again; at a terminal onto a clear screen.
pub(super) fn top(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "bn:d:", &[])?;
    let delay = options::span(options.value('d').unwrap_or("5"))?;
    let mut left = options
        .value('n')
        .map(options::number)
        .transpose()?
        .unwrap_or(u64::MAX);
    let clears = !cfg!(test) && crate::sys::is_terminal(1) && !options.has('b');
    while left > 0 {
        if clears {
            context.output.write_all(b"\x1b[H\x1b[J")?;
        }
        let arguments = std::mem::replace(
            &mut context.args,
            vec!["-o".to_owned(), "pid,user,stat,rss,time,args".to_owned()],
        );
        let result = ps(context);
        context.args = arguments;
        result?;
        context.output.flush()?;
        left -= 1;
        if left > 0 {
            std::thread::sleep(delay);
        }
    }
    Ok(0)
}

/// What people try first, with what to do instead.
pub(super) fn cannot(context: &mut Context) -> Outcome {
    fail(match context.name.as_str() {
        "ping" => {
            "a Wasm container has no raw sockets: nc -z HOST PORT tells whether a port answers"
        }
        "df" => "WASI does not tell the size of file systems: du shows what files take",
        "nproc" => "WASI does not tell the number of CPUs",
        "mount" | "umount" => "a Wasm container cannot mount: use volumes of the pod",
        _ => "WASI has no pipes with names",
    })
}

/// Columns as wide as their widest cell, the last one as it is.
pub(super) fn print_table(context: &mut Context, table: &[Vec<String>]) -> Result<(), Fail> {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in table {
        let mut line = String::new();
        for (number, cell) in row.iter().enumerate() {
            if number + 1 == row.len() {
                line += cell;
            } else {
                line += &format!("{cell:<width$} ", width = widths[number]);
            }
        }
        writeln!(context.output, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run};

    // the host of the tests says: 1000 1001 1001 2000
    #[test]
    fn the_host_says_who_we_are() {
        assert_eq!(output("id -u", ""), "1000\n");
        assert_eq!(output("id -g", ""), "1001\n");
        assert_eq!(output("id -G", ""), "1001 2000\n");
        assert!(output("id", "").starts_with("uid=1000"));
        assert_eq!(output("id -u root", ""), "0\n");
        assert_eq!(output("hostname", ""), "testhost\n");
        assert_eq!(output("uname", ""), "WASI\n");
        assert_eq!(
            output("uname -a", ""),
            "WASI testhost 0.1 preview1 wasm32 WASI\n"
        );
        assert_eq!(
            output("ps -o pid,time,comm", ""),
            "PID TIME COMM\n1   0:00 server\n7   1:01 sh\n"
        );
        assert!(output("ps aux", "").contains("server --port 80"));
    }

    #[test]
    fn processes_are_found_by_name() {
        assert_eq!(output("pgrep ser", ""), "1\n");
        assert_eq!(output("pgrep -fl port", ""), "1 server\n");
        assert_eq!(run("pgrep -x ser", ""), (1, String::new(), String::new()));
        assert_eq!(output("pidof sh server", ""), "1 7\n");
        assert_eq!(run("pidof none", ""), (1, String::new(), String::new()));
        let twice = output("top -b -n 2 -d 0", "");
        assert_eq!(twice.matches("server --port 80").count(), 2);
        assert_eq!(run("pgrep (", "").0, 2);
        assert_eq!(run("ping host", "").0, 1);
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "id nobody-of-that-name",
            "id -q",
            "hostname new",
            "uname x",
            "ps -o what",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
    }
}
