//! Lock operations under way: each reading, swap and clean-up of a lock is a machine that is fed the
//! outcomes of its storage operations, tried again after a while when nothing could be decided, and
//! handed to the room that wanted it when it has ended.

use crate::agent::{Agent, Pending, planted};
use crate::event::IssueCause;
use crate::id::{DatastoreId, Generation, Holder, Nonce, VmId};
use crate::io::{StorageOutcome, StorageRequest};
use crate::lock::{Cleanup, HeadRead, LockName, Step, Swap, SwapOutcome};
use crate::time::Instant;
use crate::wire::{Desired, GivenBack, LockRecord};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::ToString as _;
use core::fmt::{self, Display};

/// For whom a lock task works.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum TaskFor {
    /// A local VM; what follows depends on its phase.
    Vm(VmId),
    /// Taking or giving back a datastore's owner lock.
    Own(DatastoreId),
    /// The primary looks at the lock of a VM that nobody reports.
    Look(VmId),
    /// Looking for locks that name this host though it has no such VM.
    Orphan(DatastoreId, VmId),
    /// An isolated host asks whether another primary owns a datastore.
    Isolated(DatastoreId),
    /// A host that is silent in a drill looks whether another took the lock of a VM that is frozen on it.
    Drilled(VmId),
    /// Removing old generations.
    Tidy,
}

#[derive(Clone, Hash, Debug)]
enum Machine {
    Head(HeadRead),
    Swap(Swap),
    Cleanup(Cleanup),
}

#[derive(Clone, Hash, Debug)]
pub(crate) struct Task {
    datastore: DatastoreId,
    name: LockName,
    work_for: TaskFor,
    machine: Machine,
    /// Waits until then before it tries again.
    retry_at: Option<Instant>,
    /// The highest generation that was known when the reading began.
    known: Generation,
    /// It is part of the scan for locks without a VM, whose newest generation was that.
    listed: Option<Generation>,
}

impl Task {
    /// What its weaknesses are about.
    fn about(&self) -> LockOn<'_> {
        LockOn(&self.datastore, &self.name)
    }

    /// The datastore whose scan goes on when this reading has ended.
    fn scanned(&self) -> Option<DatastoreId> {
        self.listed.map(|_| self.datastore.clone())
    }

    /// The generation that keeps the lock from being read.
    fn damaged(&self) -> Option<Generation> {
        match &self.machine {
            Machine::Head(head) => head.damaged(),
            Machine::Swap(_) | Machine::Cleanup(_) => None,
        }
    }
}

/// A lock, as the weaknesses that are about it name it.
struct LockOn<'a>(&'a DatastoreId, &'a LockName);

impl Display for LockOn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.0, self.1)
    }
}

/// The tasks under way, found by their number, by their purpose and by the time of their next try.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Tasks {
    all: BTreeMap<u64, Task>,
    /// Clean-ups are not in here: nobody asks for them.
    by_purpose: BTreeMap<TaskFor, BTreeSet<u64>>,
    retries: BTreeSet<(Instant, u64)>,
}

impl Tasks {
    fn insert(&mut self, number: u64, task: Task) {
        if task.work_for != TaskFor::Tidy {
            let numbers = self.by_purpose.entry(task.work_for.clone()).or_default();
            numbers.insert(number);
        }
        self.all.insert(number, task);
    }

    fn remove(&mut self, number: u64) -> Option<Task> {
        let task = self.all.remove(&number)?;
        if let Some(at) = task.retry_at {
            self.retries.remove(&(at, number));
        }
        if let Some(numbers) = self.by_purpose.get_mut(&task.work_for) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_purpose.remove(&task.work_for);
            }
        }
        Some(task)
    }

    /// The task tries again then.
    fn wait(&mut self, number: u64, until: Instant) {
        if let Some(task) = self.all.get_mut(&number) {
            if let Some(before) = task.retry_at.replace(until) {
                self.retries.remove(&(before, number));
            }
            self.retries.insert((until, number));
        }
    }

    /// The tasks that are to be tried again, in the order of their numbers; they wait no longer.
    fn take_due(&mut self, now: Instant) -> BTreeSet<u64> {
        let later = self.retries.split_off(&(now, u64::MAX));
        let due = core::mem::replace(&mut self.retries, later);
        due.into_iter()
            .map(|(_, number)| {
                if let Some(task) = self.all.get_mut(&number) {
                    task.retry_at = None;
                }
                number
            })
            .collect()
    }

    /// All that work for that wait to be tried again.
    pub(crate) fn waits(&self, work_for: &TaskFor) -> bool {
        let numbers = self.by_purpose.get(work_for).into_iter().flatten();
        let mut tasks = numbers.filter_map(|number| self.all.get(number));
        tasks.all(|task| task.retry_at.is_some())
    }

    /// When the next one is tried again.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }
}

