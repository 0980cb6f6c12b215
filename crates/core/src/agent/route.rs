//! Hands what happened to the room that it is about: inputs, answers of the storage, messages of other agents.
//!
//! Never here: a decision about what was handed on, but that nobody is there to take it.

use super::{Agent, Pending};
use crate::event::IssueCause;
use crate::id::HostId;
use crate::io::{Input, StorageOutcome};
use crate::wire::Message;
use alloc::format;

impl Agent {
    /// Takes what happened, at the time that it is.
    pub(crate) fn take(&mut self, input: Input) {
        match input {
            Input::Timeout => {}
            Input::Message { from, message } => self.on_message(&from, message),
            Input::Stream { from, envelope } => self.on_stream(&from, envelope),
            Input::Understands { host, version } => self.on_understands(&host, version),
            Input::StreamRenewed { to } => self.on_stream_renewed(&to),
            Input::Pinged(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Ping { target, issued }) => self.on_ping(target, issued, outcome),
                _ => self.ignore("stale ping"),
            },
            Input::Storage(op, outcome) => match self.pending.remove(&op) {
                Some(pending) => self.on_storage(pending, &outcome),
                None => self.ignore("stale storage completion"),
            },
            Input::Guard(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Guard { vm }) => self.on_vm_guard(&vm, outcome),
                Some(Pending::Extend) => self.on_extended(outcome),
                Some(Pending::Forget) => {}
                _ => self.ignore("stale guard answer"),
            },
            Input::Hypervisor(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Hypervisor { vm, what }) => self.on_vm_hypervisor(&vm, what, outcome),
                _ => self.ignore("stale hypervisor answer"),
            },
            Input::Fenced(op, outcome) => match self.pending.remove(&op) {
                Some(Pending::Fence { host, issued }) => self.on_fenced(&host, op, issued, outcome),
                _ => self.ignore("stale answer of a fence device"),
            },
            Input::Persisted(op, ok) => {
                if matches!(self.pending.remove(&op), Some(Pending::KeepConfig)) {
                    self.config_kept(ok);
                    return;
                }
                self.persisted(ok);
            }
            Input::VmExited { vm, cause } => self.on_vm_exited(&vm, cause),
            Input::VmLapsed { vm, generation } => self.on_vm_lapsed(&vm, generation),
            Input::VmIo { vm, fault } => self.on_vm_io(&vm, fault),
        }
    }

    fn on_storage(&mut self, pending: Pending, outcome: &StorageOutcome) {
        match pending {
            Pending::Renew {
                datastore,
                seq,
                issued,
            } => self.on_renewed(&datastore, seq, issued, outcome),
            Pending::Observe {
                datastore,
                host,
                issued,
            } => self.on_observed(&datastore, &host, issued, outcome),
            Pending::Poweron { datastore } => self.on_poweron_written(&datastore, outcome),
            Pending::ProbeLock { datastore, host } => {
                self.on_lock_probed(&datastore, &host, outcome)
            }
            Pending::PoweronRead { datastore, host } => {
                self.on_poweron_read(&datastore, &host, outcome);
            }
            Pending::Scan { datastore } => self.on_scanned(&datastore, outcome),
            Pending::List {
                datastore,
                generation,
            } => self.on_list(&datastore, generation, outcome),
            Pending::Config {
                datastore,
                generation,
            } => self.on_home(&datastore, generation, outcome),
            Pending::Task(number) => self.step_task(number, outcome),
            Pending::Ping { .. }
            | Pending::Guard { .. }
            | Pending::Extend
            | Pending::Hypervisor { .. }
            | Pending::KeepConfig
            | Pending::Fence { .. }
            | Pending::Persist => self.ignore("completion of another kind"),
            Pending::Forget => {}
        }
    }

    pub(crate) fn on_message(&mut self, from: &HostId, message: Message) {
        if *from == self.me.host {
            self.issue_found(IssueCause::SameHostId, "", format!(
                "a message came from another agent that calls itself {from} as well; give each host an id of its own"
            ));
            return;
        }
        if !self.peers.contains_key(from) {
            self.ignore("message of a host that is not in the cluster");
            return;
        }
        self.note_company();
        match message {
            Message::Heartbeat {
                role,
                rank,
                primary,
                instance,
            } => {
                self.on_heartbeat(from, role, rank, primary, instance);
            }
            Message::Candidate { rank } => self.on_candidate(from, rank),
            Message::Report(report) => self.on_report(from, report),
            Message::Changes(changes) => self.on_changes(from, changes),
            Message::ReportWanted => self.on_report_wanted(from),
            Message::Start(order) => self.on_start_order(from, order),
            Message::Started(result) => self.on_start_result(from, result),
            Message::CheckLock {
                vm,
                datastore,
                generation,
            } => self.on_check_lock(&vm, &datastore, generation),
            Message::Protected { vms } => self.protected_here = vms.into_iter().collect(),
            Message::Leaving => self.on_leaving(from),
            Message::StepDown => self.on_step_down(from),
            Message::Propose { ticket, changes } => self.on_propose(from, ticket, changes),
            Message::Proposed { ticket, outcome } => self.on_proposed(ticket, outcome),
            Message::ConfigVersion { version } => self.on_config_version(from, version),
            Message::Config(config) => self.on_config(from, *config),
            Message::AskVouch { datastore, nonce } => self.on_ask_vouch(from, &datastore, nonce),
            Message::Vouch {
                datastore,
                nonce,
                generation,
            } => self.on_vouch(from, &datastore, nonce, generation),
            Message::Acknowledge {
                instance,
                of,
                epoch,
                up_to,
                again,
            } => self.on_acknowledge(from, instance, of, (epoch, up_to), again),
            Message::Facts(facts) => self.on_facts(from, *facts),
            Message::Clock { instance, at } => self.on_clock(from, instance, at),
            Message::Drill(drill) => self.on_drill(from, *drill),
            Message::Vmcp(message) => self.on_vmcp(from, *message),
        }
    }
}
