//! Runs a plan: one loop that looks up, claims, starts, listens and publishes. It never plans again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use petgraph::graph::NodeIndex;
use siteline_cache::{
    Claim, ClaimOutcome, Digest, InstanceOutcome, Published, Record, RecordSource, RunRow, StoreError,
};

use crate::diagnostic::Diagnostics;
use crate::event::{Event, How, Summary};
use crate::executor::{Output, Workers};
use crate::leakage::{self, Sides};
use crate::plan::{Plan, Planner, Resolved, State};
use crate::protocol::{Identities, Reply, RunInput, RunRequest};
use crate::schedule::{Held, Phase, Pool, Schedule};

mod guard;
mod names;

pub use names::log_name;
use names::{file_name, now_ms, run_id};

/// How to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// CPU slots.
    pub jobs: usize,
    /// GPUs that may be used.
    pub gpus: Vec<String>,
    /// Stop at the first failure instead of going on as far as possible.
    pub fail_fast: bool,
    /// Execute every selected instance, cached or not.
    pub force: bool,
    /// The command as typed, for the ledger.
    pub command: String,
}

/// Why a run could not be carried through; failures of single instances are part of its [`Summary`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The manifest or its data are wrong.
    #[error(transparent)]
    Plan(#[from] Diagnostics),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How often to look at a key that another run is computing, and at the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How often leases are renewed.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Carries out a plan.
///
/// # Errors
/// A store that cannot be written. What single instances run into is told by events and the summary.
pub fn run(
    planner: &mut Planner,
    plan: &Plan,
    program: &Path,
    settings: &Settings,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event),
) -> Result<Summary, RunError> {
    let began = Instant::now();
    let id = run_id();
    let store = planner.store;
    let manifest = planner.loaded.manifest.name.clone();
    let row = RunRow {
        id: id.clone(),
        manifest: manifest.clone(),
        command: settings.command.clone(),
        started_ms: now_ms(),
        finished_ms: None,
        status: "running".into(),
    };
    let folder = store.begin_run(&row)?;
    let frozen = folder.join("manifest.yaml");
    std::fs::write(&frozen, &planner.loaded.text).map_err(|source| StoreError::Io {
        action: "write",
        path: frozen.clone(),
        source,
    })?;
    let (sender, outputs) = channel();
    let graph = planner.graph.clone();
    let mut driver = Driver {
        id: id.clone(),
        manifest,
        folder,
        sides: leakage::sides(planner.kinds, &graph),
        schedule: Schedule::new(&graph, &planner.selected),
        pool: Pool::new(settings.jobs, &settings.gpus),
        workers: Workers::new(program, sender),
        outputs,
        artifacts: HashMap::new(),
        identities: HashMap::new(),
        jobs: HashMap::new(),
        checked: HashSet::new(),
        held_elsewhere: HashMap::new(),
        outcomes: BTreeMap::new(),
        summary: Summary { run: id.clone(), ..Summary::default() },
        planner,
        settings,
        stop,
        tell,
        last_heartbeat: Instant::now(),
    };
    let result = driver.carry_out(plan);
    driver.workers.kill();
    let mut summary = std::mem::take(&mut driver.summary);
    let outcomes: Vec<InstanceOutcome> = driver.outcomes.into_values().collect();
    summary.took = began.elapsed();
    let status = match (&result, summary.cancelled, summary.is_complete()) {
        (Err(_), ..) => "failed",
        (_, true, _) => "cancelled",
        (_, _, true) => "done",
        _ => "failed",
    };
    store.end_run(&id, status, now_ms(), &outcomes)?;
    result?;
    tell(Event::Ended { summary: summary.clone() });
    Ok(summary)
}

/// An instance at work.
struct Job {
    node: NodeIndex,
    resolved: Resolved,
    claim: Claim,
    held: Held,
    scratch: tempfile::TempDir,
    log: File,
    log_path: PathBuf,
    started: Instant,
    started_ms: u64,
    metrics: BTreeMap<String, f64>,
}

