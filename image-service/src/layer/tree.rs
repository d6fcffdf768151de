//! A stack of layer directories seen as overlayfs would show it, without mounting:
//! whiteouts hide, opaque directories end the search, symbolic links stay inside.
//!
//! Every step opens one name below an open directory and never follows a link by
//! itself, so no name and no link of an image can lead out of the layers.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Fault;

pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
const MAX_LINKS: usize = 40;
const MAX_DEPTH: usize = 1024;

/// The layer directories, top first.
pub(crate) struct Tree {
    root: Directory,
}

/// One directory of the merged view: the directories of the layers that it is made
/// of, top first.
#[derive(Clone)]
pub(crate) struct Directory {
    pub(crate) parts: Vec<(usize, Rc<OwnedFd>)>,
    /// In the merged view, without symbolic links.
    pub(crate) path: PathBuf,
}

/// What a name stands for in the merged view.
pub(crate) enum Found {
    Directory(Directory),
    /// Anything else, in the layer that shows it.
    Other {
        layer: usize,
        parent: Rc<OwnedFd>,
        stat: Stat,
    },
    Nothing,
}

/// The end of a walk.
pub(crate) struct Place {
    /// All directories from the root to the parent.
    pub(crate) parents: Vec<Directory>,
    pub(crate) name: OsString,
}

impl Tree {
    /// `layers` top first.
    pub(crate) fn open(layers: &[&Path]) -> Result<Tree, Fault> {
        let mut parts = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let fd = rustix::fs::open(
                *layer,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
            )
            .map_err(|error| Fault::io("open", layer, error))?;
            parts.push((index, Rc::new(fd)));
        }
        Ok(Tree {
            root: Directory {
                parts,
                path: PathBuf::new(),
            },
        })
    }

    pub(crate) fn root(&self) -> &Directory {
        &self.root
    }

    /// Finds a path and follows links everywhere; `None` if there is no such thing.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<(PathBuf, Found)>, Fault> {
        let mut walk = Walk::new(&self.root, path);
        while let Some(name) = walk.next_name() {
            match walk.here().look(&name)? {
                Found::Directory(directory) => walk.enter(directory)?,
                Found::Nothing => return Ok(None),
                Found::Other { parent, stat, .. } if is_link(&stat) => {
                    walk.follow(&parent, &name)?
                }
                other => {
                    let full = walk.here().path.join(&name);
                    return Ok(walk.done().then_some((full, other)));
                }
            }
        }
        let here = walk.here().clone();
        Ok(Some((here.path.clone(), Found::Directory(here))))
    }

    /// Whether a path without links is the file of one layer, hidden by none above.
    pub(crate) fn shows(&self, path: &Path, layer: usize) -> Result<bool, Fault> {
        let mut here = self.root.clone();
        for name in path {
            match here.look(name)? {
                Found::Directory(directory) => here = directory,
                Found::Nothing => return Ok(false),
                Found::Other {
                    layer: found, stat, ..
                } => {
                    return Ok(found == layer
                        && here.path.join(name) == path
                        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
                }
            }
        }
        Ok(false)
    }

    /// Finds the parent of `path`, following links on the way but not at the end.
    /// With `make`, missing parents are made by it; else a missing one is an error.
    pub(crate) fn place(
        &self,
        path: &Path,
        mut make: impl FnMut(&mut Vec<Directory>, &OsStr) -> Result<Directory, Fault>,
    ) -> Result<Place, Fault> {
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name.to_owned()),
            _ => return Err(Fault::Content(format!("{path:?} names no file"))),
        };
        let mut walk = Walk::new(&self.root, parent);
        while let Some(step) = walk.next_name() {
            match walk.here().look(&step)? {
                Found::Directory(directory) => walk.enter(directory)?,
                Found::Nothing => {
                    let made = make(&mut walk.stack, &step)?;
                    walk.enter(made)?;
                }
                Found::Other { parent, stat, .. } if is_link(&stat) => {
                    walk.follow(&parent, &step)?
                }
                Found::Other { .. } => {
                    return Err(Fault::Content(format!(
                        "{path:?} lies below {:?}, which is no directory",
                        walk.here().path.join(&step)
                    )));
                }
            }
        }
        Ok(Place {
            parents: walk.stack,
            name,
        })
    }
}

struct Walk {
    stack: Vec<Directory>,
    todo: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn new(root: &Directory, path: &Path) -> Walk {
        let mut walk = Walk {
            stack: vec![root.clone()],
            todo: VecDeque::new(),
            links: 0,
        };
        walk.push_front(path.as_os_str().as_bytes());
        walk
    }

    fn push_front(&mut self, path: &[u8]) {
        for name in path.split(|byte| *byte == b'/').rev() {
            self.todo.push_front(OsString::from_vec(name.to_vec()));
        }
    }

    /// The next real name; `.` and `..` are done on the way, `..` ends at the root.
    fn next_name(&mut self) -> Option<OsString> {
        while let Some(name) = self.todo.pop_front() {
            match name.as_bytes() {
                b"" | b"." => {}
                b".." => {
                    if self.stack.len() > 1 {
                        self.stack.pop();
                    }
                }
                _ => return Some(name),
            }
        }
        None
    }

    fn done(&mut self) -> bool {
        self.todo.iter().all(|name| name.is_empty() || name == ".")
    }

    fn here(&self) -> &Directory {
        self.stack.last().expect("the root is never popped")
    }

    fn enter(&mut self, directory: Directory) -> Result<(), Fault> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Fault::Limit(format!(
                "directories are nested deeper than {MAX_DEPTH}"
            )));
        }
        self.stack.push(directory);
        Ok(())
    }

    fn follow(&mut self, parent: &OwnedFd, name: &OsStr) -> Result<(), Fault> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Fault::Content(format!(
                "too many symbolic links at {:?}",
                self.here().path.join(name)
            )));
        }
        let target = rustix::fs::readlinkat(parent, name, Vec::new())
            .map_err(|error| Fault::io("read link", &self.here().path.join(name), error))?;
        if target.as_bytes().starts_with(b"/") {
            self.stack.truncate(1);
        }
        self.push_front(target.as_bytes());
        Ok(())
    }
}

impl Directory {
    /// The topmost directory it is made of.
    pub(crate) fn top(&self) -> BorrowedFd<'_> {
        self.parts[0].1.as_fd()
    }

    /// Its part in layer 0, the one that is written.
    pub(crate) fn written(&self) -> Option<&Rc<OwnedFd>> {
        self.parts
            .first()
            .filter(|(layer, _)| *layer == 0)
            .map(|(_, fd)| fd)
    }

    /// What a name stands for, by overlayfs' rules.
    pub(crate) fn look(&self, name: &OsStr) -> Result<Found, Fault> {
        let mut parts = Vec::new();
        for (layer, fd) in &self.parts {
            let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(Fault::io("stat", &self.path.join(name), error)),
            };
            if is_whiteout(&stat) {
                break;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if parts.is_empty() {
                    return Ok(Found::Other {
                        layer: *layer,
                        parent: fd.clone(),
                        stat,
                    });
                }
                break;
            }
            let below = open_directory(fd, name)
                .map_err(|error| Fault::io("open", &self.path.join(name), error))?;
            let opaque = is_opaque(&below);
            parts.push((*layer, Rc::new(below)));
            if opaque {
                break;
            }
        }
        Ok(if parts.is_empty() {
            Found::Nothing
        } else {
            Found::Directory(Directory {
                parts,
                path: self.path.join(name),
            })
        })
    }
}

pub(crate) fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 8];
    matches!(rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y')
}
