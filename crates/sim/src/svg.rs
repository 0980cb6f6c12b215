//! A run as a picture.

use crate::scenario::Scenario;
use crate::world::RunResult;

/// Hosts as rows, VMs as bars, faults and verdicts marked.
#[must_use]
pub fn timeline(scenario: &Scenario, result: &RunResult) -> String {
    let _ = (scenario, result);
    String::new()
}
