//! Capabilities, seccomp, AppArmor and SELinux of a container.

use std::path::PathBuf;

use criw_proto::v1::security_profile::ProfileType;
use criw_proto::v1::{Capability, SeLinuxOption, SecurityProfile};
use criw_sandbox::model::{AppArmor, Seccomp, SelinuxOptions};

use crate::error::{Invalid, invalid};

/// By number, as in linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a Linux container has unless asked otherwise: the set that images rely on.
const LINUX_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What a container starts from before `add` and `drop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// A Linux container.
    Linux,
    /// A Wasm guest needs none.
    Wasm,
    /// Everything the host has.
    Privileged,
}

/// `CAP_…` names of the permitted sets and of the ambient set, in kernel order.
/// `host` is the daemon's bounding set: `ALL` means what the host has.
pub fn capabilities(
    base: Base,
    asked: Option<&Capability>,
    host: u64,
) -> Result<(Vec<String>, Vec<String>), Invalid> {
    let mut set = match base {
        Base::Linux => mask(&LINUX_DEFAULT),
        Base::Wasm => 0,
        Base::Privileged => return Ok((names(host), Vec::new())),
    };
    let mut ambient = 0;
    if let Some(asked) = asked {
        // ALL first, so that `drop: [ALL], add: [X]` and `add: [ALL], drop: [X]` both
        // mean what they say, whatever the order of the lists.
        if has_all(&asked.add_capabilities) {
            set = host;
        }
        if has_all(&asked.drop_capabilities) {
            set = 0;
        }
        set |= each(&asked.add_capabilities)?;
        set &= !each(&asked.drop_capabilities)?;
        ambient = each(&asked.add_ambient_capabilities)?;
        if has_all(&asked.add_ambient_capabilities) {
            ambient = host;
        }
        set |= ambient;
    }
    Ok((names(set), names(ambient)))
}

fn has_all(list: &[String]) -> bool {
    list.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

fn each(list: &[String]) -> Result<u64, Invalid> {
    let mut set = 0;
    for name in list {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            continue;
        }
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match CAPABILITIES.iter().position(|known| *known == short) {
            Some(bit) => set |= 1 << bit,
            None => return invalid(format!("unknown capability {name:?}")),
        }
    }
    Ok(set)
}

fn mask(list: &[&str]) -> u64 {
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(_, name)| list.contains(name))
        .fold(0, |set, (bit, _)| set | 1 << bit)
}

fn names(set: u64) -> Vec<String> {
    CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| set & (1 << bit) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// The new field wins over the old string; unset is unconfined, as is privileged.
pub fn seccomp(
    profile: Option<&SecurityProfile>,
    old: &str,
    privileged: bool,
) -> Result<Seccomp, Invalid> {
    if privileged {
        return Ok(Seccomp::Unconfined);
    }
    let localhost = |path: &str| {
        if path.starts_with('/') {
            Ok(Seccomp::Localhost(PathBuf::from(path)))
        } else {
            invalid(format!("seccomp profile {path:?} is not an absolute path"))
        }
    };
    match profile {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Seccomp::Unconfined),
            Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
            Err(_) => invalid(format!(
                "seccomp profile type {} is no value of the enum",
                profile.profile_type
            )),
        },
        None => match old {
            "" | "unconfined" => Ok(Seccomp::Unconfined),
            "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
            other => match other.strip_prefix("localhost/") {
                Some(path) => localhost(path),
                None => invalid(format!("unknown seccomp profile {other:?}")),
            },
        },
    }
}

/// The new field wins over the old string. A pod that says nothing gets the default profile
/// where there is AppArmor, as the Pod Security Standards rely on; privileged is unconfined.
pub fn apparmor(
    profile: Option<&SecurityProfile>,
    old: &str,
    privileged: bool,
    host_has_it: bool,
) -> Result<AppArmor, Invalid> {
    if privileged {
        return Ok(AppArmor::Unconfined);
    }
    let name = match profile {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => return Ok(AppArmor::RuntimeDefault),
            Ok(ProfileType::Unconfined) => return Ok(AppArmor::Unconfined),
            Ok(ProfileType::Localhost) => profile.localhost_ref.as_str(),
            Err(_) => {
                return invalid(format!(
                    "apparmor profile type {} is no value of the enum",
                    profile.profile_type
                ));
            }
        },
        None => match old {
            "" => return Ok(AppArmor::Unsaid),
            "unconfined" => return Ok(AppArmor::Unconfined),
            "runtime/default" => return Ok(AppArmor::RuntimeDefault),
            name => name,
        },
    };
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() {
        return invalid("the localhost apparmor profile has no name");
    }
    // It would be one more command to the kernel.
    if name.contains(|c: char| c.is_control()) {
        return invalid(format!(
            "the apparmor profile's name {name:?} has control characters"
        ));
    }
    if !host_has_it {
        return invalid(format!(
            "apparmor profile {name:?} is asked for, but this node has no AppArmor; start its kernel with it, or take the profile out of the pod"
        ));
    }
    Ok(AppArmor::Localhost(name.to_owned()))
}

/// A part that is none is an error everywhere; without SELinux on the node good ones have no
/// effect.
pub fn selinux(options: Option<&SeLinuxOption>) -> Result<Option<SelinuxOptions>, Invalid> {
    let Some(options) = options else {
        return Ok(None);
    };
    if !options.level.is_empty() && !is_level(&options.level) {
        return invalid(format!("{:?} is no SELinux level", options.level));
    }
    for (what, name) in [
        ("user", &options.user),
        ("role", &options.role),
        ("type", &options.r#type),
    ] {
        // With a colon it would be more than that part.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.chars().all(plain) {
            return invalid(format!("{name:?} is no SELinux {what}"));
        }
    }
    let options = SelinuxOptions {
        user: options.user.clone(),
        role: options.role.clone(),
        kind: options.r#type.clone(),
        level: options.level.clone(),
    };
    // The kubelet may send a message that says nothing.
    Ok((options != SelinuxOptions::default()).then_some(options))
}

/// `s0`, `s0-s1`, `s0:c1,c2`, `s0-s0:c1.c1023`.
fn is_level(level: &str) -> bool {
    let number = |text: &str, letter: char| {
        text.strip_prefix(letter).is_some_and(|digits| {
            !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit())
        })
    };
    level.split('-').count() <= 2
        && level.split('-').all(|part| {
            let (sensitivity, categories) = match part.split_once(':') {
                Some((sensitivity, categories)) => (sensitivity, Some(categories)),
                None => (part, None),
            };
            number(sensitivity, 's')
                && categories
                    .is_none_or(|list| list.split([',', '.']).all(|category| number(category, 'c')))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn asked(add: &str, drop: &str, ambient: &str) -> Option<Capability> {
        Some(Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        })
    }

    #[test]
    fn capability_arithmetic() {
        let host = mask(&["CHOWN", "KILL", "SYS_ADMIN"]);
        for (base, asked, set, ambient) in [
            (Base::Wasm, None, "", ""),
            (Base::Wasm, asked("net_admin", "", ""), "CAP_NET_ADMIN", ""),
            (Base::Linux, asked("", "ALL", ""), "", ""),
            (Base::Linux, asked("KILL", "ALL", ""), "CAP_KILL", ""),
            (
                Base::Linux,
                asked("ALL", "KILL", ""),
                "CAP_CHOWN CAP_SYS_ADMIN",
                "",
            ),
            (Base::Linux, asked("CAP_BPF", "all", ""), "CAP_BPF", ""),
            (
                Base::Linux,
                asked("", "ALL", "KILL"),
                "CAP_KILL",
                "CAP_KILL",
            ),
            (
                Base::Privileged,
                asked("", "ALL", ""),
                "CAP_CHOWN CAP_KILL CAP_SYS_ADMIN",
                "",
            ),
        ] {
            let got = capabilities(base, asked.as_ref(), host).unwrap();
            assert_eq!(got, (list(set), list(ambient)), "{asked:?}");
        }
        assert_eq!(capabilities(Base::Linux, None, host).unwrap().0.len(), 14);
        let error = capabilities(Base::Linux, asked("FLY", "", "").as_ref(), host).unwrap_err();
        assert!(error.0.contains("FLY"), "{error}");
    }

    fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
        Some(SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: name.to_owned(),
        })
    }

    #[test]
    fn seccomp_profiles() {
        use ProfileType as P;
        let file = Seccomp::Localhost("/p.json".into());
        for (new, old, privileged, expected) in [
            (None, "", false, Some(Seccomp::Unconfined)),
            (
                None,
                "runtime/default",
                false,
                Some(Seccomp::RuntimeDefault),
            ),
            (None, "localhost//p.json", false, Some(file.clone())),
            (None, "odd", false, None),
            (
                profile(P::RuntimeDefault, ""),
                "unconfined",
                false,
                Some(Seccomp::RuntimeDefault),
            ),
            (
                profile(P::Unconfined, ""),
                "runtime/default",
                false,
                Some(Seccomp::Unconfined),
            ),
            (profile(P::Localhost, "/p.json"), "", false, Some(file)),
            (profile(P::Localhost, "p.json"), "", false, None),
            (
                profile(P::Localhost, "p.json"),
                "",
                true,
                Some(Seccomp::Unconfined),
            ),
        ] {
            assert_eq!(
                seccomp(new.as_ref(), old, privileged).ok(),
                expected,
                "{new:?} {old}"
            );
        }
        let odd = SecurityProfile {
            profile_type: 9,
            localhost_ref: String::new(),
        };
        assert!(seccomp(Some(&odd), "", false).is_err());
    }

    #[test]
    fn apparmor_profiles() {
        use AppArmor as A;
        use ProfileType as P;
        let named = Some(A::Localhost("p".to_owned()));
        let default = || profile(P::RuntimeDefault, "");
        let local = |name| profile(P::Localhost, name);
        // new field, old string, privileged, the node has AppArmor
        for (new, old, privileged, host, expected) in [
            (None, "", false, false, Some(A::Unsaid)),
            (None, "", false, true, Some(A::Unsaid)),
            (None, "", true, true, Some(A::Unconfined)),
            (None, "unconfined", false, true, Some(A::Unconfined)),
            (
                None,
                "runtime/default",
                false,
                true,
                Some(A::RuntimeDefault),
            ),
            (
                None,
                "runtime/default",
                false,
                false,
                Some(A::RuntimeDefault),
            ),
            (None, "runtime/default", true, true, Some(A::Unconfined)),
            (None, "localhost/p", false, true, named.clone()),
            (None, "p", false, true, named.clone()),
            (None, "localhost/p", false, false, None),
            (None, "localhost/", false, true, None),
            (default(), "", false, true, Some(A::RuntimeDefault)),
            (default(), "", false, false, Some(A::RuntimeDefault)),
            (
                default(),
                "unconfined",
                false,
                true,
                Some(A::RuntimeDefault),
            ),
            (default(), "", true, true, Some(A::Unconfined)),
            (
                profile(P::Unconfined, ""),
                "localhost/p",
                false,
                true,
                Some(A::Unconfined),
            ),
            (local("localhost/p"), "", false, true, named.clone()),
            (local("p"), "localhost/q", false, true, named),
            (local("p"), "", true, true, Some(A::Unconfined)),
            (local("p"), "", false, false, None),
            (local("p"), "unconfined", false, false, None),
            (local(""), "localhost/p", false, true, None),
            (local("localhost/"), "", false, true, None),
            (local("p\nexec q"), "", false, true, None),
        ] {
            let got = apparmor(new.as_ref(), old, privileged, host).ok();
            assert_eq!(got, expected, "{new:?} {old:?} {privileged} {host}");
        }
        let odd = SecurityProfile {
            profile_type: 9,
            localhost_ref: String::new(),
        };
        assert!(apparmor(Some(&odd), "", false, true).is_err());
        let error = apparmor(local("p").as_ref(), "", false, false).unwrap_err();
        assert!(error.0.contains("this node has no AppArmor"), "{error}");
    }

    #[test]
    fn selinux_labels() {
        for (level, good) in [
            ("s0", true),
            ("s0:c4,c5", true),
            ("s0-s0:c1.c1023", true),
            ("s", false),
            ("s0,c4,c5", false),
            ("level", false),
        ] {
            let options = SeLinuxOption {
                level: level.to_owned(),
                ..SeLinuxOption::default()
            };
            let got = selinux(Some(&options)).map(|asked| asked.map(|asked| asked.level));
            assert_eq!(got.ok(), good.then(|| Some(level.to_owned())), "{level}");
        }
        let options = |user: &str, kind: &str| SeLinuxOption {
            user: user.to_owned(),
            r#type: kind.to_owned(),
            ..SeLinuxOption::default()
        };
        assert_eq!(selinux(None), Ok(None));
        assert_eq!(selinux(Some(&options("", ""))), Ok(None));
        let asked = selinux(Some(&options("system_u", "spc_t"))).unwrap();
        assert_eq!(asked.unwrap().kind, "spc_t");
        for (user, kind) in [("", "spc_t:s0"), ("a b", ""), ("a\n", "")] {
            let error = selinux(Some(&options(user, kind))).unwrap_err();
            assert!(error.0.contains("is no SELinux"), "{error}");
        }
    }
}
