//! The cluster's settings: every timer, limit and policy, and its default.

use super::timing::{Profile, Timing};
use crate::id::DatastoreId;
use crate::time::Duration;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a host does with its VMs when it is isolated (seed "VMware High Availability Constructs").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationResponse {
    /// Nothing: the VMs run on.
    #[default]
    LeavePoweredOn,
    /// Hard stop.
    PowerOff,
    /// Clean guest shutdown, hard stop after `isolation_shutdown_timeout`.
    ShutDown,
}

/// In which order VMs are restarted.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RestartPriority {
    /// First.
    Highest,
    /// Before most.
    High,
    /// The default.
    #[default]
    Medium,
    /// After most.
    Low,
    /// Last.
    Lowest,
    /// Never restarted.
    Disabled,
}

/// Reaction to permanent device loss.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PdlResponse {
    /// None.
    Disabled,
    /// An event.
    Warn,
    /// Restart on another host.
    #[default]
    Restart,
}

/// Reaction to all paths down.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApdResponse {
    /// None.
    Disabled,
    /// An event.
    Warn,
    /// Restart only where another host is known to be able to run the VM.
    #[default]
    RestartConservative,
    /// Restart also where that is not known.
    RestartAggressive,
}

/// What happens to the VMs of a host that its admin shuts down.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostShutdown {
    /// They are restarted on other hosts.
    #[default]
    RestartElsewhere,
    /// They wait for the host.
    Wait,
}

/// How heartbeat datastores are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeartbeatPolicy {
    /// From all that hosts share; the admin's list is not looked at.
    Automatic,
    /// The admin's list first, then from all.
    #[default]
    Prefer,
    /// From the admin's list alone.
    Only,
}

/// Which hosts may be switched off by their fence devices, among those that may be dead.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FencePolicy {
    /// None.
    Off,
    /// Those that the verdict calls dead, or whose agent is gone and whose VMs have lost their right to run.
    #[default]
    Dead,
    /// Also those that show no sign of life while their verdict is still to come.
    Suspected,
}

/// Which hosts may be switched off although their datastore heartbeat shows that they live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceCutOff {
    /// None: their VMs run on.
    #[default]
    Never,
    /// Those that say that they are isolated.
    Isolated,
    /// Those and partitioned ones.
    Partitioned,
}

/// What becomes of a host that was switched off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceAction {
    /// It stays off until somebody switches it on.
    #[default]
    Off,
    /// It is switched on again once its death is of use to no VM any more.
    Cycle,
}

/// All settings of a cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "super::text::Written", into = "super::text::Written")]
pub struct Settings {
    /// The profile that the timers began with.
    pub profile: Profile,
    /// All timers.
    pub timing: Timing,
    /// False: no host failure is reacted to.
    pub host_monitoring: bool,
    /// Reaction to isolation for VMs without one of their own.
    pub isolation_response: IsolationResponse,
    /// Time for a clean shutdown before the hard stop.
    pub isolation_shutdown_timeout: Duration,
    /// Restarts after the first attempt (seed "VMware High Availability Constructs", `das.maxvmrestartcount`: 5).
    pub max_restart_attempts: u32,
    /// Waits before each retry; the last one repeats (the same seed: 2, 4, 8, 8, 8 minutes).
    pub restart_retry_delays: Vec<Duration>,
    /// Datastores on which each host writes heartbeats for the primary's verdict.
    pub heartbeat_datastores_per_host: u32,
    /// Reaction to permanent device loss.
    pub pdl_response: PdlResponse,
    /// Reaction to all paths down.
    pub apd_response: ApdResponse,
    /// After all paths down cleared before the reaction: reset the VM?
    pub apd_cleared_reset: bool,
    /// A VM frozen for longer is killed; none: never.
    pub frozen_limit: Option<Duration>,
    /// What happens to the VMs of a host that its admin shuts down.
    pub host_shutdown: HostShutdown,
    /// Break locks on `open` datastores without proof of death: late writes of the old holder may land.
    pub accept_late_writes: bool,
    /// A host given an order that says nothing for this long is asked again.
    pub order_timeout: Duration,
    /// Time between two checks of each isolation address while other hosts are heard.
    pub isolation_check_interval: Duration,
    /// Starts under way on one host at a time; further ones wait (`das.perHostConcurrentFailoversLimit`: 32).
    pub concurrent_restarts_per_host: u32,
    /// A VM waits no longer than this for the VMs that it depends on.
    pub dependency_timeout: Duration,
    /// Guests get so long to shut down when their host is shut down; then they are switched off.
    pub host_shutdown_timeout: Duration,
    /// Addresses outside the cluster that answer as long as a host has a network, beyond the gateways: IP
    /// addresses, or `tcp://IP:PORT` where pings are dropped. At most ten.
    pub isolation_addresses: Vec<String>,
    /// The default gateway of each management network is an isolation address too.
    pub use_default_isolation_address: bool,
    /// How heartbeat datastores are chosen.
    pub heartbeat_datastore_policy: HeartbeatPolicy,
    /// The admin's list of heartbeat datastores.
    pub heartbeat_datastores: BTreeSet<DatastoreId>,
    /// Say nothing of hosts with one management network.
    pub ignore_redundant_network_warning: bool,
    /// Say nothing of hosts with too few heartbeat datastores.
    pub ignore_insufficient_heartbeat_datastores: bool,
    /// Right to run of a host's VMs while its agent or guard are restarted on purpose.
    pub planned_restart: Duration,
    /// Time between two looks whether hypervisors' locks on disk images are seen by other hosts.
    pub image_lock_check_interval: Duration,
    /// Time over which other hosts' clocks are compared with this one.
    pub clock_check_interval: Duration,
    /// Which hosts may be switched off by their fence devices, among those that may be dead.
    pub fence_policy: FencePolicy,
    /// Which hosts may be, although they live.
    pub fence_cut_off: FenceCutOff,
    /// What becomes of a host that was switched off.
    pub fence_action: FenceAction,
    /// A fence device has so long to do what it is told, and to show that it did.
    pub fence_timeout: Duration,
    /// A primary waits so long before it switches hosts off while another may mean to switch off its own.
    pub fence_delay: Duration,
    /// After a fence that failed, the next begins so long later.
    pub fence_retry: Duration,
    /// A host whose fence device did not answer, and then says that it has power, is given so long to boot.
    pub fence_boot_time: Duration,
    /// Time between two looks at each fence device while all is well.
    pub fence_check_interval: Duration,
    /// Settings of a newer version, as text: kept for the agents that know them.
    pub later: BTreeMap<String, String>,
}