struct Driver<'r, 'p, 'g> {
    id: String,
    manifest: String,
    folder: PathBuf,
    sides: Vec<Sides>,
    schedule: Schedule<'g>,
    pool: Pool,
    workers: Workers,
    outputs: Receiver<Output>,
    artifacts: HashMap<NodeIndex, Arc<Record>>,
    identities: HashMap<NodeIndex, Identities>,
    /// By worker number.
    jobs: HashMap<usize, Job>,
    /// Objects that were rehashed in this run before a stage read them.
    checked: HashSet<Digest>,
    /// Instances whose key another run computes, and when to look again.
    held_elsewhere: HashMap<NodeIndex, Instant>,
    outcomes: BTreeMap<String, InstanceOutcome>,
    summary: Summary,
    planner: &'r mut Planner<'p>,
    settings: &'r Settings,
    stop: &'r AtomicBool,
    tell: &'r mut dyn FnMut(Event),
    last_heartbeat: Instant,
}

impl Driver<'_, '_, '_> {
    fn carry_out(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let cached: Vec<(NodeIndex, Arc<Record>)> = self
            .planner
            .graph
            .order
            .iter()
            .filter_map(|node| match plan.state(*node) {
                State::Cached(record) if !self.settings.force => Some((*node, record.clone())),
                _ => None,
            })
            .collect();
        (self.tell)(Event::Began {
            run: self.id.clone(),
            total: self.planner.selected.len(),
            cached: cached.len(),
            slots: self.settings.jobs,
        });
        for (node, record) in cached {
            self.done(node, record, How::Cached);
        }
        while !self.schedule.is_over() {
            if self.stop.load(Ordering::Relaxed) || (self.settings.fail_fast && !self.summary.failed.is_empty()) {
                self.cancel();
                break;
            }
            self.start_ready()?;
            match self.outputs.recv_timeout(TICK) {
                Ok(output) => self.listen(output)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the workers hold a sender"),
            }
            if self.last_heartbeat.elapsed() > HEARTBEAT {
                self.last_heartbeat = Instant::now();
                self.jobs.values().try_for_each(|job| job.claim.renew())?;
            }
        }
        Ok(())
    }

    fn cancel(&mut self) {
        (self.tell)(Event::Stopping);
        self.summary.cancelled = self.stop.load(Ordering::Relaxed);
        self.workers.kill();
        for job in std::mem::take(&mut self.jobs).into_values() {
            let name = self.name(job.node);
            self.note(name, "cancelled", None, Some(job.log_path));
        }
    }

    fn name(&self, node: NodeIndex) -> String {
        self.planner.graph.dag[node].name.clone()
    }

    fn note(&mut self, instance: String, outcome: &str, key: Option<Digest>, log: Option<PathBuf>) {
        self.outcomes.insert(instance.clone(), InstanceOutcome { instance, outcome: outcome.into(), key, log });
    }

    /// Takes what is ready as far as it goes: found in the store, held by another run, or at work.
    fn start_ready(&mut self) -> Result<(), StoreError> {
        // A result found in the store makes its readers ready at once, so look until nothing moves.
        let mut moved = true;
        while moved {
            moved = false;
            for node in self.schedule.ready() {
                if self.held_elsewhere.get(&node).is_some_and(|again| Instant::now() < *again) {
                    continue;
                }
                moved |= self.advance(node)?;
                if self.settings.fail_fast && !self.summary.failed.is_empty() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Moves one ready instance on. Returns whether it is ready no longer.
    fn advance(&mut self, node: NodeIndex) -> Result<bool, StoreError> {
        let wanted = self.planner.graph.dag[node].resources;
        let Some(held) = self.pool.take(&wanted) else { return Ok(false) };
        let artifacts = &self.artifacts;
        let resolved = match self.planner.resolve(node, &|needed| artifacts[&needed].clone()) {
            Ok(resolved) => resolved,
            Err(diagnostic) => {
                self.pool.give(held);
                self.fail(node, diagnostic.message, None);
                return Ok(true);
            }
        };
        if !self.settings.force
            && let Some(record) = self.planner.store.lookup(&resolved.key)
        {
            self.pool.give(held);
            let how = if self.held_elsewhere.remove(&node).is_some() { How::ByOtherRun } else { How::CutOff };
            self.done(node, Arc::new(record), how);
            return Ok(true);
        }
        let claim = match self.planner.store.claim(&resolved.key)? {
            ClaimOutcome::Claimed(claim) => claim,
            ClaimOutcome::Held(owner) => {
                self.pool.give(held);
                let first = self.held_elsewhere.insert(node, Instant::now() + 2 * TICK).is_none();
                if first {
                    let owner = format!("process {} on {}", owner.pid, owner.host);
                    let instance = self.name(node);
                    (self.tell)(Event::WaitsForRun { instance, owner });
                }
                return Ok(false);
            }
        };
        // Between the look and the lease another run may have finished it.
        if let Some(record) = self.planner.store.lookup(&resolved.key).filter(|_| !self.settings.force) {
            self.pool.give(held);
            self.done(node, Arc::new(record), How::ByOtherRun);
            return Ok(true);
        }
        if let Some(message) = self.damaged_input(&resolved)? {
            self.pool.give(held);
            self.fail(node, message, None);
            return Ok(true);
        }
        self.start(node, resolved, claim, held)?;
        Ok(true)
    }

    fn start(&mut self, node: NodeIndex, resolved: Resolved, claim: Claim, held: Held) -> Result<(), StoreError> {
        let name = self.name(node);
        let log_path = self.folder.join(log_name(&name));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action: "write", path, source }
        };
        let mut log = File::create(&log_path).map_err(io(&log_path))?;
        writeln!(log, "{name}\nkey {}", resolved.key).map_err(io(&log_path))?;
        let scratch = self.planner.store.scratch()?;
        let inputs = resolved.inputs.iter().map(|(point, input)| RunInput {
            name: input.name.clone(),
            point: point.clone(),
            files: input.files.iter().map(|f| (f.path.clone(), self.planner.store.object_path(&f.digest))).collect(),
        });
        let request = RunRequest {
            instance: name.clone(),
            kind: resolved.parts.kind.clone(),
            params: serde_json::Value::Object(self.planner.graph.dag[node].params.clone()),
            inputs: inputs.collect(),
            sources: resolved.sources.clone(),
            output_dir: scratch.path().to_owned(),
            threads: held.cpu,
            gpus: held.gpus.clone(),
            code: self.planner.kind(node).code.clone(),
        };
        let number = match self.workers.send(request) {
            Ok(number) => number,
            Err(e) => {
                self.pool.give(held);
                self.fail(node, format!("failed to start a worker: {e}"), Some(log_path));
                return Ok(());
            }
        };
        self.schedule.set(node, Phase::Running);
        (self.tell)(Event::Started { instance: name });
        let (started, started_ms, metrics) = (Instant::now(), now_ms(), BTreeMap::new());
        self.jobs
            .insert(number, Job { node, resolved, claim, held, scratch, log, log_path, started, started_ms, metrics });
        Ok(())
    }

    fn listen(&mut self, output: Output) -> Result<(), StoreError> {
        let (number, reply) = match output {
            Output::Line(number, line) => {
                if let Some(job) = self.jobs.get_mut(&number) {
                    let _ = writeln!(job.log, "{line}");
                }
                return Ok(());
            }
            Output::Ended(number) => {
                let how = self.workers.ended(number).unwrap_or_else(|| "an unknown status".into());
                if let Some(job) = self.jobs.remove(&number) {
                    self.pool.give(job.held);
                    self.fail(job.node, format!("its worker ended with {how}"), Some(job.log_path));
                }
                return Ok(());
            }
            Output::Reply(number, reply) => (number, reply),
        };
        let Some(job) = self.jobs.get_mut(&number) else { return Ok(()) };
        let instance = self.planner.graph.dag[job.node].name.clone();
        match reply {
            Reply::Progress { done, total, unit } => (self.tell)(Event::Progress { instance, done, total, unit }),
            Reply::Metric { name, value } => {
                job.metrics.insert(name, value);
            }
            Reply::Log { warning, text } => {
                // A log that cannot be written is no reason to lose the work.
                let _ = writeln!(job.log, "{}{text}", if warning { "warning: " } else { "" });
                if warning {
                    (self.tell)(Event::Warning { instance, text });
                }
            }
            Reply::Done { environment } => {
                if let Some(job) = self.jobs.remove(&number) {
                    self.workers.release(number);
                    self.finish(job, environment)?;
                }
            }
            Reply::Failed { message } => {
                if let Some(mut job) = self.jobs.remove(&number) {
                    self.workers.release(number);
                    let _ = writeln!(job.log, "failed: {message}");
                    self.pool.give(job.held);
                    self.fail(job.node, message, Some(job.log_path));
                }
            }
            Reply::Kinds { .. } => {}
        }
        Ok(())
    }

    fn finish(&mut self, job: Job, environment: BTreeMap<String, String>) -> Result<(), StoreError> {
        let name = self.name(job.node);
        self.pool.give(job.held);
        if let Some(changed) = guard::changed_source(self.planner.store, &job.resolved) {
            let kept = self.folder.join(format!("{}.outputs", file_name(&name)));
            let _ = std::fs::rename(job.scratch.path(), &kept);
            let message =
                format!("{changed} changed while it was read; its outputs are not used (kept in {})", kept.display());
            self.fail(job.node, message, Some(job.log_path));
            return Ok(());
        }
        let kind = self.planner.kind(job.node);
        let absent = kind.outputs.iter().find(|output| !job.scratch.path().join(&output.path).exists());
        if let Some(output) = absent {
            self.fail(job.node, format!("it ended without its output `{}`", output.path), Some(job.log_path));
            return Ok(());
        }
        let sources = job.resolved.sources.iter().flat_map(|(name, source)| {
            source.files.iter().map(|file| RecordSource {
                source: name.clone(),
                role: file.role.clone(),
                label: file.label.clone(),
                path: file.path.clone(),
                digest: file.digest,
            })
        });
        let mut record = Record {
            key: job.resolved.key,
            parts: serde_json::to_value(&job.resolved.parts).expect("key parts are JSON"),
            instance: name.clone(),
            manifest: self.manifest.clone(),
            kind: kind.name.clone(),
            run: self.id.clone(),
            started_ms: job.started_ms,
            finished_ms: now_ms(),
            inputs: job.resolved.inputs.iter().map(|(_, input)| input.clone()).collect(),
            sources: sources.collect(),
            outputs: Vec::new(),
            metrics: job.metrics,
            environment,
        };
        let published = match self.planner.store.publish(&mut record, job.scratch.path()) {
            Ok(published) => published,
            Err(e) => {
                self.fail(job.node, e.to_string(), Some(job.log_path));
                return Ok(());
            }
        };
        drop(job.claim);
        let record = match published {
            Published::Differs { earlier } => {
                let text = "it made other bytes than before under the same key: the stage is not deterministic; the earlier result counts, and both are kept";
                (self.tell)(Event::Warning { instance: name.clone(), text: text.into() });
                *earlier
            }
            _ => record,
        };
        self.summary.executed.push(name.clone());
        self.note(name, "executed", Some(record.key), Some(job.log_path));
        self.done(job.node, Arc::new(record), How::Executed(job.started.elapsed()));
        Ok(())
    }

    fn done(&mut self, node: NodeIndex, record: Arc<Record>, how: How) {
        let name = self.name(node);
        if !matches!(how, How::Executed(_)) {
            self.summary.cached += 1;
            self.note(name.clone(), "cached", Some(record.key), None);
        }
        self.held_elsewhere.remove(&node);
        self.schedule.set(node, Phase::Done);
        (self.tell)(Event::Finished { instance: name, how });
        let identities = self.planner.identities(node, &record);
        self.artifacts.insert(node, record);
        match identities {
            Ok(None) => {}
            Ok(Some(identities)) => {
                self.identities.insert(node, identities);
                self.check_contamination();
            }
            Err(message) => self.refuse_unproven(node, &message),
        }
    }

    fn fail(&mut self, node: NodeIndex, message: String, log: Option<PathBuf>) {
        let name = self.name(node);
        self.summary.failed.push((name.clone(), message.clone()));
        self.note(name.clone(), "failed", None, log.clone());
        (self.tell)(Event::Failed { instance: name.clone(), message, log });
        for blocked in self.schedule.set(node, Phase::Failed) {
            let instance = self.name(blocked);
            self.summary.blocked += 1;
            self.note(instance.clone(), "blocked", None, None);
            (self.tell)(Event::Blocked { instance, by: name.clone() });
        }
    }
}
