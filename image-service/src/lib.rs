//! Pulls, verifies, stores, unpacks, compiles and collects images.
//!
//! It knows neither CRI messages nor pods: names and credentials come in, an
//! ordered list of layer directories and compiled code go out.

mod challenge;
mod compile;
mod digest;
mod error;
mod foreign;
mod hosts;
mod image;
mod import;
mod index;
mod layer;
mod manifest;
mod merge;
mod program;
mod pull;
mod reference;
mod registry;
mod service;
mod store;
mod work;

pub use compile::CodeVariant;
pub use digest::{Digest, InvalidDigest};
pub use error::{AmbiguousId, CompileError, OpenError, PrepareError, PullError, StoreError};
pub use image::{
    Auth, AuthKind, Code, Config, FsUsage, Image, ImageId, ImageUser, Kind, Library, Limits, Main,
    Prepared, ProcessConfig, PullRequest, Want, WasmModule,
};
pub use import::Imported;
pub use program::Program;
pub use service::ImageService;
pub use store::Hold;
pub use work::Work;
