//! The configuration on its home datastore: read and copied by each new owner before it writes, two
//! alternating copies under each owner generation (safety rule H19).

use super::Proposal;
use crate::agent::{Agent, Pending, planted};
use crate::config::ClusterConfig;
use crate::event::IssueCause;
use crate::id::{DatastoreId, Generation};
use crate::io::{Output, StorageOutcome, StorageRequest, StorageValue};
use crate::wire::{ConfigRecord, RecordKey};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

/// What earlier owners wrote, as far as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    generation: Generation,
    /// Slots that are still to be read, the newest last.
    left: Vec<(Generation, u8)>,
    all: Vec<(Generation, u8)>,
    best: Option<Box<ClusterConfig>>,
}

/// How far this primary is with the home datastore.
#[derive(Clone, Debug, Default)]
pub(crate) enum Home {
    /// Not its owner, or not yet begun.
    #[default]
    Away,
    /// Finding and reading what earlier owners wrote.
    Reading(Reading),
    /// Writing; the first time a copy of what was read.
    Writing {
        generation: Generation,
        copies: u64,
        config: Box<ClusterConfig>,
        proposal: Option<Proposal>,
        obsolete: Vec<(Generation, u8)>,
    },
    /// The own copy is on disk.
    Ready { generation: Generation, copies: u64 },
}

impl Home {
    fn generation(&self) -> Option<Generation> {
        match self {
            Self::Away => None,
            Self::Reading(Reading { generation, .. })
            | Self::Writing { generation, .. }
            | Self::Ready { generation, .. } => Some(*generation),
        }
    }

    pub(crate) fn is_writing(&self) -> bool {
        matches!(self, Self::Writing { .. } | Self::Reading(_))
    }

    pub(crate) fn ready_under(&self, generation: Option<Generation>) -> bool {
        matches!(self, Self::Ready { generation: own, .. } if Some(*own) == generation)
    }

    /// Stops; the change that was being written, if one was.
    pub(crate) fn abandon(&mut self) -> Option<Proposal> {
        match core::mem::take(self) {
            Self::Writing { proposal, .. } => proposal,
            _ => None,
        }
    }
}

impl Agent {
    /// Begins when this primary owns the home datastore; ends when it does not.
    pub(crate) fn run_home(&mut self) {
        let owns = self
            .topology
            .home()
            .and_then(|d| self.acting(d))
            .map(|a| a.generation);
        let known = self.membership.home.generation();
        if known.is_some() && known != owns {
            self.drop_proposals("this primary lost the datastore of the configuration");
        }
        if let (Some(generation), Home::Away) = (owns, &self.membership.home)
            && let Some(home) = self.topology.home().cloned()
        {
            self.membership.home = Home::Reading(Reading {
                generation,
                left: Vec::new(),
                all: Vec::new(),
                best: None,
            });
            self.home_storage(&home, StorageRequest::ListConfig, generation);
        }
    }

    fn home_storage(&mut self, home: &DatastoreId, request: StorageRequest, of: Generation) {
        let pending = Pending::Config {
            datastore: home.clone(),
            generation: of,
        };
        self.storage(home, request, pending);
    }

    pub(crate) fn on_home(
        &mut self,
        datastore: &DatastoreId,
        of: Generation,
        outcome: &StorageOutcome,
    ) {
        self.note_outcome(datastore, outcome);
        if self.membership.home.generation() != Some(of) {
            return;
        }
        match core::mem::take(&mut self.membership.home) {
            Home::Reading(reading) => self.on_home_read(datastore, reading, outcome),
            Home::Writing {
                generation,
                copies,
                config,
                proposal,
                obsolete,
            } => match outcome {
                StorageOutcome::Ok(_) if self.acting(datastore).is_some() => {
                    self.membership.home = Home::Ready { generation, copies };
                    // The damaged copy is one of an earlier owner, which nobody reads again.
                    let about = format_args!("{datastore} configuration");
                    self.withdraw(IssueCause::RecordUnreadable, about);
                    for (generation, copy) in obsolete {
                        let request = StorageRequest::Remove(RecordKey::Config(generation, copy));
                        self.storage(datastore, request, Pending::Forget);
                    }
                    self.config_written(*config, proposal);
                }
                StorageOutcome::NotDone(fault) if proposal.is_some() => {
                    self.membership.home = Home::Ready {
                        generation,
                        copies: copies - 1,
                    };
                    if let Some(proposal) = proposal {
                        let why = format!("it could not be written on {datastore} ({fault:?})");
                        self.answer_proposal(&proposal, Err(why));
                    }
                }
                // It may land late: only another owner generation has slots that it cannot touch.
                _ => {
                    self.membership.home = Home::Writing {
                        generation,
                        copies,
                        config,
                        proposal,
                        obsolete,
                    };
                    self.drop_proposals("a write of the configuration has an unknown outcome");
                    self.lose(
                        datastore,
                        "a write of the configuration has an unknown outcome",
                    );
                }
            },
            other => self.membership.home = other,
        }
    }

