//! A core module becomes a component: `componentize WIT WORLD MODULE COMPONENT`.

use anyhow::{Context, Result, bail};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [wit, world, module, component] = &words[..] else {
        bail!("usage: componentize WIT WORLD MODULE COMPONENT");
    };
    let text = std::fs::read_to_string(wit).with_context(|| format!("read {wit}"))?;
    let mut bytes = std::fs::read(module).with_context(|| format!("read {module}"))?;
    let mut resolve = Resolve::default();
    let package = resolve
        .push_str(wit, &text)
        .with_context(|| format!("parse {wit}"))?;
    let world = resolve.select_world(&[package], Some(world.as_str()))?;
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8, false)?;
    let bytes = ComponentEncoder::default()
        .module(&bytes)?
        .validate(true)
        .encode()
        .with_context(|| format!("wrap {module}"))?;
    std::fs::write(component, bytes).with_context(|| format!("write {component}"))
}
