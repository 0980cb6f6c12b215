//! From a seed to a scenario of random faults that real processes can play: the simulator's own campaign, without
//! what needs simulated clocks, simulated media or older programs.
//!
//! Invariant: the same wish gives the same scenario, so that a soak is played again by its seed.

use crate::fail::{Failure, Result};
use crate::run::unplayable;
use mainstay_core::config::{DatastoreKind, FenceClass};
use mainstay_core::rng::Rng;
use mainstay_core::wire::FORMAT_VERSION;
use mainstay_sim::campaign::{Limits, draw_all};
use mainstay_sim::{Fault, Planned, Scenario, Weather};

/// What a soak fixes; the rest is drawn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Everything else follows from it.
    pub seed: u64,
    /// How long, from zero to the end.
    pub minutes: u64,
    /// Hosts; 3 to 6 are drawn.
    pub hosts: Option<usize>,
    /// VMs; 4 to `most_vms` are drawn.
    pub vms: Option<usize>,
    /// Drawn VMs are no more than so many, at least 4.
    pub most_vms: usize,
    /// The timing profile, by its name.
    pub profile: Option<String>,
}

/// Many draws of a campaign are calm on purpose; so many are looked at for one that is not.
const DRAWS: u64 = 50;
/// Faults that make a soak, for each of its minutes.
const FAULTS_A_MINUTE: u64 = 3;

/// The scenario of a wish.
///
/// # Errors
/// When the time is too short for faults and for the rest after them in which liveness is demanded.
pub fn draw(wish: &Wish) -> Result<Scenario> {
    let mut rng = Rng::new(wish.seed).fork("soak");
    let hosts = small(rng.between(3, 6));
    let vms = small(rng.between(4, wish.most_vms.max(4) as u64));
    let limits = Limits {
        profile: wish.profile.clone(),
        hosts: Some(wish.hosts.unwrap_or(hosts)),
        vms: Some(wish.vms.unwrap_or(vms)),
        minutes: Some(wish.minutes),
    };
    let mut best: Option<Scenario> = None;
    for _ in 0..DRAWS {
        let mut scenario = draw_all(rng.next_u64(), &limits).scenario;
        make_playable(&mut scenario);
        let most = best.as_ref().map_or(0, faults);
        if scenario.liveness && unplayable(&scenario).is_empty() && faults(&scenario) > most {
            best = Some(scenario);
        }
        if best.as_ref().map_or(0, faults) >= wish.minutes.saturating_mul(FAULTS_A_MINUTE) {
            break;
        }
    }
    let Some(mut scenario) = best else {
        return Err(Failure::new(format_args!(
            "{} minutes are too short for faults and for the quiet after them in which liveness is demanded",
            wish.minutes
        ))
        .remedy("soak for 10 minutes or more with --minutes"));
    };
    let profile = scenario.config.settings.profile.name();
    scenario.name = format!(
        "soak of {} minutes, seed {}, {profile}",
        wish.minutes, wish.seed
    );
    scenario.seed = wish.seed;
    Ok(scenario)
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Takes out what the lab cannot play.
fn make_playable(scenario: &mut Scenario) {
    scenario.weather = Weather::default();
    for host in &mut scenario.hosts {
        (host.ppm, host.formats) = (0, FORMAT_VERSION);
    }
    for datastore in scenario.config.datastores.values_mut() {
        datastore.kind = DatastoreKind::File;
    }
    for setup in &mut scenario.datastores {
        let spec = scenario.config.datastores.get(&setup.id);
        // A real storage refuses an old holder's writes by the locks that the new one took: without image locks a
        // host that goes on after a pause may write for the moment that its guard needs. The simulator's refuses
        // them by itself.
        setup.image_locks |= spec.is_some_and(|s| s.fence == FenceClass::Enforced);
    }
    scenario.events.retain(|planned| {
        !matches!(
            planned.fault,
            // There is no manager that could be missed.
            Fault::ClockDrift { .. }
                | Fault::VmDiskError { .. }
                | Fault::VmDiskHeal { .. }
                | Fault::ManagerDown
                | Fault::ManagerUp
                | Fault::NotPlayable(_)
        )
    });
    for Planned { fault, .. } in &mut scenario.events {
        if let Fault::AgentRestart { formats, .. } = fault {
            *formats = None;
        }
    }
}

/// Events that break something, or change what is wanted.
fn faults(scenario: &Scenario) -> u64 {
    let mends = |fault: &Fault| {
        matches!(
            fault,
            Fault::HostPowerOn { .. }
                | Fault::HostResume { .. }
                | Fault::AgentResume { .. }
                | Fault::GuardResume { .. }
                | Fault::NetworkHeal { .. }
                | Fault::GatewayUp
                | Fault::DatastoreHeal { .. }
                | Fault::StartFail { times: 0, .. }
                | Fault::VmPowerOn { .. }
        )
    };
    let events = scenario.events.iter();
    events
        .map(|planned| u64::from(!mends(&planned.fault)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_sim::{parse, to_toml};

    fn wish(seed: u64) -> Wish {
        Wish {
            seed,
            minutes: 10,
            most_vms: 20,
            ..Wish::default()
        }
    }

    #[test]
    fn every_seed_gives_what_the_lab_plays_and_a_file_keeps() {
        for seed in 0..60 {
            let scenario = draw(&wish(seed)).expect("a scenario");
            assert!(unplayable(&scenario).is_empty());
            assert!(scenario.liveness && faults(&scenario) >= 30);
            assert!((3..=6).contains(&scenario.hosts.len()));
            let made = scenario.created.len();
            assert!((4..=20).contains(&(scenario.vms.len() - made)));
            let again = parse("soak.toml", &to_toml(&scenario));
            assert_eq!(again.expect("it reads back"), scenario, "seed {seed}");
        }
    }

    #[test]
    fn the_same_wish_gives_the_same_faults_and_another_seed_others() {
        let events = |seed| draw(&wish(seed)).expect("a scenario").events;
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }

    #[test]
    fn sizes_and_profile_are_as_wished() {
        let wish = Wish {
            hosts: Some(5),
            vms: Some(2),
            profile: Some("fast".into()),
            ..wish(3)
        };
        let scenario = draw(&wish).expect("a scenario");
        assert_eq!(scenario.hosts.len(), 5);
        assert_eq!(scenario.vms.len() - scenario.created.len(), 2);
        assert_eq!(scenario.config.settings.profile.name(), "fast");
    }

    #[test]
    fn a_time_without_room_for_quiet_is_refused() {
        let short = Wish {
            minutes: 1,
            profile: Some("classic".into()),
            ..wish(1)
        };
        let failure = draw(&short).expect_err("too short");
        assert!(failure.to_string().contains("too short"), "{failure}");
    }
}
