//! Who a container runs as: numbers out of the security context, the image's
//! `User` and its /etc/passwd and /etc/group. Those files are hostile text.

use criw_proto::v1 as cri;
use criw_sandbox::model::IdMap;

use super::pod::user_namespace;
use crate::error::{Invalid, invalid};

/// What the pod asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// run_as_user
    pub user: Option<i64>,
    /// run_as_username, "" = unset
    pub username: &'a str,
    /// run_as_group
    pub group: Option<i64>,
    /// supplemental_groups
    pub supplemental: &'a [i64],
    /// Leave out the memberships that the image's /etc/group defines.
    pub strict: bool,
}

/// What the image says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Image<'a> {
    /// `user[:group]`, names or numbers.
    pub user: &'a str,
    /// /etc/passwd, "" when there is none.
    pub passwd: &'a str,
    /// /etc/group, "" when there is none.
    pub group: &'a str,
}

/// The numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// The primary group first, then the others, each once.
    pub groups: Vec<u32>,
    /// Home directory of the passwd entry.
    pub home: Option<String>,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves the user of a container's first process.
pub fn resolve(asked: Asked<'_>, image: Image<'_>) -> Result<User, Invalid> {
    if asked.group.is_some() && asked.user.is_none() && asked.username.is_empty() {
        return invalid("run_as_group is set without run_as_user or run_as_username");
    }
    let (image_user, image_group) = image.user.split_once(':').unwrap_or((image.user, ""));
    let from_image = asked.user.is_none() && asked.username.is_empty();
    let wanted = match asked.user {
        Some(uid) => uid.to_string(),
        None if !asked.username.is_empty() => asked.username.to_owned(),
        None => image_user.to_owned(),
    };
    let (uid, entry) = find_user(&wanted, image.passwd)?;
    let gid = match asked.group {
        Some(gid) => id(gid, "run_as_group")?,
        None if from_image && !image_group.is_empty() => find_group(image_group, image.group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    let mut add = |gid: u32| {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    };
    if let (false, Some(entry)) = (asked.strict, &entry) {
        memberships(entry.name, image.group).for_each(&mut add);
    }
    for gid in asked.supplemental {
        add(id(*gid, "supplemental_groups")?);
    }
    Ok(User {
        uid,
        gid,
        groups,
        home: entry
            .map(|entry| entry.home.to_owned())
            .filter(|home| home.starts_with('/')),
    })
}

impl User {
    /// Also a member of these groups.
    pub fn with_groups(mut self, gids: &[u32]) -> Self {
        for gid in gids {
            if !self.groups.contains(gid) {
                self.groups.push(*gid);
            }
        }
        self
    }

    /// Whether the pod's user namespace knows all these ids.
    pub fn check_mapped(&self, pod: Option<IdMap>) -> Result<(), Invalid> {
        let Some(ids) = pod else {
            return Ok(());
        };
        let refuse = |what: &str, id: u32, length: u32| {
            invalid(format!(
                "{what} {id} does not exist in the pod's user namespace, which has the ids 0 to {}",
                length - 1
            ))
        };
        if !ids.uids.has(self.uid) {
            return refuse("user", self.uid, ids.uids.length);
        }
        match self.groups.iter().find(|gid| !ids.gids.has(**gid)) {
            Some(gid) => refuse("group", *gid, ids.gids.length),
            None => Ok(()),
        }
    }
}

/// A container that says what user namespace it is in must say what its pod said.
pub fn check_namespace(
    asked: Option<&cri::NamespaceOption>,
    pod: Option<IdMap>,
) -> Result<(), Invalid> {
    let asked = asked.and_then(|options| options.userns_options.as_ref());
    // The zero value says nothing.
    let said = asked.filter(|asked| **asked != cri::UserNamespace::default());
    if said.is_some() && user_namespace(said)? != pod {
        return invalid(
            "the user namespace of the container is not that of its pod: containers share their pod's",
        );
    }
    Ok(())
}

fn id(value: i64, what: &str) -> Result<u32, Invalid> {
    match u32::try_from(value) {
        // -1 as u32 means "unchanged" to the kernel.
        Ok(id) if id != u32::MAX => Ok(id),
        _ => invalid(format!("{what} {value} is no id (0 to 4294967294)")),
    }
}

fn find_user<'a>(wanted: &str, passwd: &'a str) -> Result<(u32, Option<Entry<'a>>), Invalid> {
    if wanted.is_empty() {
        return Ok((0, entries(passwd).find(|entry| entry.uid == 0)));
    }
    if let Ok(number) = wanted.parse::<i64>() {
        let uid = id(number, "user")?;
        return Ok((uid, entries(passwd).find(|entry| entry.uid == uid)));
    }
    match entries(passwd).find(|entry| entry.name == wanted) {
        Some(entry) => Ok((entry.uid, Some(entry))),
        None => invalid(format!(
            "user {wanted:?} is not in the image's /etc/passwd; use a number (runAsUser)"
        )),
    }
}

fn find_group(wanted: &str, group: &str) -> Result<u32, Invalid> {
    if let Ok(number) = wanted.parse::<i64>() {
        return id(number, "group");
    }
    match group_lines(group).find(|(name, ..)| *name == wanted) {
        Some((_, gid, _)) => Ok(gid),
        None => invalid(format!(
            "group {wanted:?} is not in the image's /etc/group; use a number (runAsGroup)"
        )),
    }
}

/// `name:password:uid:gid:gecos:home:shell`; other lines are skipped.
fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some(Entry {
            name: fields.next().filter(|name| !name.is_empty())?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1).unwrap_or(""),
        })
    })
}

