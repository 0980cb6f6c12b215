//! The score that guests have for the kernel's OOM killer.

use mainstay_hypervisor::PROTECTED;
use serde::{Deserialize, Serialize};

/// A score that guests may have: from -999 to 1000; the higher, the sooner a guest is killed when the host's memory
/// runs out. -1000 would leave the kernel nothing to kill where guests fill the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct OomScore(i16);

impl OomScore {
    /// The score.
    #[must_use]
    pub fn get(self) -> i16 {
        self.0
    }

    fn is_default(self) -> bool {
        self == Self::default()
    }
}

/// For serde: a score that is as if it was left out.
pub(super) fn is_default(score: &OomScore) -> bool {
    score.is_default()
}

impl TryFrom<i64> for OomScore {
    type Error = String;

    fn try_from(score: i64) -> Result<Self, String> {
        let score = i16::try_from(score).ok();
        let score = score.filter(|s| (PROTECTED + 1..=1000).contains(s));
        score.map(Self).ok_or_else(|| {
            "a guest's OOM score is from -999 (killed last) to 1000 (killed first)".to_owned()
        })
    }
}

impl From<OomScore> for i64 {
    fn from(score: OomScore) -> Self {
        score.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_a_score_that_leaves_the_kernel_something_to_kill() {
        for score in [-999, 0, 1000] {
            let taken = OomScore::try_from(score).expect("taken");
            assert_eq!(i64::from(taken), score);
        }
        for score in [-1000, 1001, i64::MAX, i64::MIN] {
            assert!(OomScore::try_from(score).is_err(), "{score}");
        }
    }
}
