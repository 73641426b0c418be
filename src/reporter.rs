//! What a run looks like: rows of stages on a terminal, plain lines elsewhere, JSON on request. Drawn from events alone.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use siteline_pipeline::event::{Event, How};
use siteline_pipeline::printable;

use crate::commands::count;
use crate::partial::Partial;
use crate::project::Project;

mod load;
mod rows;

use rows::Rows;

/// How a run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Failures alone.
    Quiet,
    /// One line an event.
    Plain,
    /// Stages as rows where standard error is a terminal, else plain lines.
    Terminal,
    /// Events as JSON on standard output.
    Json,
}

/// Takes events and shows them.
pub struct Reporter {
    screen: Screen,
    total: usize,
    done: usize,
    unwritten: Option<std::io::Error>,
}

enum Screen {
    Quiet,
    Json,
    Plain { told: HashMap<String, Instant> },
    Rows { all: MultiProgress, rows: Box<Rows>, running: BTreeMap<String, ProgressBar> },
}

/// So many running instances have a bar of their own.
const BARS: usize = 8;

impl Reporter {
    /// For a run of a project that may use `gpus`; `table` gives what there is of its table already.
    pub fn new(look: Look, project: &Project, gpus: &[String], table: impl FnOnce() -> Option<Partial>) -> Self {
        let screen = match look {
            Look::Quiet => Screen::Quiet,
            Look::Json => Screen::Json,
            Look::Terminal if std::io::stderr().is_terminal() => {
                let all = MultiProgress::new();
                let rows = Box::new(Rows::new(&all, project, gpus, table()));
                Screen::Rows { all, rows, running: BTreeMap::new() }
            }
            _ => Screen::Plain { told: HashMap::new() },
        };
        Self { screen, total: 0, done: 0, unwritten: None }
    }

    /// Shows one event.
    pub fn take(&mut self, event: &Event) {
        if let Event::Began { total, .. } = event {
            self.total = *total;
        }
        if let Event::Finished { .. } | Event::Failed { .. } | Event::Blocked { .. } = event {
            self.done += 1;
        }
        let (done, total) = (self.done, self.total);
        match &mut self.screen {
            Screen::Quiet => {
                // Failures are never silent.
                if let (Event::Failed { .. }, Some(line)) = (event, line(event)) {
                    say(&line);
                }
            }
            Screen::Json => {
                // No reason to stop a run, but to say so at its end.
                if let Err(error) = writeln!(std::io::stdout(), "{}", printable::json(event, false)) {
                    self.unwritten.get_or_insert(error);
                }
            }
            Screen::Plain { told } => {
                if let Some(line) = line(event).or_else(|| still_at_work(event, told)) {
                    say(&format!("[{done:>width$}/{total}] {line}", width = total.to_string().len()));
                }
            }
            Screen::Rows { all, rows, running } => {
                rows.take(event);
                draw(event, |bar| rows.above_table(all, bar), all, running);
                let kept = matches!(
                    event,
                    Event::Failed { .. }
                        | Event::Retries { .. }
                        | Event::Warning { .. }
                        | Event::WaitsForRun { .. }
                        | Event::WaitsForGpu { .. }
                        | Event::Stopping
                );
                if let (Some(line), true) = (line(event), kept) {
                    let _ = all.println(line);
                }
            }
        }
    }

    /// Why events could not be written, where that is so.
    pub fn unwritten(&self) -> Option<&std::io::Error> {
        self.unwritten.as_ref()
    }

    /// Takes the rows away.
    pub fn finish(&mut self) {
        if let Screen::Rows { all, rows, .. } = &mut self.screen {
            rows.finish();
            let _ = all.clear();
        }
    }
}

/// What an event says in one line, if it says anything.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Began { total, cached, slots, .. } => {
            format!("{}, {cached} cached, {slots} at a time", count(*total, "instance"))
        }
        Event::Started { instance } => format!("start   {instance}"),
        Event::Finished { instance, how, .. } => match how {
            How::Cached => return None,
            How::CutOff => format!("same    {instance} (what it reads came out as before)"),
            How::ByOtherRun => format!("found   {instance} (another run made it)"),
            How::Twin => format!("same    {instance} (another instance of this run has the same key, and made it)"),
            How::Executed(took) => format!("done    {instance} ({:.1} s)", took.as_secs_f64()),
        },
        Event::Failed { instance, message, log } => {
            let log = log.as_ref().map(|path| format!("\n  log: {}", path.display())).unwrap_or_default();
            format!("FAILED  {instance}: {message}{log}")
        }
        Event::Retries { instance, message, attempt, attempts, in_seconds } => {
            format!("again   {instance}: {message}; attempt {attempt} of {attempts} in {in_seconds:.0} s")
        }
        Event::Blocked { instance, by } => format!("blocked {instance} (by {by})"),
        Event::Warning { instance, text } => format!("warning {instance}: {text}"),
        Event::WaitsForGpu { instance } => format!("waits   {instance} (another run has the GPU)"),
        Event::WaitsForRun { instance, owner } => format!("waits   {instance} (computed by {owner})"),
        Event::Stopping => "stopping; what is finished is kept".to_owned(),
        Event::Progress { .. } | Event::Ended { .. } => return None,
    })
}

/// A line on standard error. A reader that went away is no reason to stop a run.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Without bars, long work says now and then how far it is.
fn still_at_work(event: &Event, told: &mut HashMap<String, Instant>) -> Option<String> {
    const EVERY: Duration = Duration::from_secs(20);
    let Event::Progress { instance, done, total, unit } = event else { return None };
    let last = told.entry(instance.clone()).or_insert_with(Instant::now);
    if last.elapsed() < EVERY {
        return None;
    }
    *last = Instant::now();
    Some(format!("        {instance}  {done}/{total} {unit}"))
}

fn draw(
    event: &Event,
    place: impl Fn(ProgressBar) -> ProgressBar,
    all: &MultiProgress,
    running: &mut BTreeMap<String, ProgressBar>,
) {
    match event {
        Event::Started { instance } if running.len() < BARS => {
            let bar = place(ProgressBar::new(0));
            bar.set_style(style("  {bar:20.green/dim} {wide_msg} {elapsed}"));
            bar.set_message(instance.clone());
            running.insert(instance.clone(), bar);
        }
        Event::Progress { instance, done, total, unit } => {
            if let Some(bar) = running.get(instance) {
                bar.set_length(*total);
                bar.set_position(*done);
                bar.set_message(format!("{instance}  {done}/{total} {unit}"));
            }
        }
        Event::Finished { instance, .. } | Event::Failed { instance, .. } | Event::Retries { instance, .. } => {
            if let Some(bar) = running.remove(instance) {
                bar.finish_and_clear();
                all.remove(&bar);
            }
        }
        _ => {}
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}