/// What a generation that was read says of the datastore.
pub(crate) enum Freshness {
    /// As new as all that is known.
    Fresh,
    /// Older than what was learnt while it was being read: read again.
    Overtaken,
    /// Older than what was known before: the lock went back.
    WentBack,
}

impl Agent {
    /// The highest generation of a lock that was seen.
    pub(crate) fn known_generation(&self, datastore: &DatastoreId, name: &LockName) -> Generation {
        let known = match name {
            LockName::Vm(vm) => self
                .durable
                .vm_generations
                .get(&(datastore.clone(), vm.clone())),
            LockName::Owner => self.durable.owner_generations.get(datastore),
        };
        known.copied().unwrap_or_default()
    }

    /// Begins reading a lock.
    pub(crate) fn read_lock(&mut self, datastore: &DatastoreId, name: LockName, work_for: TaskFor) {
        let known = self.known_generation(datastore, &name);
        let (head, request) = self.head_read(&name, known);
        self.begin_task(datastore, name, work_for, Machine::Head(head), request);
    }

    fn head_read(&self, name: &LockName, known: Generation) -> (HeadRead, StorageRequest) {
        let hint = (known > Generation(0)).then_some(known);
        let (mut head, request) = HeadRead::begin(name.clone(), self.config.cluster_id, hint);
        head.skip_predecessor = planted!(self, NoHeadCheck);
        head.skip_confirm = planted!(self, EndNotConfirmed);
        head.damaged_is_absent = planted!(self, DamagedIsAbsent);
        (head, request)
    }

    /// Begins a swap of a lock from that generation to `holder`.
    pub(crate) fn swap_lock(
        &mut self,
        datastore: &DatastoreId,
        name: LockName,
        work_for: TaskFor,
        from: (Generation, Nonce),
        holder: Option<Holder>,
        desired: Desired,
    ) {
        self.swap_lock_noting(datastore, name, work_for, from, holder, desired, None);
    }

