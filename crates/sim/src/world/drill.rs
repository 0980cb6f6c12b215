//! Drills: an admin lets a host fall silent. What follows is the agents' business.

use super::World;
use crate::clock::Nanos;
use mainstay_core::drill::Answer;
use mainstay_core::time::Duration;

impl World<'_> {
    /// An admin rehearses the loss of a host, and asks for it there.
    pub(super) fn drill(&mut self, host: usize, time: Option<Nanos>, insists: bool) {
        if !self.hosts[host].agent_listens() {
            return self.note("the drill was not heard of: the agent does not answer");
        }
        let now = self.hosts[host].clock.local(self.now);
        let id = self.hosts[host].id.clone();
        let time = time.map(Duration::from_nanos);
        let asked = match &mut self.hosts[host].agent {
            Some(agent) => agent.run_drill(now, &id, time, insists),
            None => return,
        };
        self.drain(host);
        if let Err(error) = asked {
            self.note(&error.to_string());
        }
    }

    /// What became of a drill that was asked for.
    pub(super) fn drill_answered(&mut self, answer: &Result<Answer, String>) {
        if let Err(why) = answer {
            self.note(why);
        }
    }

    /// A host falls silent, or is back: whoever is not heard hears nobody either.
    pub(super) fn in_drill(&mut self, host: usize, silent: bool) {
        self.hosts[host].drilled = silent;
        self.hosts[host].unrest = self.now;
        if silent {
            return;
        }
        // Only now its agent learns what ended meanwhile.
        for instance in self.instances.on_host(host).to_vec() {
            if !self.instances[instance].exists() {
                self.instances[instance].untold = None;
            }
        }
    }
}
