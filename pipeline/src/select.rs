//! What was asked for on the command line: `--only`, `--except`, `--from`, `--force`.

use std::collections::BTreeSet;

use petgraph::graph::NodeIndex;

use crate::diagnostic::{Diagnostic, Diagnostics, suggest};
use crate::graph::Graph;
use crate::manifest::Loaded;
use crate::pattern::InstancePattern;

/// The instances that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only these, and what they are made from; all if empty.
    pub only: Vec<InstancePattern>,
    /// Not these, nor what is made from them.
    pub except: Vec<InstancePattern>,
    /// These and everything made from them run again, cached or not.
    pub from: Vec<InstancePattern>,
    /// Everything selected runs again.
    pub force: bool,
}

type Nodes = BTreeSet<NodeIndex>;

impl Selection {
    /// The selected instances, and those of them that run again whatever the store has.
    ///
    /// # Errors
    /// A pattern that no instance fits, and patterns that leave none.
    pub fn choose(&self, loaded: &Loaded, graph: &Graph) -> Result<(Nodes, Nodes), Diagnostics> {
        let mut selected: Nodes = match self.only.is_empty() {
            true => graph.dag.node_indices().collect(),
            false => graph.upstream(&fitting(loaded, graph, &self.only)?),
        };
        for node in graph.downstream(&fitting(loaded, graph, &self.except)?) {
            selected.remove(&node);
        }
        if selected.is_empty() && graph.dag.node_count() > 0 {
            let message = "nothing is left to run: what `--only` and `--except` say leaves no instance".to_owned();
            return Err(Diagnostics {
                list: vec![Diagnostic { file: loaded.path.clone(), span: None, message, hint: None, detail: None }],
            });
        }
        let mut forced = match self.force {
            true => selected.clone(),
            false => graph.downstream(&fitting(loaded, graph, &self.from)?),
        };
        forced.retain(|node| selected.contains(node));
        Ok((selected, forced))
    }
}

/// The instances that fit at least one of the patterns.
///
/// # Errors
/// A pattern that no instance fits.
pub fn fitting(loaded: &Loaded, graph: &Graph, patterns: &[InstancePattern]) -> Result<Vec<NodeIndex>, Diagnostics> {
    let mut all = Vec::new();
    for pattern in patterns {
        let before = all.len();
        all.extend(graph.dag.node_indices().filter(|n| pattern.fits(&graph.dag[*n].stage, &graph.dag[*n].point)));
        if all.len() == before {
            let message = format!("no instance fits `{pattern}`");
            let hint = Some(hint(loaded, pattern));
            return Err(Diagnostics {
                list: vec![Diagnostic { file: loaded.path.clone(), span: None, message, hint, detail: None }],
            });
        }
    }
    Ok(all)
}

/// What is the matter with a pattern that fits nothing: its stage, an axis, or a value.
fn hint(loaded: &Loaded, pattern: &InstancePattern) -> String {
    let stages = &loaded.manifest.stages;
    let Some(stage) = stages.get(&pattern.stage) else {
        return match pattern.stage.contains('*') {
            true => "no stage has such axes and values".to_owned(),
            false => suggest(&pattern.stage, "the stages are", stages.keys().map(String::as_str)),
        };
    };
    for (axis, value) in &pattern.axes {
        if !stage.per.contains(axis) {
            return suggest(
                axis,
                &format!("the axes of `{}` are", pattern.stage),
                stage.per.iter().map(String::as_str),
            );
        }
        let labels: Vec<String> = loaded.axes[axis].values.iter().map(crate::manifest::AxisValue::label).collect();
        if !value.contains('*') && !labels.contains(value) {
            return suggest(value, &format!("the values of `{axis}` are"), labels.iter().map(String::as_str));
        }
    }
    "the sweep leaves these points out".to_owned()
}
