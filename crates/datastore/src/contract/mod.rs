//! What a datastore promises, whatever its kind and whatever is below it: one suite for `file` and `block`, over
//! layers that fail on demand.
//!
//! ```text
//! the core's machines (swaps.rs, campaign.rs, stale.rs), agents (rollback.rs)
//!    |
//! requests and outcomes (outcomes.rs, records.rs, hangs.rs, identity.rs)
//!    |
//! FileDatastore, BlockDatastore
//!    |
//! layers.rs: the n-th operation fails as script.rs says
//! ```
//!
//! | fault | what must hold | where |
//! |---|---|---|
//! | error, lost acknowledgement, late write, torn sector, at each position | exactly one of two links wins; what was seen stays; unknown may be either, done and not done are certain | `outcomes` |
//! | the same under the core's swap | exactly one winner of a generation; who is told that it was not done never shows up | `swaps`, `campaign` |
//! | hang, slow, at each position | others decide meanwhile, the late one tells the truth; nothing else of the host waits for it | `hangs` |
//! | torn and late records | refused by their decoder or whole, never absent; nothing beside them changes | `records` |
//! | full, read-only | refused for certain, nothing is left behind, it works again afterwards | `records` |
//! | stale reading | decides nothing, and hides no newer generation from who opens by path | `stale` |
//! | snapshot restored to an older state | shown as it is; agents notice, and start nothing there | `rollback` |
//! | another cluster's data | refused with the remedy, at the opening and in the middle | `identity` |
//! | cloned host id | the clone writes nothing in that name while the other lives | `identity` |

mod campaign;
mod hangs;
mod identity;
mod kit;
mod layers;
mod outcomes;
mod records;
mod rollback;
mod script;
mod stale;
mod swaps;
