//! Random clusters and random faults from a seed.
//!
//! Every seed draws which kinds of faults it has and how severe they are: some seeds are calm in all
//! but one respect, some are brutal. Some seeds aim: they play a pattern of faults around the
//! profile's own times, because an interleaving that needs three things within one window is never
//! met by chance. Faults end some minutes before the run does, and then liveness is demanded.

mod aim;

use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{
    CLUSTER, DatastoreSetup, Fault, HostSetup, Planned, Scenario, StorageFault, VmSetup, Weather,
};
use mainstay_core::config::{
    ClusterConfig, DatastoreKind, DatastoreSpec, FenceClass, HostSpec, IsolationResponse, Profile,
    RestartPriority, Settings, VmSpec,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::rng::Rng;
use mainstay_core::time::{Duration, nanos};
use std::collections::BTreeSet;

/// What a campaign fixes; the rest is drawn.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The profile.
    pub profile: Option<String>,
    /// Hosts.
    pub hosts: Option<usize>,
    /// VMs.
    pub vms: Option<usize>,
    /// Virtual minutes.
    pub minutes: Option<u64>,
}

/// How many of a hundred seeds are bare: no image lock stands in for the protocol, VMs start at
/// once, the guard takes all the time that the inequality of section 4 leaves it. A hole that is
/// only narrow elsewhere is wide there.
const BARE: u64 = 30;

/// Times after which liveness is demanded when the last fault is over: longer than an election, a
/// verdict, a lock's `break`, the retries that a campaign allows and an order's patience together.
fn quiet_time(settings: &Settings) -> Nanos {
    let t = &settings.timing;
    let retries: Nanos = settings
        .restart_retry_delays
        .iter()
        .map(|d| nanos(*d))
        .sum();
    let election = nanos(t.election_start) + 2 * nanos(t.election) + nanos(t.elected_to_restart);
    let verdict = nanos(t.dead) + 3 * nanos(t.r#break);
    2 * (election + verdict) + retries + 2 * nanos(settings.order_timeout) + 40 * SECOND
}

struct Drawing<'a> {
    rng: Rng,
    hosts: usize,
    vms: usize,
    datastores: usize,
    settings: &'a Settings,
    /// Faults begin before this.
    until: Nanos,
    events: Vec<Planned>,
    drift: i64,
}

