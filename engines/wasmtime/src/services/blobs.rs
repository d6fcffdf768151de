//! `wasi:blobstore` in the directory that `criw.dev/blobstore-dir` names: a directory for each
//! container of blobs, a file for each object.
//!
//! ```text
//!   outgoing   an object on its way in: spooled beside its place, then renamed into it
//!   incoming   an object, or a part of it, on its way out
//! ```
//! Objects are streamed: memory holds a piece at a time. An object appears whole when the
//! guest finishes it, and never if the guest fails before.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wasmtime::component::{
    ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower, Resource,
};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use super::files::Directory;
use super::{Services, names, resource};
use crate::host::State;

mod incoming;
mod outgoing;

use incoming::Incoming;
use outgoing::Outgoing;

/// The interface's errors are texts.
type Told<T> = std::result::Result<T, String>;

/// The directory, if one is named.
#[derive(Debug)]
pub(super) struct Blobs {
    path: Option<String>,
    /// Whether what killed containers left was looked for.
    swept: AtomicBool,
}

/// A container's or object's name that is not there is an error of these words.
fn missing(what: &str, name: &str) -> String {
    format!("there is no {what} {name:?}")
}

fn failed(what: &str, name: &str, error: &io::Error) -> String {
    format!("{what} {name:?}: {error}")
}

fn file_name(what: &str, name: &str) -> Told<String> {
    names::encode(name).map_err(|text| format!("{what} {name:?}: {text}"))
}

impl Blobs {
    pub(super) fn new(path: Option<&str>) -> Self {
        Self {
            path: path.map(str::to_owned),
            swept: AtomicBool::new(false),
        }
    }

    fn root(&self) -> Told<Directory> {
        match &self.path {
            Some(path) => Directory::named(path, "criw.dev/blobstore-dir"),
            None => Err(
                "this container has no blobstore: name a directory, best of a volume, by annotation criw.dev/blobstore-dir"
                    .to_owned(),
            ),
        }
    }

    /// `None` if it is not there.
    fn find(&self, container: &str) -> Told<Option<Directory>> {
        let file = file_name("container", container)?;
        let found = self.root()?.sub(&file);
        found.map_err(|error| failed("open container", container, &error))
    }

    fn open(&self, container: &str) -> Told<Directory> {
        self.find(container)?
            .ok_or_else(|| missing("container", container))
    }

    fn create(&self, container: &str) -> Told<()> {
        let file = file_name("container", container)?;
        let made = self.root()?.make_sub(&file);
        made.map(drop)
            .map_err(|error| failed("create container", container, &error))
    }

    fn delete(&self, container: &str) -> Told<()> {
        let file = file_name("container", container)?;
        let deleted = self.root()?.remove_sub(&file);
        deleted.map_err(|error| failed("delete container", container, &error))
    }

    /// Copies, by a spooled file as if the guest wrote it.
    fn copy(&self, from: &ObjectId, to: &ObjectId) -> Told<()> {
        let told = |error: io::Error| failed("copy object", &from.object, &error);
        let directory = self.open(&from.container)?;
        let name = file_name("object", &from.object)?;
        let source = directory.file(&name).map_err(told)?;
        let mut source = source.ok_or_else(|| missing("object", &from.object))?;
        let target = Target::new(self, &to.container, &to.object)?;
        let mut spool = self.spool()?;
        io::copy(&mut source, spool.file()).map_err(told)?;
        spool.publish(self, &target)
    }

    fn rename(&self, from: &ObjectId, to: &ObjectId) -> Told<()> {
        let told = |error: io::Error| failed("move object", &from.object, &error);
        let directory = self.open(&from.container)?;
        let name = file_name("object", &from.object)?;
        if directory.file(&name).map_err(told)?.is_none() {
            return Err(missing("object", &from.object));
        }
        let target = Target::new(self, &to.container, &to.object)?;
        let to = self.open(&target.container)?;
        directory.rename(&name, &to, &target.file).map_err(told)
    }
}

