//! Frames, datagrams, files of lists, sectors.

use super::{datastore, vm};
use crate::CLUSTER;
use crate::agent::{COOKIE, host, receiver};
use crate::wire::small_config;
use mainstay_agent::decoders::{self, Receiver};
use mainstay_core::config::{Change, ClusterConfig, DatastoreSpec, Image, RestartPriority, VmSpec};
use mainstay_core::drill::{DrillMessage, Mark, Marked};
use mainstay_core::event::{IssueCause, StopReason};
use mainstay_core::health::Issue;
use mainstay_core::id::{BootId, Generation, Holder, InstanceId, Nonce, VmId};
use mainstay_core::io::Durable;
use mainstay_core::time::{Duration, Instant};
use mainstay_core::vmcp::{Ability, GivenUp, VmcpMessage};
use mainstay_core::wire::{
    ConfigRecord, Desired, Envelope, Facts, GivenBack, HeartbeatRecord, HostReport, LockRecord,
    MarkerRecord, Message, PoweronFlags, PoweronRecord, ProtectedTable, ProtectedVm, Rank,
    ReportChanges, RoleTag, SessionId, Stamp, StartOrder, StartOutcome, StartResult, VmReport,
    VmReportState,
};
use mainstay_hypervisor::{Counter, GuestTimes, decoders as guest_decoders};

fn stamp() -> Stamp {
    Stamp {
        writer: host(1),
        boot: BootId(0x0123_4567_89ab_cdef),
        instance: InstanceId(3),
        seq: 4,
    }
}

fn spec() -> VmSpec {
    VmSpec {
        id: vm(1),
        datastore: datastore(1),
        cpu_mhz: 2000,
        memory_mb: 4096,
        restart_priority: RestartPriority::High,
        isolation_response: None,
        depends_on: vec![vm(2)],
        guest_agent: true,
    }
}

/// A configuration with something of everything; with addresses and images since version 2.
fn config(places: bool) -> ClusterConfig {
    let mut config = small_config();
    let store = DatastoreSpec {
        id: datastore(1),
        kind: Default::default(),
        fence: Default::default(),
        server: Some("filer".into()),
    };
    config.datastores.insert(datastore(1), store);
    config.settings.set("freeze", "2900ms").expect("a value");
    let on = VmSpec {
        id: vm(2),
        depends_on: Vec::new(),
        ..spec()
    };
    config.vms.extend([(vm(1), spec()), (vm(2), on)]);
    if places {
        let address = "[fd00::1]:7777".parse().expect("an address");
        let on = [("mgmt0".to_owned(), address)].into();
        config.places.hosts.insert(host(1), on);
        config.places.images.insert(vm(1), image());
    }
    config
}

fn image() -> Image {
    Image {
        path: "vm-1/disk.raw".into(),
        driver: Some("qemu".into()),
    }
}

fn changes() -> Vec<Change> {
    vec![
        Change::Set {
            key: "freeze".into(),
            value: "2s".into(),
        },
        Change::Maintenance {
            host: host(1),
            on: true,
        },
        Change::AddVm {
            spec: spec(),
            image: image(),
        },
        Change::RemoveVm(vm(2)),
    ]
}

fn by_datagram() -> Vec<Message> {
    let rank = Rank {
        datastores: 2,
        host: host(1),
    };
    let (instance, nonce) = (InstanceId(3), Nonce(6));
    vec![
        Message::Heartbeat {
            role: RoleTag::Secondary,
            rank: rank.clone(),
            primary: Some(host(3)),
            instance,
        },
        Message::Candidate { rank },
        Message::AskVouch {
            datastore: datastore(1),
            nonce,
        },
        Message::Vouch {
            datastore: datastore(1),
            nonce,
            generation: Generation(9),
        },
        Message::Acknowledge {
            instance,
            of: Some(InstanceId(4)),
            epoch: 1,
            up_to: 7,
            again: true,
        },
        Message::Clock { instance, at: 1 },
    ]
}

