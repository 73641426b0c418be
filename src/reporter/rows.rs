//! The stages of a run as rows: how many instances are done, cached, running, failed; how busy the machine is; how long it will
//! take, by what earlier executions took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar};
use siteline_pipeline::event::{Event, How};

use super::load::Load;
use super::style;
use crate::partial::Partial;
use crate::project::Project;

/// One stage.
#[derive(Default)]
struct Row {
    all: usize,
    done: usize,
    cached: usize,
    running: usize,
    failed: usize,
    blocked: usize,
    /// Executions whose time is known, and the sum of their times.
    known: (u64, Duration),
    bar: Option<ProgressBar>,
}

impl Row {
    fn open(&self) -> usize {
        self.all.saturating_sub(self.done + self.cached + self.failed + self.blocked)
    }

    fn mean(&self) -> Option<Duration> {
        (self.known.0 > 0).then(|| self.known.1 / self.known.0 as u32)
    }

    fn text(&self, name: &str, width: usize) -> String {
        let mut text = format!("{name:width$} {:>6} of {:<6}", self.done + self.cached, self.all);
        for (count, word) in
            [(self.cached, "cached"), (self.running, "running"), (self.failed, "FAILED"), (self.blocked, "blocked")]
        {
            if count > 0 {
                text.push_str(&format!("  {count} {word}"));
            }
        }
        text
    }
}

/// All rows, and the line below them.
pub struct Rows {
    rows: BTreeMap<String, Row>,
    order: Vec<String>,
    width: usize,
    foot: ProgressBar,
    slots: usize,
    drawn: Instant,
    load: Load,
    table: Option<Partial>,
    /// Below all else: the table so far.
    table_bar: ProgressBar,
}

/// Between two drawings.
const EVERY: Duration = Duration::from_millis(120);

impl Rows {
    /// `table` is what the sweep has of its table when the run begins.
    pub fn new(all: &MultiProgress, project: &Project, gpus: &[String], table: Option<Partial>) -> Self {
        let earlier = project.store.durations(&project.loaded.manifest.name).unwrap_or_default();
        let counts = project.graph.by_stage();
        let mut rows = BTreeMap::new();
        let order: Vec<String> = project.loaded.manifest.stages.keys().cloned().collect();
        for stage in &order {
            let known = earlier.get(stage).map_or((0, 0), |known| *known);
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(style("{bar:18.cyan/dim} {wide_msg}"));
            let all = counts.get(stage.as_str()).copied().unwrap_or(0);
            let known = (known.0, Duration::from_millis(known.1));
            rows.insert(stage.clone(), Row { all, known, bar: Some(bar), ..Row::default() });
        }
        let foot = all.add(ProgressBar::new(0));
        foot.set_style(style("{bar:18.green/dim} {pos} of {len} instances  {elapsed}  {wide_msg}"));
        foot.enable_steady_tick(Duration::from_millis(250));
        let width = order.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let table_bar = all.add(ProgressBar::new(0));
        table_bar.set_style(style("{msg}"));
        let rows =
            Self { rows, order, width, foot, slots: 1, drawn: Instant::now(), load: Load::new(gpus), table, table_bar };
        rows.draw_table();
        rows
    }

    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Began { total, slots, .. } => {
                self.foot.set_length(*total as u64);
                self.slots = *slots;
            }
            Event::Started { instance } => self.row(instance).running += 1,
            Event::Finished { instance, how, metrics } => {
                self.foot.inc(1);
                if self.table.as_mut().is_some_and(|table| table.scored(instance, metrics)) {
                    self.draw_table();
                }
                let row = self.row(instance);
                match how {
                    How::Executed(took) => {
                        row.running = row.running.saturating_sub(1);
                        row.done += 1;
                        row.known = (row.known.0 + 1, row.known.1 + *took);
                    }
                    _ => row.cached += 1,
                }
            }
            Event::Failed { instance, .. } => {
                self.foot.inc(1);
                let row = self.row(instance);
                row.running = row.running.saturating_sub(1);
                row.failed += 1;
                self.lacks(instance, "failed");
            }
            Event::Retries { instance, .. } => {
                let row = self.row(instance);
                row.running = row.running.saturating_sub(1);
            }
            Event::Blocked { instance, .. } => {
                self.foot.inc(1);
                self.row(instance).blocked += 1;
                self.lacks(instance, "blocked");
            }
            _ => {}
        }
        if self.drawn.elapsed() > EVERY {
            self.draw();
        }
    }

    /// Puts a bar between the stages and the table.
    pub fn above_table(&self, all: &MultiProgress, bar: ProgressBar) -> ProgressBar {
        all.insert_before(&self.table_bar, bar)
    }

    fn lacks(&mut self, instance: &str, cause: &'static str) {
        if let Some(table) = &mut self.table {
            table.lacks(instance, cause);
            self.draw_table();
        }
    }

    /// As much of the table so far as the screen has room for.
    fn draw_table(&self) {
        let Some(table) = &self.table else { return };
        let text = table.text();
        let used = self.order.len() + super::BARS + 3;
        let room = usize::from(screen_height()).saturating_sub(used).max(1);
        let mut lines: Vec<&str> = text.lines().take(room).collect();
        if lines.len() < 3 {
            lines.truncate(1);
        }
        self.table_bar.set_message(lines.join("\n"));
    }

    fn row(&mut self, instance: &str) -> &mut Row {
        let stage = instance.split('[').next().unwrap_or(instance);
        self.rows.entry(stage.to_owned()).or_default()
    }

    fn draw(&mut self) {
        self.drawn = Instant::now();
        for name in &self.order {
            let Some((row, bar)) = self.rows.get(name).and_then(|row| Some((row, row.bar.as_ref()?))) else { continue };
            bar.set_length(row.all as u64);
            bar.set_position((row.done + row.cached) as u64);
            bar.set_message(row.text(name, self.width));
        }
        let left = self.left().map_or_else(String::new, |left| format!("about {} left  ", short(left)));
        self.foot.set_message(format!("{left}{}", self.load.text()));
    }

    /// The time that the open instances will take, where something is known of every stage that has any.
    fn left(&self) -> Option<Duration> {
        let open = self.rows.values().filter(|row| row.open() > 0);
        let sum = open.map(|row| Some(row.mean()? * row.open() as u32)).sum::<Option<Duration>>()?;
        (!sum.is_zero()).then(|| sum / self.slots.max(1) as u32)
    }

    pub fn finish(&mut self) {
        self.draw();
        self.rows.values().filter_map(|row| row.bar.as_ref()).for_each(ProgressBar::finish_and_clear);
        self.foot.finish_and_clear();
        self.table_bar.finish_and_clear();
    }
}

fn screen_height() -> u16 {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(24, |size| size.ws_row)
}

fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=99 => format!("{seconds} s"),
        seconds @ 100..=5999 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
