//! `criw check`: looks at the machine, says what is there and what is missing. Changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use criw_sandbox::host::cgroup::Driver;
use criw_sandbox::host::{apparmor, selinux};

use crate::config::{CgroupDriver, Config, NetMode};
use crate::error::chain;
use crate::handlers::{DEFAULT_WASM_ENGINE, Handlers};
use crate::host::at_least;
use crate::serve::{APPARMOR_PARSER, cgroup_parent, find_program};
use crate::toolbox::Toolbox;

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, and what to do about it.
    pub text: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// Something will not work, the rest does.
    Warning,
    /// Nothing works.
    Bad,
}

/// Looks at everything.
pub fn run(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        kernel(),
        cgroups(Path::new("/sys/fs/cgroup")),
        driver(config),
        privileges(),
        apparmor(
            apparmor::is_on(),
            apparmor::is_loaded(apparmor::DEFAULT_PROFILE),
            &find_program(Path::new(APPARMOR_PARSER)),
        ),
        selinux(
            selinux::is_on(),
            selinux::is_enforcing(),
            selinux::has_container_types(),
        ),
    ];
    findings.extend(network(config));
    findings.extend(engines(config));
    findings.push(socket(config));
    findings
}

/// Prints the report; whether the daemon can work.
pub fn print(findings: &[Finding]) -> bool {
    for finding in findings {
        let mark = match finding.level {
            Level::Good => "ok     ",
            Level::Warning => "warning",
            Level::Bad => "BAD    ",
        };
        println!("{mark}  {:<9} {}", finding.what, finding.text);
    }
    findings.iter().all(|finding| finding.level != Level::Bad)
}

fn finding(what: &'static str, level: Level, text: impl Into<String>) -> Finding {
    let text = text.into();
    Finding { what, level, text }
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    if at_least(&release, (5, 12)) {
        finding("kernel", Level::Good, format!("Linux {release}"))
    } else {
        finding(
            "kernel",
            Level::Bad,
            format!("Linux {release} is too old: mount_setattr needs 5.12"),
        )
    }
}

fn cgroups(root: &Path) -> Finding {
    if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        let missing: Vec<&str> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|wanted| !controllers.split_whitespace().any(|c| c == *wanted))
            .collect();
        return if missing.is_empty() {
            finding("cgroups", Level::Good, format!("v2 at {}", root.display()))
        } else {
            finding(
                "cgroups",
                Level::Warning,
                format!("v2 without the controllers {}", missing.join(", ")),
            )
        };
    }
    let missing: Vec<&str> = ["cpu", "cpuacct", "memory", "pids"]
        .into_iter()
        .filter(|controller| !root.join(controller).is_dir())
        .collect();
    match missing.len() {
        0 => finding("cgroups", Level::Good, format!("v1 at {}", root.display())),
        4 => finding(
            "cgroups",
            Level::Bad,
            format!("no hierarchy at {}", root.display()),
        ),
        _ => finding(
            "cgroups",
            Level::Warning,
            format!("v1 without the controllers {}", missing.join(", ")),
        ),
    }
}

/// The kubelet is told the driver (`RuntimeConfig`), but before 1.34 it does not listen.
fn driver(config: &Config) -> Finding {
    let driver = Driver::from(config.cgroup.driver);
    let parent = cgroup_parent(config);
    if let Err(error) = driver.check(&parent) {
        return finding("cgroups", Level::Bad, chain(&error));
    }
    let name = if driver.prefers_systemd() {
        "systemd"
    } else {
        "cgroupfs"
    };
    let why = match config.cgroup.driver {
        CgroupDriver::Auto => "what fits this node",
        CgroupDriver::Cgroupfs | CgroupDriver::Systemd => "by cgroup.driver",
    };
    finding(
        "cgroups",
        Level::Good,
        format!(
            "driver {name} ({why}), own parent {parent}; a kubelet before 1.34 needs cgroupDriver: {name}"
        ),
    )
}

fn privileges() -> Finding {
    if rustix::process::geteuid().is_root() {
        finding("user", Level::Good, "root")
    } else {
        finding("user", Level::Bad, "not root: run as root")
    }
}

