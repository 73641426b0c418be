//! From outputs in a directory to a result that is durable.

use siteline_cache::RecordSource;

use super::*;
use crate::executor::outputs;

impl Driver<'_, '_, '_> {
    /// Takes in what a worker left, in a thread of its own.
    pub(super) fn collect(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let Some(scratch) = job.scratch.take() else { return };
        let (store, tell) = (self.store.clone(), self.sender.clone());
        let declared: Vec<String> = self.planner.kind(job.node).outputs.iter().map(|o| o.path.clone()).collect();
        self.crew.carry_out(move || {
            siteline_cache::sync_point::reach("after-stage");
            let work = || {
                let absent = declared.iter().find(|path| !scratch.path().join(path).exists());
                if let Some(path) = absent {
                    return Err(Failure::new(format!("it ended without its output `{path}`")));
                }
                let files = Store::files_below(scratch.path(), "").map_err(|e| Failure::new(e.to_string()))?;
                outputs::check_names(&files)?;
                let outputs = outputs::take_in(&store, scratch.path(), &files)?;
                Ok(Made { outputs, environment: BTreeMap::new() })
            };
            let made = work();
            let _ = tell.send(Message::Made(number, made));
        });
    }

    /// An instance's outputs are in the store: its readers may start, and its record goes to be made durable.
    pub(super) fn made(&mut self, number: u64, made: Result<Made, Failure>) -> Result<(), StoreError> {
        let Some(mut job) = self.jobs.remove(&number) else { return Ok(()) };
        self.give(std::mem::take(&mut job.held));
        let made = match made {
            Ok(made) => made,
            Err(failure) => return self.attempt_failed(job.node, failure, Some(job.log_path)),
        };
        if let Some(changed) = guard::changed_source(self.store, &job.resolved) {
            let message = format!(
                "{changed} changed while it was read; what was made of it is not used; run again, unless the stage itself writes to it: what it makes belongs into `outputs`, and `--sandbox` keeps it from writing elsewhere"
            );
            return self.fail(job.node, message, Some(job.log_path));
        }
        job.environment.extend(made.environment);
        self.checked.extend(made.outputs.iter().map(|output| output.digest));
        let record = Arc::new(self.record(&mut job, made.outputs));
        let hit = match self.earlier(&job, &record) {
            Some(earlier) => earlier,
            None => record.hit(),
        };
        self.schedule.took(job.node, job.started.elapsed());
        let waits = Uncommitted { node: job.node, took: job.started.elapsed(), log_path: job.log_path };
        self.uncommitted.insert(record.key, waits);
        if let Some(committer) = &self.committer {
            committer.keep(record, Some(job.claim));
        }
        self.available(job.node, Arc::new(hit))
    }

    /// What counts where an instance ran again on purpose: the result that was there before.
    fn earlier(&self, job: &Job, record: &Record) -> Option<Hit> {
        let forced = self.planner.forced.contains(&job.node);
        self.store.lookup(&record.key).filter(|_| forced)
    }

    fn record(&self, job: &mut Job, outputs: Vec<siteline_cache::Output>) -> Record {
        let instance = &self.planner.graph.dag[job.node];
        let kind = self.planner.kind(job.node);
        let sources = job.resolved.sources.iter().flat_map(|(name, source)| {
            source.files.iter().map(|file| RecordSource {
                source: name.clone(),
                role: file.role.clone(),
                label: file.label.clone(),
                path: file.path.clone(),
                digest: file.digest,
            })
        });
        Record {
            key: job.resolved.key,
            parts: job.resolved.parts.clone(),
            instance: instance.name.clone(),
            manifest: self.planner.loaded.manifest.name.clone(),
            kind: match crate::manifest::command::is_command(kind) {
                true => crate::manifest::command::KIND.to_owned(),
                false => kind.name.clone(),
            },
            run: self.id.clone(),
            started_ms: job.started_ms,
            finished_ms: now_ms(),
            inputs: job.resolved.inputs.iter().map(|input| input.from.clone()).collect(),
            sources: sources.collect(),
            outputs,
            metrics: std::mem::take(&mut job.metrics),
            environment: std::mem::take(&mut job.environment),
        }
    }

    /// A record is durable: now the instance is told to be done.
    pub(super) fn committed(&mut self, committed: Committed) -> Result<(), StoreError> {
        let Some(waited) = self.uncommitted.remove(&committed.record.key) else { return Ok(()) };
        let name = self.name(waited.node);
        let published = match committed.outcome {
            Ok(published) => published,
            Err(message) => {
                // Its readers may be at work on it; without its record none of theirs would hold.
                let gone = committed.record.outputs.iter().any(|output| !self.store.is_there(output));
                let hint = if gone { "; it is gone: does an instance that reads it write to it?" } else { "" };
                let message = format!("its result cannot be kept: {message}{hint}");
                return self.fail(waited.node, message, Some(waited.log_path));
            }
        };
        if let Published::Differs { .. } = published {
            let text = "it made other bytes than before under the same key: the stage is not deterministic; the earlier result counts, and `siteline gc` removes the other";
            (self.tell)(Event::Warning { instance: name.clone(), text: text.into() });
        }
        // What was kept for another attempt is not needed any more.
        if !crate::manifest::command::is_command(self.planner.kind(waited.node)) {
            let _ = siteline_cache::removal::remove_folder(&self.store.resume_folder(&committed.record.key));
        }
        self.summary.executed.push(name.clone());
        self.note(name.clone(), "executed", Some(committed.record.key), None)?;
        (self.tell)(Event::Finished {
            instance: name,
            how: How::Executed(waited.took),
            metrics: committed.record.metrics.clone(),
        });
        Ok(())
    }
}
