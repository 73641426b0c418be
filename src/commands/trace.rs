//! `siteline trace`

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Digest, Store};
use siteline_pipeline::lineage::Lineage;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::printable;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_instances};
use crate::report::results::{Cell, Cells, ResultsTable, find_tables, no_table};

/// Walk from one number of the table back to everything that it depends on.
///
/// The per-image scores, the checkpoint, the prompts, the weights, the digest of each raw image, the code's fingerprint, the seed
/// and the environment.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline trace method=mcdrl,held_out=C\n  siteline trace method=erm,held_out=average --metric iou\n  siteline trace method=mcdrl,held_out=C -v       every raw file\n  siteline trace method=mcdrl,held_out=C method=erm,held_out=C --json"
)]
pub struct Trace {
    /// Numbers, each by its row and column: `method=mcdrl,held_out=C`; or instances: `train[method=mcdrl,seed=*]`
    #[arg(required = true, value_name = "CELL|PATTERN")]
    cells: Vec<String>,
    /// The metric [default: the table's first]
    #[arg(long)]
    metric: Option<String>,
    /// List every raw file with its digest
    #[arg(short, long)]
    verbose: bool,
    /// As JSON on standard output, several as a list; `siteline schema --json-of trace` describes each
    #[arg(long)]
    json: bool,
}

/// What something comes from.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Traced {
    /// A number of a table.
    Number {
        /// The number.
        cell: Cell,
        /// The table that it stands in.
        table: TableFact,
        /// The executions that scored.
        scores: Vec<Lineage>,
    },
    /// The last execution of an instance.
    Instance(Lineage),
}

/// A table.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TableFact {
    /// The instance that made it.
    instance: String,
    /// Its key.
    key: String,
    /// The digest of its first file.
    digest: Option<String>,
    /// The number's row and column, by axis.
    address: BTreeMap<String, String>,
}

impl Trace {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let known = Known { store: &project.store, planner: &planner, plan: &plan };
        // Read once, and only if a number is asked for.
        let mut tables = None;
        let mut all: Vec<Traced> = Vec::new();
        for text in &self.cells {
            // A number's address has an axis and its value; `[axis=value]` will do as well.
            let is_address = text.contains('=') && (text.starts_with('[') || !text.contains('['));
            if is_address {
                let tables = match &mut tables {
                    Some(tables) => tables,
                    none => none.insert(find_tables(&planner, &plan)?),
                };
                all.push(known.number(tables, text, self.metric.as_deref())?);
            } else {
                let found = known.instances(std::slice::from_ref(text))?;
                let is_new = |lineage: &Lineage| !all.iter().any(|one| one.is(lineage.key));
                let new: Vec<_> = found.into_iter().filter(is_new).collect();
                all.extend(new.into_iter().map(Traced::Instance));
            }
        }
        match all.as_slice() {
            [one] if self.json => outln!("{}", printable::json(one, true)),
            several if self.json => outln!("{}", printable::json(&several, true)),
            all => show(all, self.verbose),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Traced {
    fn is(&self, key: Digest) -> bool {
        matches!(self, Self::Instance(lineage) if lineage.key == key)
    }
}

/// Where numbers and instances are looked up.
struct Known<'p> {
    store: &'p Store,
    planner: &'p Planner<'p>,
    plan: &'p Plan,
}

impl Known<'_> {
    /// A number, by its address and its metric, from the first table that has it.
    fn number(&self, tables: &[ResultsTable], address: &str, metric: Option<&str>) -> Result<Traced, CommandError> {
        if tables.is_empty() {
            return Err(no_table(self.planner));
        }
        // What is wrong with the address is said of the first table.
        let find = |table: &'_ ResultsTable| find(&table.cells, address, metric).cloned();
        let found: Vec<_> = tables.iter().map(|table| find(table).map(|cell| (table, cell))).collect();
        let place = found.iter().position(Result::is_ok).unwrap_or(0);
        let (table, cell) = found.into_iter().nth(place).expect("there is a table")?;
        let mut scores: Vec<Lineage> = Vec::new();
        for (_, hit) in table.scores(self.planner, self.plan, &cell) {
            scores.extend(self.store.record(&hit.key).map(|record| Lineage::of(self.store, &record)));
        }
        let record = &table.record;
        let table = TableFact {
            instance: record.instance.clone(),
            key: record.key.to_string(),
            digest: record.outputs.first().map(|output| output.digest.to_string()),
            address: table.cells.address(&cell),
        };
        Ok(Traced::Number { cell, table, scores })
    }

    /// The lineage of instances.
    fn instances(&self, patterns: &[String]) -> Result<Vec<Lineage>, CommandError> {
        let mut lineages = Vec::new();
        for node in find_instances(self.planner, patterns)? {
            let record = match self.plan.state(node) {
                State::Cached(hit) => self.store.record(&hit.key),
                _ => None,
            };
            let Some(record) = record else {
                let message = format!("`{}` is not up to date", self.planner.graph.dag[node].name);
                return Err(CommandError::refused(message, "`siteline run` makes it".to_owned()));
            };
            lineages.push(Lineage::of(self.store, &record));
        }
        Ok(lineages)
    }
}