/// `loaded` is whether the kernel has the default profile.
fn apparmor(on: bool, loaded: std::io::Result<bool>, parser: &Path) -> Finding {
    const WHAT: &str = "apparmor";
    let default = apparmor::DEFAULT_PROFILE;
    match loaded {
        _ if !on => finding(
            WHAT,
            Level::Good,
            "off: pods that ask for a profile of the node are refused",
        ),
        Err(error) => finding(
            WHAT,
            Level::Warning,
            format!(
                "on, but its list of profiles cannot be read: {error}; mount securityfs at /sys/kernel/security"
            ),
        ),
        Ok(true) => finding(WHAT, Level::Good, format!("on, {default} is loaded")),
        Ok(false) if parser.is_file() => finding(
            WHAT,
            Level::Good,
            format!(
                "on, {} loads {default} for the first container",
                parser.display()
            ),
        ),
        Ok(false) => finding(
            WHAT,
            Level::Warning,
            format!(
                "on, but there is no {}: containers run without the profile {default}, and those that ask for RuntimeDefault are refused; install the package apparmor",
                parser.display()
            ),
        ),
    }
}

/// `known` is whether the policy has the types of containers.
fn selinux(on: bool, enforcing: bool, known: std::io::Result<bool>) -> Finding {
    const WHAT: &str = "selinux";
    if !on {
        return finding(
            WHAT,
            Level::Good,
            "off: labels that pods ask for have no effect",
        );
    }
    match known {
        Ok(true) if enforcing => finding(
            WHAT,
            Level::Good,
            "on and enforcing; each pod has labels of its own",
        ),
        Ok(true) => finding(
            WHAT,
            Level::Good,
            "on but permissive: each pod has labels of its own, and nothing is denied",
        ),
        Ok(false) => finding(
            WHAT,
            Level::Warning,
            "on, but its policy knows no container_t: containers run without labels, and those that ask for one are refused; install container-selinux, or the policy's module container",
        ),
        Err(error) => finding(
            WHAT,
            Level::Warning,
            format!(
                "on, but the kernel cannot be asked about labels: {error}; pods cannot be made until criw may write /sys/fs/selinux/context"
            ),
        ),
    }
}

fn network(config: &Config) -> Vec<Finding> {
    if config.net.mode == NetMode::Builtin {
        return vec![finding("network", Level::Good, "built-in")];
    }
    let conf_dir = &config.cni.conf_dir;
    let files = std::fs::read_dir(conf_dir).into_iter().flatten().flatten();
    let conflists = files
        .filter(|entry| {
            let path = entry.path();
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .count();
    let conf = if conflists > 0 {
        finding(
            "cni",
            Level::Good,
            format!("{conflists} configurations in {}", conf_dir.display()),
        )
    } else {
        finding(
            "cni",
            Level::Warning,
            format!(
                "no configuration in {}: the network is not ready; install a CNI, or set net.mode = \"builtin\"",
                conf_dir.display()
            ),
        )
    };
    let with_plugins: Vec<String> = config
        .cni
        .bin_dirs
        .iter()
        .filter(|dir| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()))
        .map(|dir| dir.display().to_string())
        .collect();
    let plugins = if with_plugins.is_empty() {
        finding(
            "cni",
            Level::Warning,
            format!("no plugins in {:?}; set cni.bin_dirs", config.cni.bin_dirs),
        )
    } else {
        finding(
            "cni",
            Level::Good,
            format!("plugins in {}", with_plugins.join(", ")),
        )
    };
    vec![conf, plugins]
}

fn engines(config: &Config) -> Vec<Finding> {
    let binary = |what: &'static str, path: &Path, without: &str| {
        let executable = std::fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if executable {
            finding(what, Level::Good, path.display().to_string())
        } else {
            finding(
                what,
                Level::Warning,
                format!(
                    "{} is not there or not executable: {without}",
                    path.display()
                ),
            )
        }
    };
    let handlers = Handlers::new(config);
    let names = handlers.usable().join(", ");
    vec![
        binary(
            "wasm",
            &handlers.shim(DEFAULT_WASM_ENGINE),
            "no Wasm container can run",
        ),
        binary(
            "wasm",
            &config.libexec.join("criw-compile"),
            "modules cannot be compiled",
        ),
        toolbox(config),
        binary(
            "linux",
            &handlers.shim("runc"),
            "no Linux container can run",
        ),
        binary(
            "linux",
            &find_program(&config.runc.path),
            "no Linux container can run; install runc or set runc.path",
        ),
        finding(
            "handlers",
            Level::Good,
            names.trim_start_matches(", ").to_owned(),
        ),
    ]
}

