//! `siteline verify`

use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, Store};

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
        if self.rebuild {
            println!("The ledger was made anew from {}.", count(store.rebuild_ledger()?, "record"));
        }
        let verified = store.verify()?;
        for damage in &verified.damage {
            println!("damaged {}: {}", damage.digest.short(), damage.problem);
            println!("  made by {}", damage.made_by.join(", "));
            if let Some(path) = &damage.set_aside {
                println!("  set aside as {}", path.display());
            }
        }
        let hold = if verified.whole == 1 { "holds" } else { "hold" };
        println!("{} {hold} ({:.1} MB).", count(verified.whole, "object"), verified.bytes as f64 / 1e6);
        if verified.unnamed > 0 {
            println!(
                "{} that no record names: a run was killed before it wrote the record, a stage that ran again made other bytes, or records are lost; `siteline gc` removes what nothing needs",
                count(verified.unnamed, "object")
            );
        }
        for instance in &verified.damaged_records {
            match instance {
                Some(instance) => {
                    println!("the record of {instance} is damaged; `siteline run --from '{instance}'` makes it anew");
                }
                None => println!("a record is damaged; what it told of runs again"),
            }
        }
        if verified.damage.is_empty() && verified.damaged_records.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        println!("{} damaged; `siteline run` makes anew what is needed.", count(verified.damage.len(), "object"));
        Ok(ExitCode::from(1))
    }
}