/// Draws them. What a tree reads and was drawn before is named only.
fn show(all: &[Traced], verbose: bool) {
    let mut tree = Tree { verbose, shown: BTreeMap::new() };
    for (place, traced) in all.iter().enumerate() {
        match traced {
            Traced::Number { cell, table, scores } => {
                let address: Vec<_> = table.address.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
                outln!("{} {}  {}", cell.metric, cell.text, address.join(", "));
                outln!("  {} of {}, in {}", count(cell.runs, "run"), count(cell.images, "image"), table.instance);
                let digest = table.digest.as_deref().and_then(|digest| digest.get(..12)).unwrap_or("–");
                outln!("  table {digest}  key {}", &table.key[..12]);
                for (index, lineage) in scores.iter().enumerate() {
                    tree.show("scores", lineage, "", index + 1 == scores.len());
                }
            }
            Traced::Instance(lineage) => {
                let last = !matches!(all.get(place + 1), Some(Traced::Instance(_)));
                tree.show("instance", lineage, "", last);
            }
        }
    }
}

/// The cell of an address.
fn find<'c>(cells: &'c Cells, address: &str, metric: Option<&str>) -> Result<&'c Cell, CommandError> {
    let metric = metric.map_or_else(|| cells.metrics[0].clone(), str::to_lowercase);
    if !cells.metrics.contains(&metric) {
        let hint = siteline_pipeline::diagnostic::suggest(
            &metric,
            "the metrics are",
            cells.metrics.iter().map(String::as_str),
        );
        return Err(CommandError::request(format!("the table has no metric `{metric}`"), hint));
    }
    let wanted = address
        .trim_matches(|c| c == '[' || c == ']')
        .split(',')
        .map(|part| part.split_once('=').map(|(axis, value)| (axis.trim(), value.trim())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            let example = cells.cells.first().map(|cell| cells.address(cell)).unwrap_or_default();
            let example: Vec<_> = example.into_iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            CommandError::request(
                format!("`{address}` is no address of a number"),
                format!("write `{}`", example.join(",")),
            )
        })?;
    let fits = |cell: &&Cell| {
        let own = cells.address(cell);
        cell.metric == metric && wanted.iter().all(|(axis, value)| own.get(*axis).is_some_and(|v| v == value))
    };
    let fitting: Vec<_> = cells.cells.iter().filter(fits).collect();
    match fitting.as_slice() {
        [one] => Ok(one),
        found => {
            let what = if found.is_empty() { "no number" } else { "several numbers" };
            let values = |axis: &String| {
                let mut all: Vec<_> = cells.cells.iter().filter_map(|c| cells.address(c).remove(axis)).collect();
                all.sort();
                all.dedup();
                format!("{axis} is one of {}", all.join(", "))
            };
            let hint: Vec<_> = cells.row_axes.iter().chain([&cells.column_axis]).map(values).collect();
            Err(CommandError::request(format!("`{address}` means {what} of the table"), hint.join("; ")))
        }
    }
}

/// Draws a lineage; what was shown before is named only.
struct Tree {
    verbose: bool,
    shown: BTreeMap<Digest, String>,
}

impl Tree {
    fn show(&mut self, input: &str, lineage: &Lineage, indent: &str, last: bool) {
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        outln!("{indent}{branch}{input}: {}  key {}", lineage.instance, lineage.key.short());
        self.shown.insert(lineage.key, lineage.instance.clone());
        let indent = format!("{indent}{below}");
        for line in self.facts(lineage) {
            outln!("{indent}│  {}", printable::on_one_line(&line));
        }
        let count = lineage.inputs.len();
        for (index, fact) in lineage.inputs.iter().enumerate() {
            let last = index + 1 == count;
            match &fact.made_by {
                Some(lineage) if !self.shown.contains_key(&lineage.key) => {
                    self.show(&fact.input, lineage, &indent, last);
                }
                _ => {
                    let name = self.shown.get(&fact.key).map_or("an execution that is gone", String::as_str);
                    outln!(
                        "{indent}{}{}: {name}  key {} (shown above)",
                        if last { "└─ " } else { "├─ " },
                        fact.input,
                        fact.key.short()
                    );
                }
            }
        }
    }

    fn facts(&self, lineage: &Lineage) -> Vec<String> {
        let mut facts = Vec::new();
        for output in lineage.outputs.iter().filter(|o| self.verbose || !o.path.contains('/')) {
            facts.push(format!("made   {} {} ({} bytes)", output.path, output.digest.short(), output.size));
        }
        for (name, value) in &lineage.metrics {
            facts.push(format!("metric {name} = {value}"));
        }
        let params = serde_json::to_string(&lineage.params).unwrap_or_default();
        facts.push(format!("params {params}"));
        let code: Vec<_> =
            lineage.code.iter().map(|(name, f)| format!("{name} {}", f.get(..12).unwrap_or(f))).collect();
        let libraries: Vec<_> = lineage.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
        facts.push(format!("code   {}", code.join(", ")));
        if !libraries.is_empty() {
            facts.push(format!("with   {}", libraries.join(", ")));
        }
        let at: Vec<_> = lineage.environment.iter().map(|(name, value)| format!("{name} {value}")).collect();
        facts.push(format!("ran    in {} on {}", lineage.run, at.join(", ")));
        let mut by_role: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for source in &lineage.sources {
            *by_role.entry((&source.source, &source.role)).or_default() += 1;
            if self.verbose || lineage.sources.len() <= 3 {
                facts.push(format!("read   {} {} {} {}", source.role, source.label, source.digest, source.path));
                facts.extend(source.origin.iter().map(|origin| format!("from   {}", origin.words())));
            }
        }
        if !self.verbose && lineage.sources.len() > 3 {
            let all: Vec<_> = by_role.iter().map(|((_, role), n)| count(*n, role)).collect();
            facts.push(format!("read   {} (each with its digest by `-v` or `--json`)", all.join(", ")));
        }
        facts
    }
}
