//! What the agent answers at its control socket.

use super::Shell;
use crate::clock;
use crate::control::server::{Ask, Drilled, Proposal};
use crate::control::{Leaving, Pong, Readiness};
use mainstay_core::config::nearest;
use mainstay_core::id::{HostId, VmId};
use mainstay_core::status::Status;
use mainstay_core::time::millis;
use mainstay_core::{Command, CommandError};

impl Shell {
    fn status(&self) -> Result<Status, String> {
        let status = self.agent.status(clock::now());
        let mut status = status.ok_or("the agent has no status yet; try again")?;
        status.ignored.extend(self.rejects.all());
        Ok(status)
    }

    /// Answers the control socket; a client that went away meanwhile gets nothing.
    pub(super) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(to) => drop(to.try_send(self.status())),
            Ask::Ping(to) => drop(to.try_send(Pong {
                host: self.stamp.writer.clone(),
                pid: std::process::id(),
                guard_pid: self.link.guard_pid(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })),
            Ask::ExplainVm(vm, to) => {
                let explained = self.agent.explain_vm(clock::now(), &vm);
                drop(to.try_send(explained.ok_or_else(|| self.no_vm(&vm))));
            }
            Ask::ExplainHost(host, to) => {
                let known = self.addresses.keys().map(HostId::as_str);
                let explained = self.agent.explain_host(clock::now(), &host);
                drop(to.try_send(explained.ok_or_else(|| absent("host", host.as_str(), known))));
            }
            Ask::PowerOn(vm, to) => drop(to.try_send(self.command(Command::PowerOn(vm)))),
            Ask::PowerOff(vm, to) => drop(to.try_send(self.command(Command::PowerOff(vm)))),
            Ask::PrepareRestart(to) => drop(to.try_send(self.prepare_restart())),
            Ask::Leave(to) => drop(to.try_send(self.leave())),
            Ask::Config(to) => drop(to.try_send(self.agent.config().clone())),
            Ask::InForce(to) => drop(to.try_send(self.in_force())),
            Ask::Change(proposal) => self.change(proposal),
            Ask::DrillPlan(host, to) => {
                let asked = self.agent.plan_drill(clock::now(), &host);
                self.await_drill(asked, to);
            }
            Ask::DrillRun(host, time, insists, to) => {
                let asked = self.agent.run_drill(clock::now(), &host, time, insists);
                self.await_drill(asked, to);
            }
            Ask::DrillStop(host, to) => {
                let stopped = self.agent.stop_drill(clock::now(), &host);
                self.drain();
                drop(to.try_send(stopped.map_err(|e| e.to_string())));
            }
            Ask::DrillProgress(host, to) => {
                let progress = self.agent.drill_progress(clock::now(), &host);
                self.drain();
                drop(to.try_send(progress.map_err(|e| e.to_string())));
            }
        }
    }

    fn change(&mut self, proposal: Proposal) {
        let limit = self.agent.config().settings.order_timeout;
        if !proposal.take(limit) {
            tracing::warn!("a change came too late: whoever asked was told that nothing is done");
            return;
        }
        // Nobody waits longer than that.
        self.proposals.retain(|_, (_, until)| clock::now() < *until);
        let outcome = proposal.outcome;
        match self.propose(proposal.changes) {
            Ok(ticket) => {
                let until = clock::now() + limit + limit;
                self.proposals.insert(ticket, (outcome, until));
            }
            Err(error) => drop(outcome.try_send(Err(error))),
        }
        self.drain();
    }

    fn leave(&mut self) -> Result<Leaving, String> {
        // Only the first of them does something.
        self.command(Command::Leave)?;
        Ok(Leaving {
            host: self.stamp.writer.clone(),
            ready: self.agent.may_leave(),
        })
    }

    fn await_drill(&mut self, asked: Result<u64, CommandError>, to: Drilled) {
        match asked {
            // The answer may be among what the core has to say now.
            Ok(ticket) => {
                self.drills.insert(ticket, to);
            }
            Err(error) => drop(to.try_send(Err(error.to_string()))),
        }
        self.drain();
    }

    fn prepare_restart(&mut self) -> Result<Readiness, String> {
        self.command(Command::PrepareRestart)?;
        let now = clock::now();
        Ok(Readiness {
            host: self.stamp.writer.clone(),
            ready: self.agent.may_be_restarted(now),
            away_ms: millis(self.agent.may_be_away(now)),
        })
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        let result = self
            .agent
            .command(clock::now(), command)
            .map_err(|e| e.to_string());
        self.drain();
        result
    }

    fn no_vm(&self, vm: &VmId) -> String {
        let status = self.agent.status(clock::now());
        let known = status.iter().flat_map(|s| &s.vms).map(|v| v.vm.as_str());
        absent("VM", vm.as_str(), known)
    }
}

fn absent<'a>(what: &str, id: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = nearest(id, known)
        .map(|n| format!("; did you mean \"{n}\"?"))
        .unwrap_or_default();
    format!("there is no {what} \"{id}\" in this cluster{near}")
}
