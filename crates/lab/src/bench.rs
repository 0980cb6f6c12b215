//! How long a failover takes, phase by phase, and what agent and guard take at rest: measured on real processes.
//!
//! ```text
//! power loss --detection--> verdict --ask--> requested --lock wait--> lock broken --start--> started --> first write
//! '--------------------------------------- total ---------------------------------------------------------'
//!            '-- the later of two timers, in that very run --'------------- overhead -----------------------'
//! ```
//!
//! Power loss and first write are what this process and the storage saw; the steps between are the agents' words.
//! Every failover is one of a fresh cluster: a host that comes back finds its VMs elsewhere, and moving them would
//! take as long as another cluster.
//!
//! # Never here
//! A figure from an agent where the storage has one; a run that is left out because it was slow.

mod footprint;
mod percentiles;
mod phases;
mod rows;
mod svg;

use crate::cluster::Options;
use crate::fail::{Context, Failure, Result};
use crate::run::{AtRest, Audience, Loss, Run, Stopper, Victim};
pub use footprint::{Kind, Share, shares};
use mainstay_core::config::Profile;
use mainstay_core::time::Duration;
use mainstay_sim::Scenario;
pub use percentiles::Percentiles;
pub use phases::{PHASES, Phase, Times, due, times};
pub use rows::{Row, RowTimes, first_and_last};
use std::fmt::Write as _;
pub use svg::strips;

/// Memory of a VM of the bench, in MiB; what the processes really take is another matter.
const VM_MEMORY_MB: usize = 64;
/// Datastores of a cluster: VMs are spread over them.
const DATASTORES: usize = 2;

/// The cluster that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its timers.
    pub profile: Profile,
    /// Hosts, at least 3: with two, the survivor elects nobody to ask.
    pub hosts: usize,
    /// VMs, at least 1; their guests take no time to start.
    pub vms: usize,
    /// The phases of faults against heartbeats follow from it.
    pub seed: u64,
}

impl Plan {
    /// Its scenario: without events, VMs spread over hosts and datastores in turn.
    ///
    /// # Errors
    /// When there are fewer hosts or VMs than that takes.
    pub fn scenario(&self) -> Result<Scenario> {
        if self.hosts < 2 || self.vms == 0 {
            return Err(Failure::new("a bench needs at least two hosts and one VM"));
        }
        let profile = self.profile.name();
        let mut text = format!(
            "name = \"bench\"\nduration = \"10s\"\nprofile = \"{profile}\"\nseed = {}\n",
            self.seed
        );
        for number in 1..=DATASTORES {
            text.push_str(&format!("[[datastore]]\nid = \"ds-{number}\"\n"));
        }
        // Every host has room for all VMs, so that room is not what is measured.
        let memory = (self.vms + 1) * VM_MEMORY_MB;
        let cpu = (self.vms + 1) * 10;
        let hosts = self.hosts;
        writeln!(
            text,
            "[[host]]\ncount = {hosts}\nmemory_mb = {memory}\ncpu_mhz = {cpu}"
        )
        .context("cannot write a scenario")?;
        for vm in 0..self.vms {
            writeln!(
                text,
                "[[vm]]\nid = \"vm-{}\"\nhost = \"host-{}\"\ndatastore = \"ds-{}\"\nmemory_mb = {VM_MEMORY_MB}\n\
                 cpu_mhz = 10\nstart_time = \"0s\"",
                vm + 1,
                vm % hosts + 1,
                vm % DATASTORES + 1,
            )
            .context("cannot write a scenario")?;
        }
        mainstay_sim::parse("bench", &text).context("the bench's own scenario is refused")
    }

    /// Loses a host with all VMs of a fresh cluster. `begun` is told what stops it.
    ///
    /// # Errors
    /// As [`Run::lose_host`].
    pub fn fail_over(
        &self,
        victim: Victim,
        options: &Options,
        audience: &mut dyn Audience,
        begun: impl FnOnce(Stopper),
    ) -> Result<(Loss, Vec<Times>)> {
        let scenario = self.scenario()?;
        let run = Run::new(&scenario, options.clone());
        begun(run.stopper());
        let loss = run.lose_host(victim, audience)?;
        let times = times(&loss, &scenario.config.settings.timing);
        Ok((loss, times))
    }

    /// Looks at a fresh cluster at rest, once it has rested for `settled`. `begun` is told what stops it.
    ///
    /// # Errors
    /// As [`Run::rest`].
    pub fn rest(
        &self,
        (settled, time): (Duration, Duration),
        options: &Options,
        audience: &mut dyn Audience,
        begun: impl FnOnce(Stopper),
    ) -> Result<Vec<AtRest>> {
        let scenario = self.scenario()?;
        let run = Run::new(&scenario, options.clone());
        begun(run.stopper());
        run.rest(settled, time, audience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_scenario_that_the_lab_plays() {
        let plan = Plan {
            profile: Profile::Fast,
            hosts: 12,
            vms: 100,
            seed: 3,
        };
        let scenario = plan.scenario().expect("sound");
        assert_eq!((scenario.hosts.len(), scenario.vms.len()), (12, 100));
        assert_eq!(crate::run::unplayable(&scenario), Vec::<String>::new());
        assert!(scenario.vms.iter().all(|vm| vm.start_time == 0));
        let on_first = scenario.homes().iter().filter(|h| **h == Some(0)).count();
        assert_eq!(on_first, 9);
        assert!(Plan { vms: 0, ..plan }.scenario().is_err());
    }
}
