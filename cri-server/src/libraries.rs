//! What a component's imports may come from, besides its engine: components of the same
//! image, then of the image volumes of its container, then of the images of the pod's other
//! containers. The first that exports an import is linked in, with an instance of its own.
//!
//! Kubernetes has no word for this. It is the least surprising order: an image brings what it
//! was tested with, and what the pod's author put beside it comes after.

use std::fs::File;
use std::io;

use criw_image_service::{
    Code, CodeVariant, CompileError, Digest, Library, Main, Prepared, StoreError,
};
use criw_sandbox::{ContainerId, ContainerView, SandboxId};

use crate::daemon::Daemon;

/// Where to look, of one container. Nothing is looked up before something is missing.
#[derive(Debug, Clone, Copy)]
pub enum Libraries<'a> {
    /// Of a container that is made.
    New {
        /// Its pod.
        pod: &'a SandboxId,
        /// Its image.
        image: &'a Prepared,
        /// Its image volumes.
        volumes: &'a [Prepared],
    },
    /// Of a container that is there, for a command in it.
    There {
        /// The container.
        container: &'a ContainerView,
        /// Its image, unless that was removed meanwhile.
        image: Option<&'a Prepared>,
    },
}

impl Libraries<'_> {
    /// Those of the image.
    fn image(&self) -> Vec<Library> {
        let image = match *self {
            Self::New { image, .. } => Some(image),
            Self::There { image, .. } => image,
        };
        libraries(image)
    }

    /// Those of the volumes and of the pod's other containers.
    fn others(&self, daemon: &Daemon, image: &[Library]) -> Vec<Library> {
        let (mut all, pod, itself) = match *self {
            Self::New { pod, volumes, .. } => (libraries(volumes), pod, None),
            Self::There { container, .. } => {
                let mut volumes = held(daemon, &container.id);
                volumes.retain(|held| image.iter().all(|own| own.digest != held.digest));
                (volumes, &container.sandbox, Some(&container.id))
            }
        };
        all.extend(siblings(daemon, pod, itself));
        all
    }
}

fn libraries<'a>(images: impl IntoIterator<Item = &'a Prepared>) -> Vec<Library> {
    let modules = images.into_iter().flat_map(|image| &image.modules);
    modules.map(Library::from).collect()
}

/// Those of the containers of a pod but one, the oldest first.
fn siblings(daemon: &Daemon, pod: &SandboxId, but: Option<&ContainerId>) -> Vec<Library> {
    let mut containers = daemon.sandboxes.containers();
    containers.retain(|one| one.sandbox == *pod && Some(&one.id) != but);
    containers.sort_by_key(|one| one.created_at);
    let held = containers.iter().flat_map(|one| held(daemon, &one.id));
    held.collect()
}

fn held(daemon: &Daemon, container: &ContainerId) -> Vec<Library> {
    let modules = daemon.images.held_modules(container.as_str());
    let library = |digest: Digest| Library {
        name: digest.to_string(),
        digest,
    };
    modules.into_iter().map(library).collect()
}

/// Makes the code whole if the engine lacks some of its imports; `main` is where the component
/// itself is, and is asked for each try.
///
/// # Errors
/// As [`criw_image_service::ImageService::link`]. An import that is still not met is none:
/// the start of the container names it.
pub async fn link(
    daemon: &Daemon,
    alone: Code,
    libraries: Libraries<'_>,
    variant: CodeVariant,
    main: impl Fn() -> io::Result<Main>,
) -> Result<Code, CompileError> {
    if alone.unmet.is_empty() {
        return Ok(alone);
    }
    let opened = || {
        main().map_err(|source| StoreError::Io {
            action: "open",
            path: "the component".into(),
            source,
        })
    };
    let mut all = libraries.image();
    let code = daemon.images.link(opened()?, &all, variant).await?;
    if code.unmet.is_empty() {
        return Ok(code);
    }
    let others = libraries.others(daemon, &all);
    if others.is_empty() {
        return Ok(code);
    }
    all.extend(others);
    daemon.images.link(opened()?, &all, variant).await
}

/// A second view of the same file.
pub fn again(file: &File) -> io::Result<Main> {
    file.try_clone().map(Main::File)
}
