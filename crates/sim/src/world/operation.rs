//! Storage operations on their way: their effect and their acknowledgement are two events at different times.

use super::{Happening, World};
use crate::clock::{MS, Nanos};
use mainstay_core::id::{DatastoreId, OpId};
use mainstay_core::io::{Input, IoFault, StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::wire::{OLDEST_VERSION, PAGE_BYTES, version_of};

/// A storage operation in progress.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) serial: u64,
    pub(super) host: usize,
    boot: u64,
    run: u64,
    disk: usize,
    id: OpId,
    request: StorageRequest,
    issued: Nanos,
    /// When the answer comes if nothing goes wrong.
    ack_at: Nanos,
    /// Its outcome is unknown to the driver from here on.
    unknown_at: Option<Nanos>,
    /// Nobody hears of its outcome, even when the path is well.
    ack_lost: bool,
    pub(super) outcome: Option<StorageOutcome>,
    pub(super) effect_over: bool,
    /// A write of pages that ends in the middle.
    breaks_off: bool,
    answered: bool,
    pub(super) parked: bool,
}

fn writes(request: &StorageRequest) -> bool {
    use StorageRequest::{Link, Put, PutPages, Remove, Renew};
    matches!(
        request,
        Renew(..) | Put(..) | PutPages(..) | Link(..) | Remove(..)
    )
}

