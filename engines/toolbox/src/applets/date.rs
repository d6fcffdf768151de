//! `date`, and dates for the other tools. Times are UTC: WASI tells no zone.

use crate::context::{about, fail, usage, Context, Outcome};
use crate::options;

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A point of time in the Gregorian calendar.
#[derive(Debug, PartialEq, Clone, Copy)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1 to 12, 1 to 31
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
    /// days since Sunday, and since the first of January
    pub(super) week_day: u32,
    pub(super) year_day: u32,
}

fn leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_before(year: i64, month: u32) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    BEFORE[(month as usize - 1) % 12] + i64::from(month > 2 && leap(year))
}

/// Days from the first of January 1970 to that of a year.
fn days_to_year(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + (before.div_euclid(4) - 492) - (before.div_euclid(100) - 19)
        + (before.div_euclid(400) - 4)
}

pub(super) fn civil(seconds: i64) -> Civil {
    // further away, a year has more digits than anyone reads
    let seconds = seconds.clamp(-60_000_000_000_000, 60_000_000_000_000);
    let (days, rest) = (
        seconds.div_euclid(86_400),
        seconds.rem_euclid(86_400) as u32,
    );
    let mut year = 1970 + days.div_euclid(366);
    while days_to_year(year + 1) <= days {
        // at most a day of each year is missing, so this takes few steps
        year += ((days - days_to_year(year)) / 366).max(1);
    }
    while days_to_year(year) > days {
        year -= 1;
    }
    let year_day = days - days_to_year(year);
    let month = (1..=12)
        .rev()
        .find(|month| days_before(year, *month) <= year_day)
        .unwrap_or(1);
    Civil {
        year,
        month,
        day: (year_day - days_before(year, month)) as u32 + 1,
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
        week_day: (days + 4).rem_euclid(7) as u32,
        year_day: year_day as u32,
    }
}

fn seconds_of(year: i64, month: u32, day: u32, time: (u32, u32, u32)) -> Option<i64> {
    let length = match month {
        2 => 28 + u32::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let (hour, minute, second) = time;
    if !(1..=length).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
        || !(0..100_000).contains(&year)
    {
        return None;
    }
    let days = days_to_year(year) + days_before(year, month) + i64::from(day) - 1;
    Some(days * 86_400 + i64::from(hour * 3600 + minute * 60 + second))
}

pub(super) fn now() -> (i64, u32) {
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(_) => (0, 0),
    }
}

/// `@seconds`, `2024-02-29`, with `T` or a blank and `12:30:45`, `Z`, `+01:00`; `now`.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    if text == "now" {
        return Some(now().0);
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.split('.').next()?.parse().ok();
    }
    let text = text
        .strip_suffix(" UTC")
        .or_else(|| text.strip_suffix('Z'))
        .unwrap_or(text);
    let (date, time) = text
        .split_once('T')
        .or_else(|| text.split_once(' '))
        .unwrap_or((text, "00:00:00"));
    let mut parts = date.splitn(3, '-');
    let year = parts.next()?.parse().ok()?;
    let month = parts.next()?.parse().ok()?;
    let day = parts.next()?.parse().ok()?;
    let (time, offset) = match time.find(['+', '-']) {
        Some(at) => {
            let (hours, minutes) = time[at + 1..]
                .split_once(':')
                .unwrap_or((&time[at + 1..], "0"));
            let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
            let offset = i64::from(hours) * 3600 + i64::from(minutes) * 60;
            (
                &time[..at],
                if time[at..].starts_with('-') {
                    -offset
                } else {
                    offset
                },
            )
        }
        None => (time, 0),
    };
    let mut parts = time.trim().split(':');
    let hour = parts.next()?.parse().ok()?;
    let minute = parts.next().unwrap_or("0").parse().ok()?;
    let second = parts
        .next()
        .unwrap_or("0")
        .split('.')
        .next()?
        .parse()
        .ok()?;
    seconds_of(year, month, day, (hour, minute, second))?.checked_sub(offset)
}

