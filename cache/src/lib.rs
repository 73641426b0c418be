//! The store: immutable objects by digest, records of what made them, and the ledger that indexes the records.
//!
//! Guarantees (each tested under its name in `tests/store.rs`): a result is whole or absent; a hit is checked; no lock
//! outlives its owner; the ledger can be made anew from the records. This crate knows nothing of manifests or stages.

mod canonical;
mod claim;
mod digest;
mod error;
mod gc;
mod ledger;
mod object;
mod record;
mod stat;
mod store;
mod verify;

pub use canonical::Canonical;
pub use claim::{Claim, ClaimOutcome, Owner};
pub use digest::{BadDigest, Digest};
pub use error::StoreError;
pub use gc::{GcPlan, Keep};
pub use ledger::{Execution, InstanceOutcome, RunRow};
pub use record::{Output, Record, RecordInput, RecordSource};
pub use store::{Access, Published, Store};
pub use verify::{Damage, Verified};

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;