impl World<'_> {
    /// What is written, every agent that mounts the datastore must understand.
    fn must_be_readable(&mut self, disk: usize, request: &StorageRequest) {
        use StorageRequest::{Link, Put, Renew};
        let (Renew(key, bytes) | Put(key, bytes) | Link(key, bytes)) = request else {
            return;
        };
        let Some(version) = version_of(bytes).filter(|v| *v > OLDEST_VERSION) else {
            return;
        };
        let mounts = |h: &&super::Host| h.mounts.get(disk).copied().unwrap_or(false);
        let old = self
            .hosts
            .iter()
            .filter(mounts)
            .find(|h| h.formats < version);
        if let Some(old) = old {
            let error = format!(
                "{} was written in version {version}, and {} understands {}",
                key.file_name(),
                old.id,
                old.formats
            );
            self.fail(error);
        }
    }

    pub(super) fn storage(
        &mut self,
        host: usize,
        id: OpId,
        datastore: &DatastoreId,
        request: StorageRequest,
    ) {
        let Some(disk) = self.disk_index.get(datastore).copied() else {
            return self.answer(
                host,
                MS,
                Input::Storage(id, StorageOutcome::NotDone(IoFault::Foreign)),
            );
        };
        if !self.hosts[host].mounts.get(disk).copied().unwrap_or(false) {
            return self.answer(
                host,
                MS,
                Input::Storage(id, StorageOutcome::NotDone(IoFault::Foreign)),
            );
        }
        let renews = matches!(request, StorageRequest::Renew(..));
        if renews {
            self.settle_older_renewals(host, disk, &request);
        }
        self.owner_acts_on_disk(host, disk, &request);
        self.must_be_readable(disk, &request);
        self.gives_up_on_disk(host, disk, &request);
        let faults = self.disks[disk].faults(host);
        let storm = self.stormy();
        let weather = self.scenario.weather;
        let refused = match &request {
            _ if faults.gone => Some(IoFault::Gone),
            r if writes(r) && faults.read_only => Some(IoFault::ReadOnly),
            StorageRequest::Put(..) | StorageRequest::Link(..) if faults.full => {
                Some(IoFault::Full)
            }
            StorageRequest::PutPages(key, pages)
                if faults.full && self.disks[disk].lengthens(key, pages) =>
            {
                Some(IoFault::Full)
            }
            _ if storm && self.dice.disk.below(1000) < weather.not_done => Some(IoFault::Other),
            _ => None,
        };
        if let Some(fault) = refused {
            let wait = self.dice.disk.between(200_000, MS);
            return self.answer(
                host,
                wait,
                Input::Storage(id, StorageOutcome::NotDone(fault)),
            );
        }
        let mut to_disk = self.dice.disk.between(250_000, 1_500_000);
        let mut back = self.dice.disk.between(250_000, 1_500_000);
        if faults.slow > 0 {
            let part = self.dice.disk.below(faults.slow);
            to_disk += part;
            back += faults.slow - part;
        }
        if storm && self.dice.disk.below(1000) < weather.stall {
            let stall = self.dice.disk.below(weather.stall_ms.max(1)) * MS;
            if self.dice.disk.percent(50) {
                to_disk += stall
            } else {
                back += stall
            }
        }
        let mut unknown_at = None;
        let mut never = false;
        let mut ack_lost = false;
        let mut breaks_off = false;
        if storm && writes(&request) && self.dice.disk.below(1000) < weather.lost_ack {
            ack_lost = true;
            unknown_at = Some(self.now + self.dice.disk.between(5, 3000) * MS);
            if self.dice.disk.percent(weather.late_effect) {
                to_disk += self.dice.disk.below(weather.late_ms.max(1)) * MS;
            } else {
                never = self.dice.disk.percent(40);
            }
            breaks_off =
                matches!(request, StorageRequest::PutPages(..)) && self.dice.tear.percent(50);
        }
        let patience = weather.patience_ms * MS;
        if patience > 0 && to_disk + back > patience {
            unknown_at = Some(unknown_at.unwrap_or(Nanos::MAX).min(self.now + patience));
        }
        self.seq += 1;
        let serial = self.seq;
        let h = &mut self.hosts[host];
        h.in_flight += 1;
        let op = Op {
            serial,
            host,
            boot: h.boot,
            run: h.agent_run,
            disk,
            id,
            request,
            issued: self.now,
            ack_at: self.now + to_disk + back,
            unknown_at,
            ack_lost,
            outcome: None,
            effect_over: never,
            breaks_off,
            answered: false,
            parked: false,
        };
        let index = match self.free_ops.pop() {
            Some(index) => {
                self.ops[index] = Some(op);
                index
            }
            None => self.ops.push(Some(op)),
        };
        if renews {
            self.renewals.entry((host, disk)).or_default().push(index);
        }
        if !never {
            self.after(to_disk, Happening::Effect { op: index, serial });
        }
        if let Some(at) = unknown_at {
            self.at(at, Happening::Ack { op: index, serial });
        }
    }

    /// Renewals of one record are ordered: an older one that is still on its way lands now or never.
    fn settle_older_renewals(&mut self, host: usize, disk: usize, new: &StorageRequest) {
        let StorageRequest::Renew(new_key, _) = new else {
            return;
        };
        let mut older = self.renewals.remove(&(host, disk)).unwrap_or_default();
        older.sort_unstable();
        older.dedup();
        for index in older {
            let Some(op) = &mut self.ops[index] else {
                continue;
            };
            let StorageRequest::Renew(key, _) = &op.request else {
                continue;
            };
            if op.host != host || op.disk != disk || op.effect_over {
                continue;
            }
            if key != new_key {
                self.renewals.entry((host, disk)).or_default().push(index);
                continue;
            }
            op.effect_over = true;
            let lands = self.dice.disk.percent(50) && !self.disks[disk].faults(host).hang;
            if lands && let Some(op) = self.ops[index].take() {
                self.disks[disk].perform(&op.request);
                self.ops[index] = Some(op);
            }
        }
    }

    fn take_op(&mut self, index: usize, serial: u64) -> Option<Op> {
        if self.ops[index].as_ref()?.serial != serial {
            return None;
        }
        self.ops[index].take()
    }

    pub(super) fn storage_effect(&mut self, index: usize, serial: u64) {
        let Some(mut op) = self.take_op(index, serial) else {
            return;
        };
        if op.effect_over {
            if !op.ack_lost && !op.answered {
                self.after(0, Happening::Ack { op: index, serial });
            }
            self.keep_or_free(index, op);
            return;
        }
        let faults = self.disks[op.disk].faults(op.host);
        let same_boot = self.hosts[op.host].boot == op.boot;
        if faults.hang && same_boot {
            // What was on its way when the path began to hang may have got through.
            let since = self.disks[op.disk]
                .hang_since
                .get(op.host)
                .copied()
                .unwrap_or(0);
            let through = op.issued < since && self.dice.disk.percent(20);
            if !through {
                self.park(index, op);
                return;
            }
        }
        op.effect_over = true;
        op.outcome = Some(if faults.gone && same_boot {
            StorageOutcome::Unknown(IoFault::Gone)
        } else {
            self.land(op.disk, &op.request, op.breaks_off)
        });
        if !op.ack_lost && !op.answered {
            // What a path held up is heard of when it is back, unless its time was over before.
            let at = op.ack_at.max(self.now);
            if op.unknown_at.is_none_or(|unknown| at < unknown) {
                self.at(at, Happening::Ack { op: index, serial });
            }
        }
        self.keep_or_free(index, op);
    }

    /// A request takes effect. Pages land one by one, and each state between is judged.
    fn land(&mut self, disk: usize, request: &StorageRequest, breaks_off: bool) -> StorageOutcome {
        let StorageRequest::PutPages(key, pages) = request else {
            let value = self.disks[disk].perform(request);
            self.record_landed(disk, request, &value);
            return StorageOutcome::Ok(value);
        };
        if breaks_off {
            let dice = &mut self.dice.tear;
            let sector = if dice.percent(50) { 512 } else { PAGE_BYTES };
            let sectors = pages.len() * (PAGE_BYTES / sector);
            let whole = usize::try_from(dice.below(sectors as u64 + 1)).unwrap_or(0);
            // Zeroes are the damage that is most easily taken for absence.
            let noise = if dice.percent(50) { 0 } else { 0xa5 };
            self.disks[disk].break_off(key, pages, sector, whole, noise);
            self.record_landed(disk, request, &StorageValue::Done);
            return StorageOutcome::Unknown(IoFault::Other);
        }
        let mut value = StorageValue::Done;
        for page in pages {
            let one = StorageRequest::PutPages(key.clone(), vec![page.clone()]);
            value = self.disks[disk].perform(&one);
            self.record_landed(disk, &one, &value);
        }
        match value {
            StorageValue::NotFound => StorageOutcome::NotDone(IoFault::Foreign),
            value => StorageOutcome::Ok(value),
        }
    }

    fn park(&mut self, index: usize, mut op: Op) {
        let serial = op.serial;
        let patience = self.scenario.weather.patience_ms * MS;
        if patience > 0 && op.unknown_at.is_none() && !op.answered {
            let at = (op.issued + patience).max(self.now);
            op.unknown_at = Some(at);
            self.at(at, Happening::Ack { op: index, serial });
        }
        if !op.parked {
            op.parked = true;
            self.disks[op.disk].parked.push(index);
        }
        self.ops[index] = Some(op);
    }

    pub(super) fn storage_ack(&mut self, index: usize, serial: u64) {
        let Some(mut op) = self.take_op(index, serial) else {
            return;
        };
        if op.answered {
            self.keep_or_free(index, op);
            return;
        }
        let unknown = op.unknown_at.is_some_and(|at| self.now >= at);
        let hang = self.disks[op.disk].faults(op.host).hang && self.hosts[op.host].boot == op.boot;
        if !unknown && hang {
            self.park(index, op);
            return;
        }
        op.answered = true;
        let outcome = match &op.outcome {
            Some(outcome) if !unknown => outcome.clone(),
            _ => StorageOutcome::Unknown(IoFault::TimedOut),
        };
        let (host, run) = (op.host, op.run);
        let told = self.hosts[host].boot == op.boot && self.hosts[host].agent_run == run;
        let input = Input::Storage(op.id, outcome);
        self.keep_or_free(index, op);
        if told && self.hosts[host].up() {
            self.feed(host, input);
        } else if told {
            self.answer(host, 0, input);
        }
    }

    fn keep_or_free(&mut self, index: usize, op: Op) {
        if !(op.effect_over && op.answered) {
            self.ops[index] = Some(op);
            return;
        }
        if op.parked {
            self.disks[op.disk].parked.retain(|i| *i != index);
        }
        self.free_ops.push(index);
        if self.hosts[op.host].boot != op.boot {
            return;
        }
        let h = &mut self.hosts[op.host];
        h.in_flight = h.in_flight.saturating_sub(1);
        // Rule H16: a new agent comes when every thread of its predecessor is gone.
        if h.in_flight == 0 && h.agent_waits {
            h.agent_waits = false;
            let boot = h.boot;
            self.after(
                10 * MS,
                Happening::AgentStart {
                    host: op.host,
                    boot,
                },
            );
        }
    }

    /// The host lost power: what is on its way lands within seconds, or vanishes.
    pub(super) fn operations_lose_power(&mut self, host: usize) {
        for index in 0..self.ops.len() {
            let Some(mut op) = self.ops[index].take() else {
                continue;
            };
            if op.host != host {
                self.ops[index] = Some(op);
                continue;
            }
            op.answered = true;
            if op.parked || self.dice.disk.percent(50) {
                op.effect_over = true;
            } else if !op.effect_over {
                let pages = matches!(op.request, StorageRequest::PutPages(..));
                op.breaks_off |= pages && self.dice.tear.percent(50);
                // Its effect may have been planned for much later: the bound is a few seconds.
                let (wait, serial) = (self.dice.disk.below(3000) * MS, op.serial);
                self.after(wait, Happening::Effect { op: index, serial });
            }
            self.keep_or_free(index, op);
        }
        self.hosts[host].in_flight = 0;
    }
}