/// Text by a format like `%Y-%m-%d`.
pub(super) fn format(pattern: &str, seconds: i64, nanoseconds: u32) -> String {
    let at = civil(seconds);
    let mut out = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut kind = letters.next();
        let plain = matches!(kind, Some('-' | '_'));
        if plain {
            kind = letters.next();
        }
        let two = |number: u32| {
            if plain {
                number.to_string()
            } else {
                format!("{number:02}")
            }
        };
        let hour12 = (at.hour + 11) % 12 + 1;
        let (day_name, month_name) = (
            DAYS[at.week_day as usize % 7],
            MONTHS[(at.month as usize - 1) % 12],
        );
        out += &match kind {
            Some('Y') => at.year.to_string(),
            Some('y') => two(at.year.rem_euclid(100) as u32),
            Some('C') => two(at.year.div_euclid(100).unsigned_abs() as u32),
            Some('m') => two(at.month),
            Some('d') => two(at.day),
            Some('e') => format!("{:2}", at.day),
            Some('H') => two(at.hour),
            Some('k') => format!("{:2}", at.hour),
            Some('I') => two(hour12),
            Some('M') => two(at.minute),
            Some('S') => two(at.second),
            Some('N') => format!("{nanoseconds:09}"),
            Some('s') => seconds.to_string(),
            Some('j') => format!("{:03}", at.year_day + 1),
            Some('u') => (if at.week_day == 0 { 7 } else { at.week_day }).to_string(),
            Some('w') => at.week_day.to_string(),
            Some('a') => day_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('p') => (if at.hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some(':') => {
                letters.next();
                "+00:00".to_owned()
            }
            Some('F') => format("%Y-%m-%d", seconds, 0),
            Some('T' | 'X') => format("%H:%M:%S", seconds, 0),
            Some('R') => format("%H:%M", seconds, 0),
            Some('D' | 'x') => format("%m/%d/%y", seconds, 0),
            Some('c') => format("%a %b %e %H:%M:%S %Y", seconds, 0),
            Some('n') => "\n".to_owned(),
            Some('t') => "\t".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
    }
    out
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("utc", 'u'),
        ("date", 'd'),
        ("reference", 'r'),
        ("iso-8601", 'I'),
        ("rfc-3339", 'P'),
    ];
    // -I takes its value attached only
    let mut precision = None;
    let args = context.args.iter().map(|word| {
        match word
            .strip_prefix("-I")
            .or_else(|| word.strip_prefix("--iso-8601="))
        {
            Some(value) if !value.is_empty() => {
                precision = Some(value.to_owned());
                "-I".to_owned()
            }
            _ => word.clone(),
        }
    });
    let args: Vec<String> = args.collect();
    let options = options::parse(&args, "uRIs:d:r:P:", &long)?;
    if options.has('s') {
        return fail("a Wasm container cannot set the clock");
    }
    let (seconds, nanoseconds) = match (options.value('d'), options.value('r')) {
        (Some(text), _) => match parse(text) {
            Some(seconds) => (seconds, 0),
            None => return fail(format!("invalid date '{text}'")),
        },
        (None, Some(file)) => match std::fs::metadata(context.path(file)) {
            Ok(data) => super::file::modified(&data),
            Err(error) => return fail(about(file, &error)),
        },
        (None, None) => now(),
    };
    let pattern = match options.rest.as_slice() {
        [] if options.has('R') => "%a, %d %b %Y %H:%M:%S +0000",
        [] if options.has('I') || options.has('P') => match precision
            .as_deref()
            .or_else(|| options.value('P'))
            .unwrap_or("date")
        {
            "date" => "%F",
            "hours" => "%FT%H+00:00",
            "minutes" => "%FT%R+00:00",
            _ if options.has('P') => "%F %T+00:00",
            "ns" => "%FT%T,%N+00:00",
            _ => "%FT%T+00:00",
        },
        [] => "%a %b %e %H:%M:%S UTC %Y",
        [pattern] if pattern.starts_with('+') => &pattern[1..],
        [word, ..] => {
            return usage(format!(
                "'{word}': a Wasm container cannot set the clock, a format begins with +"
            ))
        }
    };
    writeln!(context.output, "{}", format(pattern, seconds, nanoseconds))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::testing::{output, run};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29 12:30:45", 951_827_445),
            ("2026-11-27T17:33:20Z", 1_795_800_800),
            ("2024-12-31T23:59:59+01:00", 1_735_685_999),
            ("1969-12-31 23:59:59", -1),
            ("@-86400", -86_400),
            ("1900-03-01", -2_203_891_200),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        assert_eq!(
            output("date -u -d @951827445", ""),
            "Tue Feb 29 12:30:45 UTC 2000\n"
        );
        assert_eq!(
            output("date -d @951827445 +%j/%u/%I%p/%e/%y", ""),
            "060/2/12PM/29/00\n"
        );
        assert_eq!(
            output("date -d @0 -Iseconds", ""),
            "1970-01-01T00:00:00+00:00\n"
        );
        assert_eq!(output("date -d @-1 +%F", ""), "1969-12-31\n");
        for day in (-1_000_000..1_000_000).step_by(97) {
            let at = civil(day * 86_400 + 5);
            assert_eq!(
                days_to_year(at.year) + days_before(at.year, at.month) + i64::from(at.day) - 1,
                day
            );
        }
        civil(i64::MAX);
        civil(i64::MIN);
    }

    #[test]
    fn what_is_no_date_is_told() {
        for bad in [
            "x",
            "2023-02-29",
            "2020-13-01",
            "2020-01-01 25:00",
            "",
            "@x",
            "9999999-01-01",
            "2020-01-01 10:00+99999999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for command in [
            "date -d x",
            "date 0101",
            "date -s x",
            "date -r /nonexistent",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
        assert_eq!(format("%", 0, 0), "%");
        assert_eq!(format("%Q%-", 0, 0), "%Q%");
    }
}
