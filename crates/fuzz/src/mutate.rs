//! Small damage to bytes, the same for the same seed.

use mainstay_core::rng::Rng;

/// Numbers that lengths, counts and versions go wrong at.
const NUMBERS: [u8; 8] = [0, 1, 0x0a, 0x7f, 0x80, 0xfe, 0xff, b'"'];

/// Longest run of bytes that is copied or taken away at once.
const RUN_BYTES: u64 = 16;

/// The bytes with one to four changes: a bit, a byte, a run of bytes taken away, doubled or taken from `other`.
#[must_use]
pub fn mutate(bytes: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..rng.between(1, 4) {
        let at = place(out.len(), rng);
        let end = (at + run(rng)).min(out.len());
        match rng.below(7) {
            0 => set(&mut out, at, |byte| byte ^ (1 << rng.below(8))),
            1 => {
                let index = place(NUMBERS.len(), rng);
                let number = NUMBERS.get(index).copied().unwrap_or_default();
                set(&mut out, at, |_| number);
            }
            2 => set(&mut out, at, |_| rng.next_u64().to_le_bytes()[0]),
            3 => drop(out.drain(at..end)),
            4 => {
                let doubled: Vec<u8> = out.get(at..end).unwrap_or_default().to_vec();
                out.splice(at..at, doubled);
            }
            5 => {
                let from = place(other.len(), rng);
                let to = (from + run(rng)).min(other.len());
                let taken = other.get(from..to).unwrap_or_default().to_vec();
                out.splice(at..at, taken);
            }
            _ => out.truncate(at),
        }
    }
    out
}

fn place(length: usize, rng: &mut Rng) -> usize {
    usize::try_from(rng.below(u64::try_from(length).unwrap_or(u64::MAX))).unwrap_or_default()
}

fn run(rng: &mut Rng) -> usize {
    usize::try_from(rng.between(1, RUN_BYTES)).unwrap_or_default()
}

fn set(bytes: &mut [u8], at: usize, to: impl FnOnce(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = to(*byte);
    }
}
