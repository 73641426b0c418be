//! Runs a plan: one loop that looks up, claims, starts, listens and keeps. It never plans again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use petgraph::graph::NodeIndex;
use siteline_cache::{
    Claim, ClaimOutcome, Committed, Committer, Digest, Hit, InstanceOutcome, OutcomeWriter, Owner, Published, Record,
    RunRow, Store, StoreError,
};

use crate::diagnostic::Diagnostics;
use crate::event::{Event, How, Summary};
use crate::executor::command::Groups;
use crate::executor::crew::Crew;
use crate::executor::gate::Gate;
use crate::executor::gpus;
use crate::executor::log::LogFile;
use crate::executor::orphans;
use crate::executor::processes::{self, Watcher};
use crate::executor::sandbox::Sandbox;
use crate::executor::work_dir::Workshop;
use crate::executor::workers::Workers;
use crate::executor::{Failure, Made, Message};
use crate::leakage::{self, Sides};
use crate::manifest::command;
use crate::plan::{Plan, Planner, Resolved, State};
use crate::protocol::Identities;
use crate::schedule::{Held, Phase, Pool, Schedule};

mod finish;
mod guard;
mod heartbeat;
mod listen;
mod names;
mod request;
mod start;

pub use names::log_name;
use names::{now_ms, run_id};
pub use request::Request;

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// CPU slots.
    pub jobs: usize,
    /// GPUs that may be used.
    pub gpus: Vec<String>,
    /// Memory that stages may set aside, in bytes.
    pub memory: u64,
    /// Stop at the first failure instead of going on as far as possible.
    pub fail_fast: bool,
    /// Shuts commands in.
    pub sandbox: Option<Sandbox>,
    /// The command as typed, for the ledger.
    pub command: String,
    /// The patterns that chose instances, by `only`, `except`, `from` and `force`.
    pub chosen: BTreeMap<String, Vec<String>>,
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

/// How often to look at keys that another run computes, at the stop flag, at deadlines.
const TICK: Duration = Duration::from_millis(100);

/// Carries out a plan. Returns what came of it, and the states of the instances afterwards.
///
/// # Errors
/// A store that cannot be written. What single instances run into is told by events and the summary.
pub fn run(
    planner: &mut Planner,
    plan: Plan,
    store: &Arc<Store>,
    settings: &Settings,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event),
) -> Result<(Summary, Plan), RunError> {
    let began = Instant::now();
    let id = run_id();
    let row = RunRow {
        id: id.clone(),
        manifest: planner.loaded.manifest.name.clone(),
        command: settings.command.clone(),
        started_ms: now_ms(),
        finished_ms: None,
        outcomes: None,
        status: "running".into(),
        owner: Some(Owner::this_process()),
    };
    let outcomes = store.begin_run(&row)?;
    let folder = store.run_folder(&id);
    write_file(&folder.join("manifest.yaml"), planner.loaded.text.as_bytes())?;
    let request = Request {
        command: row.command,
        set: planner.loaded.overrides.iter().map(ToString::to_string).collect(),
        chosen: settings.chosen.clone(),
        manifest: planner.loaded.path.to_string_lossy().into_owned(),
    };
    write_json(&folder.join(request::FILE), &serde_json::to_value(&request).expect("a request is JSON"))?;
    let (sender, messages) = channel();
    let is_open = |node: &NodeIndex| matches!(plan.state(*node), State::Stale { .. } | State::Waiting { .. });
    let open: Vec<NodeIndex> = planner.graph.dag.node_indices().filter(is_open).collect();
    let graph = planner.graph.clone();
    let pool = Pool::new(settings.jobs, &settings.gpus, settings.memory, &planner.loaded.manifest.tokens);
    let mut driver = Driver {
        id: id.clone(),
        folder: folder.clone(),
        sides: leakage::sides(planner.loaded, &graph),
        schedule: Schedule::new(&graph, &open, |node| command::is_command(planner.kind(node))),
        pool,
        gpu_leases: gpus::Leases::new(&settings.gpus),
        workers: Workers::new(&id, sender.clone()),
        groups: Groups::default(),
        crew: Crew::new(),
        gate: Arc::new(Gate::new(settings.jobs)),
        workshop: None,
        watcher: None,
        heartbeat: None,
        committer: None,
        sender,
        messages,
        artifacts: vec![None; graph.dag.node_count()],
        identities: HashMap::new(),
        jobs: HashMap::new(),
        by_worker: HashMap::new(),
        started: 0,
        uncommitted: HashMap::new(),
        attempts: HashMap::new(),
        checked: HashSet::new(),
        not_before: HashMap::new(),
        held_elsewhere: HashSet::new(),
        gpus_taken_until: None,
        outcomes,
        summary: Summary { run: id.clone(), ..Summary::default() },
        planner,
        store,
        settings,
        stop,
        tell,
        last_look: Instant::now(),
    };
    let result = driver.carry_out(&plan);
    let mut summary = driver.wind_up();
    let told = driver.outcomes.lines();
    let plan = driver.states(plan);
    summary.took = began.elapsed();
    let status = match (&result, summary.cancelled, summary.is_complete()) {
        (Err(_), ..) => "failed",
        (_, true, _) => "cancelled",
        (_, _, true) => "done",
        _ => "failed",
    };
    let ended = write_json(&folder.join("summary.json"), &serde_json::to_value(&summary).expect("a summary is JSON"));
    let noted = store.end_run(&id, status, now_ms(), told);
    result?;
    ended?;
    noted?;
    tell(Event::Ended { summary: summary.clone() });
    Ok((summary, plan))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), StoreError> {
    let mut text = serde_json::to_vec_pretty(value).expect("a value is JSON");
    text.push(b'\n');
    write_file(path, &text)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::write(path, bytes).map_err(|source| StoreError::Io { action: "write", path: path.to_owned(), source })
}

