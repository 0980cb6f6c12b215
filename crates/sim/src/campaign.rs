//! Random clusters and random faults from a seed.
//!
//! Every seed draws which kinds of faults it has and how severe they are: some seeds are calm in all
//! but one respect, some are brutal. Some seeds aim: they play a pattern of faults around the
//! profile's own times, because an interleaving that needs three things within one window is never
//! met by chance. Faults end some minutes before the run does, and then liveness is demanded.
//!
//! A new kind of fault is one line in the table of `kinds.rs`, a new pattern one in that of `aim.rs`.

mod aim;
mod drawing;
mod fences;
mod kinds;
mod rules;

use crate::clock::{MS, Nanos, SECOND};
use crate::scenario::{
    CLUSTER, DatastoreSetup, Fault, HostSetup, Planned, Scenario, VmSetup, Weather,
};
use drawing::Drawing;
use mainstay_core::config::{
    Change, ClusterConfig, DatastoreKind, DatastoreSpec, FenceClass, HostSpec, IsolationResponse,
    Profile, RestartPriority, Settings, VmSpec,
};
use mainstay_core::id::{DatastoreId, HostId, VmId};
use mainstay_core::rng::Rng;
use mainstay_core::time::{Duration, nanos};
use mainstay_core::wire::{FORMAT_VERSION, OLDEST_VERSION};
use std::collections::{BTreeMap, BTreeSet};

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
const BARE: u64 = 35;

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
    let orders = 2 * nanos(settings.order_timeout) + nanos(settings.dependency_timeout);
    2 * (election + verdict) + retries + orders + 40 * SECOND
}

/// Virtual minutes of a run when nothing else is said: faults for three quarters of it, whatever the profile.
pub const MINUTES: u64 = 20;

/// What a seed stands for.
#[derive(Clone, PartialEq, Debug)]
pub struct Drawn {
    /// The scenario.
    pub scenario: Scenario,
    /// The kinds of faults that the seed may have, by their names in `kinds.rs`.
    pub kinds: Vec<&'static str>,
    /// The patterns that it aims, by their names in [`patterns`], and how often each is played.
    pub patterns: BTreeMap<&'static str, u64>,
}

/// Names of all kinds of faults that a seed may have.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    Drawing::KINDS.iter().map(|(name, _)| *name)
}

/// Names of all patterns that a seed may aim.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    Drawing::PATTERNS.iter().map(|(name, _)| *name)
}

/// The scenario of a seed.
#[must_use]
pub fn draw(seed: u64, limits: &Limits) -> Scenario {
    draw_all(seed, limits).scenario
}

/// Small clusters are most: an interleaving of few is met more often, and a run costs less. Every
/// protocol of many (reports, elections, ownership) still gets clusters of twice the usual size.
fn draw_hosts(rng: &mut Rng) -> usize {
    small(if rng.percent(60) {
        rng.between(3, 8)
    } else {
        rng.between(9, 16)
    })
}

