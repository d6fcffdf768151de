//! Links, routes and nft rules of a world's network namespace.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::world::World;

fn json(world: &World, program: &str, args: &[&str]) -> Result<Value> {
    let text = world.run(program, args)?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("output of {program}"))
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Interfaces by name and kind of hardware.
pub(super) fn links(world: &World) -> Result<BTreeSet<String>> {
    let links = json(world, "ip", &["-j", "link", "show"])?;
    Ok(each(&links)
        .map(|link| format!("{} {}", link["ifname"], link["link_type"]))
        .collect())
}

/// Routes of every table, of both families, but for the link-local ones: the kernel
/// adds those a while after a link is up, and they go with it.
pub(super) fn routes(world: &World) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for family in ["-4", "-6"] {
        let routes = json(
            world,
            "ip",
            &["-j", family, "route", "show", "table", "all"],
        )?;
        let lasting = |route: &&Value| {
            let target = route["dst"].as_str().unwrap_or_default();
            !target.starts_with("fe80:") && !target.starts_with("ff00:")
        };
        found.extend(each(&routes).filter(lasting).map(|route| {
            format!(
                "{family} {} dev {} table {}",
                route["dst"], route["dev"], route["table"]
            )
        }));
    }
    Ok(found)
}

/// Tables, chains, rules, sets, maps, and each of their elements. Handles and
/// counters do not matter: a daemon may write its rules anew.
pub(super) fn nft(world: &World) -> Result<BTreeSet<String>> {
    let rules = json(world, "nft", &["-j", "list", "ruleset"])?;
    let mut counts = BTreeMap::<String, u32>::new();
    for object in each(&rules["nftables"]) {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        if kind == "metainfo" {
            continue;
        }
        let mut body = body.clone();
        let elements = body["elem"].take();
        body["handle"].take();
        for part in body["expr"].as_array_mut().into_iter().flatten() {
            part["counter"].take();
        }
        let place = format!("{kind} {body}");
        for element in each(&elements) {
            *counts
                .entry(format!("element {element} of {place}"))
                .or_default() += 1;
        }
        *counts.entry(place).or_default() += 1;
    }
    Ok(counts
        .into_iter()
        .flat_map(|(what, count)| (1..=count).map(move |number| format!("{what} #{number}")))
        .collect())
}
