//! `siteline run`

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use siteline_cache::Access;
use siteline_pipeline::event::Summary;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::run::{self, Settings};
use siteline_pipeline::sandbox::Sandbox;
use siteline_pipeline::{NodeIndex, protocol};

use super::{Outcome, count};
use crate::args::{Chosen, Common};
use crate::diagnostic::CommandError;
use crate::partial::Partial;
use crate::project::Project;
use crate::report::{self, Written};
use crate::reporter::{Look, Reporter};

/// Run what is missing, and nothing else.
///
/// Results appear in `results/NAME`: the tables, and `report.html`. A failed instance names its log; the rest goes on as
/// far as it can. Ctrl-C stops cleanly: what is finished is kept, and the next run goes on from there.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline run\n  siteline run -j 8 --gpus 0,1\n  siteline run --only 'evaluate[held_out=C]' --set stages.train.with.epochs=2"
)]
pub struct Run {
    #[command(flatten)]
    chosen: Chosen,
    /// CPU slots [default: the number of cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// GPUs that may be used, as CUDA names them; empty for none [default: those of CUDA_VISIBLE_DEVICES, or all that the system shows]
    #[arg(long, value_name = "LIST")]
    gpus: Option<String>,
    /// Go on as far as possible after a failure (the default)
    #[arg(long, conflicts_with = "fail_fast")]
    keep_going: bool,
    /// Stop at the first failure
    #[arg(long)]
    fail_fast: bool,
    /// Memory that stages may set aside in all: `16 GB` [default: what the machine has]
    #[arg(long, value_name = "SIZE", value_parser = siteline_pipeline::protocol::bytes)]
    memory: Option<u64>,
    /// Shut commands in: they read what they declare and write in their working directory alone (bubblewrap)
    #[arg(long)]
    sandbox: bool,
    /// Plain lines instead of progress bars
    #[arg(long)]
    plain: bool,
    /// Show neither progress nor table
    #[arg(short, long)]
    quiet: bool,
    /// Events on standard output, one JSON object a line (`siteline schema --json-of run`)
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

impl Run {
    fn look(&self) -> Look {
        match (self.json, self.quiet, self.plain) {
            (true, ..) => Look::Json,
            (_, true, _) => Look::Quiet,
            (_, _, true) => Look::Plain,
            _ => Look::Terminal,
        }
    }

    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Write)?;
        let mut planner = project.planner_of(&self.chosen)?;
        let plan = planner.plan()?;
        planner.refuse_contaminated(&plan)?;
        let settings = Settings {
            jobs: self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from),
            gpus: gpus(self.gpus.as_deref()),
            fail_fast: self.fail_fast,
            memory: self.memory.unwrap_or_else(memory),
            sandbox: if self.sandbox { Some(sandbox(&project)?) } else { None },
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            chosen: self.chosen.words(),
        };
        if !self.quiet {
            tell_of_cuts(&planner, &plan, &settings);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        ctrlc::set_handler(move || {
            // A second Ctrl-C does not wait for order.
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })
        .map_err(|e| CommandError::refused(format!("Ctrl-C cannot be caught: {e}"), None))?;
        let mut reporter =
            Reporter::new(self.look(), &project, &settings.gpus, || Partial::of(&planner, &plan, &project.store, &[]));
        let store = project.store.clone();
        let (summary, plan) =
            run::run(&mut planner, plan, &store, &settings, &stop, &mut |event| reporter.take(&event))?;
        reporter.finish();
        let written = report::write(&project, &planner, &plan);
        if !self.quiet && !self.json {
            let table = written.as_ref().ok().and_then(|written| written.table.as_ref());
            if let (Some(table), true) = (table, summary.is_complete()) {
                outln!("\n{}", table.trim_end());
            }
            if !summary.is_complete()
                && let Some(partial) =
                    Partial::of(&planner, &plan, &project.store, &project.store.outcomes(&summary.run))
            {
                outln!("\n{}", partial.text().trim_end());
            }
            conclude(&summary, &common.words());
            if let Ok(written) = &written {
                tell_of_results(written);
            }
        }
        // The process is about to end: taking thousands of instances apart one by one would only keep its user waiting.
        std::mem::forget((planner, plan, project.graph.clone()));
        if let Some(error) = reporter.unwritten().filter(|error| error.kind() != std::io::ErrorKind::BrokenPipe) {
            return Err(CommandError::refused(
                format!("events could not be written to standard output: {error}"),
                None,
            ));
        }
        // What ran is in the store, whatever becomes of the files for reading.
        if let (Err(error), true) = (written, summary.is_complete()) {
            return Err(error);
        }
        Ok(match (summary.is_complete(), summary.cancelled) {
            (true, _) => ExitCode::SUCCESS,
            (_, true) => ExitCode::from(130),
            _ => ExitCode::from(1),
        })
    }
}

