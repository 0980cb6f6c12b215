//! The protected list of a datastore that is owned: loaded from earlier owners, kept on disk, told to hosts.

use crate::agent::{Agent, Pending, planted};
use crate::config::VmSpec;
use crate::event::{EventKind, IssueCause};
use crate::id::{DatastoreId, Generation, HostId, VmId};
use crate::io::{Channel, StorageOutcome, StorageRequest, StorageValue};
use crate::wire::{Message, ProtectedRecord, ProtectedTable, ProtectedVm, RecordKey};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A list that is being loaded after the owner lock was won.
#[derive(Clone, Debug)]
pub(super) enum Loading {
    Listing,
    /// Reading the list of this generation; those below it are left, the highest last.
    Reading {
        generation: Generation,
        left: Vec<Generation>,
    },
    /// Writing the copy into the own file.
    Copying,
}

impl Agent {
    /// An answer about the protected list.
    pub(crate) fn on_list(
        &mut self,
        datastore: &DatastoreId,
        of: Generation,
        outcome: &StorageOutcome,
    ) {
        self.note_outcome(datastore, outcome);
        // Answers to an ownership that was lost meanwhile say nothing about this one.
        let Some(acting) = self.acting_mut(datastore).filter(|a| a.generation == of) else {
            return;
        };
        if acting.writing.is_some() {
            self.on_list_written(datastore, outcome);
            return;
        }
        let own = acting.generation;
        match (acting.loading.clone(), outcome) {
            (Some(Loading::Listing), StorageOutcome::Ok(StorageValue::Keys(keys))) => {
                let mut lists: Vec<Generation> = keys
                    .iter()
                    .filter_map(|k| match k {
                        RecordKey::Protected(g) if *g < own => Some(*g),
                        _ => None,
                    })
                    .collect();
                lists.sort();
                acting.obsolete = lists.clone();
                self.read_lists(datastore, lists);
            }
            (Some(Loading::Reading { generation, left }), StorageOutcome::Ok(value)) => {
                self.on_list_read(datastore, generation, left, value);
            }
            (Some(Loading::Copying), StorageOutcome::Ok(StorageValue::Done)) => {
                acting.loading = None;
                let host = self.me.host.clone();
                let why = String::from(
                    "the lock on its protected list was won, the list read and copied",
                );
                self.emit(
                    EventKind::DatastoreOwned {
                        host,
                        datastore: datastore.clone(),
                    },
                    why,
                );
                self.announce_found(datastore);
                self.drop_old_lists(datastore);
                self.reconcile();
            }
            // Nothing is known of the list: begin again under a new generation.
            _ => self.lose(datastore, "its protected list could not be read or written"),
        }
    }

    /// Reads the lists from the highest owner generation downwards until one can be read.
    fn read_lists(&mut self, datastore: &DatastoreId, mut left: Vec<Generation>) {
        let Some(generation) = left.pop() else {
            self.copy_list(datastore, ProtectedRecord::default());
            return;
        };
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let of = acting.generation;
        acting.loading = Some(Loading::Reading { generation, left });
        let request = StorageRequest::Read(RecordKey::Protected(generation));
        self.storage(
            datastore,
            request,
            Pending::List {
                datastore: datastore.clone(),
                generation: of,
            },
        );
    }

    fn on_list_read(
        &mut self,
        datastore: &DatastoreId,
        generation: Generation,
        left: Vec<Generation>,
        value: &StorageValue,
    ) {
        let StorageValue::Bytes(bytes) = value else {
            self.read_lists(datastore, left);
            return;
        };
        match ProtectedRecord::decode(self.config.cluster_id, bytes) {
            Ok((_, record)) => {
                let (lost, older) = (record.lost, record.fallen_back);
                if lost > 0 {
                    self.issue(IssueCause::RecordUnreadable, format_args!("{datastore} list lost"), format!("datastore {datastore}: {lost} slots of the protected list of owner generation {generation} cannot be read; VMs that were in them are protected again when their hosts report them"));
                }
                if older > 0 {
                    self.issue(IssueCause::RecordUnreadable, format_args!("{datastore} list older"), format!("datastore {datastore}: {older} slots of the protected list of owner generation {generation} are damaged; their other copies were taken"));
                }
                self.copy_list(datastore, record);
            }
            Err(error) => {
                self.issue(IssueCause::RecordUnreadable, format_args!("{datastore} list"), format!("datastore {datastore}: a protected list of owner generation {generation} cannot be read: {error}"));
                self.read_lists(datastore, left);
            }
        }
    }

