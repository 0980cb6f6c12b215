//! The bytes of each kind, as the agents of a version write them: a change of these is a change of the
//! format, which needs a new version (decision 0007).

use super::*;
use crate::config::{Change, ClusterConfig, HostSpec, Image, Profile, Settings};
use crate::drill::{DrillMessage, Mark, Marked};
use crate::event::IssueCause;
use crate::health::Issue;
use crate::id::{BootId, Generation, Holder, HostId, InstanceId, Nonce};
use crate::time::Duration;
use crate::vmcp::{Ability, GivenUp, VmcpMessage};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

fn host(n: u8) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

fn stamp() -> Stamp {
    Stamp {
        writer: host(1),
        boot: BootId(2),
        instance: InstanceId(3),
        seq: 4,
    }
}

fn lock(given_back: Option<GivenBack>) -> LockRecord {
    LockRecord {
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
    }
}

fn given_back() -> LockRecord {
    lock(Some(GivenBack {
        host: host(1),
        reason: crate::event::StopReason::HostShutdown,
    }))
}

fn heartbeat() -> HeartbeatRecord {
    HeartbeatRecord {
        freeze: Duration::from_secs(3),
        r#break: Duration::from_millis(4500),
    }
}

fn hello() -> Message {
    Message::Heartbeat {
        role: RoleTag::Secondary,
        rank: Rank {
            datastores: 2,
            host: host(1),
        },
        primary: Some(host(9)),
        instance: InstanceId(3),
    }
}

/// A drill that has begun, and one of the messages that have the most in them.
fn drills() -> [Message; 2] {
    let vm = crate::id::VmId::new("vm-1").expect("id");
    let mark = |at_ms, what| Mark { at_ms, what };
    let marks = [
        mark(2900, Marked::Frozen { vm: vm.clone() }),
        mark(6000, Marked::Asked { vm, host: host(2) }),
    ];
    [
        DrillMessage::Begun {
            drill: 7,
            time_ms: 22_000,
        },
        DrillMessage::Marks {
            host: host(1),
            after: 1,
            marks: marks.into(),
        },
    ]
    .map(|what| Message::Drill(Box::new(what)))
}

fn facts() -> Message {
    Message::Facts(Box::new(Facts {
        level: 2,
        config: 7,
        digest: 8,
        profile: String::from("fast"),
        issues: [Issue {
            cause: IssueCause::OneNetwork,
            host: Some(host(1)),
            text: String::from("x"),
        }]
        .into(),
    }))
}

/// A small configuration; with places since version 2.
fn config(places: bool) -> ClusterConfig {
    let spec = HostSpec {
        id: host(1),
        cpu_mhz: 1,
        memory_mb: 2,
        datastores: Default::default(),
        maintenance: false,
        networks: Default::default(),
    };
    let settings = Settings::of(Profile::Balanced);
    let mut config =
        ClusterConfig::new(9, settings, [spec].into(), [].into(), [].into(), [].into())
            .expect("sound");
    if places {
        let address = "10.0.0.1:7".parse().expect("address");
        let on = [(String::from("m"), address)].into();
        config.places.hosts.insert(host(1), on);
        let image = Image {
            path: String::from("i"),
            driver: None,
        };
        let vm = crate::id::VmId::new("vm-1").expect("id");
        config.places.images.insert(vm, image);
    }
    config
}

fn config_record(places: bool) -> ConfigRecord {
    ConfigRecord {
        config: Box::new(config(places)),
    }
}

fn config_message(places: bool) -> Message {
    Message::Config(Box::new(config(places)))
}

