//! Bugs that are planted to show that the campaign finds them.

use mainstay_core::planted::Bug;

/// All of them, in the order in which they are tried.
pub fn bugs() -> impl Iterator<Item = Bug> {
    Bug::ALL.iter().copied()
}