    /// The same, with the mark that is left in a free generation.
    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    pub(crate) fn swap_lock_noting(
        &mut self,
        datastore: &DatastoreId,
        name: LockName,
        work_for: TaskFor,
        from: (Generation, Nonce),
        holder: Option<Holder>,
        desired: Desired,
        given_back: Option<GivenBack>,
    ) {
        // A member of the first version could not read such a lock, and would wait for ever.
        let given_back = given_back.filter(|_| self.level() >= 2);
        let (freeze, r#break) = self.constants();
        let new = LockRecord {
            generation: from.0.next(),
            nonce: Nonce(self.nonces.next_u64()),
            holder,
            desired,
            freeze,
            r#break,
            given_back,
        };
        let stamp = self.stamp();
        let mut swap = Swap::begin(name.clone(), self.config.cluster_id, &stamp, from, new);
        // A lock that is given back, and one that names this host already, is not let go half-way.
        swap.stubborn = swap.new_record().holder.is_none();
        swap.skip_check = planted!(self, NoPredecessorCheck);
        swap.skip_list = planted!(self, NoHeadCheck);
        swap.trust_unknown = planted!(self, UnknownIsWon);
        swap.any_nonce = planted!(self, ForeignLinkIsOwn);
        swap.remove_predecessor = planted!(self, PredecessorRemoved);
        swap.remove_followed = planted!(self, FollowedRemoved);
        let request = swap.retry();
        self.begin_task(datastore, name, work_for, Machine::Swap(swap), request);
    }

    fn begin_task(
        &mut self,
        datastore: &DatastoreId,
        name: LockName,
        work_for: TaskFor,
        machine: Machine,
        request: StorageRequest,
    ) {
        let number = self.number();
        let known = self.known_generation(datastore, &name);
        let task = Task {
            datastore: datastore.clone(),
            name,
            work_for,
            machine,
            retry_at: None,
            known,
            listed: None,
        };
        self.tasks.insert(number, task);
        self.storage(datastore, request, Pending::Task(number));
    }

    /// Reads a lock as part of the scan for locks without a VM, whose newest generation was `listed`: now, or
    /// not before that time.
    pub(crate) fn scan_lock(
        &mut self,
        datastore: &DatastoreId,
        (vm, listed): &(VmId, Generation),
        from: Option<Instant>,
    ) {
        let number = self.number();
        let name = LockName::Vm(vm.clone());
        let known = self.known_generation(datastore, &name);
        let (head, request) = if known > *listed {
            // The listing is older than what is known.
            self.head_read(&name, known)
        } else {
            let cluster = self.config.cluster_id;
            HeadRead::glance(name.clone(), cluster, *listed, &self.me.host)
        };
        let task = Task {
            datastore: datastore.clone(),
            name,
            work_for: TaskFor::Orphan(datastore.clone(), vm.clone()),
            machine: Machine::Head(head),
            retry_at: None,
            known,
            listed: Some(*listed),
        };
        self.tasks.insert(number, task);
        match from {
            Some(at) => self.tasks.wait(number, at),
            None => self.storage(datastore, request, Pending::Task(number)),
        }
    }

    /// How many locks of a datastore the scan is reading.
    pub(crate) fn scanning(&self, datastore: &DatastoreId) -> usize {
        let all = self.tasks.all.values();
        all.filter(|t| t.listed.is_some() && t.datastore == *datastore)
            .count()
    }

    /// True while a task works for that purpose.
    pub(crate) fn has_task(&self, work_for: &TaskFor) -> bool {
        self.tasks.by_purpose.contains_key(work_for)
    }

    /// Ends the tasks of that purpose: their completions are ignored. Only for readings, or when the
    /// caller never relies on the swapped generation again.
    pub(crate) fn drop_tasks(&mut self, work_for: &TaskFor) {
        let numbers = self.tasks.by_purpose.get(work_for).cloned();
        for number in numbers.unwrap_or_default() {
            self.tasks.remove(number);
        }
    }

    pub(crate) fn run_tasks(&mut self) {
        if self.tasks.next_retry().is_none_or(|at| at > self.now) {
            return;
        }
        for number in self.tasks.take_due(self.now) {
            let Some(task) = self.tasks.all.get(&number) else {
                continue;
            };
            let datastore = task.datastore.clone();
            let request = match &task.machine {
                Machine::Head(head) => head.retry(),
                Machine::Swap(swap) => swap.retry(),
                Machine::Cleanup(_) => continue,
            };
            self.storage(&datastore, request, Pending::Task(number));
        }
    }

    pub(crate) fn step_task(&mut self, number: u64, outcome: &StorageOutcome) {
        let retry_at = self.now + self.timing().datastore_heartbeat;
        let Some(task) = self.tasks.all.get_mut(&number) else {
            return;
        };
        if let Some(store) = self.stores.get_mut(&task.datastore) {
            store.note(self.now, outcome);
        }
        let step = match &mut task.machine {
            Machine::Head(head) => head.on_outcome(outcome),
            Machine::Swap(swap) => swap.on_outcome(outcome),
            Machine::Cleanup(cleanup) => cleanup.on_outcome(outcome),
        };
        match step {
            Step::Do(request) => {
                let datastore = task.datastore.clone();
                self.storage(&datastore, request, Pending::Task(number));
            }
            Step::Wait => self.task_waits(number, retry_at),
            Step::Cleaned => {
                self.tasks.remove(number);
            }
            Step::Head(record) => {
                let Some(task) = self.tasks.remove(number) else {
                    return;
                };
                let scanned = task.scanned();
                self.on_head(task, record);
                if let Some(datastore) = scanned {
                    self.scan_further(&datastore);
                }
            }
            Step::Swapped(outcome) => {
                let Some(task) = self.tasks.remove(number) else {
                    return;
                };
                self.on_swapped(task, &outcome);
            }
        }
    }

    /// Nothing could be decided now. A lock that a scan cannot read goes behind those that it has not looked
    /// at, and the next one takes its place when it would have been tried again: so the rest is reached, and
    /// no more are read at once.
    fn task_waits(&mut self, number: u64, until: Instant) {
        let Some(task) = self.tasks.all.get(&number) else {
            return;
        };
        if let Some(generation) = task.damaged() {
            let (about, work_for) = (task.about().to_string(), task.work_for.clone());
            let text = format!(
                "datastore {}: generation {generation} of the lock of {:?} is damaged or foreign, and nothing is concluded from an older one; it is read again and again: check that storage, and that no other cluster uses it",
                task.datastore, task.name
            );
            if let TaskFor::Look(vm) = work_for {
                self.on_look_damaged(&vm, &text);
            }
            self.issue_found(IssueCause::RecordUnreadable, about, text);
        }
        match self.tasks.all.get(&number) {
            Some(Task {
                listed: Some(listed),
                ..
            }) => {
                let listed = *listed;
                let Some(task) = self.tasks.remove(number) else {
                    return;
                };
                if let TaskFor::Orphan(datastore, vm) = task.work_for {
                    self.scan_later(&datastore, (vm, listed), until);
                }
            }
            Some(_) => self.tasks.wait(number, until),
            None => {}
        }
    }

    pub(crate) fn on_head(&mut self, task: Task, record: Option<LockRecord>) {
        if let Some(record) = &record {
            self.withdraw(IssueCause::RecordsMissing, task.about());
            self.withdraw(IssueCause::RecordUnreadable, task.about());
            match self.remember(&task.datastore, &task.name, record.generation, task.known) {
                Freshness::Fresh => {}
                Freshness::Overtaken => {
                    self.read_lock(&task.datastore, task.name, task.work_for);
                    return;
                }
                // The datastore is in quarantine and nothing is decided from it.
                Freshness::WentBack => return,
            }
        } else {
            self.issue(IssueCause::RecordsMissing, task.about(), format!(
                "datastore {}: the lock of {:?} was never begun or its records are gone; add it again with `mainstay datastore add`",
                task.datastore, task.name
            ));
        }
        match task.work_for {
            TaskFor::Vm(vm) => self.on_vm_head(&vm, record),
            TaskFor::Own(datastore) => self.on_own_head(&datastore, record),
            TaskFor::Look(vm) => self.on_look(&vm, record),
            TaskFor::Orphan(datastore, vm) => self.on_orphan_head(&datastore, &vm, record),
            TaskFor::Isolated(datastore) => self.on_isolated_owner(&datastore, record),
            TaskFor::Drilled(vm) => self.on_drilled_head(&vm, record.as_ref()),
            TaskFor::Tidy => {}
        }
    }

    pub(crate) fn on_swapped(&mut self, task: Task, outcome: &SwapOutcome) {
        let Machine::Swap(mut swap) = task.machine else {
            return;
        };
        let record = swap.new_record().clone();
        if *outcome == SwapOutcome::Won {
            self.remember(
                &task.datastore,
                &task.name,
                record.generation,
                record.generation,
            );
            let downwards = planted!(self, CleanUpDownwards);
            let old = swap.take_old();
            if let Some((mut cleanup, request)) = Cleanup::begin(task.name.clone(), old, downwards)
            {
                cleanup.ignore_doubt = planted!(self, CleanUpGoesOn);
                self.begin_task(
                    &task.datastore,
                    task.name,
                    TaskFor::Tidy,
                    Machine::Cleanup(cleanup),
                    request,
                );
            }
        }
        match task.work_for {
            TaskFor::Vm(vm) => self.on_vm_swapped(&vm, record, outcome),
            TaskFor::Own(datastore) => self.on_own_swapped(&datastore, record, outcome),
            TaskFor::Orphan(_, vm) => {
                // The wish is in the lock now, or another host's generation has overtaken it.
                if !matches!(outcome, SwapOutcome::NotDone(_)) {
                    self.durable_dirty |= self.durable.wanted_off.remove(&vm);
                }
                if *outcome == SwapOutcome::Won {
                    self.say_released(&vm, &record);
                }
            }
            TaskFor::Look(_) | TaskFor::Isolated(_) | TaskFor::Drilled(_) | TaskFor::Tidy => {}
        }
    }

    /// What that task works for.
    pub(crate) fn works_for(&self, number: u64) -> Option<&TaskFor> {
        self.tasks.all.get(&number).map(|task| &task.work_for)
    }

    /// Remembers a generation, and tells whether the lock went backwards (safety rule H22): only against
    /// what was known when the reading began, for an answer may be overtaken by a newer one.
    pub(crate) fn remember(
        &mut self,
        datastore: &DatastoreId,
        name: &LockName,
        generation: Generation,
        known_then: Generation,
    ) -> Freshness {
        let known = match name {
            LockName::Vm(vm) => self
                .durable
                .vm_generations
                .entry((datastore.clone(), vm.clone()))
                .or_default(),
            LockName::Owner => self
                .durable
                .owner_generations
                .entry(datastore.clone())
                .or_default(),
        };
        if generation < *known && generation >= known_then {
            return Freshness::Overtaken;
        }
        if generation < *known {
            let text = format!(
                "datastore {datastore}: the lock of {name:?} went back from generation {known} to {generation}, as after restoring a snapshot; nothing is started there until a person confirms the datastore"
            );
            if let Some(store) = self.stores.get_mut(datastore) {
                store.quarantine = Some(text.clone());
            }
            self.issue(IssueCause::LockWentBack, LockOn(datastore, name), text);
            return Freshness::WentBack;
        }
        if generation > *known {
            *known = generation;
            self.generations_seen = true;
        }
        Freshness::Fresh
    }
}
