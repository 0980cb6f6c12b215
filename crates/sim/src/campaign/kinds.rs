//! The kinds of faults that a seed may have: a table, so that a new kind is one line and its method.

use super::drawing::Drawing;
use super::{drift, small};
use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{Fault, StorageFault};
use mainstay_core::config::{Change, Settings};
use mainstay_core::id::HostId;
use mainstay_core::time::{Duration, nanos};
use mainstay_core::wire::FORMAT_VERSION;

const MONITORING: &str = "host_monitoring";
const ATTEMPTS: &str = "max_restart_attempts";
/// Sets all timers.
pub(super) const PROFILE: &str = "profile";
/// The timers of the right to run, and those that are longer than it: made shorter in this order, and
/// longer in the other.
const RIGHT_TIMERS: [&str; 4] = ["freeze", "break", "dead_without_datastores", "dead"];

fn timer(settings: &Settings, key: &str) -> Option<Duration> {
    let t = &settings.timing;
    match key {
        "freeze" => Some(t.freeze),
        "break" => Some(t.r#break),
        "dead_without_datastores" => Some(t.dead_without_datastores),
        "dead" => Some(t.dead),
        _ => None,
    }
}

/// What sets a setting back that liveness is judged by, if it is one.
pub(super) fn normal(settings: &Settings, key: &str) -> Option<Change> {
    let value = match key {
        MONITORING => String::from("true"),
        ATTEMPTS => settings.max_restart_attempts.to_string(),
        PROFILE => String::from(settings.profile.name()),
        _ => format!("{}ms", timer(settings, key)?.as_millis()),
    };
    let key = key.into();
    Some(Change::Set { key, value })
}

/// When a fault comes and goes, and whom it meets.
#[derive(Clone, Copy)]
pub(super) struct Stroke {
    pub(super) at: Nanos,
    pub(super) end: Nanos,
    pub(super) host: usize,
    pub(super) other: usize,
}

/// Plays one fault of a kind.
pub(super) type Kind<'a> = fn(&mut Drawing<'a>, Stroke);

/// VMs that one seed creates at most.
const CREATED: usize = 5;
/// An operating system has shut down by then.
const SHUT_DOWN: Nanos = 5 * SECOND;
/// The shortest drill that is asked for.
const DRILL: Nanos = 40 * SECOND;
/// Also one whose agent does not hear of it.
const SLOW_SHUT_DOWN: Nanos = 100 * SECOND;

impl<'a> Drawing<'a> {
    /// All kinds, by name. A new one needs a line here and its method; the order is part of what a seed means.
    pub(super) const KINDS: [(&'static str, Kind<'a>); 31] = [
        ("a host loses power", Self::host_loses_power),
        ("a host pauses", Self::host_pauses),
        ("an agent dies", Self::agent_dies),
        ("a guard dies", Self::guard_dies),
        ("an agent hangs", Self::agent_hangs),
        ("a guard hangs", Self::guard_hangs),
        ("a host is cut off", Self::host_is_cut_off),
        ("a partition", Self::partition),
        ("a path loses one way", Self::one_way_lost),
        ("messages are lost", Self::messages_lost),
        ("messages are late", Self::messages_late),
        ("storage fails", Self::storage_fails),
        ("a vm ends", Self::vm_ends),
        ("a user switches off", Self::user_switches_off),
        ("a clock drifts", Self::clock_drifts),
        ("the gateway is silent", Self::gateway_silent),
        ("starts fail", Self::starts_fail),
        ("a host is shut down", Self::host_shuts_down),
        ("a host reboots", Self::host_reboots),
        ("the manager is away", Self::manager_away),
        (
            "an agent is restarted on purpose",
            Self::restarted_on_purpose,
        ),
        ("a host rests", Self::host_rests),
        ("a setting changes", Self::setting_changes),
        ("a vm is deleted", Self::vm_deleted),
        ("monitoring is switched off", Self::monitoring_off),
        ("the timers change", Self::timers_change),
        ("a vm is created", Self::vm_created),
        ("an isolated host rests", Self::isolated_host_rests),
        ("a guest fails", Self::guest_fails),
        ("a drill", Self::drill),
        ("a disk fails", Self::disk_fails),
    ];

    fn heal_all_networks(&mut self, at: Nanos) {
        let heal = Fault::NetworkHeal {
            host: None,
            network: None,
        };
        self.push(at, heal);
    }

    fn heal_networks_of(&mut self, at: Nanos, host: Option<usize>) {
        let heal = Fault::NetworkHeal {
            host,
            network: None,
        };
        self.push(at, heal);
    }

