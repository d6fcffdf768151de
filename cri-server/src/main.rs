//! `criw`: the command line, and nothing else.

use std::process::ExitCode;

use anyhow::Context as _;
use criw_server::cli::{self, Command};
use criw_server::config::{self, Config};
use criw_server::{check, logging, operator, serve};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprint!("criw: {error}\n\n{}", cli::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("criw: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Help => print!("{}", cli::USAGE),
        Command::Version => println!("criw {}", env!("CARGO_PKG_VERSION")),
        Command::ConfigDefault => print!("{}", Config::default_text()),
        Command::FaultPoints => {
            for point in criw_sandbox::fault::POINTS {
                println!("{point}");
            }
        }
        Command::Check { config } => {
            let config = config::load(config.as_deref())?;
            if !check::print(&check::run(&config)) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::ImagesImport { config, file, name } => {
            let config = config::load(config.as_deref())?;
            ask(operator::import(&config.socket, &file, &name))?;
        }
        Command::ImagesList { config } => {
            let config = config::load(config.as_deref())?;
            ask(operator::list(&config.socket))?;
        }
        Command::Serve { config } => {
            let config = config::load(config.as_deref())?;
            logging::init(&config.log)?;
            daemon(config)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a question to the daemon to its end.
fn ask(question: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let result = runtime.block_on(question);
    // Standard input may still be waited for when the daemon has refused.
    runtime.shutdown_background();
    result
}

fn daemon(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let result = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let end = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        serve::run(config, Box::pin(end)).await
    });
    // Blocking work of abandoned calls must not keep the process; records survive its end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}
