//! `siteline verify`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Digest, Store, Verified};
use siteline_pipeline::printable;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::store_root;

/// Rehash every object of the store. Damaged ones are set aside and named; what made them runs again when it is needed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline verify\n  siteline verify --rebuild    make the ledger anew from the records"
)]
pub struct Verify {
    /// Make the ledger anew from the records
    #[arg(long)]
    rebuild: bool,
    /// As JSON on standard output; `siteline schema --json-of verify` describes it
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Verification {
    /// The records from which the ledger was made anew, where that was asked for.
    rebuilt_from: Option<usize>,
    /// Objects that hold.
    whole: usize,
    /// Their bytes.
    bytes: u64,
    /// Objects that no record names.
    unnamed: usize,
    /// Objects that are missing or altered.
    damaged: Vec<DamagedObject>,
    /// Records that are damaged: the instance, where that can still be read.
    damaged_records: Vec<Option<String>>,
}

/// An object that is missing or altered.
#[derive(Debug, Serialize, JsonSchema)]
struct DamagedObject {
    /// Its digest.
    #[schemars(with = "String")]
    digest: Digest,
    /// What is wrong.
    problem: String,
    /// Where an altered one was put.
    set_aside: Option<PathBuf>,
    /// The instances that made it: they run again when they are next needed.
    made_by: Vec<String>,
}

impl Verify {
    pub fn run(self, common: &Common) -> Outcome {
        // Objects hold or do not, whatever the manifest says now.
        let root = store_root(common)?;
        if !root.join("records").exists() {
            return Err(CommandError::request(format!("there is no store in {}", root.display()), None));
        }
        // On a full disk nothing can be set aside, and everything can be looked at.
        let store = match Store::open(&root, Access::Write) {
            Err(_) if !self.rebuild => Store::open(&root, Access::Read)?,
            opened => opened?,
        };
        let rebuilt_from = self.rebuild.then(|| store.rebuild_ledger()).transpose()?;
        let found = Verification::of(store.verify()?, rebuilt_from);
        if self.json {
            outln!("{}", printable::json(&found, true));
        } else {
            found.show();
        }
        Ok(if found.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

impl Verification {
    fn of(verified: Verified, rebuilt_from: Option<usize>) -> Self {
        let damaged = verified.damage.into_iter().map(|damage| DamagedObject {
            digest: damage.digest,
            problem: damage.problem,
            set_aside: damage.set_aside,
            made_by: damage.made_by,
        });
        Self {
            rebuilt_from,
            whole: verified.whole,
            bytes: verified.bytes,
            unnamed: verified.unnamed,
            damaged: damaged.collect(),
            damaged_records: verified.damaged_records,
        }
    }

    fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.damaged_records.is_empty()
    }

    fn show(&self) {
        if let Some(records) = self.rebuilt_from {
            outln!("The ledger was made anew from {}.", count(records, "record"));
        }
        for object in &self.damaged {
            outln!("damaged {}: {}", object.digest.short(), object.problem);
            outln!("  made by {}", object.made_by.join(", "));
            if let Some(path) = &object.set_aside {
                outln!("  set aside as {}", path.display());
            }
        }
        let hold = if self.whole == 1 { "holds" } else { "hold" };
        outln!("{} {hold} ({:.1} MB).", count(self.whole, "object"), self.bytes as f64 / 1e6);
        if self.unnamed > 0 {
            outln!(
                "{} that no record names: a run was killed before it wrote the record, a stage that ran again made other bytes, or records are lost; `siteline gc` removes what nothing needs",
                count(self.unnamed, "object")
            );
        }
        for instance in &self.damaged_records {
            match instance {
                Some(instance) => {
                    outln!("the record of {instance} is damaged; `siteline run --from '{instance}'` makes it anew");
                }
                None => outln!("a record is damaged; what it told of runs again"),
            }
        }
        if !self.is_whole() {
            outln!(
                "{} damaged; `siteline run` makes anew what is needed, `siteline gc` forgets what nothing needs.",
                count(self.damaged.len(), "object")
            );
        }
    }
}
