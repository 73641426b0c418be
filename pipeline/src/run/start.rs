//! How a ready instance comes to be at work: looked up, claimed, its inputs checked, handed to a worker or started as a command.

use super::*;
use crate::executor::command;
use crate::executor::work_dir::{self, Layout, Workshop};
use crate::manifest;
use crate::pack::Home;
use crate::printable::on_one_line;
use crate::protocol::{Point, RunInput, RunRequest};

impl Driver<'_, '_, '_> {
    /// Takes what is ready as far as it goes: found in the store, held by another run, or at work.
    pub(super) fn start_ready(&mut self) -> Result<(), StoreError> {
        loop {
            let now = Instant::now();
            let gpus_taken = self.gpus_taken_until.is_some_and(|time| time > now);
            let may = |node: NodeIndex| {
                let waits = gpus_taken && self.pool.gpus_for(&self.planner.graph.dag[node].resources) > 0;
                !waits && self.not_before.get(&node).is_none_or(|time| *time <= now)
            };
            let Some(node) = self.schedule.next(&self.pool, &may) else { return Ok(()) };
            self.advance(node)?;
            if self.settings.fail_fast && !self.summary.failed.is_empty() {
                return Ok(());
            }
        }
    }

    /// Moves one ready instance on: afterwards it is not ready any more, or not to be looked at for a while.
    fn advance(&mut self, node: NodeIndex) -> Result<(), StoreError> {
        let artifacts = &self.artifacts;
        let hit = |needed: NodeIndex| artifacts[needed.index()].as_deref().expect("its inputs are done");
        let key = match self.planner.key(node, &hit) {
            Ok(key) => key,
            Err(diagnostic) => return self.fail(node, diagnostic.message, None),
        };
        let forced = self.planner.forced.contains(&node);
        if !forced && let Some(hit) = self.store.lookup(&key) {
            let waited = self.held_elsewhere.remove(&node);
            return self.done(node, Arc::new(hit), if waited { How::ByOtherRun } else { How::CutOff });
        }
        let claim = match self.store.claim(&key)? {
            ClaimOutcome::Claimed(claim) => claim,
            ClaimOutcome::Held(owner) => return self.wait_for(node, &owner),
        };
        // Between the look and the lease another run may have finished it.
        self.store.refresh()?;
        if let Some(hit) = self.store.lookup(&key).filter(|_| !forced) {
            drop(claim);
            self.held_elsewhere.remove(&node);
            return self.done(node, Arc::new(hit), How::ByOtherRun);
        }
        let artifacts = &self.artifacts;
        let hit = |needed: NodeIndex| artifacts[needed.index()].as_deref().expect("its inputs are done");
        let resolved = match self.planner.resolve(node, key, &hit) {
            Ok(resolved) => resolved,
            Err(diagnostic) => return self.fail(node, diagnostic.message, None),
        };
        if let Some(message) = self.damaged_input(&resolved)? {
            return self.fail(node, message, None);
        }
        let mut wanted = self.planner.graph.dag[node].resources.clone();
        if self.planner.kind(node).scales {
            wanted = Arc::new(self.pool.stretched(&wanted, self.schedule.ready()));
        }
        let count = self.pool.gpus_for(&wanted);
        let Some(gpus) = self.gpu_leases.take(self.pool.free_gpus(), count) else {
            self.wait_for_gpu(node);
            return Ok(());
        };
        if count > 0 {
            self.gpus_taken_until = None;
        }
        let held = self.pool.take(&wanted, gpus);
        if !manifest::command::is_command(self.planner.kind(node)) {
            // The slots are free: nobody was let in ahead of it.
            self.gate.take(held.cpu);
        }
        self.start(node, resolved, claim, held)
    }

    /// Other runs on this machine have the GPUs.
    fn wait_for_gpu(&mut self, node: NodeIndex) {
        if self.gpus_taken_until.replace(Instant::now() + TICK * 5).is_none() {
            let instance = self.name(node);
            (self.tell)(Event::WaitsForGpu { instance });
        }
    }

    /// Another run is at work on the key, or this one is, by way of an instance that comes to the same.
    fn wait_for(&mut self, node: NodeIndex, owner: &Owner) -> Result<(), StoreError> {
        self.not_before.insert(node, Instant::now() + TICK);
        self.store.refresh()?;
        if self.held_elsewhere.insert(node) && *owner != Owner::this_process() {
            let owner = format!("process {} on {}", owner.pid, on_one_line(&owner.host));
            let instance = self.name(node);
            (self.tell)(Event::WaitsForRun { instance, owner });
        }
        Ok(())
    }

    fn start(&mut self, node: NodeIndex, resolved: Resolved, claim: Claim, held: Held) -> Result<(), StoreError> {
        if self.watcher.is_none() {
            let watcher = Watcher::start(&self.id);
            orphans::adopt(watcher.pid());
            self.watcher = Some(watcher);
            self.heartbeat = Some(heartbeat::Heartbeat::start(self.store.clone()));
            let sender = self.sender.clone();
            let tell = move |committed| {
                let _ = sender.send(Message::Committed(committed));
            };
            self.committer = Some(Committer::start(self.store.clone(), self.id.clone(), tell));
        }
        self.held_elsewhere.remove(&node);
        let instance = &self.planner.graph.dag[node];
        let (name, stage) = (instance.name.clone(), instance.stage.clone());
        let timeout = self.planner.loaded.manifest.stages[stage.as_ref()].timeout.as_ref();
        let timeout = timeout.and_then(|text| manifest::duration(text).ok());
        self.started += 1;
        let number = self.started;
        let mut job = Job {
            node,
            claim,
            held,
            scratch: None,
            worker: None,
            log: None,
            log_path: self.folder.join(log_name(&name)),
            started: Instant::now(),
            started_ms: now_ms(),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            metrics: BTreeMap::new(),
            environment: BTreeMap::new(),
            ended_because: None,
            resolved,
        };
        match self.planner.loaded.homes[self.planner.graph.dag[node].kind].clone() {
            // It is told to have started once it has its slots.
            Home::Command => self.start_command(number, &job, timeout)?,
            Home::Pack(command) => {
                if let Err(message) = self.start_worker(number, &mut job, &command)? {
                    self.release(job.held);
                    return self.attempt_failed(node, Failure::new(message), Some(job.log_path));
                }
                (self.tell)(Event::Started { instance: name });
            }
        }
        self.schedule.set(node, Phase::Running);
        self.jobs.insert(number, job);
        Ok(())
    }

    fn start_worker(
        &mut self,
        number: u64,
        job: &mut Job,
        command: &[String],
    ) -> Result<Result<(), String>, StoreError> {
        let name = self.name(job.node);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action: "write", path, source }
        };
        let heading = format!("{name}\nkey {}\n", job.resolved.key);
        let log = LogFile::create(&job.log_path, &heading).map_err(io(&job.log_path))?;
        let scratch = self.store.scratch()?;
        let resolved = &job.resolved;
        let inputs = resolved.inputs.iter().map(|input| RunInput {
            name: input.from.name.clone(),
            point: input.point.clone(),
            files: input.files.iter().map(|f| (f.path.clone(), self.store.object_path(&f.digest))).collect(),
        });
        let kind = self.planner.kind(job.node);
        let request = RunRequest {
            instance: name,
            kind: kind.name.clone(),
            params: serde_json::Value::Object(self.planner.graph.dag[job.node].params.as_ref().clone()),
            inputs: inputs.collect(),
            sources: resolved.sources.iter().map(|(name, source)| (name.clone(), source.as_ref().clone())).collect(),
            output_dir: scratch.path().to_owned(),
            memo_dir: Some(self.store.memo_folder()),
            resume_dir: Some(self.store.resume_folder(&resolved.key)),
            threads: job.held.cpu,
            gpus: job.held.gpus.clone(),
            code: kind.code.clone(),
        };
        match self.workers.send(command, request) {
            Ok(worker) => {
                self.by_worker.insert(worker, number);
                job.worker = Some(worker);
                job.log = Some(log);
                job.scratch = Some(scratch);
                Ok(Ok(()))
            }
            Err(e) => Ok(Err(format!("failed to start a worker: {e}"))),
        }
    }

    fn start_command(&mut self, number: u64, job: &Job, timeout: Option<Duration>) -> Result<(), StoreError> {
        if self.workshop.is_none() {
            self.workshop = Some(Arc::new(Workshop::new(self.store.clone())?));
        }
        let Some(workshop) = self.workshop.clone() else { return Ok(()) };
        let instance = &self.planner.graph.dag[job.node];
        let stage = &self.planner.loaded.manifest.stages[instance.stage.as_ref()];
        let params = &instance.params;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let words = match &params["command"] {
            serde_json::Value::Array(words) => words.iter().filter_map(text).collect(),
            line => shell(text(line).unwrap_or_default()),
        };
        let env = params.get("env").and_then(|env| env.as_object());
        let with =
            params.get("with").map(|with| serde_json::to_string_pretty(with).expect("parameters are JSON") + "\n");
        let of = |role: &str| {
            let sources = job.resolved.sources.values().flat_map(|source| &source.files);
            sources.filter(|file| file.role == role).map(|file| (file.label.clone(), file.path.clone())).collect()
        };
        // Worked out with the key, of which it is a part.
        let gathered = |point: &Point, input: &String| {
            let axes = params.get("gathered").and_then(|gathered| gathered.get(input)?.as_array());
            let shown: Vec<String> = axes
                .into_iter()
                .flatten()
                .filter_map(|axis| Some(format!("{}={}", axis.as_str()?, point.get(axis.as_str()?)?)))
                .collect();
            (!shown.is_empty()).then(|| shown.join(","))
        };
        let inputs = job.resolved.inputs.iter().map(|input| work_dir::Input {
            name: input.from.name.clone(),
            gathered: gathered(&input.point, &input.from.name),
            shared: input.shared,
            key: input.from.key,
            files: input.files.clone(),
        });
        let layout = Layout {
            instance: instance.name.clone(),
            inputs: inputs.collect(),
            files: of("file"),
            code: of("code"),
            params: with,
            outputs: stage.outputs.clone(),
        };
        let command = command::Job {
            number,
            run: self.id.clone(),
            workshop,
            layout,
            heading: format!(
                "{}\nkey {}\n$ {}\n",
                instance.name,
                job.resolved.key,
                words.last().map_or("", String::as_str)
            ),
            words,
            env: env.into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect(),
            threads: job.held.cpu,
            gate: self.gate.clone(),
            gpus: job.held.gpus.clone(),
            timeout,
            sandbox: self.settings.sandbox.clone(),
            log: job.log_path.clone(),
            groups: self.groups.clone(),
            tell: self.sender.clone(),
        };
        self.crew.carry_out(move || command.carry_out());
        Ok(())
    }
}

/// The words that have a shell carry out a line and stop at the first command that fails. A plain shell looks at the last command of a
/// pipe alone; where there is a pipe, and bash to look at all of it, bash does the work, with `echo` as a plain shell has it.
fn shell(line: String) -> Vec<String> {
    const BASH: &str = "/bin/bash";
    let pipes = line.replace("||", "").contains('|') && std::path::Path::new(BASH).exists();
    let front: &[&str] = if pipes { &[BASH, "-o", "pipefail", "-O", "xpg_echo", "-ec"] } else { &["/bin/sh", "-ec"] };
    front.iter().map(|word| (*word).to_owned()).chain([line]).collect()
}
