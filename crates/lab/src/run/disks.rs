//! What the disks say: every write of a guest as the storage sees it, whoever the agents think is running.

use crate::storage::{Observer, Write};
use mainstay_core::id::{DatastoreId, VmId};
use mainstay_core::time::Instant;
use mainstay_hypervisor::Counter;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One write of a guest's counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stroke {
    /// The host from which it came.
    pub host: String,
    /// The lock generation of its guest; 0 when the guest cannot know.
    pub generation: u64,
    /// The counter.
    pub counter: u64,
    /// When it was on the disk.
    pub at: Instant,
}

/// A guest's run on one host, by its writes.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Its first write.
    pub first: Stroke,
    /// Its last one so far.
    pub last: Stroke,
}

impl Stretch {
    fn is_of(&self, stroke: &Stroke) -> bool {
        self.last.host == stroke.host && self.last.generation == stroke.generation
    }
}

/// A property of the disks that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Its name.
    pub property: &'static str,
    /// When it was seen.
    pub at: Instant,
    /// What was seen.
    pub what: String,
}

#[derive(Debug, Default)]
struct State {
    vms: BTreeMap<VmId, Vec<Stretch>>,
    breaches: Vec<Breach>,
    /// Last datastore heartbeat by host and datastore.
    heartbeats: BTreeMap<(String, String), Instant>,
}

/// All disks of a run.
#[derive(Debug, Default)]
pub struct Disks {
    images: Mutex<BTreeMap<(String, PathBuf), VmId>>,
    state: Mutex<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    /// The file is the image of the VM.
    pub fn watch(&self, datastore: &DatastoreId, image: &Path, vm: &VmId) {
        let key = (datastore.to_string(), image.to_owned());
        lock(&self.images).insert(key, vm.clone());
    }

    /// A guest's runs, oldest first.
    #[must_use]
    pub fn stretches(&self, vm: &VmId) -> Vec<Stretch> {
        lock(&self.state).vms.get(vm).cloned().unwrap_or_default()
    }

    /// When a host last wrote its heartbeat on a datastore.
    #[must_use]
    pub fn heartbeat(&self, host: &str, datastore: &str) -> Option<Instant> {
        let key = (host.to_owned(), datastore.to_owned());
        lock(&self.state).heartbeats.get(&key).copied()
    }

    /// What was broken so far.
    #[must_use]
    pub fn breaches(&self) -> Vec<Breach> {
        lock(&self.state).breaches.clone()
    }

    /// How much was broken so far.
    #[must_use]
    pub fn breached(&self) -> usize {
        lock(&self.state).breaches.len()
    }

    /// Judges one write of a guest.
    fn stroke(&self, vm: &VmId, stroke: Stroke) {
        let mut state = lock(&self.state);
        let State { vms, breaches, .. } = &mut *state;
        let stretches = vms.entry(vm.clone()).or_default();
        if let Some(what) = judge(vm, stretches, &stroke) {
            breaches.push(Breach {
                property: "S1b",
                at: stroke.at,
                what,
            });
        }
        match stretches.last_mut() {
            Some(last) if last.is_of(&stroke) => last.last = stroke,
            _ => stretches.push(Stretch {
                first: stroke.clone(),
                last: stroke,
            }),
        }
    }
}

/// What is wrong with a write, if something is: a generation that has been replaced, a counter that goes back,
/// one generation on two hosts.
fn judge(vm: &VmId, before: &[Stretch], stroke: &Stroke) -> Option<String> {
    let last = &before.last()?.last;
    let said = |s: &Stroke| {
        format!(
            "counter {} of generation {} from {}",
            s.counter, s.generation, s.host
        )
    };
    let both = format!("{} after {}", said(stroke), said(last));
    if stroke.generation < last.generation {
        return Some(format!("{vm}: a replaced generation wrote: {both}"));
    }
    let same = stroke.host == last.host && stroke.generation == last.generation;
    if stroke.generation == last.generation && stroke.generation > 0 && !same {
        return Some(format!("{vm}: one generation wrote from two hosts: {both}"));
    }
    // A write without an acknowledgement is written once more by the same guest.
    if stroke.counter < last.counter || (stroke.counter == last.counter && !same) {
        return Some(format!("{vm}: the counter did not grow: {both}"));
    }
    None
}

impl Observer for Disks {
    fn wrote(&self, write: &Write<'_>) {
        let name = write.path.file_name().and_then(|n| n.to_str());
        if let Some(host) = name.and_then(|n| n.strip_suffix("-hb"))
            && host == write.host
        {
            let key = (write.host.to_owned(), write.datastore.to_owned());
            lock(&self.state).heartbeats.insert(key, write.at);
            return;
        }
        let key = (write.datastore.to_owned(), write.path.to_owned());
        let Some(vm) = lock(&self.images).get(&key).cloned() else {
            return;
        };
        let records = write.data.chunks_exact(512).filter_map(Counter::parse);
        if let Some(counter) = records.max_by_key(|c| c.counter) {
            self.stroke(
                &vm,
                Stroke {
                    host: write.host.to_owned(),
                    generation: counter.generation,
                    counter: counter.counter,
                    at: write.at,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(strokes: &[(&str, u64, u64)]) -> Vec<String> {
        let disks = Disks::default();
        let vm = VmId::new("vm-1").expect("id");
        for (n, (host, generation, counter)) in strokes.iter().enumerate() {
            disks.stroke(
                &vm,
                Stroke {
                    host: (*host).to_owned(),
                    generation: *generation,
                    counter: *counter,
                    at: Instant::from_nanos(n as u64),
                },
            );
        }
        disks.breaches().into_iter().map(|b| b.what).collect()
    }

    #[test]
    fn a_guest_that_goes_on_elsewhere_is_no_breach() {
        let strokes = [
            ("host-1", 2, 1),
            ("host-1", 2, 2),
            ("host-1", 2, 2),
            ("host-2", 4, 3),
            ("host-1", 5, 4),
        ];
        assert_eq!(said(&strokes), Vec::<String>::new());
    }

    #[test]
    fn a_replaced_generation_a_counter_that_goes_back_and_two_writers_are() {
        for (strokes, words) in [
            (
                [("host-1", 2, 5), ("host-2", 4, 6), ("host-1", 2, 6)],
                "replaced",
            ),
            (
                [("host-1", 2, 5), ("host-2", 4, 3), ("host-2", 4, 4)],
                "did not grow",
            ),
            (
                [("host-1", 2, 5), ("host-2", 2, 6), ("host-2", 2, 7)],
                "two hosts",
            ),
        ] {
            let found = said(&strokes);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(words), "{found:?}");
        }
    }
}
