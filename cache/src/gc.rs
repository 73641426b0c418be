//! `gc`: removes what no kept record names. It shows first what it would remove, and never runs beside a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::{Digest, Record, Result, Store, StoreError};

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
    pub kept: usize,
    /// Records that go.
    pub records: Vec<Record>,
    /// Files that go: objects that only those records name, and leftovers of killed runs.
    pub files: Vec<(PathBuf, u64)>,
    /// Folders of leftovers that go.
    pub folders: Vec<PathBuf>,
}

impl GcPlan {
    /// Bytes that the files take.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }
}

impl Store {
    /// Works out what can go. Kept are the records of each manifest's latest finished run, those that `keep` names, and whatever
    /// they were made from. A store that knows of no finished run of a manifest keeps all that it has of that manifest.
    ///
    /// # Errors
    /// A store that cannot be read, or that a run is using.
    pub fn plan_gc(&self, keep: &Keep) -> Result<GcPlan> {
        self.alone()?;
        let records: BTreeMap<Digest, Record> = self.records()?.into_iter().map(|r| (r.key, r)).collect();
        let mut waiting: Vec<Digest> =
            records.values().filter(|r| r.finished_ms > keep.finished_after_ms).map(|r| r.key).collect();
        let mut seen = BTreeSet::new();
        waiting.extend(&keep.keys);
        for run in self.runs()?.into_iter().filter(|run| run.status == "done") {
            if seen.insert(run.manifest.clone()) {
                waiting.extend(self.outcomes(&run.id)?.into_iter().filter_map(|outcome| outcome.key));
            }
        }
        waiting.extend(records.values().filter(|r| !seen.contains(&r.manifest)).map(|r| r.key));
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
        let mut plan = GcPlan { kept: records.values().filter(|r| kept.contains(&r.key)).count(), ..GcPlan::default() };
        plan.records = records.into_values().filter(|r| !kept.contains(&r.key)).collect();
        self.unnamed_objects(&named, &mut plan)?;
        let tmp = self.root().join("tmp");
        for entry in fs::read_dir(&tmp).map_err(StoreError::io("read", &tmp))? {
            let path = entry.map_err(StoreError::io("read", &tmp))?.path();
            if path.is_dir() {
                plan.folders.push(path);
            } else {
                let size = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
                plan.files.push((path, size));
            }
        }
        Ok(plan)
    }

    fn unnamed_objects(&self, named: &BTreeSet<Digest>, plan: &mut GcPlan) -> Result<()> {
        let objects = self.objects();
        for folder in fs::read_dir(&objects).map_err(StoreError::io("read", &objects))? {
            let folder = folder.map_err(StoreError::io("read", &objects))?;
            for entry in fs::read_dir(folder.path()).map_err(StoreError::io("read", &folder.path()))? {
                let entry = entry.map_err(StoreError::io("read", &folder.path()))?;
                let name = format!("{}{}", folder.file_name().to_string_lossy(), entry.file_name().to_string_lossy());
                if !name.parse().is_ok_and(|digest: Digest| named.contains(&digest)) {
                    plan.files.push((entry.path(), entry.metadata().map(|m| m.len()).unwrap_or(0)));
                }
            }
        }
        plan.files.sort();
        Ok(())
    }

    /// Removes what `plan` lists: records first, so that no record ever names a missing object.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn apply_gc(&self, plan: &GcPlan) -> Result<()> {
        self.alone()?;
        for record in &plan.records {
            let path = self.record_path(&record.key);
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        self.ledger().forget(&plan.records.iter().map(|r| r.key).collect::<Vec<_>>())?;
        for (path, _) in &plan.files {
            fs::remove_file(path).map_err(StoreError::io("remove", path))?;
        }
        plan.folders.iter().try_for_each(|path| fs::remove_dir_all(path).map_err(StoreError::io("remove", path)))
    }
}