/// An instance at work.
struct Job {
    node: NodeIndex,
    resolved: Resolved,
    claim: Claim,
    held: Held,
    /// Where a worker writes; commands make their own.
    scratch: Option<tempfile::TempDir>,
    worker: Option<usize>,
    /// The log of a worker's instance; commands write theirs.
    log: Option<LogFile>,
    log_path: PathBuf,
    started: Instant,
    started_ms: u64,
    deadline: Option<Instant>,
    metrics: BTreeMap<String, f64>,
    environment: BTreeMap<String, String>,
    /// Why it was ended by the driver.
    ended_because: Option<String>,
}

/// A result that its readers may use and that is not durable yet.
struct Uncommitted {
    node: NodeIndex,
    took: Duration,
    log_path: PathBuf,
}

struct Driver<'r, 'p, 'g> {
    id: String,
    folder: PathBuf,
    sides: Vec<Sides>,
    schedule: Schedule<'g>,
    pool: Pool,
    gpu_leases: gpus::Leases,
    workers: Workers,
    groups: Groups,
    crew: Crew,
    gate: Arc<Gate>,
    workshop: Option<Arc<Workshop>>,
    /// Started with the first instance that runs.
    watcher: Option<Watcher>,
    heartbeat: Option<heartbeat::Heartbeat>,
    committer: Option<Committer>,
    sender: Sender<Message>,
    messages: Receiver<Message>,
    /// By node index.
    artifacts: Vec<Option<Arc<Hit>>>,
    identities: HashMap<NodeIndex, Identities>,
    jobs: HashMap<u64, Job>,
    by_worker: HashMap<usize, u64>,
    started: u64,
    uncommitted: HashMap<Digest, Uncommitted>,
    /// Attempts that failed.
    attempts: HashMap<NodeIndex, usize>,
    /// Objects that were rehashed in this run before a stage read them, or made in it.
    checked: HashSet<Digest>,
    /// Ready instances that are not looked at before some time: another run computes them, or they failed before.
    not_before: HashMap<NodeIndex, Instant>,
    held_elsewhere: HashSet<NodeIndex>,
    /// Other runs have the GPUs: instances that want one are not looked at before then.
    gpus_taken_until: Option<Instant>,
    outcomes: OutcomeWriter,
    summary: Summary,
    planner: &'r mut Planner<'p>,
    store: &'r Arc<Store>,
    settings: &'r Settings,
    stop: &'r AtomicBool,
    tell: &'r mut dyn FnMut(Event),
    last_look: Instant,
}

