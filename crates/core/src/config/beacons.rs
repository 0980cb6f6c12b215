//! Which datastores carry a host's heartbeat for the primary's verdict.
//!
//! Most hosts first, then different devices or servers, so that one failure takes few signs of life away
//! from few hosts (seed "vSphere 5.0 High Availability (HA)", "Datastore heartbeating": two are chosen).

use super::cluster::{ClusterConfig, HostSpec};
use super::settings::HeartbeatPolicy;
use crate::id::{DatastoreId, HostId};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::cmp::Reverse;

impl ClusterConfig {
    /// The datastores on which the primary looks for this host's heartbeat while all of them answer: at
    /// most `heartbeat_datastores_per_host`. Every host computes the same.
    #[must_use]
    pub fn heartbeat_datastores(&self, host: &HostId) -> Vec<DatastoreId> {
        let Some(spec) = self.hosts.get(host) else {
            return Vec::new();
        };
        let mounted_by = |d: &DatastoreId| {
            self.hosts
                .values()
                .filter(|h| h.datastores.contains(d))
                .count()
        };
        self.choose_datastores(spec, mounted_by, &BTreeSet::new(), &[])
    }

    /// The choice for one host, given how many hosts mount each datastore, which do not answer it, and
    /// which it has now: what is as good is kept.
    pub(crate) fn choose_datastores(
        &self,
        spec: &HostSpec,
        mounted_by: impl Fn(&DatastoreId) -> usize,
        silent: &BTreeSet<DatastoreId>,
        now: &[DatastoreId],
    ) -> Vec<DatastoreId> {
        let policy = self.settings.heartbeat_datastore_policy;
        let named = &self.settings.heartbeat_datastores;
        let mut left: Vec<(usize, &DatastoreId)> = spec
            .datastores
            .iter()
            .filter(|d| policy != HeartbeatPolicy::Only || named.contains(d))
            .map(|d| (mounted_by(d), d))
            .filter(|(hosts, _)| *hosts > 1)
            .collect();
        let limit = self.settings.heartbeat_datastores_per_host;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut chosen: Vec<DatastoreId> = Vec::new();
        let server = |d: &DatastoreId| self.datastores.get(d).and_then(|s| s.server.as_ref());
        while chosen.len() < limit {
            let standing = |(hosts, d): &(usize, &DatastoreId)| {
                let unnamed = policy == HeartbeatPolicy::Prefer && !named.contains(d);
                let shares = server(d).is_some_and(|s| chosen.iter().any(|c| server(c) == Some(s)));
                let new = !now.contains(d);
                (
                    silent.contains(d),
                    unnamed,
                    Reverse(*hosts),
                    shares,
                    new,
                    (*d).clone(),
                )
            };
            let best = left
                .iter()
                .map(standing)
                .enumerate()
                .min_by(|a, b| a.1.cmp(&b.1));
            let Some((index, _)) = best else {
                break;
            };
            chosen.push(left.remove(index).1.clone());
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DatastoreSpec, Settings};
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;

    fn ds(n: u8) -> DatastoreId {
        DatastoreId::new(&format!("ds-{n}")).expect("id")
    }

    /// host-1 mounts ds-1 to ds-4; the others all but ds-4. ds-1 and ds-2 share a server.
    fn config(settings: Settings) -> ClusterConfig {
        let datastores = (1..=4).map(|n| DatastoreSpec {
            id: ds(n),
            kind: Default::default(),
            fence: Default::default(),
            server: Some(if n <= 2 { "nas-1" } else { "nas-2" }.to_string()),
        });
        let host = |n: u8| HostSpec {
            id: HostId::new(&format!("host-{n}")).expect("id"),
            cpu_mhz: 1,
            memory_mb: 1,
            datastores: (1..=if n <= 2 { 4 } else { 3 }).map(ds).collect(),
            maintenance: false,
            networks: Default::default(),
        };
        let hosts = (1..=4).map(host).collect();
        ClusterConfig::new(1, settings, hosts, datastores.collect(), vec![], vec![]).expect("sound")
    }

    fn chosen(settings: Settings, silent: &[u8], now: &[u8]) -> Vec<DatastoreId> {
        let config = config(settings);
        let host = HostId::new("host-1").expect("id");
        let mounted = |d: &DatastoreId| if *d == ds(4) { 2 } else { 4 };
        let now: Vec<DatastoreId> = now.iter().map(|n| ds(*n)).collect();
        let silent = silent.iter().map(|n| ds(*n)).collect();
        config.choose_datastores(&config.hosts[&host], mounted, &silent, &now)
    }

    #[test]
    fn most_hosts_first_then_another_server() {
        assert_eq!(chosen(Settings::default(), &[], &[]), [ds(1), ds(3)]);
    }

    #[test]
    fn one_that_does_not_answer_is_replaced_and_what_is_as_good_is_kept() {
        assert_eq!(chosen(Settings::default(), &[3], &[1, 3]), [ds(1), ds(2)]);
        assert_eq!(chosen(Settings::default(), &[], &[2, 3]), [ds(2), ds(3)]);
    }

    #[test]
    fn the_admin_s_list_is_preferred_or_the_only_one() {
        let mut settings = Settings::default();
        settings.set("heartbeat_datastores", "ds-4").expect("sound");
        assert_eq!(chosen(settings.clone(), &[], &[]), [ds(4), ds(1)]);
        settings
            .set("heartbeat_datastore_policy", "only")
            .expect("sound");
        assert_eq!(chosen(settings.clone(), &[], &[]), [ds(4)]);
        settings
            .set("heartbeat_datastore_policy", "automatic")
            .expect("sound");
        assert_eq!(chosen(settings, &[], &[]), [ds(1), ds(3)]);
    }
}
