//! The cluster's configuration: timers and profiles, settings, and who and what is in the cluster.
//! Everything is checked when it is made; a value that exists is a sound one.

mod beacons;
mod change;
mod cluster;
mod duration;
mod nearest;
mod places;
mod set;
mod setting_docs;
mod settings;
mod text;
mod timing;
mod topology;
pub mod vsphere;

pub use change::{Change, summary};
pub use cluster::{
    ClusterConfig, ConfigError, DatastoreKind, DatastoreSpec, FenceClass, HostSpec, Rule, RuleKind,
    VmSpec,
};
pub use duration::{format_duration, parse_duration};
pub use nearest::nearest;
pub use places::{
    HOSTS_MAX, HostAddresses, Image, NETWORK_NAME_MAX_BYTES, PlaceError, Places, VMS_MAX,
};
pub use set::SettingError;
pub use setting_docs::{SETTINGS, SettingDoc, Span, Values};
pub use settings::{
    ApdResponse, CONCURRENT_RESTARTS_MAX, FenceAction, FenceCutOff, FencePolicy, HeartbeatPolicy,
    HostShutdown, IsolationResponse, PdlResponse, RestartPriority, Settings,
};
pub use timing::{Inequality, Profile, Timing, TimingError};
pub(crate) use topology::Topology;
