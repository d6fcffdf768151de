//! How a pulled image joins the records: pure, decided on the index's state.
//!
//! Records are by [`crate::image::ImageId`], so two names may share one: `busybox:1`, and
//! an index `both:1` whose Linux half is the same content. The record has the variants of
//! both, and each name's [`Scope`] tells which of them it stands for: a container of
//! `busybox:1` must never run the Wasm module of `both:1`.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::index::{Change, ImageRecord, Scope, Variant};
use crate::pull::is_wasm_platform;
use crate::reference::{Reference, Target};

/// What a pull has fetched.
pub(crate) struct Pulled<'a> {
    pub(crate) reference: &'a Reference,
    /// The id by what was fetched; an image that is known by another id keeps that.
    pub(crate) id: Digest,
    /// The manifest or index that the reference led to.
    pub(crate) top: Digest,
    pub(crate) variants: Vec<Variant>,
}

/// The changes that record a pulled image under its names, and its id.
pub(crate) fn merge(
    images: &BTreeMap<Digest, ImageRecord>,
    pulled: Pulled<'_>,
) -> (Vec<Change>, Digest) {
    let Pulled {
        reference,
        id,
        top,
        variants,
    } = pulled;
    let has_host = variants
        .iter()
        .any(|variant| !is_wasm_platform(&variant.platform));
    // Only the Wasm variant of an image whose host variant is here already: it stays one image.
    let id = match images
        .iter()
        .find(|(_, image)| image.documents.contains(&top))
    {
        Some((known, _)) if !has_host => known.clone(),
        _ => id,
    };
    let tag = matches!(reference.target, Target::Tag(_)).then(|| reference.to_string());
    let by_digest = reference.at(&top);
    let names = || tag.iter().chain([&by_digest]);

    let mut changes = Vec::new();
    for (other, record) in images.iter().filter(|(other, _)| **other != id) {
        let mut record = record.clone();
        // No `any`: all names go, also after the first that was there.
        let lost = names().filter(|name| record.forget(name)).count();
        if lost > 0 {
            record.prune();
            let named = !(record.tags.is_empty() && record.digests.is_empty());
            changes.push(Change::Image(other.clone(), named.then_some(record)));
        }
    }

    let mut image = images.get(&id).cloned().unwrap_or_default();
    let manifests: BTreeSet<Digest> = variants
        .iter()
        .map(|variant| variant.manifest.clone())
        .collect();
    for name in names() {
        let scope = image.scopes.entry(name.clone()).or_insert_with(|| Scope {
            document: top.clone(),
            manifests: BTreeSet::new(),
        });
        if scope.document != top {
            // The tag moved, and its former content is this name's no longer.
            *scope = Scope {
                document: top.clone(),
                manifests: BTreeSet::new(),
            };
        }
        scope.manifests.extend(manifests.iter().cloned());
    }
    image.tags.extend(tag);
    image.digests.insert(by_digest);
    image.documents.insert(top);
    for variant in variants {
        image
            .variants
            .retain(|known| known.manifest != variant.manifest);
        image.variants.push(variant);
    }
    image
        .variants
        .sort_by_key(|variant| is_wasm_platform(&variant.platform));
    image.prune();
    changes.push(Change::Image(id.clone(), Some(image)));
    (changes, id)
}

impl ImageRecord {
    /// Takes a name away; whether it was there.
    fn forget(&mut self, name: &str) -> bool {
        self.scopes.remove(name);
        // Both, and no `||`: it would leave the second.
        self.tags.remove(name) | self.digests.remove(name)
    }

    /// Drops what no name stands for. A record of a criw that did not note scopes
    /// loses nothing until all of its names were pulled again.
    fn prune(&mut self) {
        let all_known = self
            .tags
            .iter()
            .chain(&self.digests)
            .all(|name| self.scopes.contains_key(name));
        if !all_known {
            return;
        }
        let scopes = &self.scopes;
        self.variants.retain(|variant| {
            scopes
                .values()
                .any(|scope| scope.manifests.contains(&variant.manifest))
        });
        self.documents = scopes
            .values()
            .map(|scope| scope.document.clone())
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Kind, ProcessConfig};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn variant(kind: Kind, manifest: &str, config: &str) -> Variant {
        let platform = match kind {
            Kind::Linux => "linux/amd64",
            Kind::Wasm => "wasi/wasm",
        };
        Variant {
            kind,
            platform: platform.to_owned(),
            manifest: digest(manifest),
            config: digest(config),
            layers: Vec::new(),
            modules: Vec::new(),
            process: ProcessConfig::default(),
        }
    }

    #[derive(Default)]
    struct Store(BTreeMap<Digest, ImageRecord>);