/// What is proposed by its last kind of change.
fn proposal() -> Message {
    let address = "[fd00::1]:7".parse().expect("address");
    Message::Propose {
        ticket: 1,
        changes: [Change::AddHost {
            spec: config(false).hosts.into_values().next().expect("host"),
            addresses: [(String::from("m"), address)].into(),
        }]
        .into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

const LOCK_1: &str = "4d4e53540100030209000000000000001e00000006686f73742d3102030405060106686f73742d31020003000480cab5ee01521f0b20";
const LOCK_2: &str = "4d4e53540200030209000000000000001f00000006686f73742d310203040506000003000480cab5ee010106686f73742d31090c51ebb1";
const HEARTBEAT_1: &str =
    "4d4e53540100010209000000000000001200000006686f73742d3102030403000480cab5ee01d58f4a33";
const HELLO_1: &str = "4d4e53540100050209000000000000001d00000006686f73742d3102030400010206686f73742d310106686f73742d39031c6ee7dd";
const FACTS_2: &str = "4d4e53540200050209000000000000001f00000006686f73742d31020304120207080466617374010d0106686f73742d3101785e1d5ebc";
const STREAM_1: &str =
    "4d4e53540100080209000000000000000f00000006686f73742d31020304030401020b745e717a";

const CONFIG_1: &str = "4d4e53540100070209000000000000002d00000006686f73742d31020304090862616c616e636564000106686f73742d3106686f73742d31010200000000000000a5d58f89";
const CONFIG_2: &str = "4d4e53540200070209000000000000004700000006686f73742d31020304090862616c616e636564000106686f73742d3106686f73742d310102000000000000000106686f73742d3101016d000a000001070104766d2d31016900d3838a77";
const SENT_1: &str = "4d4e53540100050209000000000000002e00000006686f73742d3102030410090862616c616e636564000106686f73742d3106686f73742d31010200000000000000db8e5c22";
const STREAMED_1: &str = "4d4e53540100080209000000000000003200000006686f73742d310203040304010210090862616c616e636564000106686f73742d3106686f73742d310102000000000000008860de69";
const PROPOSAL_2: &str = "4d4e53540200050209000000000000002f00000006686f73742d310203040d01010606686f73742d31010200000001016d01fd000000000000000000000000000001075d72a1f6";

fn on_stream(message: Message) -> Envelope {
    Envelope {
        session: SessionId {
            from: InstanceId(3),
            to: InstanceId(4),
            epoch: 1,
        },
        number: 2,
        message,
    }
}

#[test]
fn a_configuration_is_of_the_second_version_only_when_it_has_addresses_or_images() {
    let written = [
        ("first", config_record(false).encode(9, &stamp()), CONFIG_1),
        ("second", config_record(true).encode(9, &stamp()), CONFIG_2),
        ("message", config_message(false).encode(9, &stamp()), SENT_1),
        (
            "on the stream",
            on_stream(config_message(false)).encode(9, &stamp()),
            STREAMED_1,
        ),
        ("proposal", proposal().encode(9, &stamp()), PROPOSAL_2),
    ];
    for (what, bytes, golden) in written {
        assert_eq!(hex(&bytes), golden, "{what}");
    }
    for (golden, places) in [(CONFIG_1, false), (CONFIG_2, true)] {
        let read = ConfigRecord::decode(9, &bytes(golden));
        assert_eq!(read, Ok((stamp(), config_record(places))));
    }
    let read = Message::decode(9, &bytes(SENT_1));
    assert_eq!(read, Ok((stamp(), config_message(false))));
    let read = Envelope::decode(9, &bytes(STREAMED_1));
    assert_eq!(read, Ok((stamp(), on_stream(config_message(false)))));
    assert_eq!(
        Message::decode(9, &bytes(PROPOSAL_2)),
        Ok((stamp(), proposal()))
    );
    for message in [config_message(true), proposal()] {
        assert_eq!(message.version(), 2);
        let framed = message.encode(9, &stamp());
        assert_eq!(Message::decode(9, &framed), Ok((stamp(), message)));
    }
}

const DRILL_BEGUN_2: &str =
    "4d4e53540200050209000000000000001000000006686f73742d31020304140507f0ab01eae65b4c";
const DRILL_MARKS_2: &str = "4d4e53540200050209000000000000002c00000006686f73742d31020304140906686f73742d310102d4160004766d2d31f02e0304766d2d3106686f73742d32c9f5483e";

#[test]
fn what_is_said_of_drills_is_of_the_second_version() {
    for (message, golden) in drills().into_iter().zip([DRILL_BEGUN_2, DRILL_MARKS_2]) {
        assert_eq!(message.version(), 2);
        assert_eq!(hex(&message.encode(9, &stamp())), golden);
        assert_eq!(Message::decode(9, &bytes(golden)), Ok((stamp(), message)));
    }
}

#[test]
fn each_kind_is_written_as_its_version_has_it() {
    let written = [
        ("lock", lock(None).encode(9, &stamp()), LOCK_1),
        ("given back", given_back().encode(9, &stamp()), LOCK_2),
        ("heartbeat", heartbeat().encode(9, &stamp()), HEARTBEAT_1),
        ("hello", hello().encode(9, &stamp()), HELLO_1),
        ("facts", facts().encode(9, &stamp()), FACTS_2),
        (
            "stream",
            on_stream(Message::Leaving).encode(9, &stamp()),
            STREAM_1,
        ),
    ];
    for (what, bytes, golden) in written {
        assert_eq!(hex(&bytes), golden, "{what}");
    }
}

#[test]
fn what_was_written_by_either_version_is_read() {
    assert_eq!(
        LockRecord::decode(9, &bytes(LOCK_1)),
        Ok((stamp(), lock(None)))
    );
    assert_eq!(
        LockRecord::decode(9, &bytes(LOCK_2)),
        Ok((stamp(), given_back()))
    );
    let read = HeartbeatRecord::decode(9, &bytes(HEARTBEAT_1));
    assert_eq!(read, Ok((stamp(), heartbeat())));
    assert_eq!(Message::decode(9, &bytes(HELLO_1)), Ok((stamp(), hello())));
    assert_eq!(Message::decode(9, &bytes(FACTS_2)), Ok((stamp(), facts())));
    let read = Envelope::decode(9, &bytes(STREAM_1));
    assert_eq!(read, Ok((stamp(), on_stream(Message::Leaving))));
}

#[test]
fn a_frame_shows_its_version_and_what_its_writer_understands() {
    for (golden, version) in [(LOCK_1, 1), (LOCK_2, 2), (HELLO_1, 1), (FACTS_2, 2)] {
        assert_eq!(version_of(&bytes(golden)), Some(version));
        assert_eq!(understood_by_writer(&bytes(golden)), Some(FORMAT_VERSION));
    }
    let old = heartbeat().encode_by(1, 9, &stamp());
    assert_eq!(understood_by_writer(&old), Some(1));
    assert_eq!(understood_by_writer(b"MNST"), None);
    assert_eq!(understood_by_writer(b"something else"), None);
}

#[test]
fn what_is_too_old_or_too_new_is_refused_by_name() {
    for (version, newer) in [(0_u8, false), (3, true)] {
        let mut frame = bytes(LOCK_1);
        frame[4] = version;
        let error = LockRecord::decode(9, &frame).expect_err("refused");
        assert_eq!(error.to_string().contains("newer"), newer, "{error}");
        assert!(error.to_string().contains("upgrade"), "{error}");
    }
}

/// What is said of VMs whose storage is lost.
fn component_protection() -> [Message; 3] {
    let vm = || crate::id::VmId::new("vm-1").expect("id");
    let datastore = crate::id::DatastoreId::new("ds-1").expect("id");
    let no = Ability::No(String::from("x"));
    [
        VmcpMessage::Ask { vms: [vm()].into() },
        VmcpMessage::Answer {
            vms: [(vm(), Ability::Yes(host(2))), (vm(), no)].into(),
        },
        VmcpMessage::GivenUp(GivenUp {
            vm: vm(),
            datastore,
            generation: Generation(5),
            nonce: Nonce(6),
            gone: true,
        }),
    ]
    .map(|what| Message::Vmcp(Box::new(what)))
}

const VMCP_ASK_2: &str =
    "4d4e53540200050209000000000000001200000006686f73742d3102030415000104766d2d3163f80993";
const VMCP_ANSWER_2: &str = "4d4e53540200050209000000000000002200000006686f73742d3102030415010204766d2d310006686f73742d3204766d2d3101017830a9d340";
const VMCP_GIVEN_UP_2: &str = "4d4e53540200050209000000000000001900000006686f73742d31020304150204766d2d310464732d3105060112665973";

#[test]
fn what_is_said_of_lost_storage_is_of_the_second_version() {
    let goldens = [VMCP_ASK_2, VMCP_ANSWER_2, VMCP_GIVEN_UP_2];
    let written = component_protection().map(|m| hex(&m.encode(9, &stamp())));
    assert_eq!(written, goldens);
    for (message, golden) in component_protection().into_iter().zip(goldens) {
        assert_eq!(message.version(), 2);
        assert_eq!(Message::decode(9, &bytes(golden)), Ok((stamp(), message)));
    }
}