fn by_stream() -> Vec<Message> {
    let report = VmReport {
        spec: spec(),
        generation: Generation(5),
        state: VmReportState::Frozen,
    };
    let mark = |at_ms, what| Mark { at_ms, what };
    let facts = Facts {
        level: 2,
        config: 7,
        digest: 8,
        profile: "fast".into(),
        issues: vec![Issue {
            cause: IssueCause::OneNetwork,
            host: Some(host(1)),
            text: "one network".into(),
        }],
    };
    vec![
        Message::Report(HostReport {
            seq: 1,
            cpu_mhz: 4000,
            memory_mb: 8192,
            datastores: vec![datastore(1)],
            vms: vec![report.clone()],
        }),
        Message::Changes(ReportChanges {
            seq: 2,
            cpu_mhz: 4000,
            memory_mb: 8192,
            datastores: None,
            vms: vec![report],
            gone: vec![vm(2)],
        }),
        Message::Start(StartOrder {
            order: 3,
            spec: spec(),
            expected: Generation(5),
            expected_nonce: Nonce(6),
            broken_from: Some(host(2)),
            attempt: 1,
        }),
        Message::Started(StartResult {
            order: 3,
            vm: vm(1),
            outcome: StartOutcome::Failed("no memory".into()),
        }),
        Message::Protected {
            vms: vec![vm(1), vm(2)],
        },
        Message::Propose {
            ticket: 1,
            changes: changes(),
        },
        Message::Proposed {
            ticket: 1,
            outcome: Err("no".into()),
        },
        Message::Config(Box::new(config(false))),
        Message::Config(Box::new(config(true))),
        Message::Facts(Box::new(facts)),
        Message::Drill(Box::new(DrillMessage::Marks {
            host: host(1),
            after: 1,
            marks: vec![
                mark(2900, Marked::Frozen { vm: vm(1) }),
                mark(
                    6000,
                    Marked::Asked {
                        vm: vm(1),
                        host: host(2),
                    },
                ),
            ],
        })),
        Message::Vmcp(Box::new(VmcpMessage::Answer {
            vms: vec![
                (vm(1), Ability::Yes(host(2))),
                (vm(2), Ability::No("no room".into())),
                (vm(3), Ability::Unknown("cut off".into())),
            ],
        })),
        Message::Vmcp(Box::new(VmcpMessage::GivenUp(GivenUp {
            vm: vm(1),
            datastore: datastore(1),
            generation: Generation(5),
            nonce: Nonce(6),
            gone: false,
        }))),
    ]
}

fn framed(messages: Vec<Message>) -> impl Iterator<Item = Vec<u8>> {
    messages.into_iter().map(|m| m.encode(CLUSTER, &stamp()))
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    framed(by_datagram()).chain(framed(by_stream())).collect()
}

/// Without their signatures.
pub(crate) fn datagrams() -> Vec<Vec<u8>> {
    let peers = [host(1), host(3)].into_iter();
    let key = mainstay_agent::config::ClusterKey::new(crate::agent::KEY);
    let mut peer = Receiver::new(&key, CLUSTER, host(2), peers).expect("random numbers");
    let sent = framed(by_datagram()).filter_map(|message| peer.seal(&host(1), &message));
    let mut sent: Vec<Vec<u8>> = sent.collect();
    // And what the receiver answers to somebody who does not know its nonce.
    let first = sent.first().cloned().unwrap_or_default();
    if let decoders::Judged::Answer(challenge) = receiver().open(Instant::ZERO, &first) {
        sent.push(challenge);
    }
    sent.iter().map(|d| without_nonces(d)).collect()
}

/// The body of a datagram with nothing random in it, so that the same seeds are made each time.
fn without_nonces(datagram: &[u8]) -> Vec<u8> {
    let mut body = Receiver::unsigned(datagram).to_vec();
    // Magic, version, kind, cluster, two ids of six bytes, instance and counter stand before the two nonces.
    let at = 4 + 1 + 1 + 8 + 2 * 7 + 2 * 8;
    if let Some(nonces) = body.get_mut(at..at + 16) {
        nonces.fill(1);
    }
    body
}

pub(crate) fn streams() -> Vec<Vec<u8>> {
    let envelope = |number: usize, message| Envelope {
        session: SessionId {
            from: InstanceId(3),
            to: InstanceId(4),
            epoch: 1,
        },
        number: u64::try_from(number).unwrap_or(u64::MAX),
        message,
    };
    let all = by_stream().into_iter().chain([
        Message::ReportWanted,
        Message::Leaving,
        Message::StepDown,
        Message::ConfigVersion { version: 9 },
        Message::CheckLock {
            vm: vm(1),
            datastore: datastore(1),
            generation: Generation(5),
        },
    ]);
    let frames: Vec<Vec<u8>> = all
        .enumerate()
        .map(|(number, message)| {
            let frame = envelope(number + 1, message).encode(CLUSTER, &stamp());
            decoders::to_stream(&frame).expect("a short frame")
        })
        .collect();
    // Three to a stream, so that each seed has something behind its first frame.
    frames.chunks(3).map(|frames| frames.concat()).collect()
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    let lock = |given_back: Option<GivenBack>| LockRecord {
        generation: Generation(5),
        nonce: Nonce(6),
        holder: given_back.is_none().then(|| Holder {
            host: host(1),
            boot: BootId(2),
        }),
        desired: Desired::On,
        freeze: Duration::from_secs(3),
        r#break: Duration::from_millis(4500),
        given_back,
    };
    let given_back = GivenBack {
        host: host(1),
        reason: StopReason::HostShutdown,
    };
    let heartbeat = HeartbeatRecord {
        freeze: Duration::from_secs(3),
        r#break: Duration::from_millis(4500),
    };
    let marker = MarkerRecord {
        datastore: datastore(1),
        epoch: 1,
    };
    let config = |places| ConfigRecord {
        config: Box::new(config(places)),
    };
    vec![
        heartbeat.encode(CLUSTER, &stamp()),
        lock(None).encode(CLUSTER, &stamp()),
        lock(Some(given_back)).encode(CLUSTER, &stamp()),
        marker.encode(CLUSTER, &stamp()),
        config(false).encode(CLUSTER, &stamp()),
        config(true).encode(CLUSTER, &stamp()),
    ]
}

