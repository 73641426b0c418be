//! `verify`: rehashes every object that a record names.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::journal::Journal;
use crate::{Digest, Record, Result, Store, StoreError};

/// What `verify` found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Objects that were rehashed and hold.
    pub whole: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Records whose bytes are not those of their digest: the instance, where that can still be read. What they told of can be
    /// made anew, not known any more.
    pub damaged_records: Vec<Option<String>>,
    /// Objects that no record names: their records are lost, or a run was killed before it wrote them.
    pub unnamed: usize,
    /// Objects that are missing or altered.
    pub damage: Vec<Damage>,
}

/// A missing or altered object.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The digest in its name.
    pub digest: Digest,
    /// What is wrong.
    pub problem: String,
    /// Where an altered one was put.
    pub set_aside: Option<PathBuf>,
    /// The instances that made it: they run again when they are next needed.
    pub made_by: Vec<String>,
}

impl Store {
    /// Rehashes every object that a record names. Altered ones are set aside, so that what made them runs again.
    ///
    /// # Errors
    /// Records that cannot be read, a damaged object that cannot be moved.
    pub fn verify(&self) -> Result<Verified> {
        let journal = Journal::scan(&self.root().join("records"))?;
        let records = journal.records();
        let mut named: BTreeMap<Digest, Vec<&Record>> = BTreeMap::new();
        for record in &records {
            for output in &record.outputs {
                named.entry(output.digest).or_default().push(record);
            }
        }
        let checks: Vec<_> = named
            .par_iter()
            .map(|(digest, made_by)| {
                let instances = || made_by.iter().map(|record| record.instance.clone()).collect();
                self.check_object(digest).map(|damage| damage.map_err(|d| Damage { made_by: instances(), ..d }))
            })
            .collect::<Result<_>>()?;
        let damaged_records = journal.damaged();
        let is_unnamed =
            |(name, _): &(String, _)| name.parse().is_ok_and(|digest: Digest| !named.contains_key(&digest));
        let unnamed = self.object_files()?.iter().filter(|file| is_unnamed(file)).count();
        let mut verified = Verified { damaged_records, unnamed, ..Verified::default() };
        if !verified.damaged_records.is_empty() && self.is_writable() {
            // It may hold copies of what is damaged, which would then count in one place and not in another.
            self.journal().forget_index()?;
        }
        for check in checks {
            match check {
                Ok(bytes) => {
                    verified.whole += 1;
                    verified.bytes += bytes;
                }
                Err(damage) => verified.damage.push(damage),
            }
        }
        Ok(verified)
    }

    /// Rehashes one object; an altered one is set aside.
    ///
    /// # Errors
    /// A damaged object that cannot be moved.
    pub fn check_object(&self, digest: &Digest) -> Result<std::result::Result<u64, Damage>> {
        let path = self.object_path(digest);
        let damage = |problem: String, set_aside| Damage { digest: *digest, problem, set_aside, made_by: Vec::new() };
        let problem = match Digest::of_file(&path) {
            Ok((found, size)) if found == *digest => return Ok(Ok(size)),
            Ok((found, _)) => format!("its content has digest {}", found.short()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Err(damage("it is missing".into(), None))),
            Err(e) => format!("it cannot be read: {e}"),
        };
        if !self.is_writable() {
            return Ok(Err(damage(problem, None)));
        }
        let aside = self.root().join("damaged").join(digest.to_string());
        let folder = self.root().join("damaged");
        fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
        fs::rename(&path, &aside).map_err(StoreError::io("move", &path))?;
        Ok(Err(damage(problem, Some(aside))))
    }
}
