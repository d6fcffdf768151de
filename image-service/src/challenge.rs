//! What a registry's `WWW-Authenticate` header asks for.

/// One accepted way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Reads one header value; unknown schemes are skipped.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        let (scheme, mut after) = match rest.split_once(' ') {
            Some((scheme, after)) => (scheme, after),
            None => (rest, ""),
        };
        let mut parameters = Vec::new();
        while let Some((name, value, next)) = parameter(after) {
            parameters.push((name, value));
            after = next;
        }
        let get = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    challenges
}

/// `name=value` or `name="value"` at the start, and what follows it.
fn parameter(text: &str) -> Option<(String, String, &str)> {
    let text = text.trim_start_matches([' ', ',']);
    let (name, rest) = text.split_once('=')?;
    if name.is_empty() || name.contains([' ', ',', '"']) {
        return None;
    }
    if let Some(quoted) = rest.strip_prefix('"') {
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                '"' => return Some((name.to_owned(), value, &quoted[at + 1..])),
                other => value.push(other),
            }
        }
        return None;
    }
    let end = rest.find([',', ' ']).unwrap_or(rest.len());
    Some((name.to_owned(), rest[..end].to_owned(), &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        let table = [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://a/token\",service=\"s\",scope=\"repository:a/b:pull,push\"",
                vec![bearer(
                    "https://a/token",
                    Some("s"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                "bearer realm=https://a",
                vec![bearer("https://a", None, None)],
            ),
            (
                "Negotiate abc, Bearer realm=\"r\", Basic realm=\"b\"",
                vec![bearer("r", None, None), Challenge::Basic],
            ),
            ("Bearer service=\"s\"", vec![]),
            ("Bearer realm=\"unclosed", vec![]),
            ("", vec![]),
        ];
        for (header, expected) in table {
            assert_eq!(parse(header), expected, "{header}");
        }
    }
}