/// `name:password:gid:member,member`; other lines are skipped.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn memberships<'a>(name: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member.trim() == name))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:abc:1::/:\n\
        www:x:1000:1001:web:/srv/www:/bin/sh\nlow:x:12:34";
    const GROUP: &str =
        "root:x:0:root\nwww:x:1001:\nextra:x:50000:www,other\nmore:x:50001:low, www\nbad";

    fn user(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> Result<User, &'static str> {
        Ok(User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.map(str::to_owned),
        })
    }

    #[test]
    fn users_groups_and_policies() {
        let none = Asked::default();
        let www = Asked {
            username: "www",
            ..none
        };
        let table: Vec<(Asked<'_>, &str, Result<User, &str>)> = vec![
            (none, "", user(0, 0, &[0], Some("/root"))),
            (
                none,
                "www",
                user(1000, 1001, &[1001, 50000, 50001], Some("/srv/www")),
            ),
            (
                none,
                "1000",
                user(1000, 1001, &[1001, 50000, 50001], Some("/srv/www")),
            ),
            (
                none,
                "www:extra",
                user(1000, 50000, &[50000, 50001], Some("/srv/www")),
            ),
            (none, "777:888", user(777, 888, &[888], None)),
            (none, "777", user(777, 0, &[0], None)),
            (none, "nobody", Err("\"nobody\"")),
            (none, "www:nogroup", Err("\"nogroup\"")),
            (
                Asked {
                    user: Some(12),
                    ..none
                },
                "www:extra",
                user(12, 34, &[34, 50001], None),
            ),
            (
                www,
                "0",
                user(1000, 1001, &[1001, 50000, 50001], Some("/srv/www")),
            ),
            (
                Asked {
                    strict: true,
                    ..www
                },
                "",
                user(1000, 1001, &[1001], Some("/srv/www")),
            ),
            (
                Asked {
                    strict: true,
                    supplemental: &[7, 1001, 7],
                    ..www
                },
                "",
                user(1000, 1001, &[1001, 7], Some("/srv/www")),
            ),
            (
                Asked {
                    group: Some(5),
                    supplemental: &[50000, 9],
                    ..www
                },
                "",
                user(1000, 5, &[5, 50000, 50001, 9], Some("/srv/www")),
            ),
            (
                Asked {
                    username: "ghost",
                    ..none
                },
                "",
                Err("\"ghost\""),
            ),
            (
                Asked {
                    group: Some(5),
                    ..none
                },
                "www",
                Err("run_as_group"),
            ),
            (
                Asked {
                    user: Some(-1),
                    ..none
                },
                "",
                Err("-1"),
            ),
            (
                Asked {
                    user: Some(4_294_967_295),
                    ..none
                },
                "",
                Err("4294967295"),
            ),
            (
                Asked {
                    supplemental: &[-5],
                    ..none
                },
                "",
                Err("-5"),
            ),
        ];
        for (asked, image_user, expected) in table {
            let image = Image {
                user: image_user,
                passwd: PASSWD,
                group: GROUP,
            };
            let got = resolve(asked, image);
            match expected {
                Ok(user) => assert_eq!(got, Ok(user), "{asked:?} {image_user:?}"),
                Err(word) => assert!(got.unwrap_err().0.contains(word), "{asked:?}"),
            }
        }
    }

    #[test]
    fn an_image_without_files_knows_numbers_only() {
        let asked = Asked {
            user: Some(65532),
            ..Asked::default()
        };
        let got = resolve(asked, Image::default()).unwrap();
        assert_eq!((got.uid, got.gid, got.groups), (65532, 0, vec![0]));
        let image = Image {
            user: "nonroot",
            ..Image::default()
        };
        assert!(resolve(Asked::default(), image).is_err());
    }

    #[test]
    fn ids_that_the_pods_user_namespace_lacks() {
        use criw_sandbox::model::IdRange;
        let range = |length| IdRange {
            host: 100_000,
            length,
        };
        let pod = Some(IdMap {
            uids: range(1000),
            gids: range(2000),
        });
        let user = |uid, gid| User {
            uid,
            gid,
            groups: vec![gid],
            home: None,
        };
        for (user, good) in [
            (user(999, 1999), true),
            (user(1000, 0), false),
            (user(0, 2000), false),
        ] {
            assert_eq!(user.check_mapped(pod).is_ok(), good, "{user:?}");
            assert!(user.check_mapped(None).is_ok());
        }
        let map = |host_id| {
            vec![cri::IdMapping {
                host_id,
                container_id: 0,
                length: 1000,
            }]
        };
        let says = |mode, uids, gids| {
            Some(cri::NamespaceOption {
                userns_options: Some(cri::UserNamespace { mode, uids, gids }),
                ..Default::default()
            })
        };
        let same = Some(IdMap {
            uids: range(1000),
            gids: range(1000),
        });
        let node = says(2, vec![], vec![]);
        for (asked, pod, good) in [
            (None, same, true),
            (says(0, vec![], vec![]), same, true),
            (says(0, map(100_000), map(100_000)), same, true),
            (says(0, map(100_000), map(5)), same, false),
            (says(0, map(100_000), map(100_000)), None, false),
            (node.clone(), None, true),
            (node, same, false),
        ] {
            assert_eq!(
                check_namespace(asked.as_ref(), pod).is_ok(),
                good,
                "{asked:?}"
            );
        }
    }
}
