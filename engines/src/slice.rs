//! Where systemd puts the cgroups of slices and scopes: a dash in the name of a slice means
//! one inside of the other (systemd.slice(5)).

/// The cgroup of a slice: `/a.slice/a-b.slice` for `a-b.slice`, and `/` for the root slice
/// `-.slice`. `None` when that is no name of a slice.
pub fn path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some("/".to_owned());
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":_.\\-@".contains(&b);
    // 255 bytes is the longest name of a unit.
    if slice.len() > 255 || !name.bytes().all(allowed) {
        return None;
    }
    let mut path = String::new();
    let mut whole = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !whole.is_empty() {
            whole.push('-');
        }
        whole.push_str(part);
        path.push('/');
        path.push_str(&whole);
        path.push_str(".slice");
    }
    Some(path)
}

/// The cgroup that `cgroupsPath` of a runtime config means: itself, or with runc's systemd
/// driver `slice:prefix:name`, which is the scope `prefix-name.scope`.
pub fn of_cgroups_path(cgroups_path: &str) -> Option<String> {
    let mut parts = cgroups_path.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(slice), Some(prefix), Some(name), None) => {
            let parent = path(slice)?;
            let parent = parent.trim_end_matches('/');
            Some(format!("{parent}/{prefix}-{name}.scope"))
        }
        _ => Some(cgroups_path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_nest() {
        for (slice, expected) in [
            ("-.slice", Some("/")),
            ("criw.slice", Some("/criw.slice")),
            ("a-b.slice", Some("/a.slice/a-b.slice")),
            (
                "kubepods-besteffort-pod1_2.slice",
                Some("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"),
            ),
            ("a.b.slice", Some("/a.b.slice")),
            ("", None),
            (".slice", None),
            ("a", None),
            ("a.scope", None),
            ("-a.slice", None),
            ("a-.slice", None),
            ("a--b.slice", None),
            ("../a.slice", None),
            ("a/b.slice", None),
            ("a b.slice", None),
        ] {
            assert_eq!(path(slice).as_deref(), expected, "{slice}");
        }
    }

    #[test]
    fn cgroups_paths_of_both_drivers() {
        for (given, expected) in [
            ("/pods/a", Some("/pods/a")),
            ("a-b.slice:criw:c", Some("/a.slice/a-b.slice/criw-c.scope")),
            ("-.slice:criw:c", Some("/criw-c.scope")),
            ("a:criw:c", None),
        ] {
            assert_eq!(of_cgroups_path(given).as_deref(), expected, "{given}");
        }
    }
}
