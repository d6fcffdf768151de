//! Checks, how they are run, and what is said about them: in the words of cargo's own
//! test runner, so that whatever counts its results counts these.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::node::Node;

/// How a check is run.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// Beside others: it touches its own pods only.
    Beside(fn(&Node) -> Result<()>),
    /// Alone, because it ends the kubelet or the daemon, or looks at everything.
    Alone(fn(&mut Node) -> Result<()>),
}

/// A named check.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    /// What must hold.
    pub(crate) name: &'static str,
    /// Manifests that it needs.
    pub(crate) pods: &'static [&'static str],
    /// What is done.
    pub(crate) run: Run,
}

/// A check that runs beside others.
pub(crate) const fn beside(
    name: &'static str,
    pods: &'static [&'static str],
    run: fn(&Node) -> Result<()>,
) -> Check {
    Check {
        name,
        pods,
        run: Run::Beside(run),
    }
}

/// A check that runs alone.
pub(crate) const fn alone(
    name: &'static str,
    pods: &'static [&'static str],
    run: fn(&mut Node) -> Result<()>,
) -> Check {
    Check {
        name,
        pods,
        run: Run::Alone(run),
    }
}

/// What came out.
pub(crate) struct Report {
    begin: Instant,
    failures: Vec<(&'static str, anyhow::Error)>,
    passed: usize,
    left_out: usize,
}

impl Report {
    /// Says how many there are.
    pub(crate) fn begin(chosen: &[Check]) -> Self {
        println!("\nrunning {} tests", chosen.len());
        Self {
            begin: Instant::now(),
            failures: Vec::new(),
            passed: 0,
            left_out: crate::all().len() - chosen.len(),
        }
    }

    /// Runs those that can bear company, each on a thread of its own.
    pub(crate) fn side_by_side(&mut self, checks: &[Check], node: &Node) {
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
    pub(crate) fn alone(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) {
        let (result, took) = timed(run);
        self.note(name, result, took);
    }

    fn note(&mut self, name: &'static str, result: Result<()>, took: Duration) {
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} <{:.1}s>", took.as_secs_f64());
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.failures.push((name, error)),
        }
    }

    /// Says what failed and why, and sums up.
    pub(crate) fn end(self, node: &Node) -> ExitCode {
        let good = self.failures.is_empty();
        if !good {
            println!("\nfailures:\n");
            for (name, error) in &self.failures {
                println!("---- {name} ----\n{error:#}\n");
            }
            match node.keep_logs() {
                Ok(kept) => println!("logs of kubelet and daemon: {}", kept.display()),
                Err(error) => println!("no logs: {error:#}"),
            }
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            if good { "ok" } else { "FAILED" },
            self.passed,
            self.failures.len(),
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
