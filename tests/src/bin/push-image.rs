//! Pushes an image made from files to a registry without TLS: what the demo uses
//! where a user would run `docker buildx build --push`.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use criw_tests::image::{self, Entry, Image, Settings};
use criw_tests::{images, registry};

const USAGE: &str = "usage: push-image ADDRESS NAME[:TAG] KIND …
kinds:
  wasm PLATFORM ENTRYPOINT PATH=FILE…   rootfs image, PLATFORM as wasi/wasm or linux/amd64
  artifact MODULE                       OCI artifact of the CNCF form, without a file system
  busybox                               Linux image of the machine's static busybox";

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("push-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, name, kind, rest @ ..] = args.as_slice() else {
        bail!("{USAGE}");
    };
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("address {address}"))?;
    let image = build(kind, rest)?;
    let digest = registry::push(address, name, &image, &[])?;
    Ok(format!("pushed {address}/{name} {digest}"))
}

fn build(kind: &str, rest: &[String]) -> Result<Image> {
    match (kind, rest) {
        ("wasm", [platform, entrypoint, files @ ..]) => {
            let mut layer = Vec::new();
            for pair in files {
                let (path, file) = pair
                    .split_once('=')
                    .with_context(|| format!("{pair}: not PATH=FILE"))?;
                let bytes = read(file)?;
                layer.push(Entry::File(
                    path.trim_start_matches('/').into(),
                    0o755,
                    bytes,
                ));
            }
            image::rootfs(platform, &[layer], &Settings::entrypoint(&[entrypoint]))
        }
        ("artifact", [module]) => Ok(image::artifact(&read(module)?)),
        ("busybox", []) => images::busybox(),
        _ => bail!("{USAGE}"),
    }
}

/// A file's bytes; Wasm text is converted.
fn read(file: &str) -> Result<Vec<u8>> {
    if file.ends_with(".wat") {
        return wat::parse_file(file).with_context(|| format!("convert {file}"));
    }
    std::fs::read(file).with_context(|| format!("read {file}"))
}
