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
        | Bug::LongerRightKept => TWICE,
        Bug::ReleasedBeforeGone => &["S8", "S1", "S1b", "S2"],
        Bug::IntentIgnored => &["S3"],
        Bug::RestingHostStarts | Bug::RulesAreWishes => &["S4"],
        Bug::ProtectedTooEarly
        | Bug::ListNotCopied
        | Bug::ListInPlace
        | Bug::ChangeAcknowledgedEarly
        | Bug::ConfigNotRead => &["S5"],
        Bug::IsolationWithoutOwner | Bug::DisabledIsStopped => &["S6"],
        Bug::StreamDoubled => &["S7"],
        Bug::OffTheListTooEarly => &["S8"],
        Bug::NobodyAbdicates => &["L1"],
        Bug::LateStartUnprotected => &["L4"],
        Bug::OrphanKept => &["L2"],
        Bug::RetriesForEver | Bug::GivenUpEarly => &["L3"],
        Bug::CrashIsOff => &["S9"],
        _ => &[],
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
}
