//! Mounts and devices of a container, and what is refused of them.

use std::path::PathBuf;

use criw_proto::v1 as cri;
use criw_sandbox::model::{Device, IdMap, ImageVolume, Mount, Propagation};

use super::pod::{id_map, id_mapping};
use crate::error::{Invalid, invalid};

/// Converts in the order asked; the texts begin with the sentinels that the kubelet knows.
pub fn mounts(asked: &[cri::Mount], recursive_read_only: bool) -> Result<Vec<Mount>, Invalid> {
    asked
        .iter()
        .map(|asked| mount(asked, recursive_read_only))
        .collect()
}

fn mount(asked: &cri::Mount, recursive_read_only: bool) -> Result<Mount, Invalid> {
    let place = &asked.container_path;
    if let Some(image) = &asked.image {
        return image_mount(asked, image);
    }
    if !asked.image_sub_path.is_empty() {
        return invalid(format!(
            "mount at {place:?} has an image sub path, but no image"
        ));
    }
    if !place.starts_with('/') {
        return invalid(format!("mount point {place:?} is not an absolute path"));
    }
    if !asked.host_path.starts_with('/') {
        return invalid(format!(
            "mount at {place:?}: host path {:?} is not an absolute path",
            asked.host_path
        ));
    }
    if place.contains('\0') || asked.host_path.contains('\0') {
        return invalid(format!("mount at {place:?} contains a NUL byte"));
    }
    let id_map = if asked.uid_mappings.is_empty() && asked.gid_mappings.is_empty() {
        None
    } else {
        let what = format!("mount at {place:?}");
        Some(id_map(&what, &asked.uid_mappings, &asked.gid_mappings)?)
    };
    let propagation = match cri::MountPropagation::try_from(asked.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(cri::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(cri::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            return invalid(format!(
                "mount at {place:?}: propagation {} is no value of the enum",
                asked.propagation
            ));
        }
    };
    if asked.recursive_read_only {
        if !asked.readonly {
            return invalid(format!(
                "mount at {place:?}: recursive_read_only needs readonly"
            ));
        }
        if propagation != Propagation::Private {
            return invalid(format!(
                "mount at {place:?}: recursive_read_only needs private propagation"
            ));
        }
        if !recursive_read_only {
            return invalid(format!(
                "RROUnsupported: mount at {place:?}: recursive read-only mounts need Linux 5.12"
            ));
        }
    }
    Ok(Mount {
        container_path: place.clone(),
        host_path: PathBuf::from(&asked.host_path),
        readonly: asked.readonly,
        recursive_read_only: asked.recursive_read_only,
        propagation,
        selinux_relabel: asked.selinux_relabel,
        id_map,
        image: None,
    })
}

/// A mount of an image; its layers are found later. `readonly` need not be asked for, and
/// id mappings are those of the pod in any case.
fn image_mount(asked: &cri::Mount, image: &cri::ImageSpec) -> Result<Mount, Invalid> {
    let place = &asked.container_path;
    let refuse = |why: &str| {
        invalid(format!(
            "ImageVolumeMountFailed: image {:?} at {place:?}: {why}",
            image.image
        ))
    };
    if !place.starts_with('/') || place.contains('\0') {
        return refuse("the mount point is not an absolute path");
    }
    if image.image.is_empty() {
        return refuse("the image has no name");
    }
    if !asked.host_path.is_empty() {
        return refuse("it has a host path too: a mount has one source");
    }
    if asked.propagation != cri::MountPropagation::PropagationPrivate as i32 {
        return refuse("only private propagation is possible");
    }
    let inside = std::path::Path::new(&asked.image_sub_path)
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    if !inside || asked.image_sub_path.contains('\0') {
        return refuse("the sub path does not stay in the image");
    }
    let mapped = !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty();
    Ok(Mount {
        container_path: place.clone(),
        readonly: asked.readonly,
        recursive_read_only: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        id_map: if mapped {
            Some(id_map(
                &format!("mount at {place:?}"),
                &asked.uid_mappings,
                &asked.gid_mappings,
            )?)
        } else {
            None
        },
        image: Some(ImageVolume {
            image: image.image.clone(),
            user_specified: image.user_specified_image.clone(),
            sub_path: asked.image_sub_path.clone(),
            ..ImageVolume::default()
        }),
        ..Mount::default()
    })
}

/// What of these mounts is not possible with the user namespace of their pod.
pub fn check_users(mounts: &[Mount], pod: Option<IdMap>) -> Result<(), Invalid> {
    for mount in mounts {
        let place = &mount.container_path;
        if mount.id_map.is_some() && mount.id_map != pod {
            return invalid(format!(
                "mount at {place:?} has id mappings that are not those of the pod's user namespace"
            ));
        }
        if pod.is_some() && mount.propagation == Propagation::Bidirectional {
            return invalid(format!(
                "mount at {place:?}: bidirectional propagation is not possible in a pod with a user namespace (hostUsers: false): what is mounted there never reaches the node"
            ));
        }
    }
    Ok(())
}

/// Exactly what was asked, for status.
pub fn mount_status(mount: &Mount) -> cri::Mount {
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        } as i32,
        uid_mappings: mount
            .id_map
            .map_or_else(Vec::new, |ids| id_mapping(ids.uids)),
        gid_mappings: mount
            .id_map
            .map_or_else(Vec::new, |ids| id_mapping(ids.gids)),
        image: mount.image.as_ref().map(|volume| cri::ImageSpec {
            image: volume.image.clone(),
            user_specified_image: volume.user_specified.clone(),
            ..cri::ImageSpec::default()
        }),
        image_sub_path: mount
            .image
            .as_ref()
            .map(|volume| volume.sub_path.clone())
            .unwrap_or_default(),
    }
}

