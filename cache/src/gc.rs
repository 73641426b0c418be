//! `gc`: removes what no kept record names. It shows first what it would remove, and never runs beside a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::journal::{self, Journal};
use crate::removal::remove_folder;
use crate::{Digest, Output, Record, Result, Store, StoreError, sync_point};

/// What is kept.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Executions that finished after this time, in milliseconds since 1970.
    pub finished_after_ms: u64,
    /// Keys of results that are up to date.
    pub keys: Vec<Digest>,
}

/// What `gc` would remove.
#[derive(Clone, Debug, Default)]
pub struct GcPlan {
    /// Records that stay.
    pub kept: Vec<Record>,
    /// Records that go.
    pub records: Vec<Record>,
    /// Files that go: objects that only those records name, and leftovers of killed runs.
    pub files: Vec<(PathBuf, u64)>,
    /// Folders of leftovers that go.
    pub folders: Vec<PathBuf>,
    /// Runs that cannot be told of any more, on whose account everything is kept.
    pub damaged_runs: Vec<PathBuf>,
}

impl GcPlan {
    /// Bytes that the files take.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }
}

impl Store {
    /// Works out what can go. Kept are the records of each manifest's latest finished run, those that `keep` names, and whatever
    /// they were made from. A store that knows of no finished run of a manifest, or not all that became of the latest,
    /// keeps all that it has of that manifest; one with a damaged run keeps all. A record whose objects are gone is kept only where
    /// it is a result of the latest run, or for what was made from it.
    ///
    /// # Errors
    /// A store that cannot be read, or that a run is using.
    pub fn plan_gc(&self, keep: &Keep) -> Result<GcPlan> {
        self.alone()?;
        // A run may have ended between the opening of the store and this.
        self.refresh()?;
        let records: BTreeMap<Digest, Record> = self.records().into_iter().map(|r| (r.key, r)).collect();
        let lost = self.lost(records.values());
        let young = |r: &&Record| r.finished_ms > keep.finished_after_ms && !lost.contains(&r.key);
        let mut waiting: Vec<Digest> = records.values().filter(young).map(|r| r.key).collect();
        waiting.extend(&keep.keys);
        let mut latest: BTreeMap<String, Option<Vec<Digest>>> = BTreeMap::new();
        for run in self.runs().into_iter().filter(|run| run.status == "done") {
            if !latest.contains_key(&run.manifest) {
                let known = |keys: &Vec<Digest>| keys.iter().all(|key| records.contains_key(key));
                latest.insert(run.manifest.clone(), self.results_of(&run).filter(known));
            }
        }
        // What a damaged file says of a run is nothing to remove results by, nor that it says nothing.
        let damaged_runs = self.damaged_runs();
        let told =
            |record: &&Record| damaged_runs.is_empty() && latest.get(&record.manifest).is_some_and(Option::is_some);
        let untold = |record: &&Record| !told(record) && !lost.contains(&record.key);
        waiting.extend(records.values().filter(untold).map(|record| record.key));
        waiting.extend(latest.values().flatten().flatten());
        let mut kept = BTreeSet::new();
        while let Some(key) = waiting.pop() {
            if let (Some(record), true) = (records.get(&key), kept.insert(key)) {
                waiting.extend(record.inputs.iter().map(|input| input.key));
            }
        }
        let named: BTreeSet<Digest> = records
            .values()
            .filter(|r| kept.contains(&r.key))
            .flat_map(|r| r.outputs.iter().map(|o| o.digest))
            .collect();
        let (stay, go): (Vec<Record>, Vec<Record>) = records.into_values().partition(|r| kept.contains(&r.key));
        let mut plan = GcPlan { kept: stay, records: go, damaged_runs, ..GcPlan::default() };
        self.unnamed_objects(&named, &mut plan)?;
        self.leftovers(keep, &mut plan)?;
        Ok(plan)
    }