/// Where an object goes.
#[derive(Debug, Clone)]
struct Target {
    container: String,
    object: String,
    /// The object's file.
    file: String,
}

impl Target {
    /// Checks all that can be checked before there are data.
    fn new(blobs: &Blobs, container: &str, object: &str) -> Told<Self> {
        blobs.open(container)?;
        Ok(Self {
            container: container.to_owned(),
            object: object.to_owned(),
            file: file_name("object", object)?,
        })
    }
}

/// A handle of the guest.
struct Container {
    name: String,
}

/// Names that were there when the guest asked.
struct ObjectNames(std::vec::IntoIter<String>);

impl ObjectNames {
    fn is_at_end(&self) -> bool {
        self.0.len() == 0
    }
}

#[derive(Debug, ComponentType, Lower)]
#[component(record)]
struct ContainerMetadata {
    name: String,
    #[component(name = "created-at")]
    created_at: u64,
}

#[derive(Debug, ComponentType, Lower)]
#[component(record)]
struct ObjectMetadata {
    name: String,
    container: String,
    #[component(name = "created-at")]
    created_at: u64,
    size: u64,
}

#[derive(Debug, ComponentType, Lift)]
#[component(record)]
struct ObjectId {
    container: String,
    object: String,
}

/// Bytes that `incoming-value-consume-sync` hands over in one piece.
const MAX_PIECE: u64 = 16 << 20;

/// Names in one answer.
const MAX_NAMES: u64 = 10_000;

pub(super) fn types(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    resource::<Outgoing>(instance, "outgoing-value")?;
    resource::<Incoming>(instance, "incoming-value")?;
    instance.func_wrap(
        "[static]outgoing-value.new-outgoing-value",
        |mut store: StoreContextMut<'_, State>, (): ()| {
            Ok((store.data_mut().table().push(Outgoing::default())?,))
        },
    )?;
    instance.func_wrap(
        "[method]outgoing-value.outgoing-value-write-body",
        |mut store: StoreContextMut<'_, State>, (value,): (Resource<Outgoing>,)| {
            let services = services(&store);
            let table = store.data_mut().table();
            let stream = match table.get(&value)?.begin(&services.blobs) {
                Ok(stream) => stream,
                Err(text) => {
                    // The interface has no room for the reason.
                    let line = format!("write an object: {text}\n");
                    services.stderr.write(line.as_bytes());
                    return Ok((Err(()),));
                }
            };
            let stream: DynOutputStream = Box::new(stream);
            Ok((Ok::<_, ()>(table.push(stream)?),))
        },
    )?;
    instance.func_wrap(
        "[static]outgoing-value.finish",
        |mut store: StoreContextMut<'_, State>, (value,): (Resource<Outgoing>,)| {
            let services = services(&store);
            let value = store.data_mut().table().delete(value)?;
            Ok((value.finish(&services.blobs),))
        },
    )?;
    instance.func_wrap(
        "[method]incoming-value.size",
        |mut store: StoreContextMut<'_, State>, (value,): (Resource<Incoming>,)| {
            Ok((store.data_mut().table().get(&value)?.length(),))
        },
    )?;
    instance.func_wrap(
        "[static]incoming-value.incoming-value-consume-sync",
        |mut store: StoreContextMut<'_, State>, (value,): (Resource<Incoming>,)| {
            let value = store.data_mut().table().delete(value)?;
            Ok((value.whole(MAX_PIECE),))
        },
    )?;
    instance.func_wrap(
        "[static]incoming-value.incoming-value-consume-async",
        |mut store: StoreContextMut<'_, State>, (value,): (Resource<Incoming>,)| {
            let table = store.data_mut().table();
            let stream: DynInputStream = Box::new(table.delete(value)?);
            Ok((Ok::<_, String>(table.push(stream)?),))
        },
    )
}

fn services(store: &StoreContextMut<'_, State>) -> Arc<Services> {
    Arc::clone(&store.data().services)
}

