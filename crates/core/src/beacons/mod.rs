//! The datastores that carry this host's own heartbeat and powered-on list for the primary's verdict:
//! chosen again when one of them stops answering, or answers again.

use crate::agent::Agent;
use crate::event::{EventKind, IssueCause};
use crate::id::DatastoreId;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

impl Agent {
    /// The datastores of this host's choice that have not answered it for one `break`.
    fn silent_datastores(&self) -> BTreeSet<DatastoreId> {
        let patience = self.timing().r#break;
        if self.now.since(self.started) <= patience {
            return BTreeSet::new();
        }
        self.stores
            .iter()
            .filter(|(_, s)| !s.usable(self.now, patience))
            .map(|(d, _)| d.clone())
            .collect()
    }

    /// Looks whether the choice still stands; once in each heartbeat interval.
    pub(crate) fn renew_beacons(&mut self) {
        let silent = self.silent_datastores();
        let Some(spec) = self.own_spec() else {
            return;
        };
        let hosts = |d: &DatastoreId| self.topology.mounted_by(d).len();
        let chosen = self
            .config
            .choose_datastores(spec, hosts, &silent, &self.beacons);
        self.report_too_few(&chosen, &silent);
        if chosen == self.beacons {
            return;
        }
        let names = |list: &[DatastoreId]| {
            let names: Vec<String> = list.iter().map(ToString::to_string).collect();
            if names.is_empty() {
                String::from("none")
            } else {
                names.join(", ")
            }
        };
        let gone: Vec<DatastoreId> = silent
            .into_iter()
            .filter(|d| self.beacons.contains(d))
            .collect();
        let why = if gone.is_empty() {
            String::from("most hosts first, then different devices or servers, then as it was")
        } else {
            format!("{} does not answer", names(&gone))
        };
        let first = self.beacons.is_empty();
        let (host, datastores) = (self.me.host.clone(), names(&chosen));
        self.beacons = chosen;
        self.want_poweron_list();
        if !first {
            self.emit(EventKind::BeaconsChanged { host, datastores }, why);
        }
    }

    fn report_too_few(&mut self, chosen: &[DatastoreId], silent: &BTreeSet<DatastoreId>) {
        let wanted = self.config.settings.heartbeat_datastores_per_host;
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let good = chosen.iter().filter(|d| !silent.contains(d)).count();
        let few = good < wanted
            && wanted > 0
            && !self
                .config
                .settings
                .ignore_insufficient_heartbeat_datastores;
        let said = self.few_beacons.take();
        if !few {
            if let Some(issue) = said {
                self.withdraw(IssueCause::FewHeartbeatDatastores, issue);
            }
            return;
        }
        let issue = format!(
            "this host has {good} of {wanted} heartbeat datastores: a silent network is told less surely from a dead host; mount another datastore that other hosts mount too, or set heartbeat_datastores_per_host, or ignore_insufficient_heartbeat_datastores"
        );
        if let Some(old) = said.filter(|old| *old != issue) {
            self.withdraw(IssueCause::FewHeartbeatDatastores, old);
        }
        self.issue(IssueCause::FewHeartbeatDatastores, &issue, issue.clone());
        self.few_beacons = Some(issue);
    }
}
