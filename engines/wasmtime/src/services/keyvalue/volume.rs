//! Buckets on a volume: a directory each, a file for each key. Containers of any pod that
//! mount the volume see the same; locks work where the file system has them across its
//! clients (NFS does).

use std::io;

use super::{Change, Decide, MAX_VALUE, Store, Told};
use crate::services::files::Directory;

#[derive(Debug)]
pub(super) struct Volume {
    path: String,
}

impl Volume {
    pub(super) fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn root(&self) -> Told<Directory> {
        Directory::named(&self.path, "criw.dev/keyvalue-dir")
    }

    /// For reading; `None` while nothing was put into it.
    fn bucket(&self, bucket: &str) -> Told<Option<Directory>> {
        let root = self.root()?;
        root.sub(bucket).map_err(|error| self.told(bucket, &error))
    }

    fn told(&self, bucket: &str, error: &io::Error) -> String {
        format!("{}/{bucket}: {error}", self.path)
    }
}

impl Store for Volume {
    fn get(&self, bucket: &str, key: &str) -> Told<Option<Vec<u8>>> {
        let Some(directory) = self.bucket(bucket)? else {
            return Ok(None);
        };
        let read = directory.read(key, MAX_VALUE);
        read.map_err(|error| self.told(bucket, &error))
    }

    fn put(&self, bucket: &str, key: &str, value: Option<&[u8]>) -> Told<()> {
        let put = |root: Directory| -> io::Result<()> {
            match value {
                Some(value) => {
                    let directory = root.make_sub(bucket)?;
                    directory.replace(&directory.lock()?, key, value)
                }
                None => match root.sub(bucket)? {
                    Some(directory) => {
                        let _locked = directory.lock()?;
                        directory.remove(key)
                    }
                    None => Ok(()),
                },
            }
        };
        put(self.root()?).map_err(|error| self.told(bucket, &error))
    }

    fn change(&self, bucket: &str, key: &str, decide: Decide<'_>) -> Told<()> {
        let told = |error: io::Error| self.told(bucket, &error);
        let directory = self.root()?.make_sub(bucket).map_err(told)?;
        let locked = directory.lock().map_err(told)?;
        let current = directory.read(key, MAX_VALUE).map_err(told)?;
        match decide(current.as_deref())? {
            Change::Keep => Ok(()),
            Change::Set(value) => directory.replace(&locked, key, &value).map_err(told),
        }
    }

    fn keys(&self, bucket: &str) -> Told<Vec<String>> {
        match self.bucket(bucket)? {
            Some(directory) => directory.names().map_err(|error| self.told(bucket, &error)),
            None => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn number(value: Option<&[u8]>) -> u64 {
        value.map_or(0, |text| {
            std::str::from_utf8(text).unwrap().parse().unwrap()
        })
    }

    #[test]
    fn writers_do_not_lose_each_others_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // As in different containers: nothing is shared but the files.
                    let volume = Volume::new(path);
                    for _ in 0..50 {
                        volume
                            .change("b", "count", &mut |value| {
                                let next = number(value) + 1;
                                Ok(Change::Set(next.to_string().into_bytes()))
                            })
                            .unwrap();
                    }
                });
            }
        });
        let volume = Volume::new(path);
        assert_eq!(number(volume.get("b", "count").unwrap().as_deref()), 200);
        assert_eq!(volume.keys("b").unwrap(), ["count"]);
    }

    #[test]
    fn what_others_left_there_harms_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o2770)).unwrap();
        let volume = Volume::new(root.to_str().unwrap());
        volume.put("b", "key", Some(b"one")).unwrap();
        let mode = |path: &str| root.join(path).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("b"), mode("b/key")), (0o2770, 0o660));
        // Half a file of one that was killed, a link out, a directory.
        std::fs::write(root.join("b/.new"), "half").unwrap();
        symlink("/etc/hostname", root.join("b/link")).unwrap();
        std::fs::create_dir(root.join("b/directory")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        volume.put("b", "key", Some(b"two")).unwrap();
        assert_eq!(volume.get("b", "key").unwrap().unwrap(), b"two");
        assert!(!root.join("b/.new").exists());
        assert!(volume.get("b", "link").is_err());
        assert!(volume.get("b", "directory").is_err());
        assert!(volume.get("etc", "hostname").is_err());
        // A link is replaced, not followed.
        volume.put("b", "link", Some(b"mine")).unwrap();
        assert_eq!(volume.get("b", "link").unwrap().unwrap(), b"mine");
        volume.put("b", "key", None).unwrap();
        volume.put("none", "key", None).unwrap();
        assert_eq!(volume.get("b", "key").unwrap(), None);
        let missing = Volume::new("/nowhere").get("b", "key").unwrap_err();
        assert!(missing.contains("criw.dev/keyvalue-dir"), "{missing}");
    }
}