impl Driver<'_, '_, '_> {
    fn carry_out(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let graph = self.planner.graph.clone();
        let cached: Vec<(NodeIndex, Arc<Hit>)> = graph
            .order
            .iter()
            .filter_map(|node| match plan.state(*node) {
                State::Cached(hit) => Some((*node, hit.clone())),
                _ => None,
            })
            .collect();
        (self.tell)(Event::Began {
            run: self.id.clone(),
            total: self.planner.selected.len(),
            cached: cached.len(),
            slots: self.settings.jobs,
        });
        self.outcomes.add_all(&cached, |(node, hit)| InstanceOutcome {
            instance: graph.dag[*node].name.clone(),
            outcome: "cached".into(),
            key: Some(hit.key),
            message: None,
        })?;
        for (node, hit) in cached {
            self.summary.cached += 1;
            let instance = self.name(node);
            (self.tell)(Event::Finished { instance, how: How::Cached, metrics: BTreeMap::new() });
            self.available(node, hit)?;
        }
        self.outcomes.flush()?;
        while !(self.schedule.is_over() && self.uncommitted.is_empty()) {
            let stops = self.stop.load(Ordering::Relaxed);
            if stops || (self.settings.fail_fast && !self.summary.failed.is_empty()) {
                self.cancel(stops)?;
                break;
            }
            self.start_ready()?;
            if self.jobs.is_empty() && !self.uncommitted.is_empty() {
                // Nothing can come that would be worth waiting for.
                if let Some(committer) = &self.committer {
                    committer.flush();
                }
            }
            match self.messages.recv_timeout(TICK) {
                Ok(message) => self.listen(message)?,
                Err(RecvTimeoutError::Timeout) => self.begun(),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the driver holds a sender"),
            }
            // Whatever else has arrived belongs to the same look at what may start.
            while let Ok(message) = self.messages.try_recv() {
                self.listen(message)?;
            }
            self.look_around()?;
        }
        Ok(())
    }

    /// What is due now and then: deadlines.
    fn look_around(&mut self) -> Result<(), StoreError> {
        if self.last_look.elapsed() < TICK {
            return Ok(());
        }
        self.last_look = Instant::now();
        self.outcomes.flush()?;
        for job in self.jobs.values_mut().filter(|job| job.deadline.is_some_and(|deadline| deadline < Instant::now())) {
            if let (Some(worker), None) = (job.worker, &job.ended_because) {
                job.ended_because =
                    Some(format!("it took longer than {:.0} s and was ended", job.started.elapsed().as_secs_f64()));
                self.workers.kill_one(worker);
            }
        }
        Ok(())
    }

    /// Ends what is at work; what is done and not durable yet is waited for.
    fn cancel(&mut self, by_user: bool) -> Result<(), StoreError> {
        (self.tell)(Event::Stopping);
        self.summary.cancelled = by_user;
        self.groups.stop();
        self.workers.kill();
        for job in std::mem::take(&mut self.jobs).into_values() {
            if job.scratch.is_some() {
                // Commands that wait at the gate find out that the run was stopped.
                self.gate.give(job.held.cpu);
            }
            let name = self.name(job.node);
            self.note(name, "cancelled", None, None)?;
        }
        // The committing thread ends when all that it was given is durable.
        self.committer = None;
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Committed(committed) = message {
                self.committed(committed)?;
            }
        }
        Ok(())
    }

    /// Ends every process and thread of the run.
    fn wind_up(&mut self) -> Summary {
        self.groups.stop();
        self.workers.kill();
        self.committer = None;
        if self.watcher.take().is_some() {
            processes::end_all_of(&self.id);
            orphans::end_those_of(&self.id, None);
        }
        let _ = self.outcomes.flush();
        std::mem::take(&mut self.summary)
    }

    /// The states of the instances now.
    fn states(&mut self, before: Plan) -> Plan {
        let hits = std::mem::take(&mut self.artifacts);
        let state = |(index, (state, hit)): (usize, (State, Option<Arc<Hit>>))| match (state, hit) {
            // A result that could not be kept is no result.
            (other, Some(_)) if self.schedule.phase(NodeIndex::new(index)) == Phase::Failed => other,
            (_, Some(hit)) => State::Cached(hit),
            (State::Cached(_), None) => State::NotSelected,
            (other, None) => other,
        };
        Plan { states: before.states.into_iter().zip(hits).enumerate().map(state).collect() }
    }

    fn name(&self, node: NodeIndex) -> String {
        self.planner.graph.dag[node].name.clone()
    }

    fn note(
        &mut self,
        instance: String,
        outcome: &str,
        key: Option<Digest>,
        message: Option<String>,
    ) -> Result<(), StoreError> {
        self.outcomes.add(&InstanceOutcome { instance, outcome: outcome.into(), key, message })
    }

    /// An instance has its result: its readers may start.
    fn available(&mut self, node: NodeIndex, hit: Arc<Hit>) -> Result<(), StoreError> {
        self.not_before.remove(&node);
        if self.schedule.phase(node) != Phase::Out {
            self.schedule.set(node, Phase::Done);
        }
        let identities = self.planner.identities(node, &hit);
        self.artifacts[node.index()] = Some(hit);
        match identities {
            Ok(None) => Ok(()),
            Ok(Some(identities)) => {
                self.identities.insert(node, identities);
                self.check_contamination()
            }
            Err(message) => self.refuse_unproven(node, &message),
        }
    }

    /// An instance turns out to have a result in the store.
    fn done(&mut self, node: NodeIndex, hit: Arc<Hit>, how: How) -> Result<(), StoreError> {
        let name = self.name(node);
        let how = if hit.run == self.id && hit.instance != name { How::Twin } else { how };
        self.summary.cached += 1;
        self.note(name.clone(), "cached", Some(hit.key), None)?;
        let metrics = self.store.record(&hit.key).map(|record| record.metrics).unwrap_or_default();
        (self.tell)(Event::Finished { instance: name, how, metrics });
        self.available(node, hit)
    }

    /// An attempt came to nothing: another one follows, or the instance has failed.
    fn attempt_failed(&mut self, node: NodeIndex, failure: Failure, log: Option<PathBuf>) -> Result<(), StoreError> {
        let failed = self.attempts.entry(node).or_default();
        *failed += 1;
        let attempt = *failed + 1;
        let stage = self.planner.graph.dag[node].stage.clone();
        let retry = self.planner.loaded.manifest.stages[stage.as_ref()].retry.clone();
        match retry.filter(|retry| failure.again && attempt <= retry.attempts) {
            None => self.fail(node, failure.message, log),
            Some(retry) => {
                let wait = retry.wait(attempt);
                self.not_before.insert(node, Instant::now() + wait);
                self.schedule.set(node, Phase::Ready);
                let (instance, attempts, in_seconds) = (self.name(node), retry.attempts, wait.as_secs_f64());
                (self.tell)(Event::Retries { instance, message: failure.message, attempt, attempts, in_seconds });
                Ok(())
            }
        }
    }

    fn fail(&mut self, node: NodeIndex, message: String, log: Option<PathBuf>) -> Result<(), StoreError> {
        let name = self.name(node);
        self.summary.failed.push((name.clone(), message.clone()));
        self.note(name.clone(), "failed", None, Some(message.clone()))?;
        let log = log.filter(|path| path.exists());
        (self.tell)(Event::Failed { instance: name.clone(), message, log });
        for blocked in self.schedule.set(node, Phase::Failed) {
            self.blocked(blocked, &name)?;
        }
        self.outcomes.flush()
    }

    fn blocked(&mut self, node: NodeIndex, by: &str) -> Result<(), StoreError> {
        let instance = self.name(node);
        self.summary.blocked += 1;
        self.note(instance.clone(), "blocked", None, Some(format!("by {by}")))?;
        (self.tell)(Event::Blocked { instance, by: by.to_owned() });
        Ok(())
    }
}
