//! Bugs that are planted to show that the campaign finds them.

use mainstay_core::planted::Bug;

/// All that the campaign looks for, in the order in which they are tried.
pub fn bugs() -> impl Iterator<Item = Bug> {
    let all = Bug::ALL.iter().copied();
    all.filter(|bug| !bug.is_for_the_models())
}

/// A VM that runs twice, or writes after its successor has started.
const TWICE: &[&str] = &["S1", "S1b", "S2"];

/// The invariants that a bug breaks. What else fails with the bug and not without it is another run with
/// other dice, not the bug.
#[must_use]
pub fn breaks(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::NoFreeze
        | Bug::ThawByRead
        | Bug::LockReadLast
        | Bug::StartAfterGap
        | Bug::GenerationReused
        | Bug::RightFromAcknowledgement
        | Bug::WindowTooWide
        | Bug::BreakAtFreeze
        | Bug::UnregisteredRunsOn
        | Bug::OwnerResumes
        | Bug::NoPredecessorCheck
        | Bug::NoHeadCheck
        | Bug::UnknownIsWon
        | Bug::AnswerAfterLapse
        | Bug::VouchFromAnswer
        | Bug::VouchThaws
        | Bug::NewOwnerHurries
        | Bug::ThawAfterGap
        | Bug::LongerBreakIgnored
        | Bug::LongerRightKept
        | Bug::GivenUpAlive => TWICE,
        Bug::ReleasedBeforeGone => &["S8", "S1", "S1b", "S2"],
        Bug::IntentIgnored => &["S3"],
        Bug::RestingHostStarts | Bug::RulesAreWishes => &["S4"],
        Bug::ProtectedTooEarly
        | Bug::ListNotCopied
        | Bug::ListInPlace
        | Bug::ChangeAcknowledgedEarly
        | Bug::ConfigNotRead => &["S5"],
        Bug::IsolationWithoutOwner
        | Bug::DisabledIsStopped
        | Bug::AnyDatastoreIsAllLost
        | Bug::DelayForgotten
        | Bug::ActsWithoutHelp => &["S6"],
        Bug::StreamDoubled => &["S7"],
        Bug::OffTheListTooEarly => &["S8"],
        Bug::NobodyAbdicates => &["L1"],
        Bug::LateStartUnprotected => &["L4"],
        Bug::OrphanKept | Bug::PausedIsHealthy => &["L2"],
        Bug::RetriesForEver | Bug::GivenUpEarly => &["L3"],
        Bug::CrashIsOff => &["S9"],
        Bug::PowerProofOutlivesBoot
        | Bug::FenceUnconfirmed
        | Bug::SilentDeviceIsDeath
        | Bug::FenceSignsIgnored => TWICE,
        _ => &[],
    }
}

/// A scenario that shows the bug, by its path below `scenarios` and its text, where no campaign may: those play no
/// device that does other than what a proof by power assumes, and none of these bugs shows without three things within
/// one window.
#[must_use]
pub fn shown_by(bug: Bug) -> Option<(&'static str, &'static str)> {
    macro_rules! scenario {
        ($name:literal) => {
            Some((
                $name,
                include_str!(concat!("../../../scenarios/", $name, ".toml")),
            ))
        };
    }
    match bug {
        Bug::PowerProofOutlivesBoot => scenario!("nasty/fence-of-an-earlier-boot"),
        Bug::FenceUnconfirmed => scenario!("nasty/fence-that-is-not-confirmed"),
        Bug::SilentDeviceIsDeath => scenario!("nasty/fence-device-that-is-silent"),
        Bug::FenceSignsIgnored => scenario!("nasty/fence-device-of-another-machine"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_has_a_clause_and_an_invariant() {
        for bug in bugs() {
            assert!(!bug.clause().is_empty(), "{bug:?}");
            assert!(!breaks(bug).is_empty(), "{bug:?}");
        }
    }

    #[test]
    fn scenarios_that_are_meant_to_show_a_bug_do() {
        for bug in bugs() {
            let Some((name, text)) = shown_by(bug) else {
                continue;
            };
            let scenario = crate::parse(name, text).expect("a scenario");
            let broken = |bug| {
                let options = crate::Options {
                    bug,
                    ..crate::Options::until_violation()
                };
                let violations = crate::run(&scenario, &options).violations;
                let properties = violations.iter().map(|v| v.property);
                properties.collect::<Vec<&str>>()
            };
            assert_eq!(broken(None), [""; 0], "{name} without {bug:?}");
            let found = broken(Some(bug));
            assert!(
                found.iter().any(|p| breaks(bug).contains(p)),
                "{name} does not show {bug:?}: {found:?}"
            );
        }
    }
}
