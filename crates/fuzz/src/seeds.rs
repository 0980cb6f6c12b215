//! What a corpus begins with: what the real encoders write, one of each kind.

mod binary;
mod text;

pub(crate) use binary::{
    datagrams, guests, lists, messages, pings, records, regions, states, streams,
};
pub(crate) use text::{
    agent_files, cluster_files, controls, fence_files, guard_events, guest_notes, names, qmp,
    scenarios,
};

use mainstay_core::id::{DatastoreId, VmId};

fn vm(n: u8) -> VmId {
    VmId::new(&format!("vm-{n}")).expect("an id")
}

fn datastore(n: u8) -> DatastoreId {
    DatastoreId::new(&format!("ds-{n}")).expect("an id")
}