/// A function of `blobstore`: no resources among its parameters.
fn function<P, R>(
    instance: &mut LinkerInstance<'_, State>,
    name: &str,
    act: impl Fn(&Blobs, P) -> Told<R> + Send + Sync + 'static,
) -> Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentType + Lower + Send + Sync + 'static,
{
    instance.func_wrap(
        name,
        move |store: StoreContextMut<'_, State>, parameters: P| {
            Ok((act(&services(&store).blobs, parameters),))
        },
    )
}

pub(super) fn blobstore(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    for (name, act) in [
        (
            "create-container",
            Blobs::create as fn(&Blobs, &str) -> Told<()>,
        ),
        ("get-container", |blobs, name| blobs.open(name).map(drop)),
    ] {
        instance.func_wrap(
            name,
            move |mut store: StoreContextMut<'_, State>, (name,): (String,)| {
                if let Err(text) = act(&services(&store).blobs, &name) {
                    return Ok((Err(text),));
                }
                let container = store.data_mut().table().push(Container { name })?;
                Ok((Ok::<_, String>(container),))
            },
        )?;
    }
    function(instance, "delete-container", |blobs, (name,): (String,)| {
        blobs.delete(&name)
    })?;
    function(instance, "container-exists", |blobs, (name,): (String,)| {
        Ok(blobs.find(&name)?.is_some())
    })?;
    type Ids = (ObjectId, ObjectId);
    function(instance, "copy-object", |blobs, (from, to): Ids| {
        blobs.copy(&from, &to)
    })?;
    function(instance, "move-object", |blobs, (from, to): Ids| {
        blobs.rename(&from, &to)
    })
}

/// A method of a container that names objects.
fn method<P, R>(
    instance: &mut LinkerInstance<'_, State>,
    name: &str,
    act: impl Fn(&Directory, &str, P) -> Told<R> + Send + Sync + 'static,
) -> Result<()>
where
    P: ComponentType + Lift + Send + Sync + 'static,
    R: ComponentType + Lower + Send + Sync + 'static,
{
    instance.func_wrap(
        name,
        move |mut store: StoreContextMut<'_, State>,
              (container, parameter): (Resource<Container>, P)| {
            let services = services(&store);
            let container = &store.data_mut().table().get(&container)?.name;
            let answer = services
                .blobs
                .open(container)
                .and_then(|directory| act(&directory, container, parameter));
            Ok((answer,))
        },
    )
}

pub(super) fn container(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    resource::<Container>(instance, "container")?;
    resource::<ObjectNames>(instance, "stream-object-names")?;
    of_whole(instance)?;
    of_objects(instance)?;
    type Count = (Resource<ObjectNames>, u64);
    instance.func_wrap(
        "[method]stream-object-names.read-stream-object-names",
        |mut store: StoreContextMut<'_, State>, (names, count): Count| {
            let names = store.data_mut().table().get_mut(&names)?;
            let count = count.min(MAX_NAMES) as usize;
            let some: Vec<_> = names.0.by_ref().take(count).collect();
            Ok((Ok::<_, String>((some, names.is_at_end())),))
        },
    )?;
    instance.func_wrap(
        "[method]stream-object-names.skip-stream-object-names",
        |mut store: StoreContextMut<'_, State>, (names, count): Count| {
            let names = store.data_mut().table().get_mut(&names)?;
            let count = count.min(names.0.len() as u64);
            let skipped = names.0.by_ref().take(count as usize).count();
            Ok((Ok::<_, String>((skipped as u64, names.is_at_end())),))
        },
    )
}

