//! What the node's security modules, AppArmor and SELinux, shall do to pods, containers and
//! their files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Container, Inner, Pod};
use crate::error::Result;
use crate::host::{mounts, oci, selinux};
use crate::model::{Mount, SelinuxLabels};
use crate::record::PodRecord;

impl Inner {
    /// Makes a pod findable, with SELinux labels that no other pod has in its record.
    pub(super) fn insert_labelled(&self, record: &mut PodRecord) -> Result<Arc<Pod>> {
        let policy = &self.host.selinux;
        // Until others find the pod, and with it its level.
        let _choosing = policy.choosing();
        let taken = |level: &str| self.has_level(level);
        let spec = &record.spec;
        record.labels = policy.pod(spec.selinux.as_ref(), spec.privileged, taken)?;
        let pod = Pod::new(record.clone());
        self.insert_pod(&pod)?;
        Ok(pod)
    }

    fn has_level(&self, level: &str) -> bool {
        self.index().pods.values().any(|pod| {
            let record = pod.record();
            let labels = record.labels.as_ref();
            labels.is_some_and(|labels| selinux::level_of(&labels.files) == level)
        })
    }

    /// AppArmor profile and SELinux labels of a container; the kernel has them.
    pub(super) fn confinement(&self, container: &Container, pod: &Pod) -> Result<oci::Confinement> {
        let wanted = &container.spec.process.apparmor;
        Ok(oci::Confinement {
            apparmor: self.host.apparmor.ready(wanted)?,
            selinux: self.labels_of(container, pod)?,
        })
    }

    fn labels_of(&self, container: &Container, pod: &Pod) -> Result<Option<SelinuxLabels>> {
        let pod_labels = pod.record().labels.clone();
        self.host.selinux.container(
            container.spec.process.selinux.as_ref(),
            container.spec.privileged,
            pod.spec.selinux.as_ref(),
            pod_labels.as_ref(),
        )
    }

    /// Labels what a container's root is made of: its layers and the directories of what it
    /// writes.
    pub(super) fn label_root(
        &self,
        label: &str,
        lowers: &[PathBuf],
        own: [&Path; 2],
    ) -> Result<()> {
        for directory in own {
            selinux::label_file(directory, label)?;
        }
        // Programs are mapped from the file of the layer, whatever the overlay shows.
        selinux::label_layers(lowers, &self.host.selinux.layers())
    }

    /// Labels image volumes as layers, and volumes for which it is asked as the container's.
    pub(super) fn label_volumes(&self, label: &str, all: &[Mount]) -> Result<()> {
        for mount in all {
            if let Some(volume) = &mount.image {
                selinux::label_layers(&volume.lowers, &self.host.selinux.layers())?;
            } else if mount.selinux_relabel {
                selinux::relabel(&mounts::bind_source(mount)?, label)?;
            }
        }
        Ok(())
    }

    /// The label of what the shim of a container, which runs, may write to.
    pub(super) fn shim_label(&self, container: &Container) -> Result<Option<String>> {
        let pod = self.pod(&container.sandbox)?;
        let labels = self.labels_of(container, &pod)?;
        Ok(labels.map(|labels| labels.files))
    }

    /// Opens a container's log for appending, so that its shim can write to it.
    pub(super) fn open_log(
        &self,
        container: &Container,
        path: &Path,
        label: Option<&str>,
    ) -> Result<File> {
        let log = super::stop::open_log(path)?;
        self.label_for_shim(container, path, None, label)?;
        Ok(log)
    }

    /// Labels what the shim of a Wasm container has open, a file that it writes and its compiled
    /// code, which all containers share: the kernel looks at them again when the shim has
    /// taken the container's label. The shim of a Linux container keeps the daemon's.
    pub(super) fn label_for_shim(
        &self,
        container: &Container,
        written: &Path,
        code: Option<&File>,
        label: Option<&str>,
    ) -> Result<()> {
        let Some(label) = label.filter(|_| container.is_wasm()) else {
            return Ok(());
        };
        selinux::label_file(written, label)?;
        match code {
            Some(code) => selinux::label_shared(code, &self.host.selinux.layers()),
            None => Ok(()),
        }
    }
}
