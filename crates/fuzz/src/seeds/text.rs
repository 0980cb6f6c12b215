//! TOML, JSON and words.

use super::{datastore, vm};
use crate::agent::host;
use mainstay_agent::control::{Answer, EventLine, Leaving, Pong, Readiness, Request};
use mainstay_core::config::{Change, SETTINGS, Settings, vsphere};
use mainstay_core::drill::{self, Progress};
use mainstay_core::event::{Event, EventKind, StopReason};
use mainstay_core::status::Explanation;
use mainstay_core::time::Instant;
use serde::Serialize;

fn all(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn events() -> Vec<Event> {
    let event = |kind| Event {
        at: Instant::from_nanos(1_500_000_000),
        kind,
        why: "the right to run has lapsed".into(),
    };
    vec![
        event(EventKind::VmFrozen {
            host: host(1),
            vm: vm(1),
            reason: "deadline".into(),
        }),
        event(EventKind::DatastoreOwned {
            host: host(1),
            datastore: datastore(1),
        }),
        event(EventKind::VmStopped {
            host: host(1),
            vm: vm(1),
            reason: StopReason::FrozenLimit,
        }),
    ]
}

pub(crate) fn guard_events() -> Vec<Vec<u8>> {
    let lines: Vec<Vec<u8>> = events().iter().map(line).collect();
    let mut whole = lines.concat();
    whole.extend(b"{\"at\":7}\n{\"at\"");
    lines.into_iter().chain([whole]).collect()
}

pub(crate) fn controls() -> Vec<Vec<u8>> {
    let host = host(1);
    let change = Request::Change {
        changes: vec![
            Change::Set {
                key: "profile".into(),
                value: "fast".into(),
            },
            Change::RemoveHost(host.clone()),
        ],
    };
    let requests = [
        Request::Status,
        Request::Events {
            follow: true,
            last: Some(10),
        },
        Request::ExplainVm { id: vm(1) },
        Request::PowerOn { vm: vm(1) },
        change,
        Request::DrillRun {
            host: host.clone(),
            time_ms: Some(20_000),
            insists: false,
        },
    ];
    let requests = requests.iter().map(line);
    let answers = [
        line(&Answer::Ok(Pong {
            host: host.clone(),
            pid: 1,
            guard_pid: Some(2),
            version: "0.1.0".into(),
        })),
        line(&Answer::Ok(Leaving {
            host: host.clone(),
            ready: true,
        })),
        line(&Answer::Ok(Readiness {
            host: host.clone(),
            ready: false,
            away_ms: 2000,
        })),
        line(&Answer::<()>::Error("the agent is busy".into())),
        line(&Answer::Ok(crate::wire::small_config())),
        line(&Answer::Ok(Explanation {
            subject: "vm-1".into(),
            sentences: vec!["it runs".into()],
            events: events(),
        })),
        line(&Answer::Ok(drill::Answer::Begun { time_ms: 20_000 })),
        line(&Answer::Ok(Progress {
            host,
            for_ms: 10,
            ended: None,
            told: Vec::new(),
            complete: false,
        })),
    ];
    let logged = events().into_iter().take(1).map(|event| {
        line(&Answer::Ok(EventLine {
            n: 1,
            wall: "2026-11-21T10:00:00Z".into(),
            event,
        }))
    });
    requests.chain(answers).chain(logged).collect()
}

pub(crate) fn cluster_files() -> Vec<Vec<u8>> {
    all(&[
        include_str!("text/cluster.toml"),
        include_str!("text/cluster-networks.toml"),
        "cluster_id = \"00000000000000ab\"\n",
    ])
}

pub(crate) fn agent_files() -> Vec<Vec<u8>> {
    all(&[
        include_str!("text/agent.toml"),
        include_str!("text/agent-udp.toml"),
    ])
}

pub(crate) fn fence_files() -> Vec<Vec<u8>> {
    all(&[include_str!("text/fence.toml")])
}

/// Scenarios as they are written by hand, and one as a campaign writes it.
pub(crate) fn scenarios() -> Vec<Vec<u8>> {
    let by_hand = [
        include_str!("../../../../scenarios/nasty/agent-killed.toml"),
        include_str!("../../../../scenarios/nasty/clock-runs-away.toml"),
        include_str!("../../../../scenarios/nasty/mandatory-rules-hold.toml"),
        include_str!("../../../../scenarios/nasty/one-of-two-networks-dies.toml"),
        include_str!("../../../../scenarios/nasty/dependencies-and-many-starts.toml"),
        include_str!("../../../../scenarios/nasty/drill-refused.toml"),
        include_str!("../../../../scenarios/nasty/upgrade-one-agent-at-a-time.toml"),
        include_str!("../../../../scenarios/regress/vm-deleted-while-it-is-being-started.toml"),
        include_str!("../../../../scenarios/vsphere-ha/partition-heals-classic.toml"),
        include_str!("../../../../scenarios/vsphere-ha/isolation-response-of-a-vm.toml"),
    ];
    let written = by_hand
        .last()
        .and_then(|text| mainstay_sim::parse("a.toml", text).ok())
        .map(|scenario| mainstay_sim::to_toml(&scenario).into_bytes());
    all(&by_hand).into_iter().chain(written).collect()
}

pub(crate) fn names() -> Vec<Vec<u8>> {
    let settings = Settings::default();
    let ours = SETTINGS.iter().filter_map(|setting| {
        let value = settings.get(setting.key)?;
        Some(format!("{}={value}\n", setting.key))
    });
    let ours: Vec<String> = ours.collect();
    // Those that have no equal are all alike.
    let equal = vsphere::OPTIONS.iter().filter(|o| !o.keys().is_empty());
    let theirs = equal.map(|option| {
        let name = option.name.replace("[0-9]", "3").replace("[0-10]", "3");
        let value = option.takes();
        // Of "a, b" and of "1 to 9" the first.
        let first = value.split([',', ' ']).next().unwrap_or_default();
        format!("{name}={first}\n")
    });
    let theirs: Vec<String> = theirs.collect();
    let seeds = [
        "das.isolationaddress0=10.0.0.1\ndas.isolationaddress1=fd00::1\ndas.failuredetectiontime=15000\n",
        "300ms\n1.5h\n30s\n2min\n",
        "host-1-hb\nhost-1-poweron\nvm-1.lock.0000000000000077\n",
        "protectedlist.lock.0000000000000003\nprotectedlist.0000000000000003\nprotectedlist.config.0000000000000003.1\n",
        "10.0.0.254\nfd00::1\ntcp://10.0.0.1:22\ntcp://[fd00::1]:22\n",
        "0123456789abcdef0123456789abcdef0123456789ABCDEF0123456789ABCDEF\n",
    ];
    let mut seeds = all(&seeds);
    // As many lines to a seed as are looked at.
    let lines = ours.chunks(8).chain(theirs.chunks(8));
    seeds.extend(lines.map(|lines| lines.concat().into_bytes()));
    seeds
}

pub(crate) fn qmp() -> Vec<Vec<u8>> {
    let greeting = r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"Debian"},"capabilities":["oob"]}}"#;
    let stamp = r#""timestamp":{"seconds":1763700000,"microseconds":7}"#;
    let running = r#"{"return":{"status":"running","singlestep":false,"running":true}}"#;
    let refused = r#"{"error":{"class":"GenericError","desc":"not now"}}"#;
    let shutdown = format!(
        r#"{{{stamp},"event":"SHUTDOWN","data":{{"guest":true,"reason":"guest-shutdown"}}}}"#
    );
    let panicked = format!(r#"{{{stamp},"event":"GUEST_PANICKED","data":{{"action":"pause"}}}}"#);
    let unknown = format!(r#"{{{stamp},"event":"NO_SUCH_EVENT"}}"#);
    let failed = format!(
        r#"{{{stamp},"event":"BLOCK_IO_ERROR","data":{{"device":"disk0","operation":"write","action":"stop","nospace":false,"reason":"Stale file handle"}}}}"#
    );
    let talk = |lines: &[&str]| format!("{}\r\n", lines.join("\r\n")).into_bytes();
    vec![
        talk(&[greeting, r#"{"return":{}}"#, running]),
        talk(&[greeting, r#"{"return":{}}"#, &shutdown, &unknown, running]),
        talk(&[greeting, refused]),
        talk(&[greeting, r#"{"return":{}}"#, refused]),
        talk(&[&panicked]),
        talk(&[r#"{"return":{"status":"shutdown","running":false}}"#]),
        talk(&[&failed]),
    ]
}

pub(crate) fn guest_notes() -> Vec<Vec<u8>> {
    all(&[
        r#"{"driver":"qemu","vm":"vm-1","generation":7,"boot_id":"b","pid":42,"start_time":7,"cgroup":"/sys/fs/cgroup/a","memory":null}"#,
        r#"{"driver":"embedded","vm":"vm-1","generation":7,"boot_id":"b","pid":42,"start_time":7,"cgroup":null}"#,
        r#"{"pid":42,"generation":7,"crashed":"core dumped","kind":"plain"}"#,
        r#"{"pid":42,"generation":7,"crashed":null}"#,
        r#"{"pid":42,"generation":7,"crashed":"killed","kind":"out_of_memory"}"#,
        "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n",
    ])
}