/// The scenario of a seed.
#[must_use]
pub fn draw(seed: u64, limits: &Limits) -> Scenario {
    let root = Rng::new(seed).fork("campaign");
    let mut rng = root.fork("cluster");
    let bare = root.fork("bare").percent(BARE);
    let settings = settings(&mut rng, limits, bare);
    let duration = limits.minutes.unwrap_or(10) * 60 * SECOND;
    let hosts = limits.hosts.unwrap_or_else(|| small(rng.between(3, 8)));
    let datastores = small(rng.between(1, 3));
    let vms = limits.vms.unwrap_or_else(|| small(rng.between(1, 20)));
    let quiet = quiet_time(&settings);
    let until = duration.saturating_sub(quiet).max(duration / 10);
    let mut drawing = Drawing {
        rng: root.fork("faults"),
        hosts,
        vms,
        datastores,
        drift: i64::from(settings.timing.clock_drift_ppm),
        settings: &settings,
        until: until * 9 / 10,
        events: Vec::new(),
    };
    drawing.draw();
    let mut events = std::mem::take(&mut drawing.events);
    heal(&mut events, until, hosts);
    events.sort_by_key(|e| e.at);
    let mut weather = weather(&mut root.fork("weather"), &settings, until);
    if bare {
        weather.guard_slow = 100;
    }
    let config = cluster(&mut rng, &settings, hosts, datastores, vms);
    let setups = host_setups(&mut rng, &config, &settings);
    let vm_setups = (1..=vms)
        .filter_map(|n| VmId::new(&format!("vm-{n}")).ok())
        .map(|id| VmSetup {
            id,
            host: None,
            on: rng.percent(95),
            start_time: if bare {
                rng.between(20, 100) * MS
            } else {
                rng.between(100, 3000) * MS
            },
            shutdown_time: (!rng.percent(10)).then(|| rng.between(500, 8000) * MS),
        })
        .collect();
    let setups_of_disks = config
        .datastores
        .keys()
        .map(|id| {
            let image_locks = !bare && rng.percent(80);
            let expiry = if rng.percent(70) {
                0
            } else {
                rng.between(1, 30) * SECOND
            };
            DatastoreSetup {
                id: id.clone(),
                image_locks,
                image_lock_expiry: expiry,
            }
        })
        .collect();
    Scenario {
        name: format!("campaign seed {seed}, {}", settings.profile.name()),
        source: None,
        duration,
        seed,
        config,
        networks: vec!["mgmt0".into(), "mgmt1".into()],
        hosts: setups,
        vms: vm_setups,
        datastores: setups_of_disks,
        events,
        expects: Vec::new(),
        weather,
        created: std::collections::BTreeMap::new(),
        liveness: until + quiet / 2 <= duration,
    }
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The longest time, in whole milliseconds, that the first inequality leaves the guard.
fn room_for_the_guard(settings: &Settings) -> Duration {
    let t = &settings.timing;
    let room = t.guard_latency + t.margin().saturating_sub(Duration::from_millis(1));
    Duration::from_nanos(nanos(room) / MS * MS)
}

fn settings(rng: &mut Rng, limits: &Limits, bare: bool) -> Settings {
    let drawn = match rng.below(4) {
        0 => Profile::Classic,
        1 | 2 => Profile::Balanced,
        _ => Profile::Fast,
    };
    let profile = limits
        .profile
        .as_deref()
        .and_then(Profile::from_name)
        .unwrap_or(drawn);
    let mut settings = Settings::of(profile);
    let s = Duration::from_secs;
    settings.restart_retry_delays = vec![s(2), s(4), s(8)];
    settings.order_timeout = s(15);
    settings.heartbeat_datastores_per_host = [0, 1, 2, 2, 2]
        .get(small(rng.below(5)))
        .copied()
        .unwrap_or(2);
    if bare {
        settings.timing.guard_latency = room_for_the_guard(&settings);
        settings.heartbeat_datastores_per_host = u32::from(rng.percent(30));
    }
    settings.isolation_response = response(rng);
    settings.isolation_shutdown_timeout = s(rng.between(2, 20));
    if rng.percent(15) {
        settings.frozen_limit = Some(s(rng.between(5, 60)));
    }
    settings
}

fn response(rng: &mut Rng) -> IsolationResponse {
    match rng.below(3) {
        0 => IsolationResponse::LeavePoweredOn,
        1 => IsolationResponse::PowerOff,
        _ => IsolationResponse::ShutDown,
    }
}

fn cluster(
    rng: &mut Rng,
    settings: &Settings,
    hosts: usize,
    datastores: usize,
    vms: usize,
) -> ClusterConfig {
    let disks: Vec<DatastoreId> = (1..=datastores)
        .filter_map(|n| DatastoreId::new(&format!("ds-{n}")).ok())
        .collect();
    let disk_specs = disks
        .iter()
        .map(|id| DatastoreSpec {
            id: id.clone(),
            kind: if rng.percent(30) {
                DatastoreKind::Block
            } else {
                DatastoreKind::File
            },
            fence: if rng.percent(90) {
                FenceClass::Enforced
            } else {
                FenceClass::Open
            },
            server: None,
        })
        .collect();
    let everywhere = rng.percent(70);
    let host_specs = (1..=hosts)
        .filter_map(|n| HostId::new(&format!("host-{n}")).ok())
        .map(|id| {
            let mut mounts: BTreeSet<DatastoreId> = disks
                .iter()
                .filter(|_| everywhere || rng.percent(80))
                .cloned()
                .collect();
            // The first is mounted by all: every VM can start somewhere. Every other host mounts all,
            // so that the first primary does: a primary owns only what it mounts.
            let all = mounts_all(&id);
            mounts.extend(
                disks
                    .iter()
                    .take(if all { disks.len() } else { 1 })
                    .cloned(),
            );
            HostSpec {
                id,
                cpu_mhz: 40_000,
                memory_mb: 65_536,
                datastores: mounts,
                maintenance: false,
            }
        })
        .collect::<Vec<_>>();
    let mounted = |d: &DatastoreId| {
        host_specs
            .iter()
            .filter(|h| h.datastores.contains(d))
            .count()
            > 1
    };
    let usable: Vec<DatastoreId> = disks.iter().filter(|d| mounted(d)).cloned().collect();
    let vm_specs = (1..=vms)
        .filter_map(|n| VmId::new(&format!("vm-{n}")).ok())
        .filter_map(|id| {
            let datastore = usable.get(small(rng.below(usable.len() as u64)))?.clone();
            let priorities = [
                RestartPriority::High,
                RestartPriority::Medium,
                RestartPriority::Low,
            ];
            Some(VmSpec {
                id,
                datastore,
                cpu_mhz: 500,
                memory_mb: rng.between(1, 4) * 512,
                restart_priority: priorities
                    .get(small(rng.below(3)))
                    .copied()
                    .unwrap_or_default(),
                isolation_response: rng.percent(30).then(|| response(rng)),
                depends_on: Vec::new(),
                guest_agent: rng.percent(80),
            })
        })
        .collect();
    let config = ClusterConfig::new(
        CLUSTER,
        settings.clone(),
        host_specs,
        disk_specs,
        vm_specs,
        Vec::new(),
    );
    config.expect("a drawn cluster has sound names and a profile's timers")
}

/// True for hosts with an odd last digit.
fn mounts_all(id: &HostId) -> bool {
    id.as_str().bytes().last().is_some_and(|b| b % 2 == 1)
}

fn host_setups(rng: &mut Rng, config: &ClusterConfig, settings: &Settings) -> Vec<HostSetup> {
    let bound = u64::from(settings.timing.clock_drift_ppm);
    let two_networks = rng.percent(30);
    config
        .hosts
        .keys()
        .map(|id| HostSetup {
            id: id.clone(),
            networks: if two_networks { vec![0, 1] } else { vec![0] },
            boot_time: rng.between(2, 40) * SECOND,
            ppm: drift(rng, bound),
        })
        .collect()
}

fn drift(rng: &mut Rng, bound: u64) -> i64 {
    let size = i64::try_from(rng.between(0, bound)).unwrap_or(0);
    if rng.percent(50) { size } else { -size }
}

/// How bad it is all the time: each respect is off, mild or brutal.
fn weather(rng: &mut Rng, settings: &Settings, until: Nanos) -> Weather {
    let mut level = |mild: u64, brutal: u64| match rng.below(10) {
        0..=5 => 0,
        6..=8 => mild,
        _ => brutal,
    };
    let freeze = nanos(settings.timing.freeze) / MS;
    let mut weather = Weather {
        loss: level(10, 200),
        duplication: level(10, 100),
        delay: level(10, 200),
        delay_ms: 0,
        stall: level(5, 60),
        stall_ms: 0,
        lost_ack: level(5, 80),
        late_effect: level(20, 70),
        late_ms: 0,
        not_done: level(5, 50),
        patience_ms: 0,
        guard_slow: 0,
        until_ms: until / MS,
    };
    weather.delay_ms = rng.between(5, 3000);
    weather.stall_ms = rng.between(50, freeze * 3 / 2);
    weather.late_ms = rng.between(100, freeze * 4);
    weather.patience_ms = if rng.percent(70) {
        0
    } else {
        rng.between(500, 20_000)
    };
    weather.guard_slow = if rng.percent(50) {
        0
    } else {
        rng.between(10, 100)
    };
    weather
}

/// Everything is well again from `until` on.
fn heal(events: &mut Vec<Planned>, until: Nanos, hosts: usize) {
    events.retain(|e| e.at < until);
    let mut add = |wait: u64, fault| {
        events.push(Planned {
            at: until + wait * MS,
            fault,
        })
    };
    add(
        0,
        Fault::NetworkHeal {
            host: None,
            network: None,
        },
    );
    add(0, Fault::GatewayUp);
    add(
        1,
        Fault::DatastoreHeal {
            datastore: None,
            host: None,
        },
    );
    for host in 0..hosts {
        add(
            2,
            Fault::StartFail {
                host: Some(host),
                vm: None,
                times: 0,
            },
        );
        add(3, Fault::HostResume { host });
        add(4, Fault::AgentResume { host });
        add(5, Fault::GuardResume { host });
        add(6, Fault::HostPowerOn { host });
    }
}

impl Drawing<'_> {
    fn draw(&mut self) {
        // Swarm: which kinds of faults this seed has.
        let kinds: Vec<u64> = (0..14).filter(|_| self.rng.percent(30)).collect();
        let mut at = self.rng.between(1, 20) * SECOND;
        let pace = self.rng.between(3, 60);
        while at < self.until && !kinds.is_empty() {
            let kind = kinds
                .get(small(self.rng.below(kinds.len() as u64)))
                .copied()
                .unwrap_or(0);
            self.fault(kind, at);
            at += self.rng.between(500, pace * 2000) * MS;
        }
        if self.rng.percent(60) {
            self.aim();
        }
    }

    fn push(&mut self, at: Nanos, fault: Fault) {
        // Scenarios are written in whole milliseconds.
        let at = at / MS * MS;
        self.events.push(Planned { at, fault });
    }

    fn host(&mut self) -> usize {
        small(self.rng.below(self.hosts as u64))
    }

    fn vm(&mut self) -> usize {
        small(self.rng.below(self.vms as u64))
    }

    fn disk(&mut self) -> usize {
        small(self.rng.below(self.datastores as u64))
    }

    /// A length around the times at which the protocol decides.
    fn length(&mut self) -> Nanos {
        let t = &self.settings.timing;
        let marks = [
            t.freeze,
            t.r#break,
            t.dead,
            t.election_start,
            t.unreachable,
            t.datastore_heartbeat,
        ];
        let mark = marks
            .get(small(self.rng.below(6)))
            .copied()
            .map_or(SECOND, nanos);
        match self.rng.below(3) {
            0 => mark * self.rng.between(80, 130) / 100,
            1 => mark * self.rng.between(10, 300) / 100,
            _ => self.rng.between(100, 60_000) * MS,
        }
    }

    fn fault(&mut self, kind: u64, at: Nanos) {
        let (host, other, length) = (self.host(), self.host(), self.length());
        let end = at + length;
        match kind {
            0 => {
                self.push(at, Fault::HostPowerOff { host });
                self.push(end, Fault::HostPowerOn { host });
            }
            1 => {
                self.push(at, Fault::HostPause { host });
                self.push(end, Fault::HostResume { host });
            }
            2 => {
                self.push(at, Fault::AgentKill { host });
                if self.rng.percent(30) {
                    let wait = self.rng.below(1500) * MS;
                    self.push(at + wait, Fault::GuardKill { host });
                }
            }
            3 => self.push(at, Fault::GuardKill { host }),
            4 => {
                self.push(at, Fault::AgentHang { host });
                self.push(end, Fault::AgentResume { host });
            }
            5 => {
                self.push(at, Fault::GuardHang { host });
                self.push(end, Fault::GuardResume { host });
            }
            6 => self.cut(at, end, host),
            7 => {
                let cut = small(self.rng.between(1, self.hosts.max(2) as u64 - 1));
                let groups = vec![(0..cut).collect(), (cut..self.hosts).collect()];
                self.push(at, Fault::NetworkPartition { groups });
                self.push(
                    end,
                    Fault::NetworkHeal {
                        host: None,
                        network: None,
                    },
                );
            }
            8 => {
                self.push(
                    at,
                    Fault::NetworkDrop {
                        from: host,
                        to: other,
                    },
                );
                self.push(
                    end,
                    Fault::NetworkHeal {
                        host: Some(host),
                        network: None,
                    },
                );
            }
            9 => {
                let percent = self.rng.between(5, 90);
                self.push(
                    at,
                    Fault::NetworkLoss {
                        percent,
                        host: Some(host),
                    },
                );
                self.push(
                    end,
                    Fault::NetworkHeal {
                        host: Some(host),
                        network: None,
                    },
                );
            }
            10 => {
                let datastore = self.disk();
                let host = self.rng.percent(75).then_some(host);
                let fault = match self.rng.below(8) {
                    0 => StorageFault::Pdl,
                    1 => StorageFault::Slow(self.rng.between(10, 4000) * MS),
                    2 => StorageFault::ReadOnly,
                    3 => StorageFault::Full,
                    _ => StorageFault::Apd,
                };
                self.push(
                    at,
                    Fault::Datastore {
                        fault,
                        datastore,
                        host,
                    },
                );
                self.push(
                    end,
                    Fault::DatastoreHeal {
                        datastore: Some(datastore),
                        host,
                    },
                );
            }
            11 if self.vms > 0 => {
                let vm = self.vm();
                let fault = if self.rng.percent(70) {
                    Fault::VmCrash { vm }
                } else {
                    Fault::GuestShutdown { vm }
                };
                self.push(at, fault);
                self.push(end, Fault::VmPowerOn { vm, host: None });
            }
            12 if self.vms > 0 => {
                let vm = self.vm();
                self.push(at, Fault::VmPowerOff { vm });
                if self.rng.percent(70) {
                    let host = self.rng.percent(30).then_some(host);
                    self.push(end, Fault::VmPowerOn { vm, host });
                }
            }
            13 => {
                let bound = u64::try_from(self.drift).unwrap_or(0);
                let ppm = drift(&mut self.rng, bound);
                self.push(at, Fault::ClockDrift { host, ppm });
                if self.rng.percent(30) {
                    self.push(at, Fault::GatewayDown);
                    self.push(end, Fault::GatewayUp);
                }
                if self.vms > 0 && self.rng.percent(30) {
                    let (vm, times) = (self.vm(), self.rng.between(1, 20));
                    self.push(
                        at,
                        Fault::StartFail {
                            host: None,
                            vm: Some(vm),
                            times,
                        },
                    );
                    self.push(at + SECOND, Fault::VmCrash { vm });
                }
            }
            _ => {}
        }
    }
}
