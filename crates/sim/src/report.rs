//! What a run looks like to people and to programs.

use crate::clock::{MS, Nanos};
use crate::expect::clock_text;
use crate::scenario::Scenario;
use crate::world::RunResult;
use serde_json::json;

fn signed_ms(t: i64) -> i64 {
    t.div_euclid(i64::try_from(MS).unwrap_or(1))
}

fn since(at: Nanos, zero: Nanos) -> i64 {
    let signed = |t: Nanos| i64::try_from(t).unwrap_or(i64::MAX);
    signed(at) - signed(zero)
}

/// The events of a run, one line of JSON each.
#[must_use]
pub fn json_lines(result: &RunResult) -> Vec<String> {
    result
        .trace
        .iter()
        .map(|entry| entry.json(result.zero))
        .collect()
}

/// The last line: what became of the run.
#[must_use]
pub fn result_json(scenario: &Scenario, result: &RunResult, wall_ms: u64) -> String {
    let expectations: Vec<_> = result
        .verdicts
        .iter()
        .map(|v| json!({"expect": v.text, "pass": v.pass, "t_ms": v.at.map(signed_ms)}))
        .collect();
    let violations: Vec<_> = result
        .violations
        .iter()
        .map(|v| {
            json!({"property": v.property, "sentence": v.sentence, "t_ms": signed_ms(since(v.at, result.zero)), "what": v.what})
        })
        .collect();
    let mut line = format!(
        "{{\"type\":\"result\",\"scenario\":{},\"seed\":{},\"pass\":{},\"expectations\":{},\"violations\":{},\"virtual_ms\":{},\"wall_ms\":{wall_ms}",
        json!(scenario.name),
        scenario.seed,
        result.pass(),
        json!(expectations),
        json!(violations),
        result.virtual_time / MS,
    );
    if let Some(error) = &result.error {
        line.push_str(&format!(",\"error\":{}", json!(error)));
    }
    line.push('}');
    line
}

/// The run for people: a timeline, the expectations, and what was violated.
#[must_use]
pub fn people(scenario: &Scenario, result: &RunResult, replay: &str) -> String {
    let mut out = format!("{} (seed {})\n", scenario.name, scenario.seed);
    if let Some(source) = &scenario.source {
        out.push_str(&format!("from {source}\n"));
    }
    out.push('\n');
    for entry in result.trace.iter().filter(|e| e.at >= result.zero) {
        out.push_str(&entry.text(result.zero));
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&verdicts(result));
    let seconds = result.virtual_time / (1000 * MS);
    let word = if result.pass() { "pass" } else { "FAIL" };
    out.push_str(&format!(
        "{word}: {seconds} virtual seconds, {} steps\n",
        result.steps
    ));
    if !result.pass() {
        for host in &result.hosts {
            out.push_str(&format!("  {host}\n"));
        }
        out.push_str(&format!("replay: {replay}\n"));
    }
    out
}

/// What became of the expectations, and what was violated, for people.
#[must_use]
pub fn verdicts(result: &RunResult) -> String {
    let mut out = String::new();
    for verdict in &result.verdicts {
        let mark = if verdict.pass { "✓" } else { "✗" };
        let at = verdict
            .at
            .map(|t| format!("  (true at {})", clock_text(t)))
            .unwrap_or_default();
        out.push_str(&format!("{mark} {}{at}\n", verdict.text));
    }
    for violation in &result.violations {
        out.push_str(&format!(
            "✗ {} at {}: {}\n  ({})\n",
            violation.property,
            clock_text(since(violation.at, result.zero)),
            violation.what,
            violation.sentence
        ));
    }
    if let Some(error) = &result.error {
        out.push_str(&format!("✗ {error}\n"));
    }
    out
}