    fn host_loses_power(&mut self, s: Stroke) {
        self.push(s.at, Fault::HostPowerOff { host: s.host });
        self.push(s.end, Fault::HostPowerOn { host: s.host });
    }

    fn host_pauses(&mut self, s: Stroke) {
        self.push(s.at, Fault::HostPause { host: s.host });
        self.push(s.end, Fault::HostResume { host: s.host });
    }

    fn agent_dies(&mut self, s: Stroke) {
        self.push(s.at, Fault::AgentKill { host: s.host });
        if self.rng.percent(30) {
            let wait = self.rng.below(1500) * MS;
            self.push(s.at + wait, Fault::GuardKill { host: s.host });
        }
    }

    fn guard_dies(&mut self, s: Stroke) {
        self.push(s.at, Fault::GuardKill { host: s.host });
    }

    fn agent_hangs(&mut self, s: Stroke) {
        self.push(s.at, Fault::AgentHang { host: s.host });
        self.push(s.end, Fault::AgentResume { host: s.host });
    }

    fn guard_hangs(&mut self, s: Stroke) {
        self.push(s.at, Fault::GuardHang { host: s.host });
        self.push(s.end, Fault::GuardResume { host: s.host });
    }

    fn host_is_cut_off(&mut self, s: Stroke) {
        if self.rng.percent(25) {
            let (host, network) = (s.host, Some(small(self.rng.below(self.networks as u64))));
            self.push(s.at, Fault::NetworkCut { host, network });
            let host = Some(host);
            self.push(s.end, Fault::NetworkHeal { host, network });
        } else {
            self.cut(s.at, s.end, s.host);
        }
    }

    fn partition(&mut self, s: Stroke) {
        let cut = small(self.rng.between(1, self.hosts.max(2) as u64 - 1));
        let groups = vec![(0..cut).collect(), (cut..self.hosts).collect()];
        self.push(s.at, Fault::NetworkPartition { groups });
        self.heal_all_networks(s.end);
    }

    fn one_way_lost(&mut self, s: Stroke) {
        let (from, to) = (s.host, s.other);
        self.push(s.at, Fault::NetworkDrop { from, to });
        self.heal_networks_of(s.end, Some(s.host));
    }

    /// One host, or now and then everybody.
    fn sufferer(&mut self, host: usize) -> Option<usize> {
        self.rng.percent(80).then_some(host)
    }

    fn messages_lost(&mut self, s: Stroke) {
        let (percent, host) = (self.rng.between(5, 90), self.sufferer(s.host));
        self.push(s.at, Fault::NetworkLoss { percent, host });
        self.heal_networks_of(s.end, host);
    }

    fn messages_late(&mut self, s: Stroke) {
        let (time, host) = (self.rng.between(5, 4000) * MS, self.sufferer(s.host));
        self.push(s.at, Fault::NetworkDelay { time, host });
        self.heal_networks_of(s.end, host);
    }

    fn storage_fails(&mut self, s: Stroke) {
        let datastore = self.disk();
        let host = self.rng.percent(75).then_some(s.host);
        let fault = match self.rng.below(8) {
            0 => StorageFault::Pdl,
            1 => StorageFault::Slow(self.rng.between(10, 4000) * MS),
            2 => StorageFault::ReadOnly,
            3 => StorageFault::Full,
            _ => StorageFault::Apd,
        };
        self.push(
            s.at,
            Fault::Datastore {
                fault,
                datastore,
                host,
            },
        );
        let datastore = Some(datastore);
        self.push(s.end, Fault::DatastoreHeal { datastore, host });
    }

    fn vm_ends(&mut self, s: Stroke) {
        if self.vms == 0 {
            return;
        }
        let vm = self.vm();
        if self.rng.percent(70) {
            self.push(s.at, Fault::VmCrash { vm });
        } else {
            self.push(s.at, Fault::GuestShutdown { vm });
        }
        self.push(s.end, Fault::VmPowerOn { vm, host: None });
    }

    /// Now and then: a guest that hangs writes nothing that could be judged. Somebody ends it after a while.
    fn guest_fails(&mut self, s: Stroke) {
        if self.vms == 0 || self.rng.percent(50) {
            return;
        }
        let vm = self.vm();
        match self.rng.below(3) {
            0 => {
                self.push(s.at, Fault::GuestHang { vm });
                self.push(s.end, Fault::VmCrash { vm });
            }
            1 => self.push(s.at, Fault::GuestPanic { vm }),
            _ => self.push(s.at, Fault::VmOomKill { vm }),
        }
    }