/// Methods about the container itself.
fn of_whole(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    type This = (Resource<Container>,);
    instance.func_wrap(
        "[method]container.name",
        |mut store: StoreContextMut<'_, State>, (container,): This| {
            let name = store.data_mut().table().get(&container)?.name.clone();
            Ok((Ok::<_, String>(name),))
        },
    )?;
    instance.func_wrap(
        "[method]container.info",
        |mut store: StoreContextMut<'_, State>, (container,): This| {
            let services = services(&store);
            let name = store.data_mut().table().get(&container)?.name.clone();
            let info = services.blobs.open(&name).and_then(|directory| {
                let changed = directory.changed();
                let created_at =
                    changed.map_err(|error| failed("ask about container", &name, &error))?;
                Ok(ContainerMetadata { name, created_at })
            });
            Ok((info,))
        },
    )?;
    instance.func_wrap(
        "[method]container.list-objects",
        |mut store: StoreContextMut<'_, State>, (container,): This| {
            let services = services(&store);
            let table = store.data_mut().table();
            let name = &table.get(&container)?.name;
            let listed = services.blobs.open(name).and_then(|directory| {
                let names = directory.names();
                names.map_err(|error| failed("list container", name, &error))
            });
            match listed {
                Ok(names) => Ok((Ok(table.push(ObjectNames(names.into_iter()))?),)),
                Err(text) => Ok((Err(text),)),
            }
        },
    )?;
    instance.func_wrap(
        "[method]container.clear",
        |mut store: StoreContextMut<'_, State>, (container,): This| {
            let services = services(&store);
            let name = &store.data_mut().table().get(&container)?.name;
            let cleared = services.blobs.open(name).and_then(|directory| {
                let removed = directory.each(|file| match names::decode(file) {
                    Some(_) => directory.remove(file),
                    None => Ok(()),
                });
                removed.map_err(|error| failed("clear container", name, &error))
            });
            Ok((cleared,))
        },
    )
}

/// Methods about objects in it.
fn of_objects(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    type Range = (Resource<Container>, String, u64, u64);
    instance.func_wrap(
        "[method]container.get-data",
        |mut store: StoreContextMut<'_, State>, (container, object, start, end): Range| {
            let services = services(&store);
            let table = store.data_mut().table();
            let name = &table.get(&container)?.name;
            let opened = services
                .blobs
                .open(name)
                .and_then(|directory| Incoming::open(&directory, &object, start, end));
            match opened {
                Ok(value) => Ok((Ok(table.push(value)?),)),
                Err(text) => Ok((Err(text),)),
            }
        },
    )?;
    type Data = (Resource<Container>, String, Resource<Outgoing>);
    instance.func_wrap(
        "[method]container.write-data",
        |mut store: StoreContextMut<'_, State>, (container, object, value): Data| {
            let services = services(&store);
            let table = store.data_mut().table();
            let target = Target::new(&services.blobs, &table.get(&container)?.name, &object);
            let value = table.get(&value)?;
            Ok((target.and_then(|target| value.aim(target)),))
        },
    )?;
    method(
        instance,
        "[method]container.delete-object",
        |directory, _, object: String| delete(directory, &object),
    )?;
    method(
        instance,
        "[method]container.delete-objects",
        |directory, _, objects: Vec<String>| {
            objects
                .iter()
                .try_for_each(|object| delete(directory, object))
        },
    )?;
    method(
        instance,
        "[method]container.has-object",
        |directory, _, object: String| {
            let file = directory.file(&file_name("object", &object)?);
            let file = file.map_err(|error| failed("open object", &object, &error))?;
            Ok(file.is_some())
        },
    )?;
    method(
        instance,
        "[method]container.object-info",
        |directory, container, object: String| {
            let told = |error: io::Error| failed("ask about object", &object, &error);
            let file = directory
                .file(&file_name("object", &object)?)
                .map_err(told)?;
            let file = file.ok_or_else(|| missing("object", &object))?;
            let metadata = file.metadata().map_err(told)?;
            Ok(ObjectMetadata {
                container: container.to_owned(),
                created_at: metadata.mtime().max(0).cast_unsigned(),
                size: metadata.len(),
                name: object.clone(),
            })
        },
    )
}

fn delete(directory: &Directory, object: &str) -> Told<()> {
    let deleted = directory.remove(&file_name("object", object)?);
    deleted.map_err(|error| failed("delete object", object, &error))
}
