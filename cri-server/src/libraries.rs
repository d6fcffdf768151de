//! What a component's imports may come from, besides its engine: components of the same
//! image, then of the image volumes of its container, then of the images of the pod's other
//! containers. The first that exports an import is linked in, with an instance of its own.
//!
//! Kubernetes has no word for this. It is the least surprising order: an image brings what it
//! was tested with, and what the pod's author put beside it comes after.

use std::fs::File;
use std::io;

use criw_image_service::{
    Code, CodeVariant, CompileError, Digest, Library, Main, Prepared, StoreError, WasmModule,
};
use criw_sandbox::{ContainerId, ContainerView, SandboxId};

use crate::daemon::Daemon;

/// Where to look, of one container.
#[derive(Debug)]
pub struct Libraries {
    image: Vec<Library>,
    volumes: Vec<Library>,
    pod: SandboxId,
    /// The container itself, if it is there already.
    container: Option<ContainerId>,
}

impl Libraries {
    /// Of a container that is made.
    pub fn of_new(pod: &SandboxId, image: &Prepared, volumes: &[Prepared]) -> Self {
        let volumes = volumes.iter().flat_map(|volume| &volume.modules);
        Self {
            image: image.modules.iter().map(Library::from).collect(),
            volumes: volumes.map(Library::from).collect(),
            pod: pod.clone(),
            container: None,
        }
    }

    /// Of a container that is there, for a command in it; `image` is what its image has.
    pub fn of_container(daemon: &Daemon, container: &ContainerView, image: &[WasmModule]) -> Self {
        let image: Vec<Library> = image.iter().map(Library::from).collect();
        let mut volumes = held(daemon, &container.id);
        volumes.retain(|held| image.iter().all(|own| own.digest != held.digest));
        Self {
            image,
            volumes,
            pod: container.sandbox.clone(),
            container: Some(container.id.clone()),
        }
    }

    /// Those of the pod's other containers, the oldest first.
    fn siblings(&self, daemon: &Daemon) -> Vec<Library> {
        let mut containers = daemon.sandboxes.containers();
        containers
            .retain(|one| one.sandbox == self.pod && Some(&one.id) != self.container.as_ref());
        containers.sort_by_key(|one| one.created_at);
        let held = containers.iter().flat_map(|one| held(daemon, &one.id));
        held.collect()
    }
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
    libraries: &Libraries,
    variant: CodeVariant,
    main: impl Fn() -> io::Result<Main>,
) -> Result<Code, CompileError> {
    if alone.unmet.is_empty() {
        return Ok(alone);
    }
    let mut code = alone;
    let mut all = libraries.image.clone();
    let own = all.len();
    for step in 0..2 {
        if step == 1 {
            all.extend(libraries.volumes.iter().cloned());
            all.extend(libraries.siblings(daemon));
            if all.len() == own {
                break;
            }
        }
        let main = main().map_err(|source| StoreError::Io {
            action: "open",
            path: "the component".into(),
            source,
        })?;
        code = daemon.images.link(main, &all, variant).await?;
        if code.unmet.is_empty() {
            break;
        }
    }
    Ok(code)
}

/// A second view of the same file.
pub fn again(file: &File) -> io::Result<Main> {
    file.try_clone().map(Main::File)
}
