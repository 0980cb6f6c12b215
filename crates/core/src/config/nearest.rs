//! The word that was probably meant, for an error that says so.

use alloc::vec::Vec;

/// The candidate nearest to `word` by edit distance, if it is near enough to be a slip of the pen.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    candidates
        // The distance is at least that of the lengths: a word of megabytes, as a peer may send it, costs nothing.
        .filter(|c| length.abs_diff(c.chars().count()) <= near_enough(c))
        .map(|c| (distance(word, c), c))
        .min()
        .filter(|(d, c)| *d <= near_enough(c))
        .map(|(_, c)| c)
}

/// The most mistakes in a candidate that are a slip of the pen.
fn near_enough(candidate: &str) -> usize {
    1 + candidate.len() / 3
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut next = alloc::vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let diagonal = row.get(j).copied().unwrap_or(usize::MAX);
            let left = next.last().copied().unwrap_or(usize::MAX);
            next.push(
                (diagonal + usize::from(ca != *cb))
                    .min(above + 1)
                    .min(left + 1),
            );
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_near_and_another_word_is_not() {
        let known = ["freeze", "break", "profile"];
        let near = |word: &str| nearest(word, known.into_iter());
        assert_eq!(near("freze"), Some("freeze"));
        assert_eq!(near("brake"), Some("break"));
        assert_eq!(near("election"), None);
        assert_eq!(near(""), None);
        assert_eq!(near(&"freeze".repeat(1_000_000)), None);
    }
}
