//! The same for components: of 0.2 and 0.3 the functions that change what a path names.

use std::fs::File;
use std::sync::Arc;

use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as two;
use wasmtime_wasi::p2::bindings::filesystem::types::HostDescriptor as _;
use wasmtime_wasi::p3::bindings::filesystem::types as three;
use wasmtime_wasi::p3::bindings::filesystem::types::HostDescriptorWithStore as Three;

use super::is_read_only_at;
use crate::host::State;

/// As wasmtime-wasi names them: shadowing goes by the whole name.
const TWO: &str = "wasi:filesystem/types@0.2.12";
const THREE: &str = "wasi:filesystem/types@0.3.0";

/// What both versions call these.
trait Code: std::error::Error + Send + Sync + 'static {
    const READ_ONLY: Self;
    fn is_io(&self) -> bool;
}

impl Code for two::ErrorCode {
    const READ_ONLY: Self = Self::ReadOnly;
    fn is_io(&self) -> bool {
        matches!(self, Self::Io)
    }
}

impl Code for three::ErrorCode {
    const READ_ONLY: Self = Self::ReadOnly;
    fn is_io(&self) -> bool {
        matches!(self, Self::Io)
    }
}

/// Where a call changes something.
struct Place {
    directory: Option<Arc<File>>,
    path: String,
}

impl Place {
    fn of(state: &mut State, directory: &Resource<Descriptor>, path: &str) -> Self {
        let directory = match state.table().get(directory) {
            Ok(Descriptor::Dir(directory)) => Some(Arc::clone(&directory.dir)),
            _ => None,
        };
        Self {
            directory,
            path: path.to_owned(),
        }
    }

    /// Of an open: only one that would change something is refused for a read-only place.
    fn if_changed(self, changes: bool) -> Self {
        Self {
            directory: self.directory.filter(|_| changes),
            ..self
        }
    }

    /// What the guest is told: the outer error is a trap.
    fn truth<T, E: Code>(
        &self,
        told: std::result::Result<T, TrappableError<E>>,
    ) -> Result<(std::result::Result<T, E>,)> {
        let code = match told {
            Ok(value) => return Ok((Ok(value),)),
            Err(error) => error.downcast()?,
        };
        let read_only = code.is_io()
            && self
                .directory
                .as_ref()
                .is_some_and(|directory| is_read_only_at(directory, &self.path));
        Ok((Err(if read_only { E::READ_ONLY } else { code }),))
    }
}

/// The directory, and a path in it.
type Named = (Resource<Descriptor>, String);
/// From where and to where.
type Renamed = (Resource<Descriptor>, String, Resource<Descriptor>, String);

/// Defines these functions of 0.2 over those that are there.
pub(crate) fn link_two(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(TWO)?;
    macro_rules! named {
        ($name:literal, $method:ident) => {
            types.func_wrap_async(
                concat!("[method]descriptor.", $name),
                |mut store: StoreContextMut<'_, State>, (directory, path): Named| {
                    Box::new(async move {
                        let place = Place::of(store.data_mut(), &directory, &path);
                        let mut view = store.data_mut().filesystem();
                        place.truth(view.$method(directory, path).await)
                    })
                },
            )
        };
    }
    named!("create-directory-at", create_directory_at)?;
    named!("remove-directory-at", remove_directory_at)?;
    named!("unlink-file-at", unlink_file_at)?;
    types.func_wrap_async(
        "[method]descriptor.rename-at",
        |mut store: StoreContextMut<'_, State>, (from, old, to, new): Renamed| {
            Box::new(async move {
                let place = Place::of(store.data_mut(), &to, &new);
                let mut view = store.data_mut().filesystem();
                place.truth(view.rename_at(from, old, to, new).await)
            })
        },
    )?;
    type Opened = (
        Resource<Descriptor>,
        two::PathFlags,
        String,
        two::OpenFlags,
        two::DescriptorFlags,
    );
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, State>, (directory, links, path, open, flags): Opened| {
            Box::new(async move {
                let changes = open.contains(two::OpenFlags::CREATE)
                    || open.contains(two::OpenFlags::TRUNCATE)
                    || flags.contains(two::DescriptorFlags::WRITE);
                let place = Place::of(store.data_mut(), &directory, &path).if_changed(changes);
                let mut view = store.data_mut().filesystem();
                place.truth(view.open_at(directory, links, path, open, flags).await)
            })
        },
    )
}

/// Defines these functions of 0.3 over those that are there.
pub(crate) fn link_three(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(THREE)?;
    let place = |accessor: &Accessor<State>, directory: &Resource<Descriptor>, path: &str| {
        accessor.with(|mut store| Place::of(store.get(), directory, path))
    };
    macro_rules! named {
        ($name:literal, $method:ident) => {
            types.func_wrap_concurrent(
                concat!("[method]descriptor.", $name),
                move |accessor: &Accessor<State>, (directory, path): Named| {
                    Box::pin(async move {
                        let place = place(accessor, &directory, &path);
                        let view = accessor.with_getter::<WasiFilesystem>(State::filesystem);
                        let told =
                            <WasiFilesystem as Three<State>>::$method(&view, directory, path);
                        place.truth(told.await)
                    })
                },
            )
        };
    }
    named!("create-directory-at", create_directory_at)?;
    named!("remove-directory-at", remove_directory_at)?;
    named!("unlink-file-at", unlink_file_at)?;
    types.func_wrap_concurrent(
        "[method]descriptor.rename-at",
        move |accessor: &Accessor<State>, (from, old, to, new): Renamed| {
            Box::pin(async move {
                let place = place(accessor, &to, &new);
                let view = accessor.with_getter::<WasiFilesystem>(State::filesystem);
                let told = <WasiFilesystem as Three<State>>::rename_at(&view, from, old, to, new);
                place.truth(told.await)
            })
        },
    )?;
    type Opened = (
        Resource<Descriptor>,
        three::PathFlags,
        String,
        three::OpenFlags,
        three::DescriptorFlags,
    );
    types.func_wrap_concurrent(
        "[method]descriptor.open-at",
        move |accessor: &Accessor<State>, (directory, links, path, open, flags): Opened| {
            Box::pin(async move {
                let changes = open.contains(three::OpenFlags::CREATE)
                    || open.contains(three::OpenFlags::TRUNCATE)
                    || flags.contains(three::DescriptorFlags::WRITE);
                let place = place(accessor, &directory, &path).if_changed(changes);
                let view = accessor.with_getter::<WasiFilesystem>(State::filesystem);
                let told = <WasiFilesystem as Three<State>>::open_at(
                    &view, directory, links, path, open, flags,
                );
                place.truth(told.await)
            })
        },
    )
}