    /// The disk of one VM, on its host: the hypervisor pauses it.
    fn disk_fails(&mut self, s: Stroke) {
        if self.vms == 0 {
            return;
        }
        let vm = self.vm();
        let host = self.rng.percent(30).then_some(s.host);
        self.push(s.at, Fault::VmDiskError { vm, host });
        self.push(s.end, Fault::VmDiskHeal { vm });
    }

    fn user_switches_off(&mut self, s: Stroke) {
        if self.vms == 0 {
            return;
        }
        let vm = self.vm();
        self.push(s.at, Fault::VmPowerOff { vm });
        if self.rng.percent(70) {
            let host = self.rng.percent(30).then_some(s.host);
            self.push(s.end, Fault::VmPowerOn { vm, host });
        }
    }

    /// Within the bound that the settings promise.
    fn clock_drifts(&mut self, s: Stroke) {
        let bound = u64::from(self.settings.timing.clock_drift_ppm);
        let (host, ppm) = (s.host, drift(&mut self.rng, bound));
        self.push(s.at, Fault::ClockDrift { host, ppm });
    }

    /// Alone, or with a host that is cut off, which then has nobody to ask.
    fn gateway_silent(&mut self, s: Stroke) {
        self.push(s.at, Fault::GatewayDown);
        self.push(s.end, Fault::GatewayUp);
        if self.rng.percent(40) {
            self.cut(s.at, s.end, s.host);
        }
    }

    fn starts_fail(&mut self, s: Stroke) {
        if self.vms == 0 {
            return;
        }
        let (vm, times) = (self.vm(), self.rng.between(1, 20));
        let (host, broken) = if self.rng.percent(30) {
            (Some(s.host), None)
        } else {
            (None, Some(vm))
        };
        let fault = Fault::StartFail {
            host,
            vm: broken,
            times,
        };
        self.push(s.at, fault);
        self.push(s.at + SECOND, Fault::VmCrash { vm });
    }

    fn host_shuts_down(&mut self, s: Stroke) {
        if s.at + SLOW_SHUT_DOWN > self.until {
            return;
        }
        self.push(s.at, Fault::HostShutdown { host: s.host });
        let on = s.end.max(s.at + SHUT_DOWN);
        self.push(on, Fault::HostPowerOn { host: s.host });
    }

    fn host_reboots(&mut self, s: Stroke) {
        if s.at + SLOW_SHUT_DOWN > self.until {
            return;
        }
        self.push(s.at, Fault::HostReboot { host: s.host });
    }

    /// Its admin insists, or not; it is refused often, for a seed is seldom well.
    fn drill(&mut self, s: Stroke) {
        let time = (s.end - s.at).max(DRILL);
        if s.at + time > self.until {
            return;
        }
        let (host, insists) = (s.host, self.rng.percent(70));
        let time = Some(time);
        let drill = Fault::HostDrill {
            host,
            time,
            insists,
        };
        self.push(s.at, drill);
        if self.rng.percent(20) {
            self.push(s.at + 10 * SECOND, Fault::AgentKill { host });
        }
    }

    fn restarted_on_purpose(&mut self, s: Stroke) {
        let time = self.rng.between(1, 45) * SECOND;
        // A restart is what an upgrade needs.
        let formats = self.rng.percent(60).then_some(FORMAT_VERSION);
        let host = s.host;
        self.push(
            s.at,
            Fault::AgentRestart {
                host,
                time,
                formats,
            },
        );
    }

    fn maintenance(&mut self, at: Nanos, host: usize, on: bool) {
        let Ok(id) = HostId::new(&format!("host-{}", host + 1)) else {
            return;
        };
        let name = if on {
            "maintenance.enter"
        } else {
            "maintenance.exit"
        };
        let changes = vec![Change::Maintenance { host: id, on }];
        let fault = Fault::Config {
            name,
            changes,
            host: None,
        };
        self.push(at, fault);
    }

    fn host_rests(&mut self, s: Stroke) {
        self.maintenance(s.at, s.host, true);
        self.maintenance(s.end, s.host, false);
    }

    fn set(&mut self, at: Nanos, host: Option<usize>, changes: Vec<Change>) {
        let fault = Fault::Config {
            name: "config.set",
            changes,
            host,
        };
        self.push(at, fault);
    }

    fn monitoring_off(&mut self, s: Stroke) {
        let change = |value: &str| Change::Set {
            key: MONITORING.into(),
            value: value.into(),
        };
        self.set(s.at, None, vec![change("false")]);
        self.set(s.end, None, vec![change("true")]);
    }

