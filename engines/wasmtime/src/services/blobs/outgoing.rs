//! An object on its way in.
//!
//! ```text
//!   new-outgoing-value -> write-body -> (bytes) -+-> finish: renamed into its place
//!            \----------- write-data: the place --/
//! ```
//! The order of the two middle steps is the guest's. Bytes go to a file in `.new` of the
//! blobstore's directory that this process keeps locked: such a file that nobody locks was left by a
//! container that is no more, and whoever spools first removes it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::{Blobs, Target, Told};
use crate::services::files::{Directory, try_lock};

/// Where objects are spooled. No container has this name, see [`crate::services::names`].
const SPOOL: &str = ".new";

/// Bytes that a guest may hand over at once.
const MAX_WRITE: usize = 1 << 20;

/// How often a file is made anew because somebody took it for a left one.
const ATTEMPTS: usize = 10;

/// See the module. Shared with the stream that the guest writes to.
#[derive(Debug, Default)]
pub(super) struct Outgoing(Arc<Mutex<Value>>);

#[derive(Debug, Default)]
struct Value {
    spool: Option<Spool>,
    target: Option<Target>,
    /// Why the bytes are not whole.
    failed: Option<String>,
    finished: bool,
}

fn lock(value: &Mutex<Value>) -> MutexGuard<'_, Value> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outgoing {
    /// The stream for the bytes, once.
    pub(super) fn begin(&self, blobs: &Blobs) -> Told<Body> {
        let mut value = lock(&self.0);
        if value.spool.is_some() {
            return Err("its body is being written already".to_owned());
        }
        value.spool = Some(blobs.spool()?);
        Ok(Body(Arc::clone(&self.0)))
    }

    /// Says where it goes.
    pub(super) fn aim(&self, target: Target) -> Told<()> {
        let mut value = lock(&self.0);
        if let Some(known) = &value.target {
            return Err(format!(
                "the value goes to object {:?} already; copy-object makes a second one",
                known.object
            ));
        }
        value.target = Some(target);
        Ok(())
    }

    /// Puts the object in its place.
    pub(super) fn finish(self, blobs: &Blobs) -> Told<()> {
        let mut value = lock(&self.0);
        value.finished = true;
        let target = value.target.take().ok_or(
            "finish an object: it has no place, because container.write-data was not called",
        )?;
        if let Some(text) = value.failed.take() {
            return Err(format!("write object {:?}: {text}", target.object));
        }
        // Nothing was written: an empty object.
        let spool = match value.spool.take() {
            Some(spool) => spool,
            None => blobs.spool()?,
        };
        spool.publish(blobs, &target)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut value = lock(&self.0);
        value.finished = true;
        value.spool = None;
    }
}

/// The stream that the guest writes to.
#[derive(Debug)]
pub(super) struct Body(Arc<Mutex<Value>>);

#[async_trait]
impl Pollable for Body {
    async fn ready(&mut self) {}
}

impl OutputStream for Body {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut value = lock(&self.0);
        if value.finished || value.failed.is_some() {
            return Err(StreamError::Closed);
        }
        let Some(spool) = &mut value.spool else {
            return Err(StreamError::Closed);
        };
        if let Err(error) = spool.file.write_all(&bytes) {
            value.failed = Some(error.to_string());
            return Err(StreamError::LastOperationFailed(error.into()));
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let value = lock(&self.0);
        if value.finished || value.failed.is_some() {
            return Err(StreamError::Closed);
        }
        Ok(MAX_WRITE)
    }
}

/// A file without a place. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    name: String,
    directory: Directory,
    published: bool,
}

impl Blobs {
    /// A new one.
    pub(super) fn spool(&self) -> Told<Spool> {
        let made = self.root()?.make_sub(SPOOL).and_then(|directory| {
            if !self.swept.swap(true, Ordering::Relaxed) {
                sweep(&directory)?;
            }
            Spool::new(directory)
        });
        made.map_err(|error| format!("make a file in the blobstore: {error}"))
    }
}

/// Removes what nobody writes any more.
fn sweep(directory: &Directory) -> io::Result<()> {
    directory.each(|name| {
        // Of another user, it is for another container to remove.
        if let Ok(Some(file)) = directory.file(name)
            && try_lock(&file)?
        {
            let _ = directory.remove(name);
        }
        Ok(())
    })
}

impl Spool {
    fn new(directory: Directory) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let name = format!("{:016x}", u64::from_ne_bytes(random));
            let file = directory.create(&name)?;
            if try_lock(&file)? && file.metadata()?.nlink() > 0 {
                return Ok(Self {
                    file,
                    name,
                    directory,
                    published: false,
                });
            }
        }
        Err(io::Error::other("others remove it"))
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it in the place of any other object there.
    pub(super) fn publish(mut self, blobs: &Blobs, target: &Target) -> Told<()> {
        let container = blobs.open(&target.container)?;
        let published = self
            .file
            .sync_data()
            .and_then(|()| self.directory.rename(&self.name, &container, &target.file));
        self.published = published.is_ok();
        published.map_err(|error| super::failed("write object", &target.object, &error))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.published {
            let _ = self.directory.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_container_left_is_removed_and_what_lives_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        let new = |blobs: &Blobs| blobs.spool().unwrap();
        let (first, second) = (Blobs::new(Some(path)), Blobs::new(Some(path)));
        let living = new(&first);
        std::fs::write(root.path().join(".new/left"), "half").unwrap();
        let other = new(&second);
        let names = || -> Vec<_> {
            let entries = std::fs::read_dir(root.path().join(".new")).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names().len(), 2, "{:?}", names());
        first.create("c").unwrap();
        let target = Target::new(&second, "c", "a/b").unwrap();
        living.publish(&first, &target).unwrap();
        drop(other);
        assert!(names().is_empty(), "{:?}", names());
        assert!(root.path().join("c/a%2Fb").is_file());
    }

    #[test]
    fn an_object_appears_when_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(root.path().to_str());
        blobs.create("c").unwrap();
        let file = root.path().join("c/o");
        let target = || Target::new(&blobs, "c", "o").unwrap();
        let value = Outgoing::default();
        let mut body = value.begin(&blobs).unwrap();
        assert!(value.begin(&blobs).is_err());
        body.write("one".into()).unwrap();
        value.aim(target()).unwrap();
        assert!(value.aim(target()).unwrap_err().contains("\"o\""));
        body.write(" two".into()).unwrap();
        assert!(!file.exists());
        value.finish(&blobs).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one two");
        assert!(matches!(body.check_write(), Err(StreamError::Closed)));
        assert!(matches!(body.write("x".into()), Err(StreamError::Closed)));
        // One that is dropped, and one without a place, leave what was there.
        let value = Outgoing::default();
        value.begin(&blobs).unwrap().write("bad".into()).unwrap();
        value.aim(target()).unwrap();
        drop(value);
        assert!(Outgoing::default().finish(&blobs).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one two");
        assert_eq!(
            std::fs::read_dir(root.path().join(".new")).unwrap().count(),
            0
        );
        // Without bytes.
        let value = Outgoing::default();
        value.aim(target()).unwrap();
        value.finish(&blobs).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"");
        assert!(Target::new(&blobs, "none", "o").is_err());
        assert!(blobs.root().is_ok() && Blobs::new(None).root().is_err());
    }
}