fn toolbox(config: &Config) -> Finding {
    match Toolbox::new(config).commands() {
        Ok(count) => finding("toolbox", Level::Good, format!("{count} commands")),
        Err(why) => finding(
            "toolbox",
            Level::Warning,
            format!("{why}: exec in a Wasm container finds only what its image has"),
        ),
    }
}

fn socket(config: &Config) -> Finding {
    match std::os::unix::net::UnixStream::connect(&config.socket) {
        Ok(_) => finding(
            "socket",
            Level::Good,
            format!("a daemon answers on {}", config.socket.display()),
        ),
        Err(error) => finding(
            "socket",
            Level::Warning,
            format!("no daemon on {}: {error}", config.socket.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(cgroups(root).level, Level::Bad);
        std::fs::create_dir(root.join("memory")).unwrap();
        assert_eq!(cgroups(root).level, Level::Warning);
        for name in ["cpu", "cpuacct", "pids"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        assert_eq!(cgroups(root).level, Level::Good);
        std::fs::write(root.join("cgroup.controllers"), "cpu io memory\n").unwrap();
        let found = cgroups(root);
        assert_eq!(found.level, Level::Warning);
        assert!(found.text.contains("pids"), "{found:?}");
    }

    #[test]
    fn the_driver_is_named_and_must_fit_its_parent() {
        let mut config = Config::default();
        for (chosen, parent, level, words) in [
            (
                CgroupDriver::Cgroupfs,
                "",
                Level::Good,
                "driver cgroupfs (by cgroup.driver), own parent /criw",
            ),
            (CgroupDriver::Auto, "/mine", Level::Good, "own parent /mine"),
            (
                CgroupDriver::Cgroupfs,
                "mine.slice",
                Level::Bad,
                "mine.slice is a systemd slice",
            ),
            (
                CgroupDriver::Systemd,
                "/mine",
                Level::Bad,
                "/mine is no systemd slice",
            ),
        ] {
            config.cgroup.driver = chosen;
            parent.clone_into(&mut config.cgroup.parent);
            let found = driver(&config);
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.text.contains(words), "no {words:?} in {found:?}");
        }
    }

    #[test]
    fn selinux_is_told_with_what_it_lacks() {
        let denied = || Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        for (on, enforcing, known, level, text) in [
            (false, false, denied(), Level::Good, "off"),
            (true, true, Ok(true), Level::Good, "on and enforcing"),
            (true, false, Ok(true), Level::Good, "permissive"),
            (true, true, Ok(false), Level::Warning, "container-selinux"),
            (true, true, denied(), Level::Warning, "cannot be asked"),
        ] {
            let found = selinux(on, enforcing, known);
            assert_eq!(found.level, level, "{}", found.text);
            assert!(found.text.contains(text), "{}", found.text);
        }
    }

    #[test]
    fn apparmor_is_told_with_what_it_lacks() {
        let (here, missing) = (Path::new("/bin/sh"), Path::new("apparmor_parser"));
        let no_list = || Err(std::io::Error::from(std::io::ErrorKind::NotFound));
        for (on, loaded, parser, level, word) in [
            (false, no_list(), missing, Level::Good, "off"),
            (true, Ok(true), missing, Level::Good, "is loaded"),
            (true, Ok(false), here, Level::Good, "/bin/sh loads"),
            (
                true,
                Ok(false),
                missing,
                Level::Warning,
                "the package apparmor",
            ),
            (true, no_list(), here, Level::Warning, "securityfs"),
        ] {
            let found = apparmor(on, loaded, parser);
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.text.contains(word), "{found:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            libexec: directory.path().join("libexec"),
            socket: directory.path().join("criw.sock"),
            ..Config::default()
        };
        config.cni.conf_dir = directory.path().join("net.d");
        config.cni.bin_dirs = vec![directory.path().join("bin")];
        let text: Vec<String> = run(&config).into_iter().map(|f| f.text).collect();
        let text = text.join("\n");
        for word in [
            "net.d",
            "cni.bin_dirs",
            "criw-shim-wasmtime",
            "criw-compile",
            "criw-toolbox.wasm",
            "criw.sock",
        ] {
            assert!(text.contains(word), "no {word} in {text}");
        }
        std::fs::create_dir(&config.libexec).unwrap();
        let shim = config.libexec.join("criw-shim-wasmtime");
        std::fs::write(&shim, b"x").unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = engines(&config);
        assert_eq!(found[0].level, Level::Good);
        assert_eq!(found[1].level, Level::Warning);
    }
}
