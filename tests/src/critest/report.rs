//! What critest reports: ginkgo's JSON, reduced to names and results.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// How a spec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and held.
    Passed,
    /// It did not hold, panicked, or took too long: why and where.
    Failed(String),
    /// It skipped itself: why.
    Skipped(String),
    /// It was not chosen by name.
    LeftOut,
}

/// One spec that critest looked at.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Full name, as ginkgo prints it.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Seconds it took.
    pub seconds: f64,
}

/// Reads a report file. critest's benchmarks, which it leaves out by itself, are no specs.
pub fn read(path: &Path) -> Result<Vec<Spec>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let value =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(parse(&value))
}

fn parse(report: &Value) -> Vec<Spec> {
    let suites = report.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut specs: Vec<Spec> = suites
        .iter()
        .filter_map(|suite| suite["SpecReports"].as_array())
        .flatten()
        .filter_map(spec)
        .collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs
}

fn spec(report: &Value) -> Option<Spec> {
    let mut words: Vec<&str> = report["ContainerHierarchyTexts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    words.extend(report["LeafNodeText"].as_str());
    let node = report["LeafNodeType"].as_str().unwrap_or_default();
    let failure = &report["Failure"];
    let message = failure["Message"].as_str().unwrap_or_default();
    let outcome = match report["State"].as_str().unwrap_or_default() {
        "passed" => Outcome::Passed,
        // Without a word.
        "skipped" | "pending" if message.is_empty() => Outcome::LeftOut,
        "skipped" => Outcome::Skipped(message.to_owned()),
        state => {
            let place = &failure["Location"];
            Outcome::Failed(format!(
                "{state} at {}:{}: {message}",
                place["FileName"].as_str().unwrap_or("?"),
                place["LineNumber"]
            ))
        }
    };
    let left_out = outcome == Outcome::LeftOut;
    if left_out && words.iter().any(|text| text.contains("benchmark")) {
        return None;
    }
    // What runs before and after all specs counts only when it fails.
    if node != "It" {
        if left_out || outcome == Outcome::Passed {
            return None;
        }
        words.push(node);
    }
    Some(Spec {
        name: words.join(" "),
        outcome,
        seconds: report["RunTime"].as_f64().unwrap_or_default() / 1e9,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn states_become_outcomes() {
        let spec = |state: &str, kind: &str, text: &str, message: &str| {
            json!({"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": kind, "LeafNodeText": text, "State": state,
                "RunTime": 1_500_000_000, "Failure": {"Message": message, "Location": {"FileName": "pod.go", "LineNumber": 7}}})
        };
        let report = json!([{"SpecReports": [
            spec("passed", "It", "a", ""),
            spec("failed", "It", "b", "wrong"),
            spec("timedout", "It", "c", "slow"),
            spec("skipped", "It", "d", "no AppArmor"),
            spec("skipped", "It", "not chosen", ""),
            spec("passed", "BeforeSuite", "", ""),
            spec("skipped", "AfterSuite", "", ""),
            spec("skipped", "It", "benchmark about pods", ""),
            spec("panicked", "BeforeSuite", "", "nil"),
        ]}]);
        let found: Vec<_> = parse(&report)
            .into_iter()
            .map(|spec| (spec.name, spec.outcome))
            .collect();
        let failed = |text: &str| Outcome::Failed(text.into());
        assert_eq!(
            found,
            [
                (
                    "[k8s.io] Pod  BeforeSuite".into(),
                    failed("panicked at pod.go:7: nil")
                ),
                ("[k8s.io] Pod a".into(), Outcome::Passed),
                ("[k8s.io] Pod b".into(), failed("failed at pod.go:7: wrong")),
                (
                    "[k8s.io] Pod c".into(),
                    failed("timedout at pod.go:7: slow")
                ),
                (
                    "[k8s.io] Pod d".into(),
                    Outcome::Skipped("no AppArmor".into())
                ),
                ("[k8s.io] Pod not chosen".into(), Outcome::LeftOut),
            ]
        );
    }
}
