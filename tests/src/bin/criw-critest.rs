//! `make critest`: critest against a daemon of its own, in a private world, compared with
//! what is expected.
//!
//! usage: criw-critest [--handler NAME] [--images linux|wasm] [--network builtin|cni] [--websocket]
//!            [--focus REGEX] [--seed NUMBER]
//!        criw-critest consts FILE
//!
//! The second form changes the one constant of critest that has to differ, in a copy of its
//! source, see `critest/consts.rs`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use criw_tests::config::Network;
use criw_tests::critest::consts;
use criw_tests::critest::images::Family;
use criw_tests::critest::run::{Options, run};

const USAGE: &str =
    "usage: criw-critest [--handler NAME] [--images linux|wasm] [--network builtin|cni] [--websocket]
           [--focus REGEX] [--seed NUMBER]
       criw-critest consts FILE";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [verb, file] if verb == "consts" => consts::change(Path::new(file)).map(|()| true),
        args => options(args).and_then(|options| run(&options)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("criw-critest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: &[String]) -> Result<Options> {
    let mut options = Options {
        handler: String::new(),
        images: Family::Linux,
        network: Network::Builtin,
        websocket: false,
        focus: None,
        seed: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--websocket" {
            options.websocket = true;
            continue;
        }
        let value = args
            .next()
            .with_context(|| format!("{arg} needs a value\n{USAGE}"))?;
        match (arg.as_str(), value.as_str()) {
            ("--handler", name) => options.handler = name.into(),
            ("--images", name) => options.images = Family::parse(name).context(USAGE)?,
            ("--seed", number) => options.seed = Some(number.parse().context(USAGE)?),
            ("--network", "builtin") => options.network = Network::Builtin,
            ("--network", "cni") => options.network = Network::Cni,
            ("--focus", regex) => options.focus = Some(regex.into()),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}
