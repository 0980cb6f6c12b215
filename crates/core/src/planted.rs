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
    /// A generation that came back by a link that landed late is taken for the newest (S2).
    NoHeadCheck,
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
    /// A frozen VM is thawed by a won swap though the right lapsed while the swap was out (H1, H3).
    ThawAfterGap,
    /// A lock is given back when the kill was asked for, not when nothing of the VM is left.
    ReleasedBeforeGone,
    /// An observer goes by its own `break` when a holder has said that it uses a longer one (H18).
    LongerBreakIgnored,
    /// A right that was renewed under longer constants is handed on to generations with shorter ones (H18).
    LongerRightKept,
    /// A lock that names a host without the VM is kept by it (H26).
    OrphanKept,
    /// Of two primaries that hear each other, none abdicates (L1).
    NobodyAbdicates,
    /// A change of the configuration is acknowledged before it is on disk (S5).
    ChangeAcknowledgedEarly,
    /// A new owner of the configuration's datastore does not read what is there (S5).
    ConfigNotRead,
    /// An isolated host stops its VMs though no other host owns their datastore (S6).
    IsolationWithoutOwner,
    /// A VM leaves its host's powered-on list when it is to be killed, not when it is off.
    OffTheListTooEarly,
    /// A host in maintenance is given VMs, and starts them (S4).
    RestingHostStarts,
    /// The lock of a VM whose process died says that it is switched off.
    CrashIsOff,
    /// A VM is given up when its first start has failed (L3).
    GivenUpEarly,
    /// An isolated host stops VMs that nobody would restart (S6).
    DisabledIsStopped,
    /// Mandatory placement rules are taken for wishes (S4).
    RulesAreWishes,
    /// A primary protects what it finds, and nothing that starts later (L4).
    LateStartUnprotected,
    /// One lost datastore costs all VMs of its host (S6).
    AnyDatastoreIsAllLost,
    /// VMs are stopped when all paths are declared down, without the delay after it (S6).
    DelayForgotten,
    /// A VM whose storage is lost is stopped though no other host can run it (S6).
    ActsWithoutHelp,
    /// A host says that it gave a VM up, and lets it run (S1).
    GivenUpAlive,
    /// A VM that its hypervisor paused on an I/O error counts as one that runs (L2).
    PausedIsHealthy,
    /// A host that was off once is taken for dead ever after: also what it locked since (safety rule 3).
    PowerProofOutlivesBoot,
    /// A fence device that says that it did what it was told is believed without asking for the power.
    FenceUnconfirmed,
    /// A fence device that does not answer is taken for one that is dead with its host.
    SilentDeviceIsDeath,
    /// A host whose heartbeats go on though its device calls it off is taken for dead.
    FenceSignsIgnored,
    /// Old generations of a lock are removed from the highest downwards (H11).
    CleanUpDownwards,
    /// A removal in doubt does not end a clean-up (H11).
    CleanUpGoesOn,
    /// The predecessor of the newest generation is removed with those below it (H11).
    PredecessorRemoved,
    /// What lies under the next generation is taken for the own record, whatever its nonce (H4).
    ForeignLinkIsOwn,
    /// "Free, and switched off" is believed without reading it once more.
    EndNotConfirmed,
    /// A record of a lock that is damaged passes for none.
    DamagedIsAbsent,
    /// A lock may be broken when the heartbeat stood still for `break` and no longer (H12).
    BreakAtEquality,
    /// A heartbeat's value comes again (H12).
    HeartbeatRepeats,
    /// A window counts though its end did not show the observer's own last heartbeat (H14).
    ReadBackSkipped,
    /// An owner breaks locks of a host for which it has just vouched (H8).
    VouchForgotten,
    /// An answer counts for the newest request, whichever it answers (H7).
    NewestIsAnswered,
    /// What was made is removed when its predecessor is gone, though another swap went on from it (H11).
    FollowedRemoved,
    /// A host asks for an owner lock while its VMs run by another owner's word (H6).
    OwnerKeepsVouch,
    /// A host that asked for an owner lock takes an owner's word that it had asked for before (H6).
    AnswerToOwner,
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
        Self::NoHeadCheck,
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
        Self::ThawAfterGap,
        Self::ReleasedBeforeGone,
        Self::LongerBreakIgnored,
        Self::LongerRightKept,
        Self::OrphanKept,
        Self::NobodyAbdicates,
        Self::ChangeAcknowledgedEarly,
        Self::ConfigNotRead,
        Self::IsolationWithoutOwner,
        Self::OffTheListTooEarly,
        Self::RestingHostStarts,
        Self::CrashIsOff,
        Self::GivenUpEarly,
        Self::DisabledIsStopped,
        Self::RulesAreWishes,
        Self::LateStartUnprotected,
        Self::AnyDatastoreIsAllLost,
        Self::DelayForgotten,
        Self::ActsWithoutHelp,
        Self::GivenUpAlive,
        Self::PausedIsHealthy,
        Self::PowerProofOutlivesBoot,
        Self::FenceUnconfirmed,
        Self::SilentDeviceIsDeath,
        Self::FenceSignsIgnored,
        Self::CleanUpDownwards,
        Self::CleanUpGoesOn,
        Self::PredecessorRemoved,
        Self::ForeignLinkIsOwn,
        Self::EndNotConfirmed,
        Self::DamagedIsAbsent,
        Self::BreakAtEquality,
        Self::HeartbeatRepeats,
        Self::ReadBackSkipped,
        Self::VouchForgotten,
        Self::NewestIsAnswered,
        Self::FollowedRemoved,
        Self::OwnerKeepsVouch,
        Self::AnswerToOwner,
    ];

    /// It shows only where steps follow each other in a way that no random run comes to: the models of the core
    /// look for it (`cargo xtask model`), and the campaign does not.
    #[must_use]
    pub fn is_for_the_models(self) -> bool {
        matches!(
            self,
            Self::CleanUpDownwards
                | Self::CleanUpGoesOn
                | Self::PredecessorRemoved
                | Self::ForeignLinkIsOwn
                | Self::EndNotConfirmed
                | Self::DamagedIsAbsent
                | Self::BreakAtEquality
                | Self::HeartbeatRepeats
                | Self::ReadBackSkipped
                | Self::VouchForgotten
                | Self::NewestIsAnswered
                | Self::FollowedRemoved
                | Self::OwnerKeepsVouch
                | Self::AnswerToOwner
        )
    }

    /// The clause of the protocol that it takes away, in words; the letters are those of the safety
    /// rules in `docs/protocol.md`.
    #[must_use]
    pub fn clause(self) -> &'static str {
        match self {
            Self::NoFreeze => "a VM is frozen when its right to run has lapsed",
            Self::ThawByRead => {
                "a frozen VM is thawed only by winning a swap, never by a read (H1)"
            }
            Self::LockReadLast => {
                "the lock is read before the heartbeat read that closes the window (H2)"
            }
            Self::StartAfterGap => {
                "a start needs the right to run without a gap from before the swap (H3)"
            }
            Self::GenerationReused => {
                "after a release was asked for, nothing starts under that generation (H4)"
            }
            Self::RightFromAcknowledgement => "the right counts from the request of a renewal",
            Self::WindowTooWide => {
                "the window counts from the first read's end to the last read's request (H12)"
            }
            Self::BreakAtFreeze => {
                "a lock is broken after `break`, which is longer than `freeze` and the guard (inequality 1)"
            }
            Self::UnregisteredRunsOn => {
                "a VM that is found without a deadline is frozen first (H16)"
            }
            Self::OwnerResumes => "an owner acts again after a lapse only by a swap (H5)",
            Self::NoPredecessorCheck => {
                "a link is won only if its predecessor is still there (H11)"
            }
            Self::NoHeadCheck => "a link is won only if nothing is above it (H11)",
            Self::UnknownIsWon => "a swap of unknown outcome is neither won nor lost",
            Self::IntentIgnored => "what its user switched off is not restarted",
            Self::ProtectedTooEarly => "a VM is called protected when the list is on disk",
            Self::ListNotCopied => "a new owner carries the list over before it acts",
            Self::ListInPlace => "a page of the list never replaces its newest copy (H19)",
            Self::RetriesForEver => "retries end at their limit",
            Self::AnswerAfterLapse => "an owner vouches only while its own right holds (H7)",
            Self::VouchFromAnswer => "a vouch counts from its request (H7)",
            Self::VouchThaws => "a vouch prolongs, it never thaws (H9)",
            Self::NewOwnerHurries => "a new owner waits one `break` before it breaks locks (H6)",
            Self::StreamDoubled => "a stream message is handed on once",
            Self::ThawAfterGap => {
                "a thaw needs the right to run without a gap from before the swap (H1, H3)"
            }
            Self::ReleasedBeforeGone => "a lock is given back when every thread of its VM is gone",
            Self::LongerBreakIgnored => {
                "constants belong to the lock's generation; the longest `break` named counts (H18)"
            }
            Self::LongerRightKept => {
                "what a generation runs by is no longer than its own constants say (H18)"
            }
            Self::OrphanKept => {
                "a host gives back a lock that names it when it has no such VM (H26)"
            }
            Self::NobodyAbdicates => "of two primaries that hear each other, the lesser abdicates",
            Self::ChangeAcknowledgedEarly => {
                "a change is acknowledged when it is on its home datastore"
            }
            Self::ConfigNotRead => {
                "a new owner reads the configuration on its datastore before it writes one"
            }
            Self::IsolationWithoutOwner => {
                "an isolated host stops a VM only when another host owns its datastore"
            }
            Self::OffTheListTooEarly => {
                "a VM leaves its host's powered-on list only when it is off"
            }
            Self::RestingHostStarts => "a host in maintenance starts no VM",
            Self::CrashIsOff => {
                "a VM is marked as switched off only by its user's wish, or when its guest shut down"
            }
            Self::GivenUpEarly => "a VM is given up only at the limit of its retries",
            Self::DisabledIsStopped => {
                "an isolated host leaves a VM alone whose restart priority is disabled"
            }
            Self::RulesAreWishes => "a placement never breaks a mandatory rule",
            Self::LateStartUnprotected => "a VM is protected whenever it is started",
            Self::AnyDatastoreIsAllLost => "a lost datastore costs its own VMs and no others",
            Self::DelayForgotten => {
                "after all paths are declared down, VMs have `apd_delay` more before they are stopped"
            }
            Self::ActsWithoutHelp => {
                "a VM whose storage is lost is left alone where no other host can run it"
            }
            Self::GivenUpAlive => "a VM is given up when nothing of it runs any more",
            Self::PausedIsHealthy => "a VM that is paused on an I/O error has failed",
            Self::PowerProofOutlivesBoot => {
                "power off proves the end of what was locked before the power was asked for, and of nothing else"
            }
            Self::FenceUnconfirmed => "a fence is confirmed by the power's status alone",
            Self::SilentDeviceIsDeath => "a fence device that does not answer proves nothing",
            Self::FenceSignsIgnored => {
                "a host that gives signs of life was not switched off, whatever its device says"
            }
            Self::CleanUpDownwards => "old generations are removed from the lowest upwards (H11)",
            Self::CleanUpGoesOn => "a clean-up ends at the first removal in doubt (H11)",
            Self::PredecessorRemoved => {
                "the newest generation and its predecessor are never removed (H11)"
            }
            Self::ForeignLinkIsOwn => "a link is the own one only if its nonce is",
            Self::EndNotConfirmed => {
                "a lock that is free and off is read once more before it is believed"
            }
            Self::DamagedIsAbsent => {
                "a damaged record hides what it holds, and nothing is concluded from an older one"
            }
            Self::BreakAtEquality => "the heartbeat stands still for longer than `break` (H12)",
            Self::HeartbeatRepeats => "no heartbeat is written twice (H12)",
            Self::ReadBackSkipped => {
                "a window counts when its end shows the observer's own last heartbeat (H14)"
            }
            Self::VouchForgotten => {
                "an owner breaks no lock of a host for one `break` after its last answer to it (H8)"
            }
            Self::NewestIsAnswered => {
                "an answer counts from the request whose nonce it carries (H7)"
            }
            Self::FollowedRemoved => {
                "a generation that another follows is removed by a clean-up alone (H11)"
            }
            Self::OwnerKeepsVouch => {
                "who asks for an owner lock runs nothing by an owner's word (H6)"
            }
            Self::AnswerToOwner => {
                "who asked for an owner lock takes no owner's word that it had asked for before (H6)"
            }
        }
    }
}
