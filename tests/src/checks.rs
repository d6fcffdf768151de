//! Checks that share one thing which is costly to start (`N`), how they are run, and what
//! is said about them: in the words of cargo's own test runner, so that whatever counts
//! its results counts these.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

/// How a check is run.
pub enum Run<N> {
    /// Beside others: it touches its own pods only.
    Beside(fn(&N) -> Result<()>),
    /// Alone, because it ends the kubelet or the daemon, or looks at everything.
    Alone(fn(&mut N) -> Result<()>),
}

impl<N> Clone for Run<N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N> Copy for Run<N> {}

/// A named check.
pub struct Check<N> {
    /// What must hold.
    pub name: &'static str,
    /// Manifests that it needs.
    pub pods: &'static [&'static str],
    /// What is done.
    pub run: Run<N>,
}

impl<N> Clone for Check<N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N> Copy for Check<N> {}

/// Why a check cannot be made on this machine: an error that is no failure.
#[derive(Debug)]
struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// What a check returns that this machine cannot bear: it is counted as ignored, aloud.
pub fn skip(why: impl Into<String>) -> Error {
    Error::new(Skipped(why.into()))
}

/// A check that runs beside others.
pub const fn beside<N>(
    name: &'static str,
    pods: &'static [&'static str],
    run: fn(&N) -> Result<()>,
) -> Check<N> {
    Check {
        name,
        pods,
        run: Run::Beside(run),
    }
}

/// A check that runs alone.
pub const fn alone<N>(
    name: &'static str,
    pods: &'static [&'static str],
    run: fn(&mut N) -> Result<()>,
) -> Check<N> {
    Check {
        name,
        pods,
        run: Run::Alone(run),
    }
}

/// What came out.
pub struct Report {
    begin: Instant,
    failures: Vec<(&'static str, Error)>,
    passed: usize,
    skipped: usize,
    left_out: usize,
}

impl Report {
    /// Says how many there are; so many more were not chosen.
    pub fn begin<N>(chosen: &[Check<N>], left_out: usize) -> Self {
        println!("\nrunning {} tests", chosen.len());
        Self {
            begin: Instant::now(),
            failures: Vec::new(),
            passed: 0,
            skipped: 0,
            left_out,
        }
    }

    /// Runs those that can bear company, each on a thread of its own.
    pub fn side_by_side<N: Sync>(&mut self, checks: &[Check<N>], node: &N) {
        std::thread::scope(|scope| {
            let running: Vec<_> = checks
                .iter()
                .filter_map(|check| match check.run {
                    Run::Beside(run) => {
                        Some((check.name, scope.spawn(move || timed(|| run(node)))))
                    }
                    Run::Alone(_) => None,
                })
                .collect();
            for (name, thread) in running {
                let (result, took) = thread
                    .join()
                    .unwrap_or_else(|_| (Err(anyhow!("the check's thread ended")), Duration::ZERO));
                self.note(name, result, took);
            }
        });
    }

    /// Runs one.
    pub fn alone(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) {
        let (result, took) = timed(run);
        self.note(name, result, took);
    }

    fn note(&mut self, name: &'static str, result: Result<()>, took: Duration) {
        let took = took.as_secs_f64();
        match result {
            Ok(()) => {
                println!("test {name} ... ok <{took:.1}s>");
                self.passed += 1;
            }
            Err(error) if error.is::<Skipped>() => {
                println!("test {name} ... ignored, {error}");
                self.skipped += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED <{took:.1}s>");
                self.failures.push((name, error));
            }
        }
    }

    /// Says what failed and why, and sums up; logs of a failed run are kept for its reader.
    pub fn end(self, keep_logs: impl FnOnce() -> Result<PathBuf>) -> ExitCode {
        let good = self.failures.is_empty();
        if !good {
            println!("\nfailures:\n");
            for (name, error) in &self.failures {
                println!("---- {name} ----\n{error:#}\n");
            }
            match keep_logs() {
                Ok(kept) => println!("logs of the run: {}", kept.display()),
                Err(error) => println!("no logs: {error:#}"),
            }
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            if good { "ok" } else { "FAILED" },
            self.passed,
            self.failures.len(),
            self.skipped,
            self.left_out,
            self.begin.elapsed().as_secs_f64()
        );
        if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs it; a panic is a failure like any other, its text stands on stderr.
fn timed(run: impl FnOnce() -> Result<()>) -> (Result<()>, Duration) {
    let begin = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(anyhow!("it panicked, see above")));
    (result, begin.elapsed())
}