/// The most starts that may be under way on one host (`concurrent_restarts_per_host`). What is on its way to
/// one host has room for as many orders.
pub const CONCURRENT_RESTARTS_MAX: u32 = 1000;

/// Longer than replacing a package and starting two daemons takes.
fn planned_restart() -> Duration {
    Duration::from_secs(60)
}

fn concurrent_restarts() -> u32 {
    32
}

/// As long as vSphere lets lower priorities wait for higher ones.
fn dependency_timeout() -> Duration {
    Duration::from_secs(600)
}

/// Within what service managers commonly give a service to stop (90 s).
fn host_shutdown_timeout() -> Duration {
    Duration::from_secs(75)
}

/// `fence_ipmilan` gives a management controller that does not answer 20 s.
fn fence_timeout() -> Duration {
    Duration::from_secs(30)
}

/// Longer than switching off and asking takes (3.5 s by IPMI, 1 s by Redfish), with room for a slow device.
fn fence_delay() -> Duration {
    Duration::from_secs(15)
}

/// Often enough to find a wrong address long before it is needed, rarely enough to burden nobody's router.
fn isolation_check_interval() -> Duration {
    Duration::from_secs(30)
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(Profile::Balanced)
    }
}

impl Settings {
    /// All defaults, with the timers of `profile`.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        Self {
            profile,
            timing: Timing::of(profile),
            host_monitoring: true,
            isolation_response: IsolationResponse::LeavePoweredOn,
            isolation_shutdown_timeout: Duration::from_secs(300),
            max_restart_attempts: 5,
            restart_retry_delays: alloc::vec![minutes(2), minutes(4), minutes(8)],
            heartbeat_datastores_per_host: 2,
            pdl_response: PdlResponse::Restart,
            apd_response: ApdResponse::RestartConservative,
            apd_cleared_reset: false,
            frozen_limit: None,
            host_shutdown: HostShutdown::RestartElsewhere,
            accept_late_writes: false,
            order_timeout: Duration::from_secs(60),
            isolation_check_interval: isolation_check_interval(),
            concurrent_restarts_per_host: concurrent_restarts(),
            dependency_timeout: dependency_timeout(),
            host_shutdown_timeout: host_shutdown_timeout(),
            planned_restart: planned_restart(),
            image_lock_check_interval: Duration::from_secs(300),
            clock_check_interval: Duration::from_secs(300),
            fence_policy: FencePolicy::Dead,
            fence_cut_off: FenceCutOff::Never,
            fence_action: FenceAction::Off,
            fence_timeout: fence_timeout(),
            fence_delay: fence_delay(),
            fence_retry: Duration::from_secs(30),
            fence_boot_time: minutes(5),
            fence_check_interval: minutes(10),
            later: BTreeMap::new(),
            isolation_addresses: Vec::new(),
            use_default_isolation_address: true,
            heartbeat_datastore_policy: HeartbeatPolicy::Prefer,
            heartbeat_datastores: BTreeSet::new(),
            ignore_redundant_network_warning: false,
            ignore_insufficient_heartbeat_datastores: false,
        }
    }

    /// The wait before retry number `retry`, counted from 0.
    #[must_use]
    pub fn retry_delay(&self, retry: u32) -> Duration {
        let index = usize::try_from(retry).unwrap_or(usize::MAX);
        let last = self
            .restart_retry_delays
            .last()
            .copied()
            .unwrap_or(Duration::from_secs(480));
        self.restart_retry_delays
            .get(index)
            .copied()
            .unwrap_or(last)
    }
}
