//! How the lab's run of a scenario compares with the simulator's, told.

use crate::scenarios::line;
use mainstay_lab::agree::{self, Agreement};
use mainstay_sim::{Options, RunResult, Scenario};
use serde_json::json;

/// Plays the scenario in the simulator as well, and compares.
pub(super) fn against_sim(scenario: &Scenario, lab: &RunResult) -> (Agreement, f64, bool) {
    let tolerance = agree::tolerance(&scenario.config.settings.timing);
    let sim = mainstay_sim::run(scenario, &Options::default());
    let agreement = agree::compare(&sim, lab, &scenario.config.settings.timing);
    (agreement, tolerance.as_secs_f64(), sim.pass())
}

/// Says it, and whether the two agree.
pub(super) fn tell(scenario: &Scenario, lab: &RunResult, json: bool) -> bool {
    let (agreement, tolerance, passes) = against_sim(scenario, lab);
    let agrees = agreement.differences.is_empty() && passes;
    if json {
        let differences: Vec<_> = agreement
            .differences
            .iter()
            .map(|d| json!({ "what": d.word(), "text": d.to_string() }))
            .collect();
        line(
            &json!({
                "type": "agreement",
                "agrees": agrees,
                "sim_pass": passes,
                "same": agreement.same,
                "furthest_ms": agreement.furthest.as_millis(),
                "tolerance_ms": tolerance * 1000.0,
                "differences": differences,
            })
            .to_string(),
        );
        return agrees;
    }
    line(&format!(
        "\nagainst the simulator: {} events agree within {tolerance:.1} s (a heartbeat of each kind and a second; and a tenth of the time since the last fault), the furthest by {:.3} s",
        agreement.same,
        agreement.furthest.as_secs_f64()
    ));
    for difference in &agreement.differences {
        line(&format!("✗ {difference}"));
    }
    if !passes {
        line("✗ the simulator's own run does not pass: mainstay sim run says why");
    }
    line(if agrees { "they agree" } else { "they DIFFER" });
    agrees
}