fn tell_of_results(written: &Written) {
    match written {
        Written { report: Some(report), .. } => outln!("Report: {}", report.display()),
        Written { folder, any: true, .. } => outln!("Results: {}", folder.display()),
        _ => {}
    }
    if let [first, others @ ..] = written.old.as_slice() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        outln!("Still of an earlier run: {}{more}", first.display());
    }
}

/// Says of which resources a stage that runs gets less than the manifest asks for. What a kind asks for by itself is a wish.
fn tell_of_cuts(planner: &Planner, plan: &Plan, settings: &Settings) {
    let is_open = |node: &NodeIndex| matches!(plan.state(*node), State::Stale { .. } | State::Waiting { .. });
    for (name, stage) in &planner.loaded.manifest.stages {
        let Some(asked) = &stage.resources else { continue };
        let runs = |node: &NodeIndex| *planner.graph.dag[*node].stage == **name && is_open(node);
        if !planner.graph.dag.node_indices().any(|node| runs(&node)) {
            continue;
        }
        for (asked, there, thing) in [(asked.cpu, settings.jobs, "CPU slot"), (asked.gpu, settings.gpus.len(), "GPU")] {
            if let Some(asked) = asked.filter(|asked| *asked > there) {
                tracing::warn!("`{name}` asks for {} and gets {there}: this run has no more", count(asked, thing));
            }
        }
        if let Some(text) = &asked.memory
            && protocol::bytes(text).is_ok_and(|bytes| bytes > settings.memory)
        {
            let all = settings.memory as f64 / 1e9;
            tracing::warn!("`{name}` asks for {text} of memory; this run has {all:.2} GB, and it gets that");
        }
    }
}

/// `common`: the options without which the commands that it names would not find the run.
fn conclude(summary: &Summary, common: &str) {
    let seconds = summary.took.as_secs_f64();
    let mut parts = vec![format!("{} executed", summary.executed.len()), format!("{} cached", summary.cached)];
    if !summary.failed.is_empty() {
        parts.push(format!("{} failed", summary.failed.len()));
    }
    if summary.blocked > 0 {
        parts.push(format!("{} blocked", summary.blocked));
    }
    let how = if summary.cancelled { "Stopped" } else { "Done" };
    outln!("\n{how} in {seconds:.1} s: {} ({}).", parts.join(", "), summary.run);
    if !summary.failed.is_empty() {
        const SHOWN: usize = 10;
        outln!("{} failed:", count(summary.failed.len(), "instance"));
        for (instance, message) in summary.failed.iter().take(SHOWN) {
            outln!(
                "  {instance}: {}\n    siteline log{common} '{instance}'",
                message.lines().next().unwrap_or_default()
            );
        }
        if summary.failed.len() > SHOWN {
            outln!("  and {} more; `siteline status{common}` lists them", summary.failed.len() - SHOWN);
        }
    }
}

/// The sandbox of the project's commands, or why there is none.
fn sandbox(project: &Project) -> Result<Sandbox, CommandError> {
    Sandbox::new(&project.loaded.root, project.store.root().join("objects")).map_err(|message| {
        let hint = "on Debian: apt-get install bubblewrap; in a container it needs user namespaces".to_owned();
        CommandError::refused(message, hint)
    })
}

/// The machine's memory in bytes.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

/// GPUs that may be used, as CUDA names them.
pub fn gpus(list: Option<&str>) -> Vec<String> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let text = match (list, &visible) {
        (Some(list), _) => list.to_owned(),
        (None, Some(visible)) => visible.clone(),
        (None, None) => {
            let devices = (0..64).take_while(|i| std::path::Path::new(&format!("/dev/nvidia{i}")).exists());
            return devices.map(|index| index.to_string()).collect();
        }
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
