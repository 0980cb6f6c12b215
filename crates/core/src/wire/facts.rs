//! How a host is, as it tells its primary, and as the primary tells its secondaries.

use crate::health::Issue;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What an agent says of itself and its host.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Of a primary: the format version that all members understand. Records are written so that each of
    /// them can read them.
    pub level: u16,
    /// The configuration that it has.
    pub config: u64,
    /// Tells that configuration from another under the same number.
    pub digest: u64,
    /// The timing profile in it, for people.
    pub profile: String,
    /// What is weaker there than it should be; at most [`Facts::MOST_ISSUES`].
    pub issues: Vec<Issue>,
}

impl Facts {
    /// Far more than a sane host has; a sick one must not fill its primary's memory.
    pub const MOST_ISSUES: usize = 32;
}