    /// Begins the own file: whole, under the own generation, so that nothing that an earlier owner still
    /// has on its way can reach it.
    fn copy_list(&mut self, datastore: &DatastoreId, record: ProtectedRecord) {
        let record = if planted!(self, ListNotCopied) {
            ProtectedRecord::default()
        } else {
            record
        };
        let stamp = self.stamp();
        let cluster = self.config.cluster_id;
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let (mut table, refused) = ProtectedTable::new(record.vms.values().cloned());
        acting.list = record.vms;
        acting.list.retain(|vm, _| !refused.contains(vm));
        acting.wanted = acting.list.clone();
        acting.loading = Some(Loading::Copying);
        let file = table.file(cluster, &stamp, 0);
        acting.table = table;
        let generation = acting.generation;
        let request = StorageRequest::Put(RecordKey::Protected(generation), file);
        let pending = Pending::List {
            datastore: datastore.clone(),
            generation,
        };
        self.storage(datastore, request, pending);
    }

    /// The own copy is on disk, so nobody reads the lists of earlier owners again.
    fn drop_old_lists(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        for generation in core::mem::take(&mut acting.obsolete) {
            let request = StorageRequest::Remove(RecordKey::Protected(generation));
            self.storage(datastore, request, Pending::Forget);
        }
        // What was damaged in them is of no interest any more.
        for about in ["list", "list lost", "list older"] {
            let about = format_args!("{datastore} {about}");
            self.withdraw(IssueCause::RecordUnreadable, about);
        }
    }

    /// Writes the pages of what changed, each over its older copy: whatever becomes of this write, what
    /// was acknowledged before stays (safety rule H19).
    pub(super) fn write_list(&mut self, datastore: &DatastoreId) {
        let early = planted!(self, ProtectedTooEarly);
        let in_place = planted!(self, ListInPlace);
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let refused = acting.table.set(&acting.wanted);
        for vm in &refused {
            acting.wanted.remove(vm);
        }
        let changed = acting.wanted != acting.list;
        if changed {
            if in_place {
                acting.table.forget_twins();
            }
            acting.writing = Some(acting.wanted.clone());
            let generation = acting.generation;
            let key = RecordKey::Protected(generation);
            let request = StorageRequest::PutPages(key, acting.table.changed_pages());
            let pending = Pending::List {
                datastore: datastore.clone(),
                generation,
            };
            self.storage(datastore, request, pending);
        }
        if let Some(vm) = refused.first() {
            let more = refused.len();
            self.issue(IssueCause::ListFull, datastore, format!("datastore {datastore}: its protected list is full; {more} VMs there are not protected, {vm} first; move VMs to another datastore"));
        } else {
            self.withdraw(IssueCause::ListFull, datastore);
        }
        if early && changed {
            self.announce_list(datastore);
        }
    }

    /// Says what the list that was written changes.
    fn announce_list(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let Some(written) = acting.writing.clone() else {
            return;
        };
        let added: Vec<VmId> = written
            .keys()
            .filter(|v| !acting.list.contains_key(*v))
            .cloned()
            .collect();
        let removed = acting.not_in(&written);
        let mut reasons = core::mem::take(&mut acting.why_removed);
        acting.list = written;
        for vm in added.iter().chain(&removed) {
            let here = self.vms.contains_key(vm).then(|| self.me.host.clone());
            let hosts: Vec<HostId> = self.inventory.hosts_of(vm).cloned().collect();
            self.inventory.tell.extend(hosts.into_iter().chain(here));
            self.inventory.mark(vm);
        }
        for vm in added {
            let why = format!("it is on the protected list of {datastore} on disk");
            self.emit(
                EventKind::VmProtected {
                    vm,
                    datastore: datastore.clone(),
                },
                why,
            );
        }
        for vm in removed {
            let reason = reasons.remove(&vm).unwrap_or_default();
            self.emit(
                EventKind::VmUnprotected {
                    vm,
                    reason: reason.clone(),
                },
                reason,
            );
        }
        self.tell_protected();
    }

