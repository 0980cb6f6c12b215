//! The clusters of fixed size on which the simulator's own speed is measured.

use crate::scenario::{Scenario, parse};

/// What a benchmark should reach on one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// At most so many seconds of wall time.
    WallSeconds(u64),
    /// At least so many virtual seconds a second.
    Rate(u64),
}

/// One benchmark.
#[derive(Clone, PartialEq, Debug)]
pub struct Benchmark {
    /// Its name.
    pub name: &'static str,
    /// What is played.
    pub scenario: Scenario,
    /// What it should reach.
    pub wanted: Wanted,
}

/// A big cluster, and one of a usual size: ten minutes each, one host lost.
///
/// # Panics
/// Never: the scenarios are constants, and a test reads them.
#[must_use]
pub fn benchmarks() -> Vec<Benchmark> {
    let made = |name, hosts, vms, wanted| Benchmark {
        name,
        scenario: one_host_lost(name, hosts, vms),
        wanted,
    };
    vec![
        made("64 hosts, 8000 vms", 64, 8000, Wanted::WallSeconds(10)),
        made("8 hosts, 100 vms", 8, 100, Wanted::Rate(2000)),
    ]
}

fn one_host_lost(name: &str, hosts: usize, vms: usize) -> Scenario {
    let text = format!(
        r#"
        name = "{name}"
        duration = "10m"
        seed = 1
        liveness = true
        [[datastore]]
        id = "ds-1"
        [[datastore]]
        id = "ds-2"
        [[host]]
        count = {hosts}
        cpu_mhz = 200000
        memory_mb = 655360
        [[vm]]
        count = {vms}
        [[event]]
        at = "60s"
        do = "host.power_off"
        host = "host-1"
        [[expect]]
        event = "host.state"
        host = "host-1"
        to = "dead"
        by = "80s"
        "#
    );
    parse(name, &text).expect("the scenario is a constant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmarks_are_of_the_size_that_their_figures_name() {
        let sizes: Vec<(usize, usize)> = benchmarks()
            .iter()
            .map(|b| (b.scenario.hosts.len(), b.scenario.vms.len()))
            .collect();
        assert_eq!(sizes, [(64, 8000), (8, 100)]);
    }
}
