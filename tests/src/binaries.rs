//! Where the parts under test are: the products of `make build`, by absolute path.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// `CRIW_BUILD_DIR`, else `build` of the repository.
pub fn build_dir() -> PathBuf {
    std::env::var_os("CRIW_BUILD_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../build"),
        PathBuf::from,
    )
}

/// A product by its path below the build directory, with a hint when it is missing.
pub fn product(path: &str) -> Result<PathBuf> {
    let file = build_dir().join(path);
    ensure!(
        file.exists(),
        "{} is missing: run `make build` first, or point CRIW_BUILD_DIR elsewhere",
        file.display()
    );
    file.canonicalize()
        .with_context(|| format!("resolve {}", file.display()))
}

/// The daemon.
pub fn criw() -> Result<PathBuf> {
    product("bin/criw")
}

/// Directory of shims and compiler.
pub fn libexec() -> Result<PathBuf> {
    product("libexec/criw")
}

/// The real crictl.
pub fn crictl() -> Result<PathBuf> {
    product("tools/crictl")
}

/// critest, built by `make critest-bin`.
pub fn critest() -> Result<PathBuf> {
    product("tools/critest")
}

/// The real kubelet.
pub fn kubelet() -> Result<PathBuf> {
    product("tools/kubelet")
}

/// Another program of Kubernetes, built by `make control-plane`.
pub fn kubernetes(name: &str) -> Result<PathBuf> {
    let path = format!("tools/{name}");
    product(&path).with_context(|| format!("{name} is built by `make control-plane`"))
}

/// A guest module by name: built from C, or converted from the text form here.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let text = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("guests")
        .join(format!("{name}.wat"));
    if text.exists() {
        return wat::parse_file(&text).with_context(|| format!("convert {}", text.display()));
    }
    let file = product(&format!("guests/{name}.wasm"))?;
    std::fs::read(&file).with_context(|| format!("read {}", file.display()))
}
