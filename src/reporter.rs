//! What a run looks like: bars on a terminal, plain lines elsewhere. Drawn from events alone.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use siteline_pipeline::event::{Event, How};

/// Takes events and shows them.
pub struct Reporter {
    look: Look,
    total: usize,
    done: usize,
}

enum Look {
    Quiet,
    Plain { told: HashMap<String, Instant> },
    Bars { all: MultiProgress, overall: ProgressBar, running: BTreeMap<String, ProgressBar> },
}

impl Reporter {
    /// Bars where standard error is a terminal, unless plain lines are asked for.
    pub fn new(plain: bool, quiet: bool) -> Self {
        let look = if quiet {
            Look::Quiet
        } else if plain || !std::io::stderr().is_terminal() {
            Look::Plain { told: HashMap::new() }
        } else {
            let all = MultiProgress::new();
            let overall = all.add(ProgressBar::new(0));
            overall.set_style(style("{bar:32.cyan/dim} {pos}/{len} instances  {elapsed}  {msg}"));
            overall.enable_steady_tick(Duration::from_millis(200));
            Look::Bars { all, overall, running: BTreeMap::new() }
        };
        Self { look, total: 0, done: 0 }
    }

    /// Shows one event.
    pub fn take(&mut self, event: &Event) {
        if let Event::Began { total, .. } = event {
            self.total = *total;
        }
        if let Event::Finished { .. } | Event::Failed { .. } | Event::Blocked { .. } = event {
            self.done += 1;
        }
        let line = self.line(event);
        let (done, total) = (self.done, self.total);
        match &mut self.look {
            Look::Quiet => {
                // Failures are never silent.
                if let (Event::Failed { .. }, Some(line)) = (event, line) {
                    say(&line);
                }
            }
            Look::Plain { told } => {
                let line = line.or_else(|| still_at_work(event, told));
                if let Some(line) = line {
                    say(&format!("[{done:>width$}/{total}] {line}", width = total.to_string().len()));
                }
            }
            Look::Bars { all, overall, running } => {
                overall.set_length(total as u64);
                overall.set_position(done as u64);
                draw(event, all, running);
                let kept = matches!(
                    event,
                    Event::Failed { .. }
                        | Event::Retries { .. }
                        | Event::Warning { .. }
                        | Event::WaitsForRun { .. }
                        | Event::Stopping
                );
                if let (Some(line), true) = (line, kept) {
                    let _ = all.println(line);
                }
            }
        }
    }

    /// Takes the bars away.
    pub fn finish(&mut self) {
        if let Look::Bars { all, overall, .. } = &self.look {
            overall.finish_and_clear();
            let _ = all.clear();
        }
    }

    /// What an event says in one line, if it says anything.
    fn line(&self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Began { total, cached, slots, .. } => {
                format!("{total} instances, {cached} cached, {slots} at a time")
            }
            Event::Started { instance } => format!("start   {instance}"),
            Event::Finished { instance, how } => match how {
                How::Cached => return None,
                How::CutOff => format!("same    {instance} (what it reads came out as before)"),
                How::ByOtherRun => format!("found   {instance} (another run made it)"),
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
            Event::WaitsForRun { instance, owner } => format!("waits   {instance} (computed by {owner})"),
            Event::Stopping => "stopping; what is finished is kept".to_owned(),
            Event::Progress { .. } | Event::Ended { .. } => return None,
        })
    }
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

fn draw(event: &Event, all: &MultiProgress, running: &mut BTreeMap<String, ProgressBar>) {
    match event {
        Event::Started { instance } => {
            let bar = all.add(ProgressBar::new(0));
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
        Event::Finished { instance, .. } | Event::Failed { instance, .. } => {
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