/// Two whole files, and scripts (`records::list`).
pub(crate) fn lists() -> Vec<Vec<u8>> {
    let long = VmId::new(&"v".repeat(60)).expect("an id");
    let poweron = PoweronRecord {
        flags: PoweronFlags {
            isolated: true,
            leaving: false,
        },
        vms: vec![(long.clone(), Generation(7)), (vm(1), Generation(8))],
        unreadable: 0,
    };
    let protected = ProtectedVm {
        vm: vm(1),
        cpu_mhz: 2000,
        memory_mb: 4096,
        restart_priority: RestartPriority::Low,
        last_host: Some(host(2)),
    };
    let mut table = ProtectedTable::new([protected]).0;
    let mut script = vec![0, 1, 1];
    let payload = |generation: u8, id: &str| {
        let mut bytes = vec![generation, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(id.bytes());
        bytes
    };
    let slot = |index: u8, version: u8, kind: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        let head = [0, index, version, kind, 0, length];
        [head.as_slice(), payload].concat()
    };
    let two = payload(9, long.as_str());
    let (first, second) = two.split_at(50);
    script.extend(slot(0, 1, 2, &payload(8, "vm-1")));
    script.extend(slot(1, 1, 1, &[]));
    script.extend(slot(2, 1, 3, first));
    script.extend(slot(3, 1, 4, second));
    let twins = [
        vec![1, 1, 2],
        slot(0, 1, 2, b"\x04vm-1\xd0\x0f\x80\x20\x03\x01\x06host-2"),
        vec![1, 0, 2, 2, 0, 15],
        b"\x04vm-2\xd0\x0f\x80\x20\x03\x00\x00\x00\x00\x00".to_vec(),
    ];
    vec![
        poweron.begin(CLUSTER, &stamp()).1,
        table.file(CLUSTER, &stamp(), 0),
        script,
        twins.concat(),
    ]
}

pub(crate) fn states() -> Vec<Vec<u8>> {
    let state = Durable {
        vm_generations: [((datastore(1), vm(1)), Generation(7))].into(),
        owner_generations: [(datastore(1), Generation(9))].into(),
        wanted_off: [vm(2)].into(),
        last_primary: Some(host(1)),
        asked_down: [(vm(1), StopReason::Isolation)].into(),
    };
    let file = decoders::state_file;
    let kept = |places| decoders::kept_config_file(&config(places));
    let all = [
        file(&state),
        file(&Durable::default()),
        kept(false),
        kept(true),
    ];
    all.into_iter().filter_map(Result::ok).collect()
}

pub(crate) fn guests() -> Vec<Vec<u8>> {
    let counter = |vm: &str| Counter {
        counter: 42,
        generation: 7,
        boottime_ns: 1_000_000_007,
        vm: vm.into(),
    };
    let times = GuestTimes {
        start: std::time::Duration::from_millis(1500),
        shutdown: None,
    };
    let times = guest_decoders::guest_times_sector(&times).unwrap_or_default();
    let sectors = [counter("vm-1"), counter("")].map(|c| guest_decoders::counter_sector(&c));
    sectors.into_iter().chain([times]).collect()
}

/// Answers of ICMP with and without the header of IP, of a datagram, and the tables of routes.
pub(crate) fn pings() -> Vec<Vec<u8>> {
    let reply = |kind: u8| [&[kind, 0, 0, 0, 0, 1, 0, 1][..], &COOKIE].concat();
    let mut with_header = vec![0x45; 20];
    with_header.extend(reply(0));
    let zero = "0".repeat(32);
    let v4 = "Iface\tDestination\tGateway\neth0\t00000000\t0102A8C0\t0003\n";
    let v6 = format!("{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 eth0\n");
    let datagram = [b"MSPA".as_slice(), &COOKIE].concat();
    vec![
        reply(0),
        reply(129),
        with_header,
        datagram,
        v4.into(),
        v6.into(),
    ]
}

pub(crate) fn regions() -> Vec<Vec<u8>> {
    let sectors = mainstay_datastore::decoders::sectors(CLUSTER).into_iter();
    sectors.map(|(_, bytes)| bytes).collect()
}
