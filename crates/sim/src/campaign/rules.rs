//! Draws placement rules: in some seeds, a few, of all kinds, some of them wishes.

use super::small;
use mainstay_core::config::{ClusterConfig, Rule, RuleKind};
use mainstay_core::id::{HostId, VmId};
use mainstay_core::rng::Rng;
use std::collections::BTreeSet;

/// How many of a hundred seeds have rules.
const RULED: u64 = 25;
/// Rules of one seed at most.
const MOST: u64 = 3;
/// How many of a hundred rules are mandatory.
const MANDATORY: u64 = 60;

/// The rules of a seed.
pub(super) fn rules(rng: &mut Rng, config: &ClusterConfig) -> Vec<Rule> {
    if !rng.percent(RULED) || config.vms.is_empty() {
        return Vec::new();
    }
    let count = rng.between(1, MOST);
    (0..count).map(|_| rule(rng, config)).collect()
}

fn rule(rng: &mut Rng, config: &ClusterConfig) -> Rule {
    let kind = match rng.below(5) {
        0 => RuleKind::Affinity,
        1 | 2 => RuleKind::AntiAffinity,
        3 => RuleKind::HostAffinity,
        _ => RuleKind::HostAntiAffinity,
    };
    let hosts = config.hosts.len() as u64;
    let named = match kind {
        // Where one of them is lost, there is another.
        RuleKind::HostAffinity => rng.between(2, hosts.max(2)),
        RuleKind::HostAntiAffinity => rng.between(1, (hosts / 2).max(1)),
        RuleKind::Affinity | RuleKind::AntiAffinity => 0,
    };
    let vms = rng.between(2, 4);
    Rule {
        kind,
        mandatory: rng.percent(MANDATORY),
        vms: some(rng, &config.vms.keys().collect::<Vec<&VmId>>(), vms),
        hosts: some(rng, &config.hosts.keys().collect::<Vec<&HostId>>(), named),
    }
}

/// Up to so many of them.
fn some<T: Clone + Ord>(rng: &mut Rng, of: &[&T], count: u64) -> BTreeSet<T> {
    let mut one = || of.get(small(rng.below(of.len() as u64))).copied();
    (0..count).filter_map(|_| one()).cloned().collect()
}
