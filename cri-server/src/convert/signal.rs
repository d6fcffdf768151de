//! Stop signals: CRI's enum has its own numbers, images write names or Linux numbers.

use criw_proto::v1::Signal;

use crate::error::{Invalid, invalid};

/// Linux number of SIGTERM.
pub const SIGTERM: i32 = 15;
/// Linux (and every libc's user-visible) first and last real-time signals.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The effective stop signal: the pod's, else the image's, else SIGTERM.
pub fn effective(requested: i32, image: &str) -> Result<i32, Invalid> {
    match Signal::try_from(requested) {
        Ok(Signal::RuntimeDefault) => {}
        Ok(signal) => return Ok(number_of(signal)),
        Err(_) => return invalid(format!("stop_signal {requested} is no value of the enum")),
    }
    // A bad image is not the pod author's fault: the kernel's default for stopping serves.
    Ok(parse(image).unwrap_or(SIGTERM))
}

/// `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`, in any case.
fn parse(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(plus) = name.strip_prefix("RTMIN") {
        RTMIN + offset(plus, '+')?
    } else {
        RTMAX - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    digits.parse::<u8>().ok().map(i32::from)
}

/// Linux number of an enum value; SIGTERM for `RUNTIME_DEFAULT`.
fn number_of(signal: Signal) -> i32 {
    let name = signal
        .as_str_name()
        .replace("PLUS", "+")
        .replace("MINUS", "-");
    parse(&name).unwrap_or(SIGTERM)
}

/// The enum value of a Linux number, for status.
pub fn to_enum(number: i32) -> i32 {
    // Of two names with one number (IOT and ABRT) the first in the enum is the usual one,
    // but SIGCHLD stands before SIGCLD and SIGIO before SIGPOLL as well.
    (1..=Signal::Sigrtmax as i32)
        .find(|value| Signal::try_from(*value).is_ok_and(|signal| number_of(signal) == number))
        .unwrap_or(Signal::RuntimeDefault as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_enum_value_has_its_linux_number_and_comes_back() {
        let mut seen = std::collections::BTreeSet::new();
        for value in 1..=Signal::Sigrtmax as i32 {
            let signal = Signal::try_from(value).unwrap();
            let number = effective(value, "9").unwrap();
            seen.insert(number);
            let back = Signal::try_from(to_enum(number)).unwrap();
            assert_eq!(number_of(back), number, "{signal:?}");
        }
        // All of 1..=31 and 34..=64.
        assert_eq!(seen.len(), 62);
        for (signal, number) in [
            (Signal::Sigkill, 9),
            (Signal::Sigusr1, 10),
            (Signal::Sigterm, 15),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(number_of(signal), number, "{signal:?}");
            assert_eq!(to_enum(number), signal as i32);
        }
        assert!(effective(99, "").is_err());
    }

    #[test]
    fn image_signals() {
        for (text, expected) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("quit", 3),
            ("3", 3),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMIN+99", 15),
            ("65", 15),
            ("nonsense", 15),
        ] {
            assert_eq!(effective(0, text), Ok(expected), "{text:?}");
        }
    }
}
