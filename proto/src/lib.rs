//! CRI v1.36 messages and services, generated from our own .proto.
//!
//! The text is `proto/runtime/v1/cri.proto`; `build.rs` compiles it without protoc.
//! Nothing here is logic: only the daemon's outermost layer and black-box clients
//! use this crate, the rooms behind it have their own small types.
//!
//! proto3 rules worth remembering at that border: every message field is an
//! `Option`, every enum field an `i32` whose unknown values must not crash, and
//! environment values are bytes.

use std::fmt;

/// The package `runtime.v1`: messages, and one client and one server module for each service.
#[allow(
    clippy::allow_attributes_without_reason,
    reason = "generated code carries its own allows"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// What `criw images import` asks of the daemon; our own, no part of the CRI.
pub mod admin {
    /// The package `criw.admin.v1`.
    #[allow(
        clippy::allow_attributes_without_reason,
        reason = "generated code carries its own allows"
    )]
    pub mod v1 {
        tonic::include_proto!("criw.admin.v1");
    }
}

/// What cAdvisor asks of a containerd: the three calls, and of their messages the fields, that
/// it uses. The numbers are containerd's.
pub mod containerd {
    /// The package `containerd.services.containers.v1`.
    #[allow(
        clippy::allow_attributes_without_reason,
        reason = "generated code carries its own allows"
    )]
    pub mod containers {
        tonic::include_proto!("containerd.services.containers.v1");
    }
    /// The package `containerd.services.tasks.v1`.
    #[allow(
        clippy::allow_attributes_without_reason,
        reason = "generated code carries its own allows"
    )]
    pub mod tasks {
        tonic::include_proto!("containerd.services.tasks.v1");
    }
    /// The package `containerd.services.version.v1`.
    #[allow(
        clippy::allow_attributes_without_reason,
        reason = "generated code carries its own allows"
    )]
    pub mod version {
        tonic::include_proto!("containerd.services.version.v1");
    }
}

/// The encoded `google.protobuf.FileDescriptorSet` of all that [`v1`] contains,
/// without source positions.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Says which credentials are there but never what they are, because whole
/// requests are logged at debug level.
impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |secret: &str| if secret.is_empty() { "" } else { "[redacted]" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &shown(&self.password))
            .field("auth", &shown(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &shown(&self.identity_token))
            .field("registry_token", &shown(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn descriptor_set_holds_the_whole_interface() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        assert_eq!(set.file.len(), 1);
        let file = &set.file[0];
        assert_eq!(file.package(), "runtime.v1");
        let rpcs: Vec<(&str, usize)> = file
            .service
            .iter()
            .map(|service| (service.name(), service.method.len()))
            .collect();
        assert_eq!(rpcs, [("RuntimeService", 35), ("ImageService", 6)]);
    }

    #[test]
    fn credentials_are_not_printed() {
        let request = v1::PullImageRequest {
            auth: Some(v1::AuthConfig {
                username: "somebody".into(),
                password: "hunter2".into(),
                auth: "aHVudGVyMg==".into(),
                server_address: "registry.test".into(),
                identity_token: "id-token".into(),
                registry_token: "reg-token".into(),
            }),
            ..Default::default()
        };
        let text = format!("{request:?}");
        assert!(text.contains("somebody") && text.contains("registry.test"));
        for secret in ["hunter2", "aHVudGVyMg==", "id-token", "reg-token"] {
            assert!(!text.contains(secret), "{secret} is printed: {text}");
        }
    }

    #[test]
    fn environment_values_may_be_any_bytes() {
        let env = v1::KeyValue {
            key: "RAW".into(),
            value: vec![0xff, 0x00, 0xfe],
        };
        let read = v1::KeyValue::decode(env.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read, env);
    }
}
