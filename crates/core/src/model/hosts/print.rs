//! What tells states apart, in one number of 64 bits. Most of an exploration's time goes into it, so what is on the
//! datastore has its number from when it was written, and the numbers are made by a multiplication for each word:
//! nobody chooses what is explored so that two numbers agree.

use std::hash::{Hash, Hasher};
use std::vec::Vec;

/// A record on the datastore, with its number.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Kept {
    print: u64,
    bytes: Vec<u8>,
}

impl Kept {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let mut hasher = Prints::default();
        bytes.hash(&mut hasher);
        let print = hasher.finish();
        Self { print, bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

/// Makes a number of what is hashed. Each step can be undone when its word is known, so two sequences that differ in
/// one word never have the same number; others with the probability of chance, 2^-64.
#[derive(Default)]
pub(super) struct Prints(u64);

impl Prints {
    #[inline]
    fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = mixed.rotate_left(23).wrapping_add(0xA076_1D64_78BD_642F);
    }
}

impl Hasher for Prints {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            self.word(u64::from_le_bytes(last));
        }
    }

    #[inline]
    fn write_u8(&mut self, n: u8) {
        self.word(n.into());
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.word(n);
    }

    #[inline]
    fn write_usize(&mut self, n: usize) {
        self.word(n as u64);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}
