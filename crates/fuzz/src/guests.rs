//! What guests, QEMU and earlier agents leave for the hypervisor drivers.

use mainstay_hypervisor::{Counter, decoders};

/// What QEMU says on its sockets: events by line, and the conversation about one command.
pub(crate) fn qmp(bytes: &[u8]) -> bool {
    let mut decoded = false;
    for line in bytes.split(|byte| *byte == b'\n') {
        decoded |= decoders::qmp_end(line).is_some() | decoders::qmp_disk(line);
    }
    let (answer, sent) = decoders::qmp_status(bytes);
    let lines = sent.split(|byte| *byte == b'\n').filter(|l| !l.is_empty());
    let mut commands = 0;
    for line in lines {
        commands += 1;
        let said: serde_json::Value = serde_json::from_slice(line).expect("JSON is sent");
        assert!(said.get("execute").is_some(), "{said}");
    }
    match answer {
        Ok(_) => assert_eq!(commands, 2, "it was negotiated, then asked"),
        Err(_) => assert!(commands <= 2),
    }
    // Nothing is sent before the greeting was understood.
    decoded || commands > 0
}

const SECTOR: usize = 512;

/// A sector of a demo guest's image: as it is, and with a checksum that fits.
pub(crate) fn image(bytes: &[u8]) -> bool {
    let mut sealed = bytes.to_vec();
    sealed.resize(SECTOR, 0);
    decoders::seal_sector(&mut sealed);
    let mut decoded = false;
    for sector in [bytes, sealed.as_slice()] {
        if let Some(counter) = Counter::parse(sector) {
            decoded = true;
            let again = decoders::counter_sector(&counter);
            assert_eq!(Counter::parse(&again), Some(counter));
        }
        if let Some(times) = decoders::guest_times(sector) {
            decoded = true;
            let again = decoders::guest_times_sector(&times).expect("they were in a sector");
            assert_eq!(decoders::guest_times(&again), Some(times));
        }
    }
    decoded
}

/// The notes in a run directory and what the kernel says of a process.
pub(crate) fn notes(bytes: &[u8]) -> bool {
    let mut decoded = decoders::process_stat(bytes).is_some();
    if let Some(again) = decoders::guest_record(bytes) {
        decoded = true;
        assert_eq!(decoders::guest_record(&again).as_ref(), Some(&again));
    }
    if let Some((again, cause)) = decoders::exit_note(bytes) {
        decoded = true;
        assert_eq!(decoders::exit_note(&again), Some((again, cause)));
    }
    decoded
}
