//! Images that a container mounts as volumes: what of the image store they are.
//!
//! An image with layers is what a container of it would have as root. An artifact has no
//! files with names of their own: its module is `module.wasm`, and of several each is
//! `module-1.wasm`, `module-2.wasm` and so on, in the order of the manifest.

use criw_image_service::{Image, Prepared, Want};
use criw_sandbox::model::Mount;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error;

/// Fills in where the files are. What is returned keeps them on disk while it lives.
pub async fn resolve(daemon: &Daemon, mounts: &mut [Mount]) -> Result<Vec<Prepared>, Status> {
    let mut all = Vec::new();
    for mount in mounts {
        let Some(volume) = &mut mount.image else {
            continue;
        };
        let failed = |why: String| {
            let place = &mount.container_path;
            let text = format!(
                "ImageVolumeMountFailed: image {:?} at {place:?}: {why}",
                volume.image
            );
            Status::failed_precondition(text)
        };
        let image = find(daemon, &volume.image).map_err(failed)?;
        let prepared = daemon
            .images
            .prepare(&image.id, image.scope.as_deref(), Want::Any)
            .await;
        let prepared = prepared.map_err(|error| failed(error::chain(&error)))?;
        if prepared.lowers.is_empty() {
            let count = prepared.modules.len();
            for (n, module) in prepared.modules.iter().enumerate() {
                let file = daemon.images.module_file(&module.digest);
                let file = file.ok_or_else(|| failed(format!("{} is gone", module.digest)))?;
                volume.files.push((file_name(n, count), file));
            }
        }
        volume.lowers.clone_from(&prepared.lowers);
        all.push(prepared);
    }
    Ok(all)
}

fn find(daemon: &Daemon, name: &str) -> Result<Image, String> {
    match daemon.images.find(name) {
        Ok(Some(image)) => Ok(image),
        Ok(None) => {
            Err("it is not on this node; pull it first (CreateContainer does not)".to_owned())
        }
        Err(error) => Err(error::chain(&error)),
    }
}

/// Of the n-th of so many modules.
fn file_name(n: usize, count: usize) -> String {
    if count == 1 {
        "module.wasm".to_owned()
    } else {
        format!("module-{}.wasm", n + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_an_artifact_have_names() {
        assert_eq!(file_name(0, 1), "module.wasm");
        let names: Vec<_> = (0..2).map(|n| file_name(n, 2)).collect();
        assert_eq!(names, ["module-1.wasm", "module-2.wasm"]);
    }
}
