//! The records that must be on a datastore before agents use it: made once, when a datastore or a VM
//! is added to the cluster, and never by a running agent. A lock's chain that was never begun cannot
//! be told from one that somebody removed, so an agent never begins one (safety rules H11, H15).

use crate::config::{DatastoreSpec, HostSpec, Settings};
use crate::id::{BootId, Generation, HostId, InstanceId, Nonce, VmId};
use crate::wire::{
    Desired, HeartbeatRecord, LockRecord, MarkerRecord, ProtectedRecord, RecordKey, Stamp,
};
use alloc::vec::Vec;

/// Name of the file that holds the marker.
pub const MARKER_FILE: &str = "datastore";

fn stamp(writer: &HostId) -> Stamp {
    Stamp {
        writer: writer.clone(),
        boot: BootId(0),
        instance: InstanceId(0),
        seq: 0,
    }
}

fn free_lock(settings: &Settings) -> LockRecord {
    LockRecord {
        generation: Generation(0),
        nonce: Nonce(0),
        holder: None,
        desired: Desired::Off,
        freeze: settings.timing.freeze,
        r#break: settings.timing.r#break,
        given_back: None,
    }
}

/// The marker of a datastore.
#[must_use]
pub fn marker(cluster: u64, datastore: &DatastoreSpec, by: &HostId) -> Vec<u8> {
    MarkerRecord {
        datastore: datastore.id.clone(),
        epoch: 0,
    }
    .encode(cluster, &stamp(by))
}

/// The records of a new datastore: a heartbeat for each host that mounts it and a free owner lock.
#[must_use]
pub fn datastore_records<'a>(
    cluster: u64,
    settings: &Settings,
    hosts: impl Iterator<Item = &'a HostSpec>,
    by: &HostId,
) -> Vec<(RecordKey, Vec<u8>)> {
    let heartbeat = HeartbeatRecord {
        freeze: settings.timing.freeze,
        r#break: settings.timing.r#break,
    };
    let mut records: Vec<(RecordKey, Vec<u8>)> = hosts
        .map(|h| {
            (
                RecordKey::Heartbeat(h.id.clone()),
                heartbeat.encode(cluster, &stamp(&h.id)),
            )
        })
        .collect();
    records.push((
        RecordKey::OwnerLock(Generation(0)),
        free_lock(settings).encode(cluster, &stamp(by)),
    ));
    records.push((
        RecordKey::Protected(Generation(0)),
        ProtectedRecord::empty(cluster, &stamp(by)),
    ));
    records
}

/// The record of a new VM: a free lock, powered off.
#[must_use]
pub fn vm_record(
    cluster: u64,
    settings: &Settings,
    vm: &VmId,
    by: &HostId,
) -> (RecordKey, Vec<u8>) {
    (
        RecordKey::VmLock(vm.clone(), Generation(0)),
        free_lock(settings).encode(cluster, &stamp(by)),
    )
}