    /// The keys of records whose objects are gone. Where all are, it is the objects' folder that is: those may come back.
    fn lost<'r>(&self, records: impl Iterator<Item = &'r Record>) -> BTreeSet<Digest> {
        let is_gone = |output: &Output| {
            let found = fs::symlink_metadata(self.object_path(&output.digest));
            found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        let (lost, there): (Vec<&Record>, Vec<&Record>) =
            records.filter(|record| !record.outputs.is_empty()).partition(|record| record.outputs.iter().any(is_gone));
        if there.is_empty() { BTreeSet::new() } else { lost.into_iter().map(|record| record.key).collect() }
    }

    /// What killed runs left, and results of parts that are older than what is kept: all of it can be made anew.
    fn leftovers(&self, keep: &Keep, plan: &mut GcPlan) -> Result<()> {
        let resume = self.root().join("resume");
        plan.folders.extend(fs::read_dir(&resume).into_iter().flatten().flatten().map(|entry| entry.path()));
        for folder in fs::read_dir(self.memo_folder()).into_iter().flatten().flatten() {
            for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let meta = entry.metadata().map_err(StoreError::io("read", &entry.path()))?;
                let age = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
                if age.is_none_or(|age| (age.as_millis() as u64) < keep.finished_after_ms) {
                    plan.files.push((entry.path(), meta.len()));
                }
            }
        }
        let tmp = self.root().join("tmp");
        for entry in fs::read_dir(&tmp).map_err(StoreError::io("read", &tmp))? {
            let path = entry.map_err(StoreError::io("read", &tmp))?.path();
            if path.is_dir() {
                // Of a store that several use, what is somebody else's is theirs to remove.
                let owner = fs::symlink_metadata(&path).map_err(StoreError::io("read", &path))?.uid();
                let user = rustix::process::geteuid();
                plan.folders.extend((user.is_root() || user.as_raw() == owner).then_some(path));
            } else {
                let size = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
                plan.files.push((path, size));
            }
        }
        Ok(())
    }

    fn unnamed_objects(&self, named: &BTreeSet<Digest>, plan: &mut GcPlan) -> Result<()> {
        for (name, file) in self.object_files()? {
            if !name.parse().is_ok_and(|digest: Digest| named.contains(&digest)) {
                plan.files.push((file.path(), file.metadata().map(|m| m.len()).unwrap_or(0)));
            }
        }
        plan.files.sort();
        Ok(())
    }

    /// The files among the objects, each with what should be its digest.
    pub(crate) fn object_files(&self) -> Result<Vec<(String, fs::DirEntry)>> {
        let objects = self.objects();
        let mut files = Vec::new();
        for folder in fs::read_dir(&objects).map_err(StoreError::io("read", &objects))? {
            let folder = folder.map_err(StoreError::io("read", &objects))?;
            for entry in fs::read_dir(folder.path()).map_err(StoreError::io("read", &folder.path()))? {
                let entry = entry.map_err(StoreError::io("read", &folder.path()))?;
                let name = format!("{}{}", folder.file_name().to_string_lossy(), entry.file_name().to_string_lossy());
                files.push((name, entry));
            }
        }
        Ok(files)
    }

    /// Removes what `plan` lists: records first, so that no record ever names a missing object. What stays of the journals
    /// becomes one.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn apply_gc(&self, plan: &GcPlan, name: &str) -> Result<()> {
        self.alone()?;
        let records: Vec<&Record> = plan.kept.iter().collect();
        sync_point::reach("gc-before-records");
        journal::rewrite(&self.root().join("records"), &self.root().join("tmp"), name, &records)?;
        sync_point::reach("gc-after-records");
        *self.journal() = Journal::open(&self.root().join("records"))?;
        self.rebuild_ledger()?;
        for (path, _) in &plan.files {
            sync_point::reach("gc-before-file");
            fs::remove_file(path).map_err(StoreError::io("remove", path))?;
        }
        plan.folders.iter().try_for_each(|path| remove_folder(path).map_err(StoreError::io("remove", path)))
    }
}
