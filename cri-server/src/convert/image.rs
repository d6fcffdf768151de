//! Images, as clients see them, and credentials, as they send them.

use criw_image_service::{Auth, AuthKind, Image, ImageUser};
use criw_proto::v1 as cri;

/// An image of a list or status.
pub fn image(image: &Image) -> cri::Image {
    let (uid, username) = match &image.user {
        None => (None, String::new()),
        Some(ImageUser::Uid(value)) => (Some(cri::Int64Value { value: *value }), String::new()),
        Some(ImageUser::Name(name)) => (None, name.clone()),
    };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// The form that is set wins in the order of the kubelet's own use.
pub fn auth(auth: &cri::AuthConfig) -> Auth {
    let kind = if !auth.registry_token.is_empty() {
        AuthKind::RegistryToken(auth.registry_token.clone())
    } else if !auth.identity_token.is_empty() {
        AuthKind::IdentityToken(auth.identity_token.clone())
    } else if !auth.username.is_empty() || !auth.password.is_empty() {
        AuthKind::Basic {
            username: auth.username.clone(),
            password: auth.password.clone(),
        }
    } else if !auth.auth.is_empty() {
        AuthKind::Encoded(auth.auth.clone())
    } else {
        AuthKind::Anonymous
    };
    Auth {
        server_address: auth.server_address.clone(),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_of_credentials_is_chosen() {
        let config = |username: &str, auth: &str, identity: &str, registry: &str| cri::AuthConfig {
            username: username.into(),
            password: username.into(),
            auth: auth.into(),
            identity_token: identity.into(),
            registry_token: registry.into(),
            server_address: "r.test".into(),
        };
        for (config, expected) in [
            (config("", "", "", ""), "Anonymous"),
            (config("u", "", "", ""), "Basic(redacted)"),
            (config("u", "a", "", ""), "Basic(redacted)"),
            (config("", "a", "", ""), "Encoded(redacted)"),
            (config("u", "a", "i", ""), "IdentityToken(redacted)"),
            (config("u", "a", "i", "r"), "RegistryToken(redacted)"),
        ] {
            let auth = auth(&config);
            assert_eq!(format!("{:?}", auth.kind), expected);
            assert_eq!(auth.server_address, "r.test");
        }
    }

    #[test]
    fn exactly_one_of_uid_and_username() {
        let base = Image {
            id: criw_image_service::ImageId(criw_image_service::Digest::of(b"x")),
            repo_tags: vec!["docker.io/library/x:1".into()],
            repo_digests: Vec::new(),
            size: 3,
            user: None,
            pinned: false,
            kinds: Vec::new(),
            labels: Default::default(),
            scope: None,
        };
        for (user, uid, name) in [
            (None, None, ""),
            (Some(ImageUser::Uid(0)), Some(0), ""),
            (Some(ImageUser::Name("www".into())), None, "www"),
        ] {
            let got = image(&Image {
                user,
                ..base.clone()
            });
            assert_eq!(
                (got.uid.map(|v| v.value), got.username.as_str()),
                (uid, name)
            );
            assert!(got.id.starts_with("sha256:"));
        }
    }
}
