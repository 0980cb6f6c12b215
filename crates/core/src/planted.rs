//! Bugs that can be planted on purpose, to test the testers: each takes away one clause of the safety
//! protocol, and the campaign must find it. Only with the feature `planted`, never in a release.

/// One clause taken away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {
    /// Nobody freezes a VM whose right has lapsed (rule: freeze at all).
    NoFreeze,
    /// A frozen VM is thawed after reading its lock (H1).
    ThawByRead,
    /// The heartbeat read that closes the window is older than the lock read (H2).
    LockReadLast,
    /// A won lock is enough to start, though the right lapsed in between (H3).
    StartAfterGap,
    /// After a release was issued, its outcome unknown, the host starts again under the old generation (H4).
    GenerationReused,
    /// The right to run counts from the acknowledgement of a renewal (design section 4).
    RightFromAcknowledgement,
    /// The window counts from before the first read to after the last one (H12).
    WindowTooWide,
    /// A lock may be broken after `freeze`, without the guard's latency (inequality 1).
    BreakAtFreeze,
    /// A VM that is found without a deadline runs on (H16).
    UnregisteredRunsOn,
    /// An owner acts again after a lapse, without a swap (H5).
    OwnerResumes,
    /// A swap that succeeded is won, whether or not its predecessor is still there (H11).
    NoPredecessorCheck,
    /// A swap of unknown outcome is taken as won.
    UnknownIsWon,
    /// A VM that its user switched off is restarted (S3).
    IntentIgnored,
    /// A VM is called protected before the list is on disk (S5).
    ProtectedTooEarly,
    /// A new owner does not carry the old list over (S5).
    ListNotCopied,
    /// A page of the protected list is written over its newest copy (H19).
    ListInPlace,
    /// Retries never end (L3).
    RetriesForEver,
    /// An owner whose own right has lapsed goes on vouching (H7).
    AnswerAfterLapse,
    /// A vouch counts from its answer instead of its request (H7).
    VouchFromAnswer,
    /// A vouch lets a frozen VM go on (H9).
    VouchThaws,
    /// A new owner breaks locks without waiting for what its predecessor may have answered (H6).
    NewOwnerHurries,
    /// A stream message that comes again is handed on again.
    StreamDoubled,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::NoFreeze,
        Self::ThawByRead,
        Self::LockReadLast,
        Self::StartAfterGap,
        Self::GenerationReused,
        Self::RightFromAcknowledgement,
        Self::WindowTooWide,
        Self::BreakAtFreeze,
        Self::UnregisteredRunsOn,
        Self::OwnerResumes,
        Self::NoPredecessorCheck,
        Self::UnknownIsWon,
        Self::IntentIgnored,
        Self::ProtectedTooEarly,
        Self::ListNotCopied,
        Self::ListInPlace,
        Self::RetriesForEver,
        Self::AnswerAfterLapse,
        Self::VouchFromAnswer,
        Self::VouchThaws,
        Self::NewOwnerHurries,
        Self::StreamDoubled,
    ];
}
