//! Messages between agents: by datagram and on the stream.

use crate::CLUSTER;
use mainstay_agent::decoders;
use mainstay_core::config::{Change, ClusterConfig, HostSpec, Settings};
use mainstay_core::id::HostId;
use mainstay_core::wire::{
    DecodeError, Envelope, FORMAT_VERSION, Message, OLDEST_VERSION, RECORD_MAX_BYTES, Stamp,
    understood_by_writer, version_of,
};
use std::fmt::Debug;

const MAGIC: &[u8] = b"MNST";
/// Bytes of a frame before its payload: magic, version, kind, version understood, cluster, length.
const HEAD: usize = 20;
/// The checksum behind it.
const CHECKSUM: usize = 4;

/// What may be longer in what is written than it was in what was read: settings that are written in full.
const SLACK_BYTES: usize = 4096;

/// The bytes as a frame of this cluster whose length and checksum fit, so that what lies behind those is reached
/// too. Version and kind stay; none: too short.
pub(crate) fn framed(bytes: &[u8]) -> Option<Vec<u8>> {
    let payload = bytes.get(HEAD..bytes.len().checked_sub(CHECKSUM)?)?;
    let length = u32::try_from(payload.len()).ok()?;
    let mut out = MAGIC.to_vec();
    out.extend(bytes.get(MAGIC.len()..8)?);
    out.extend(CLUSTER.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(payload);
    out.extend(crc32fast::hash(&out).to_le_bytes());
    Some(out)
}

/// Decodes the bytes as they are and as a frame that fits; what decodes, encodes to what decodes to the same.
pub(crate) fn both_ways<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<(Stamp, T), DecodeError>,
    encode: impl Fn(&T, &Stamp) -> Vec<u8>,
    seen: impl Fn(&T),
) -> bool {
    let mut decoded = false;
    for bytes in [Some(bytes.to_vec()), framed(bytes)].into_iter().flatten() {
        match decode(&bytes) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok((stamp, value)) => {
                decoded = true;
                seen(&value);
                let again = encode(&value, &stamp);
                assert!(again.len() <= bytes.len() + SLACK_BYTES);
                let version = version_of(&again).expect("a frame");
                assert!((OLDEST_VERSION..=FORMAT_VERSION).contains(&version));
                assert_eq!(understood_by_writer(&again), Some(FORMAT_VERSION));
                assert_eq!(decode(&again), Ok((stamp, value)));
            }
        }
    }
    decoded
}

/// A message, the payload of a datagram.
pub(crate) fn message(bytes: &[u8]) -> bool {
    let _ = (version_of(bytes), understood_by_writer(bytes));
    both_ways(
        bytes,
        |bytes| Message::decode(CLUSTER, bytes),
        |message, stamp| message.encode(CLUSTER, stamp),
        look_into,
    )
}

/// What comes on a stream: frames with their length before them, in each an envelope.
pub(crate) fn stream(bytes: &[u8]) -> bool {
    let mut decoded = false;
    let mut rest = bytes;
    let mut read = 0;
    while let Ok(frame) = decoders::stream_frame(&mut rest) {
        assert!(frame.len() <= RECORD_MAX_BYTES);
        let again = decoders::to_stream(&frame).expect("a frame of bounded length");
        assert_eq!(bytes.get(read..read + again.len()), Some(again.as_slice()));
        read += again.len();
        decoded |= both_ways(
            &frame,
            |bytes| Envelope::decode(CLUSTER, bytes),
            |envelope, stamp| envelope.encode(CLUSTER, stamp),
            |envelope| look_into(&envelope.message),
        );
    }
    decoded
}

/// What is asked of a message's parts before anything is decided by them.
fn look_into(message: &Message) {
    match message {
        Message::Config(config) => checked(config),
        Message::Propose { changes, .. } => changed(changes),
        _ => {}
    }
}

/// A configuration is sound or says why it is not.
pub(crate) fn checked(config: &ClusterConfig) {
    if let Err(error) = config.check() {
        assert!(!error.to_string().is_empty());
    }
}

/// A configuration that was read from a disk can be put in force as it is.
pub(crate) fn sound(config: &ClusterConfig) {
    assert_eq!(config.check(), Ok(()));
}

/// Changes make a sound configuration or say why they do not.
pub(crate) fn changed(changes: &[Change]) {
    match small_config().with(changes) {
        Ok(config) => sound(&config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A cluster of one host.
pub(crate) fn small_config() -> ClusterConfig {
    let host = HostSpec {
        id: HostId::new("host-1").expect("an id"),
        cpu_mhz: 1000,
        memory_mb: 1024,
        datastores: [].into(),
        maintenance: false,
        networks: [].into(),
    };
    let (settings, none) = (Settings::default(), Vec::new);
    ClusterConfig::new(CLUSTER, settings, vec![host], none(), vec![], vec![]).expect("sound")
}