    /// The right to run lasts longer for a while, and what must be longer than it; agents that have not
    /// heard of it go on with the shorter times (safety rule H18). Each step keeps the inequalities.
    fn timers_change(&mut self, s: Stroke) {
        let percent = u32::try_from(self.rng.between(105, 200)).unwrap_or(100);
        let host = self.rng.percent(50).then_some(s.host);
        let mut at = s.at;
        for key in RIGHT_TIMERS.iter().rev() {
            let Some(time) = timer(self.settings, key) else {
                continue;
            };
            let value = format!("{}ms", (time * percent / 100).as_millis());
            let key = (*key).into();
            self.set(at, host, vec![Change::Set { key, value }]);
            at += self.rng.between(1000, 3000) * MS;
        }
        let mut at = s.end.max(at + 10 * SECOND);
        for key in RIGHT_TIMERS {
            let back = normal(self.settings, key);
            self.set(at, None, back.into_iter().collect());
            at += self.rng.between(1000, 3000) * MS;
        }
    }

    /// Settings that decide nothing about whether faults end; what a run is judged by, it is judged by as each
    /// agent has it at that time.
    fn setting_changes(&mut self, s: Stroke) {
        const SETTINGS: [(&str, &str); 27] = [
            ("isolation_response", "leave_powered_on"),
            ("isolation_response", "power_off"),
            ("isolation_response", "shut_down"),
            ("host_shutdown", "wait"),
            ("host_shutdown", "restart_elsewhere"),
            ("isolation_policy_delay", "2s"),
            ("concurrent_restarts_per_host", "2"),
            ("heartbeat_datastores_per_host", "1"),
            ("heartbeat_datastores_per_host", "3"),
            ("heartbeat_datastores", "ds-1"),
            ("heartbeat_datastore_policy", "automatic"),
            ("heartbeat_datastore_policy", "prefer"),
            ("heartbeat_datastore_policy", "only"),
            ("isolation_shutdown_timeout", "3s"),
            (ATTEMPTS, "0"),
            (ATTEMPTS, "2"),
            (ATTEMPTS, "9"),
            ("frozen_limit", "10s"),
            ("frozen_limit", "off"),
            ("order_timeout", "8s"),
            ("clock_check_interval", "120s"),
            ("apd_response", "restart_aggressive"),
            ("apd_response", "warn"),
            ("apd_response", "restart_conservative"),
            ("apd_cleared_response", "reset"),
            ("pdl_response", "warn"),
            ("pdl_response", "restart"),
        ];
        let drawn = small(self.rng.below(SETTINGS.len() as u64));
        let Some((key, value)) = SETTINGS.get(drawn) else {
            return;
        };
        let changes = vec![Change::Set {
            key: (*key).into(),
            value: (*value).into(),
        }];
        let fault = Fault::Config {
            name: "config.set",
            changes,
            host: self.rng.percent(50).then_some(s.host),
        };
        self.push(s.at, fault);
    }

    /// Mostly switched on at once, on a host of the user's choice or of the cluster's.
    fn vm_created(&mut self, s: Stroke) {
        if self.created.len() >= CREATED {
            return;
        }
        let (vm, host) = (self.vms, self.rng.percent(50).then_some(s.host));
        let on = self.rng.percent(80);
        self.push(s.at, Fault::VmCreate { vm, host, on });
        self.vms += 1;
        self.created.push(host);
    }

    /// A host is taken out of service, or put back into it, while nobody hears it; now and then its agent
    /// hangs when its network is back.
    fn isolated_host_rests(&mut self, s: Stroke) {
        let isolated = nanos(self.settings.timing.isolation_declare);
        let enter = s.at + self.rng.below(4 * isolated / MS) * MS;
        let exit = enter + self.rng.below(3 * isolated / MS) * MS;
        let heal = s.at + self.rng.between(2, 8) * isolated;
        self.cut(s.at, heal, s.host);
        self.maintenance(enter, s.host, true);
        self.maintenance(exit, s.host, false);
        if self.rng.percent(30) {
            let host = s.host;
            let hang = heal.saturating_sub(self.rng.below(500) * MS);
            self.push(hang, Fault::AgentHang { host });
            let resume = heal + 2 * nanos(self.settings.timing.dead);
            self.push(resume, Fault::AgentResume { host });
        }
    }

    /// Switched off first; deleting what runs is refused.
    fn vm_deleted(&mut self, s: Stroke) {
        if self.vms == 0 {
            return;
        }
        let vm = self.vm();
        if self.rng.percent(80) {
            self.push(s.at, Fault::VmPowerOff { vm });
        }
        self.push(s.end, Fault::VmDelete { vm });
    }

    /// A failover never needs it.
    fn manager_away(&mut self, s: Stroke) {
        self.push(s.at, Fault::ManagerDown);
        self.push(s.end, Fault::ManagerUp);
    }
}
