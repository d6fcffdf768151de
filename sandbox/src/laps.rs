//! How long the steps of a call took, for the log: where a slow start spent its time.

use std::fmt;
use std::time::{Duration, Instant};

/// Laps of one call, in order.
#[derive(Debug)]
pub(crate) struct Laps {
    begin: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Laps {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            done: Vec::with_capacity(8),
        }
    }

    /// The step since the last lap was `name`.
    pub(crate) fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((name, now - self.last));
        self.last = now;
    }
}

/// `12.1 ms (namespaces 3.0, network 8.9)`
impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.1} ms", ms(self.last - self.begin))?;
        for (n, (name, time)) in self.done.iter().enumerate() {
            let before = if n == 0 { " (" } else { ", " };
            write!(f, "{before}{name} {:.1}", ms(*time))?;
        }
        if !self.done.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_with_each_step() {
        let mut laps = Laps::start();
        assert_eq!(laps.to_string(), "0.0 ms");
        laps.last = laps.begin + Duration::from_micros(3_540);
        laps.done = vec![
            ("network", Duration::from_micros(3_500)),
            ("files", Duration::from_micros(40)),
        ];
        assert_eq!(laps.to_string(), "3.5 ms (network 3.5, files 0.0)");
    }
}