/// The scenario of a seed, and what it was made of.
#[must_use]
pub fn draw_all(seed: u64, limits: &Limits) -> Drawn {
    let root = Rng::new(seed).fork("campaign");
    let mut rng = root.fork("cluster");
    let bare = root.fork("bare").percent(BARE);
    let mut settings = settings(&mut rng, limits, bare);
    let mut fence_rng = root.fork("fences");
    let fenced = fences::settings(&mut fence_rng, &mut settings);
    let duration = limits.minutes.unwrap_or(MINUTES) * 60 * SECOND;
    let hosts = limits.hosts.unwrap_or_else(|| draw_hosts(&mut rng));
    let networks = if root.fork("networks").percent(30) {
        2
    } else {
        1
    };
    let datastores = small(rng.between(1, 3));
    let most = if hosts > 8 { 30 } else { 20 };
    let vms = limits.vms.unwrap_or_else(|| small(rng.between(1, most)));
    let quiet = quiet_time(&settings);
    let until = duration.saturating_sub(quiet).max(duration / 10);
    let (mut weather, given_up_lands) = weather(&mut root.fork("weather"), &settings, until);
    let mut drawing = Drawing {
        rng: root.fork("faults"),
        given_up_lands,
        hosts,
        vms,
        created: Vec::new(),
        datastores,
        networks,
        settings: &settings,
        until: until * 9 / 10,
        events: Vec::new(),
        kinds: Vec::new(),
        patterns: BTreeMap::new(),
    };
    drawing.draw();
    let mut events = std::mem::take(&mut drawing.events);
    let (kinds, patterns) = (drawing.kinds, drawing.patterns);
    let made = drawing.created;
    let devices = match fenced {
        true => fences::devices(&mut fence_rng, hosts),
        false => Vec::new(),
    };
    heal(&mut events, until, &settings, hosts);
    events.extend(fences::faults(&mut fence_rng, &devices, until));
    events.sort_by_key(|e| e.at);
    if bare {
        weather.guard_slow = 100;
    }
    let mut config = cluster(&mut rng, &settings, hosts, datastores, vms);
    for spec in config.hosts.values_mut() {
        spec.networks = (0..networks).map(|n| format!("mgmt{n}")).collect();
    }
    config.rules = rules::rules(&mut root.fork("rules"), &config);
    let setups = host_setups(&mut rng, &config, &settings, networks);
    let mut vm_setups: Vec<VmSetup> = (1..=vms)
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
    let mut created = BTreeMap::new();
    for (n, host) in made.into_iter().enumerate() {
        let Ok(id) = VmId::new(&format!("vm-{}", vms + n + 1)) else {
            continue;
        };
        vm_setups.push(VmSetup {
            id: id.clone(),
            host,
            on: false,
            start_time: rng.between(100, 3000) * MS,
            shutdown_time: Some(rng.between(500, 8000) * MS),
        });
        created.extend(created_vm(&mut rng, &config, &id).map(|spec| (id, spec)));
    }
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
    let scenario = Scenario {
        name: format!("campaign seed {seed}, {}", settings.profile.name()),
        source: None,
        duration,
        seed,
        config,
        networks: (0..networks).map(|n| format!("mgmt{n}")).collect(),
        hosts: setups,
        vms: vm_setups,
        datastores: setups_of_disks,
        fences: devices,
        events,
        expects: Vec::new(),
        weather,
        created,
        liveness: until + quiet / 2 <= duration,
    };
    Drawn {
        scenario,
        kinds,
        patterns,
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
    settings.dependency_timeout = s(rng.between(5, 20));
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
    settings.accept_late_writes = rng.percent(5);
    if rng.percent(15) {
        settings.frozen_limit = Some(s(rng.between(5, 60)));
    }
    settings
}

fn response(rng: &mut Rng) -> IsolationResponse {
    // As it is by default, mostly: a VM that is switched off cannot run twice.
    match rng.below(4) {
        0 | 1 => IsolationResponse::LeavePoweredOn,
        2 => IsolationResponse::PowerOff,
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
            // Where late writes are accepted, nothing can be demanded of an open datastore.
            fence: if settings.accept_late_writes || rng.percent(90) {
                FenceClass::Enforced
            } else {
                FenceClass::Open
            },
            server: None,
        })
        .collect();
    let memory_mb = host_memory(rng, hosts, vms);
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
                memory_mb,
                datastores: mounts,
                maintenance: false,
                networks: Default::default(),
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
        .filter_map(|n| Some((n, VmId::new(&format!("vm-{n}")).ok()?)))
        .filter_map(|(n, id)| {
            let datastore = usable.get(small(rng.below(usable.len() as u64)))?.clone();
            let restart_priority = match rng.below(20) {
                0 => RestartPriority::Disabled,
                1..=6 => RestartPriority::High,
                7..=13 => RestartPriority::Medium,
                _ => RestartPriority::Low,
            };
            Some(VmSpec {
                id,
                datastore,
                cpu_mhz: 500,
                memory_mb: rng.between(1, 4) * 512,
                restart_priority,
                isolation_response: rng.percent(30).then(|| response(rng)),
                depends_on: earlier(rng, n),
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

/// A VM that a user creates while the cluster runs, on the datastore that all hosts mount.
fn created_vm(rng: &mut Rng, config: &ClusterConfig, id: &VmId) -> Option<VmSpec> {
    Some(VmSpec {
        id: id.clone(),
        datastore: config.datastores.keys().next()?.clone(),
        cpu_mhz: 500,
        memory_mb: 512,
        restart_priority: RestartPriority::Medium,
        isolation_response: rng.percent(30).then(|| response(rng)),
        depends_on: Vec::new(),
        guest_agent: rng.percent(80),
    })
}

/// What a VM depends on: mostly nothing, else a VM with a lower number.
fn earlier(rng: &mut Rng, n: usize) -> Vec<VmId> {
    if n < 2 || !rng.percent(15) {
        return Vec::new();
    }
    let on = rng.between(1, n as u64 - 1);
    VmId::new(&format!("vm-{on}")).into_iter().collect()
}

/// How many of a hundred seeds have hosts that are nearly full.
const TIGHT: u64 = 15;

/// Memory of each host: plenty, or so little that what one loses does not always fit elsewhere. The
/// largest VM fits into an empty host.
fn host_memory(rng: &mut Rng, hosts: usize, vms: usize) -> u64 {
    if !rng.percent(TIGHT) {
        return 65_536;
    }
    // VMs have 512 to 2,048 MB.
    let all = vms as u64 * 1280 * rng.between(100, 160) / 100;
    (all / hosts.max(1) as u64).max(2048)
}

/// True for hosts with an odd last digit.
fn mounts_all(id: &HostId) -> bool {
    id.as_str().bytes().last().is_some_and(|b| b % 2 == 1)
}

fn host_setups(
    rng: &mut Rng,
    config: &ClusterConfig,
    settings: &Settings,
    networks: usize,
) -> Vec<HostSetup> {
    let bound = u64::from(settings.timing.clock_drift_ppm);
    // One campaign in eight is in the middle of an upgrade.
    let mixed = rng.percent(12);
    config
        .hosts
        .keys()
        .map(|id| HostSetup {
            id: id.clone(),
            networks: (0..networks).collect(),
            boot_time: rng.between(2, 40) * SECOND,
            ppm: drift(rng, bound),
            formats: if mixed && rng.percent(40) {
                OLDEST_VERSION
            } else {
                FORMAT_VERSION
            },
        })
        .collect()
}

fn drift(rng: &mut Rng, bound: u64) -> i64 {
    let size = i64::try_from(rng.between(0, bound)).unwrap_or(0);
    if rng.percent(50) { size } else { -size }
}

/// How bad it is all the time: each respect is off, mild or brutal. And whether what was given up lands after
/// all, often, and when others have gone on.
fn weather(rng: &mut Rng, settings: &Settings, until: Nanos) -> (Weather, bool) {
    let mut level = |mild: u64, brutal: u64| match rng.below(10) {
        0..=5 => 0,
        6..=8 => mild,
        _ => brutal,
    };
    let freeze = nanos(settings.timing.freeze) / MS;
    let mut weather = Weather {
        loss: level(10, 200),
        duplication: level(10, 100),
        reset: level(10, 100),
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
    let given_up_lands = rng.percent(15);
    if given_up_lands {
        (weather.lost_ack, weather.late_effect) = (200, 70);
        weather.late_ms = rng.between(5_000, 45_000);
    }
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
    (weather, given_up_lands)
}

/// Whoever entered maintenance leaves it, and what liveness is judged by is set as it was.
fn back_to_normal(events: &mut Vec<Planned>, until: Nanos, settings: &Settings) {
    let mut back: Vec<(&'static str, Vec<Change>)> = Vec::new();
    for planned in events.iter() {
        let Fault::Config { name, changes, .. } = &planned.fault else {
            continue;
        };
        let undo = |change: &Change| match change {
            Change::Maintenance { host, on: true } => {
                let host = host.clone();
                Some(Change::Maintenance { host, on: false })
            }
            Change::Set { key, .. } => kinds::normal(settings, key),
            _ => None,
        };
        let undone: Vec<Change> = changes.iter().filter_map(undo).collect();
        let name = if *name == "maintenance.enter" {
            "maintenance.exit"
        } else {
            "config.set"
        };
        let known = back.iter().any(|(_, changes)| *changes == undone);
        if !undone.is_empty() && !known {
            back.push((name, undone));
        }
    }
    // The longest timer was made longer first, and is made shorter last.
    for (wait, (name, changes)) in (0..).zip(back.into_iter().rev()) {
        let fault = Fault::Config {
            name,
            changes,
            host: None,
        };
        let at = until + SECOND + wait * MS;
        events.push(Planned { at, fault });
    }
}

/// Everything is well again from `until` on.
fn heal(events: &mut Vec<Planned>, until: Nanos, settings: &Settings, hosts: usize) {
    events.retain(|e| e.at < until);
    back_to_normal(events, until, settings);
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
        // An operating system that was shutting down is off by then.
        add(6000, Fault::HostPowerOn { host });
    }
}

#[cfg(test)]
mod tests;
