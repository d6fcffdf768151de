//! Which variant of an image a container gets, when its index holds one for the host and
//! one for Wasm: by handler, else by annotation, else by the command, else the host's.

use criw_image_service::{Image, Kind, Prepared, Program, Want};
use criw_proto::v1 as cri;
use criw_sandbox::PodView;
use tonic::Status;

use crate::convert::{argv, conventions};
use crate::create::blocking;
use crate::daemon::Daemon;
use crate::entry;
use crate::error;
use crate::handlers::{DEFAULT_WASM_ENGINE, Route};

/// The route of one container: that of its pod's handler, unless that leaves the choice
/// open and an annotation makes it.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
pub fn route(
    daemon: &Daemon,
    pod: &PodView,
    config: &cri::ContainerConfig,
) -> Result<Route, Status> {
    let name = config.metadata.as_ref().map_or("", |data| &data.name);
    let own = config.annotations.clone().into_iter().collect();
    let asked = conventions::wasm_engine(name, &own, &pod.spec.annotations)?;
    Ok(
        match (daemon.handlers.known_route(&pod.spec.handler), asked) {
            // WASI is the same everywhere: another engine's user is not turned away.
            (Route::Auto, Some(engine)) if daemon.handlers.shim(&engine).is_file() => {
                Route::Wasm(engine)
            }
            (Route::Auto, Some(_)) => Route::Wasm(DEFAULT_WASM_ENGINE.to_owned()),
            (route, _) => route,
        },
    )
}

/// A Wasm handler wants the Wasm variant, `runc` the host's, and each takes the other
/// when there is no choice: containers of one pod may be of both kinds.
pub fn want(route: &Route, kinds: &[Kind]) -> Want {
    match route {
        Route::Wasm(_) if kinds.contains(&Kind::Wasm) => Want::Wasm,
        Route::Linux if kinds.contains(&Kind::Linux) => Want::Host,
        _ => Want::Any,
    }
}

/// Layers, config and modules of the variant that this container gets.
pub async fn prepare(
    daemon: &Daemon,
    image: &Image,
    route: &Route,
    config: &cri::ContainerConfig,
) -> Result<Prepared, Status> {
    let chosen = want(route, &image.kinds);
    let both = [Kind::Linux, Kind::Wasm]
        .iter()
        .all(|kind| image.kinds.contains(kind));
    let (Want::Any, true, Some(word)) = (chosen, both, config.command.first().cloned()) else {
        return stored(daemon, image, chosen).await;
    };
    let (host, wasm) = (
        stored(daemon, image, Want::Host).await?,
        stored(daemon, image, Want::Wasm).await?,
    );
    let config = config.clone();
    blocking(move || {
        let here = find(&host, &word, &config)?;
        let only_there =
            here.is_none() && matches!(find(&wasm, &word, &config)?, Some(Program::Module(_)));
        Ok(if only_there { wasm } else { host })
    })
    .await
}

async fn stored(daemon: &Daemon, image: &Image, want: Want) -> Result<Prepared, Status> {
    let scope = image.scope.as_deref();
    let prepared = daemon.images.prepare(&image.id, scope, want).await;
    prepared.map_err(|e| error::prepare(&e))
}

/// What a command is in this variant; volumes are not looked at.
#[allow(
    clippy::result_large_err,
    reason = "a status is what every RPC answers with"
)]
fn find(
    variant: &Prepared,
    word: &str,
    config: &cri::ContainerConfig,
) -> Result<Option<Program>, Status> {
    let env = argv::env(&[], &variant.config.env, &config.envs)?;
    let cwd = argv::cwd(&config.working_dir, &variant.config.working_dir);
    for (name, _) in entry::spellings(word) {
        let found = variant.program(name, &cwd, argv::lookup(&env, "PATH"));
        if let Some(program) = found.map_err(|e| error::store(&e))? {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_of_a_pod_takes_the_variant_it_can() {
        let wasm = Route::Wasm("wasmtime".into());
        let (both, linux, only_wasm) = (
            &[Kind::Linux, Kind::Wasm][..],
            &[Kind::Linux][..],
            &[Kind::Wasm][..],
        );
        for (route, kinds, expected) in [
            (&Route::Auto, both, Want::Any),
            (&wasm, both, Want::Wasm),
            (&wasm, linux, Want::Any),
            (&wasm, only_wasm, Want::Wasm),
            (&Route::Linux, both, Want::Host),
            (&Route::Linux, only_wasm, Want::Any),
        ] {
            assert_eq!(want(route, kinds), expected, "{route:?} {kinds:?}");
        }
    }
}
