//! What datagrams bring to the loop.

use super::Wake;
use crate::net::Rejects;
use crate::net::udp::Received;
use mainstay_core::id::HostId;
use mainstay_core::io::Input;
use mainstay_core::wire::{Message, understood_by_writer};
use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

/// The way from the receiving threads into the loop; a full queue loses datagrams, as a network does.
#[derive(Debug)]
pub(super) struct Inbox {
    cluster: u64,
    /// The format that each host was told to the loop to understand.
    versions: Mutex<BTreeMap<HostId, u16>>,
    wake: SyncSender<Box<Wake>>,
    refused: Rejects,
}

impl Inbox {
    pub(super) fn new(cluster: u64, wake: SyncSender<Box<Wake>>, refused: Rejects) -> Self {
        Self {
            cluster,
            versions: Mutex::default(),
            wake,
            refused,
        }
    }

    /// Takes what came; never waits.
    pub(super) fn take(&self, received: Received) {
        let wake = match received {
            Received::SameId { host, address } => Wake::SameId(host, address),
            Received::Message { from, payload } => match Message::decode(self.cluster, &payload) {
                Ok((stamp, message)) if stamp.writer == from => {
                    // Datagrams come all the time: streams need not be looked at.
                    if let Some(version) = understood_by_writer(&payload) {
                        self.tell_version(&from, version);
                    }
                    Wake::Input(Input::Message { from, message })
                }
                Ok(_) => return self.refused.count("datagram_wrong_writer"),
                Err(_) => return self.refused.count("datagram_damaged"),
            },
        };
        if self.wake.try_send(Box::new(wake)).is_err() {
            self.refused.count("datagram_queue_full");
        }
    }

    /// Told once; where the queue is full, by the next datagram.
    fn tell_version(&self, from: &HostId, version: u16) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.get(from) == Some(&version) {
            return;
        }
        let host = from.clone();
        let shown = Input::Understands { host, version };
        if self.wake.try_send(Box::new(Wake::Input(shown))).is_ok() {
            versions.insert(from.clone(), version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_core::id::{BootId, InstanceId};
    use mainstay_core::wire::Stamp;
    use std::sync::mpsc::sync_channel;

    const CLUSTER: u64 = 5;

    #[test]
    fn a_version_that_found_no_room_is_told_with_the_next_datagram() {
        let from = HostId::new("host-2").expect("id");
        let stamp = Stamp {
            writer: from.clone(),
            boot: BootId(1),
            instance: InstanceId(1),
            seq: 1,
        };
        let payload = Message::ConfigVersion { version: 1 }.encode(CLUSTER, &stamp);
        let datagram = || Received::Message {
            from: from.clone(),
            payload: payload.clone(),
        };
        let (wake, wakes) = sync_channel(2);
        let inbox = Inbox::new(CLUSTER, wake.clone(), Rejects::default());
        for _ in 0..2 {
            assert!(
                wake.try_send(Box::new(Wake::Stop(0))).is_ok(),
                "there is room"
            );
        }
        inbox.take(datagram());
        assert_eq!(wakes.try_iter().count(), 2, "nothing else found room");
        let told = |wake: &Wake| matches!(wake, Wake::Input(Input::Understands { .. }));
        inbox.take(datagram());
        assert_eq!(wakes.try_iter().filter(|w| told(w)).count(), 1);
        inbox.take(datagram());
        assert_eq!(
            wakes.try_iter().filter(|w| told(w)).count(),
            0,
            "once is enough"
        );
    }
}