    fn on_home_read(
        &mut self,
        datastore: &DatastoreId,
        reading: Reading,
        outcome: &StorageOutcome,
    ) {
        let Reading {
            generation,
            mut left,
            mut all,
            mut best,
        } = reading;
        // Slots are read from the last of `all` downwards: the one before `left` was just read.
        let read_from = all.get(left.len()).map(|(g, _)| *g);
        match outcome {
            StorageOutcome::Ok(StorageValue::Keys(keys)) => {
                all = keys
                    .iter()
                    .filter_map(|k| match k {
                        RecordKey::Config(g, copy) if *g < generation => Some((*g, *copy)),
                        _ => None,
                    })
                    .collect();
                all.sort();
                if !planted!(self, ConfigNotRead) {
                    left.clone_from(&all);
                }
            }
            StorageOutcome::Ok(StorageValue::Bytes(bytes)) => {
                match ConfigRecord::decode(self.config.cluster_id, bytes) {
                    Ok((_, record)) => {
                        if best
                            .as_ref()
                            .is_none_or(|b| record.config.version > b.version)
                        {
                            best = Some(record.config);
                        }
                    }
                    Err(error) => self.issue(IssueCause::RecordUnreadable, format_args!("{datastore} configuration"), format!(
                        "datastore {datastore}: a copy of the configuration cannot be read: {error}"
                    )),
                }
            }
            StorageOutcome::Ok(_) => {}
            // Nothing is known of it: begin again under a new generation.
            _ => {
                self.lose(datastore, "the configuration there could not be read");
                return;
            }
        }
        // Only the newest owner generation that has a sound copy counts (H19): what an older owner's late
        // write leaves in its own slots was never acknowledged.
        let further = best.is_none() || left.last().map(|(g, _)| *g) == read_from;
        if let Some((of, copy)) = left.pop().filter(|_| further) {
            self.membership.home = Home::Reading(Reading {
                generation,
                left,
                all,
                best,
            });
            let request = StorageRequest::Read(RecordKey::Config(of, copy));
            self.home_storage(datastore, request, generation);
            return;
        }
        if let Some(newer) = best.filter(|b| b.version > self.config.version) {
            self.apply_config(*newer, "it was read from its datastore");
        }
        // Applying it may have ended this host's being primary.
        if self.acting(datastore).is_none() {
            return;
        }
        self.membership.home = Home::Writing {
            generation,
            copies: 1,
            config: Box::new(self.config.clone()),
            proposal: None,
            obsolete: all,
        };
        self.put_config(datastore);
    }

    pub(super) fn write_config(
        &mut self,
        datastore: &DatastoreId,
        next: ClusterConfig,
        proposal: Option<Proposal>,
    ) {
        let Home::Ready { generation, copies } = self.membership.home else {
            return;
        };
        if planted!(self, ChangeAcknowledgedEarly)
            && let Some(proposal) = &proposal
        {
            self.answer_proposal(proposal, Ok(next.version));
        }
        self.membership.home = Home::Writing {
            generation,
            copies: copies + 1,
            config: Box::new(next),
            proposal,
            obsolete: Vec::new(),
        };
        self.put_config(datastore);
    }

    fn put_config(&mut self, datastore: &DatastoreId) {
        let stamp = self.stamp();
        let Home::Writing {
            generation,
            copies,
            config,
            ..
        } = &self.membership.home
        else {
            return;
        };
        let (generation, copy) = (*generation, u8::from(copies % 2 == 0));
        let record = ConfigRecord {
            config: config.clone(),
        };
        let bytes = record.encode(self.config.cluster_id, &stamp);
        let request = StorageRequest::Put(RecordKey::Config(generation, copy), bytes);
        self.home_storage(datastore, request, generation);
    }

    /// Keeps the configuration on local disk, so that this host comes back with it.
    pub(super) fn keep_config(&mut self) {
        let op = self.op(Pending::KeepConfig);
        let config = Box::new(self.config.clone());
        self.out.push_back(Output::PersistConfig(op, config));
    }
}
