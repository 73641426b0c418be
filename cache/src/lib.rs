//! The store: immutable objects by digest, records of what made them, and the ledger that indexes the records.
//!
//! Guarantees: a result is whole or absent; a hit is checked; no lock outlives its owner; the ledger can be made anew from
//! the records. This crate knows nothing of manifests or stages.

mod canonical;
mod claim;
mod commit;
mod digest;
mod error;
mod gc;
mod journal;
mod layout;
mod ledger;
mod object;
mod outcomes;
mod record;
pub mod removal;
mod runs;
mod stat;
mod store;
pub mod sync_point;
mod verify;

pub use canonical::Canonical;
pub use claim::{Claim, ClaimOutcome, Owner};
pub use commit::{Committed, Committer, Published};
pub use digest::{BadDigest, Digest};
pub use error::StoreError;
pub use gc::{GcPlan, Keep};
pub use layout::Sharing;
pub use ledger::Execution;
pub use outcomes::{InstanceOutcome, OutcomeFollower, OutcomeWriter};
pub use record::{Hit, Output, Parts, Record, RecordInput, RecordSource};
pub use runs::RunRow;
pub use stat::modified_in;
pub use store::{Access, Store};
pub use verify::{Damage, Verified};

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;