    impl Store {
        /// Pulls `name`, whose document is `top`; the id is the first variant's config.
        fn pull(&mut self, name: &str, top: &str, variants: Vec<Variant>) -> Digest {
            let reference = Reference::parse(name).unwrap();
            let pulled = Pulled {
                reference: &reference,
                id: variants[0].config.clone(),
                top: digest(top),
                variants,
            };
            let (changes, id) = merge(&self.0, pulled);
            for change in changes {
                match change {
                    Change::Image(id, Some(record)) => self.0.insert(id, record),
                    Change::Image(id, None) => self.0.remove(&id),
                    other => panic!("{other:?}"),
                };
            }
            id
        }

        fn kinds(&self, id: &Digest, name: &str) -> Vec<Kind> {
            let name = Reference::parse(name).unwrap().to_string();
            let record = &self.0[id];
            let variants = record.variants_of(Some(&name));
            variants.iter().map(|variant| variant.kind).collect()
        }
    }

    #[test]
    fn names_that_share_a_linux_image_do_not_share_its_wasm_variant() {
        let mut store = Store::default();
        let linux = || variant(Kind::Linux, "m-linux", "c-linux");
        let wasm = || variant(Kind::Wasm, "m-wasm", "c-wasm");
        let both = store.pull("r.io/both:1", "index", vec![linux(), wasm()]);
        let plain = store.pull("r.io/busybox:1", "m-linux", vec![linux()]);
        assert_eq!(both, plain);
        assert_eq!(store.kinds(&both, "r.io/both:1"), [Kind::Linux, Kind::Wasm]);
        assert_eq!(store.kinds(&both, "r.io/busybox:1"), [Kind::Linux]);
        // Asked for by id alone, it is all of them.
        assert_eq!(store.0[&both].variants_of(None).len(), 2);
    }

    #[test]
    fn the_variants_of_one_index_come_together_pull_by_pull() {
        let mut store = Store::default();
        let linux = variant(Kind::Linux, "m-linux", "c-linux");
        let wasm = variant(Kind::Wasm, "m-wasm", "c-wasm");
        let id = store.pull("r.io/both:1", "index", vec![linux]);
        assert_eq!(store.pull("r.io/both:1", "index", vec![wasm]), id);
        assert_eq!(store.kinds(&id, "r.io/both:1"), [Kind::Linux, Kind::Wasm]);
        assert_eq!(store.0.len(), 1);
    }

    #[test]
    fn a_moved_tag_leaves_nothing_stale() {
        let mut store = Store::default();
        let linux = || variant(Kind::Linux, "m-linux", "c-linux");
        let id = store.pull(
            "r.io/app:1",
            "index-1",
            vec![linux(), variant(Kind::Wasm, "m-old", "c-old")],
        );
        // The same Linux half, another module.
        store.pull(
            "r.io/app:1",
            "index-2",
            vec![linux(), variant(Kind::Wasm, "m-new", "c-new")],
        );
        let record = &store.0[&id];
        let of_tag = record.variants_of(Some("r.io/app:1"));
        assert!(
            of_tag
                .iter()
                .all(|variant| variant.manifest != digest("m-old"))
        );
        // The digest of the first pull still names it, and what it stands for.
        let old = Reference::parse("r.io/app:1")
            .unwrap()
            .at(&digest("index-1"));
        assert!(
            record
                .variants_of(Some(&old))
                .iter()
                .any(|variant| variant.manifest == digest("m-old"))
        );
        // To other content altogether: the tag leaves this image.
        let other = store.pull(
            "r.io/app:1",
            "m-3",
            vec![variant(Kind::Linux, "m-3", "c-3")],
        );
        assert_ne!(other, id);
        assert!(store.0[&id].tags.is_empty() && !store.0[&id].digests.is_empty());
    }

    #[test]
    fn a_record_without_scopes_keeps_all_it_has() {
        let mut store = Store::default();
        let id = store.pull(
            "r.io/app:1",
            "index",
            vec![
                variant(Kind::Linux, "m-linux", "c-linux"),
                variant(Kind::Wasm, "m-wasm", "c-wasm"),
            ],
        );
        let record = store.0.get_mut(&id).unwrap();
        record.scopes.clear();
        record.tags.insert("r.io/old:1".to_owned());
        store.pull(
            "r.io/app:1",
            "m-linux",
            vec![variant(Kind::Linux, "m-linux", "c-linux")],
        );
        assert_eq!(store.kinds(&id, "r.io/app:1"), [Kind::Linux]);
        assert_eq!(store.kinds(&id, "r.io/old:1"), [Kind::Linux, Kind::Wasm]);
    }
}