/// Devices of the host.
pub fn devices(asked: &[cri::Device]) -> Result<Vec<Device>, Invalid> {
    asked
        .iter()
        .map(|device| {
            let permissions = if device.permissions.is_empty() {
                "rwm"
            } else {
                device.permissions.as_str()
            };
            if !permissions.chars().all(|c| "rwm".contains(c)) {
                return invalid(format!(
                    "device {:?}: permissions {permissions:?} are not of \"rwm\"",
                    device.host_path
                ));
            }
            if !device.host_path.starts_with('/') || !device.container_path.starts_with('/') {
                return invalid(format!(
                    "device {:?} at {:?}: both paths must be absolute",
                    device.host_path, device.container_path
                ));
            }
            Ok(Device {
                container_path: device.container_path.clone(),
                host_path: PathBuf::from(&device.host_path),
                permissions: permissions.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            host_path: "/srv/data".into(),
            ..cri::Mount::default()
        }
    }

    #[test]
    fn good_mounts_come_back_in_status_as_they_were() {
        let good = [
            plain(),
            cri::Mount {
                readonly: true,
                recursive_read_only: true,
                ..plain()
            },
            cri::Mount {
                propagation: 1,
                selinux_relabel: true,
                ..plain()
            },
            cri::Mount {
                propagation: 2,
                readonly: true,
                ..plain()
            },
            cri::Mount {
                uid_mappings: vec![mapping(0)],
                gid_mappings: vec![mapping(0)],
                ..plain()
            },
            of_image(),
        ];
        let back: Vec<_> = mounts(&good, true)
            .unwrap()
            .iter()
            .map(mount_status)
            .collect();
        assert_eq!(back, good);
    }

    fn of_image() -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "sha256:1".into(),
                user_specified_image: "r/data:1".into(),
                ..Default::default()
            }),
            image_sub_path: "share".into(),
            ..cri::Mount::default()
        }
    }

    fn mapping(container_id: u32) -> cri::IdMapping {
        cri::IdMapping {
            host_id: 100_000,
            container_id,
            length: 65536,
        }
    }

    #[test]
    fn a_volume_has_the_ids_of_its_pod_or_none() {
        let lent = cri::Mount {
            uid_mappings: vec![mapping(0)],
            gid_mappings: vec![mapping(0)],
            ..plain()
        };
        let shared = cri::Mount {
            propagation: 2,
            ..plain()
        };
        let both = mounts(&[plain(), lent], true).unwrap();
        let ids = both[1].id_map;
        assert!(ids.is_some());
        let mut other = ids;
        other.as_mut().unwrap().uids.host = 1;
        let shared = mounts(&[shared], true).unwrap();
        for (mounts, pod, good) in [
            (&both, ids, true),
            (&both, other, false),
            (&both, None, false),
            (&shared, None, true),
            (&shared, ids, false),
        ] {
            assert_eq!(check_users(mounts, pod).is_ok(), good, "{mounts:?} {pod:?}");
        }
    }

    #[test]
    fn bad_mounts_say_why() {
        for (mount, start) in [
            (
                cri::Mount {
                    image: Some(cri::ImageSpec::default()),
                    host_path: String::new(),
                    ..plain()
                },
                "ImageVolumeMountFailed",
            ),
            (
                cri::Mount {
                    host_path: "/srv".into(),
                    ..of_image()
                },
                "ImageVolumeMountFailed",
            ),
            (
                cri::Mount {
                    propagation: 1,
                    ..of_image()
                },
                "ImageVolumeMountFailed",
            ),
            (
                cri::Mount {
                    image_sub_path: "a/../../b".into(),
                    ..of_image()
                },
                "ImageVolumeMountFailed",
            ),
            (
                cri::Mount {
                    image_sub_path: "a".into(),
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    host_path: String::new(),
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    container_path: "data".into(),
                    ..plain()
                },
                "mount point",
            ),
            (
                cri::Mount {
                    uid_mappings: vec![mapping(0)],
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    uid_mappings: vec![mapping(1)],
                    gid_mappings: vec![mapping(1)],
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    propagation: 7,
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    recursive_read_only: true,
                    ..plain()
                },
                "mount at",
            ),
            (
                cri::Mount {
                    recursive_read_only: true,
                    readonly: true,
                    propagation: 1,
                    ..plain()
                },
                "mount at",
            ),
        ] {
            let error = mounts(std::slice::from_ref(&mount), true).unwrap_err();
            assert!(error.0.starts_with(start), "{mount:?}: {error}");
        }
        let recursive = cri::Mount {
            recursive_read_only: true,
            readonly: true,
            ..plain()
        };
        let error = mounts(&[recursive], false).unwrap_err();
        assert!(error.0.starts_with("RROUnsupported"), "{error}");
    }

    #[test]
    fn devices_default_to_rwm() {
        let device = |host: &str, permissions: &str| cri::Device {
            container_path: "/dev/x".into(),
            host_path: host.into(),
            permissions: permissions.into(),
        };
        let got = devices(&[device("/dev/null", ""), device("/dev/zero", "r")]).unwrap();
        assert_eq!(
            (got[0].permissions.as_str(), got[1].permissions.as_str()),
            ("rwm", "r")
        );
        assert!(devices(&[device("/dev/null", "x")]).is_err());
        assert!(devices(&[device("null", "r")]).is_err());
    }
}