    /// A write whose answer did not come before an earlier ownership of this host ended may have had its
    /// effect: what it added is on the list that was read.
    fn announce_found(&mut self, datastore: &DatastoreId) {
        let maybe = self.unannounced.remove(datastore).unwrap_or_default();
        let Some(acting) = self.acting(datastore) else {
            return;
        };
        let there = |vm: &VmId| acting.list.contains_key(vm);
        let found: Vec<VmId> = maybe.into_iter().filter(there).collect();
        for vm in found {
            let why = format!(
                "it is on the protected list of {datastore} on disk: the write whose outcome was not known had put it there"
            );
            let datastore = datastore.clone();
            self.emit(EventKind::VmProtected { vm, datastore }, why);
        }
    }

    fn on_list_written(&mut self, datastore: &DatastoreId, outcome: &StorageOutcome) {
        let now = self.now;
        let retry = now + self.timing().datastore_heartbeat;
        let acts = self.acting(datastore).is_some();
        match outcome {
            StorageOutcome::Ok(StorageValue::Done) if acts => {
                self.withdraw(IssueCause::ListNotWritten, datastore);
                self.announce_list(datastore);
                if let Some(acting) = self.acting_mut(datastore) {
                    acting.writing = None;
                }
            }
            StorageOutcome::NotDone(fault) if acts => {
                let fault = *fault;
                if let Some(acting) = self.acting_mut(datastore) {
                    acting.writing = None;
                    acting.table.not_written();
                    acting.retry_at = retry;
                }
                self.issue(IssueCause::ListNotWritten, datastore, format!("datastore {datastore}: the protected list cannot be written ({fault:?}); new VMs there are not protected until it can"));
            }
            // It may land late: only another generation has a file that it cannot touch (H19).
            _ => {
                self.announce_doubt(datastore);
                self.lose(
                    datastore,
                    "a write of its protected list has an unknown outcome",
                );
            }
        }
    }

    /// What was to be removed may be gone: whoever owns the list next cannot know why.
    fn announce_doubt(&mut self, datastore: &DatastoreId) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        let Some(written) = acting.writing.clone() else {
            return;
        };
        let reasons = core::mem::take(&mut acting.why_removed);
        for vm in acting.not_in(&written) {
            let reason = reasons.get(&vm).cloned().unwrap_or_default();
            let why = format!(
                "{reason}; whether its removal is on disk is not known, and the list is read again"
            );
            self.emit(EventKind::VmUnprotected { vm, reason }, why);
        }
    }

    /// Tells the hosts that are waiting for it which of their VMs are protected.
    pub(crate) fn tell_protected(&mut self) {
        let protected = |agent: &Self, vm: &VmId, spec: &VmSpec| {
            agent
                .acting(&spec.datastore)
                .is_some_and(|a| a.list.contains_key(vm))
        };
        for to in core::mem::take(&mut self.inventory.tell) {
            if to == self.me.host {
                let here = self.vms.iter();
                let here = here.filter(|(vm, v)| protected(self, vm, &v.spec));
                self.protected_here = here.map(|(vm, _)| vm.clone()).collect();
                continue;
            }
            let Some(peer) = self.peers.get(&to).filter(|p| p.connected()) else {
                continue;
            };
            let there = peer.report.iter().flat_map(|r| &r.vms);
            let there = there.filter(|(vm, v)| protected(self, vm, &v.spec));
            let vms = there.map(|(vm, _)| vm.clone()).collect();
            self.send(&to, Channel::Stream, Message::Protected { vms });
        }
    }

    /// Adds a VM to the list of a datastore that is owned.
    pub(crate) fn want_protected(&mut self, datastore: &DatastoreId, vm: ProtectedVm) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        if acting.wanted.get(&vm.vm) != Some(&vm) {
            acting.wanted.insert(vm.vm.clone(), vm);
            acting.differs = true;
        }
    }

    /// Takes a VM off the list.
    pub(crate) fn want_unprotected(&mut self, datastore: &DatastoreId, vm: &VmId, why: String) {
        let Some(acting) = self.acting_mut(datastore) else {
            return;
        };
        if acting.wanted.remove(vm).is_some() {
            acting.why_removed.insert(vm.clone(), why);
            acting.differs = true;
        }
        // A host may still report it.
        self.inventory.mark(vm);
    }
}
