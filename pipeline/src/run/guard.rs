//! What a run refuses: damaged inputs, sources that changed while they were read, and samples on both sides of a score.

use std::collections::HashMap;

use petgraph::graph::NodeIndex;
use siteline_cache::{Hit, Store, StoreError};

use super::Driver;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::leakage::{self, Sides};
use crate::plan::{Plan, Planner, Resolved, State};
use crate::protocol::{Identities, Purpose};
use crate::schedule::Phase;

impl Driver<'_, '_, '_> {
    /// Rehashes what an instance is about to read, each object once a run: a flipped bit must never become a number.
    pub(super) fn damaged_input(&mut self, resolved: &Resolved) -> Result<Option<String>, StoreError> {
        for input in &resolved.inputs {
            for file in &input.files {
                if self.checked.contains(&file.digest) {
                    continue;
                }
                if let Err(damage) = self.store.check_object(&file.digest)? {
                    return Ok(Some(format!(
                        "its input {} of `{}` was damaged in the store ({}) and is set aside; run again to make it anew",
                        file.path, input.from.instance, damage.problem
                    )));
                }
                self.checked.insert(file.digest);
            }
        }
        Ok(None)
    }

    /// Refuses scores as soon as ingestion has shown a sample on both sides, before any training is spent on them.
    pub(super) fn check_contamination(&mut self) -> Result<(), StoreError> {
        let open = |phase| matches!(phase, Phase::Waiting | Phase::Ready);
        let sides: Vec<Sides> = self.sides.iter().filter(|s| open(self.schedule.phase(s.scorer))).cloned().collect();
        let mut found_any = false;
        for sides in sides {
            if let Some(found) = leakage::contaminated(&self.planner.graph, &sides, &self.identities) {
                found_any = true;
                self.fail(sides.scorer, format!("leakage: {}", found.message), None)?;
            }
        }
        if found_any {
            for node in self.schedule.block_useless() {
                self.blocked(node, "a leaking score that was its only reader")?;
            }
        }
        Ok(())
    }

    /// Where nobody can say who is in an artifact, no score that it reaches is allowed.
    pub(super) fn refuse_unproven(&mut self, node: NodeIndex, message: &str) -> Result<(), StoreError> {
        let open = |phase| matches!(phase, Phase::Waiting | Phase::Ready);
        let scorers: Vec<NodeIndex> = self
            .sides
            .iter()
            .filter(|s| open(self.schedule.phase(s.scorer)) && (s.trained.contains(&node) || s.scored.contains(&node)))
            .map(|s| s.scorer)
            .collect();
        for scorer in scorers {
            self.fail(scorer, format!("who is in `{}` cannot be told: {message}; run again", self.name(node)), None)?;
        }
        Ok(())
    }
}

impl Planner<'_> {
    /// Who and what an artifact of raw data contains, if its kind says so.
    ///
    /// # Errors
    /// A list that is damaged, in words; it is set aside, so that the next run makes it anew.
    pub fn identities(&self, node: NodeIndex, record: &Hit) -> Result<Option<Identities>, String> {
        let Some(output) = self.kind(node).outputs.iter().find(|o| o.purpose == Purpose::Identities) else {
            return Ok(None);
        };
        let file = record.outputs.iter().find(|o| o.path == output.path);
        let file = file.ok_or_else(|| format!("it has no {}", output.path))?;
        let read = self.store.read(&file.digest).map_err(|e| e.to_string());
        match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string())) {
            Ok(identities) => Ok(Some(identities)),
            Err(message) => {
                // Best effort: a store that cannot be written keeps the damaged object, and the refusal stands.
                let _ = self.store.check_object(&file.digest);
                Err(message)
            }
        }
    }

    /// Scores that are refused because a patient or an image is on both sides, as far as ingestion has shown it.
    ///
    /// # Errors
    /// All of them, each at the stage that would score.
    pub fn refuse_contaminated(&self, plan: &Plan) -> Result<(), Diagnostics> {
        let mut identities = HashMap::new();
        for node in self.graph.dag.node_indices() {
            if let State::Cached(record) = plan.state(node) {
                identities.extend(self.identities(node, record).ok().flatten().map(|found| (node, found)));
            }
        }
        let mut list: Vec<Diagnostic> = Vec::new();
        for sides in leakage::sides(self.loaded, &self.graph) {
            if matches!(plan.state(sides.scorer), State::NotSelected) {
                continue;
            }
            let Some(found) = leakage::contaminated(&self.graph, &sides, &identities) else { continue };
            let stage = &self.graph.dag[sides.scorer].stage;
            let span = Some(self.loaded.key_place(&["stages", stage.as_ref()]));
            if list.iter().all(|known| known.span != span) {
                let hint =
                    "leave one of the two out, or write `in_domain: true` in the stage to report it as in-domain";
                list.push(Diagnostic {
                    file: self.loaded.path.clone(),
                    span,
                    message: format!("leakage: `{}` is refused: {}", found.scorer, found.message),
                    hint: Some(hint.into()),
                    detail: None,
                });
            }
        }
        if list.is_empty() { Ok(()) } else { Err(Diagnostics { list }) }
    }
}

/// The first source that is not any more what was hashed.
pub(super) fn changed_source(store: &Store, resolved: &Resolved) -> Option<String> {
    let files = resolved.sources.values().flat_map(|source| &source.files);
    files
        .filter(|file| !store.digest_of_raw(&file.path).is_ok_and(|(digest, _)| digest == file.digest))
        .map(|file| file.path.display().to_string())
        .next()
}
