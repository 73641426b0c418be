//! `select`: of several trained candidates the one that a protocol chooses.
//!
//! Passes on `model.safetensors`, `config.json` (which then says how it was chosen) and `history.parquet`, and writes
//! `selection.json`: each candidate with its score, and the scores that this is the mean of.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_pipeline::manifest::selection::Protocol;
use siteline_pipeline::protocol::{Role, RunInput, StageKind};

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::error::{Result, StageError};
use crate::frame;

/// Parameters of `select`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The protocol, given by the axis of that name.
    pub selection: Protocol,
    /// The axes whose values are the candidates.
    pub among: Vec<String>,
    /// The axis of the sites that scores are of.
    #[serde(default = "site")]
    pub sites: String,
}

fn site() -> String {
    "site".to_owned()
}

/// The kind's specification.
pub fn kind() -> StageKind {
    let scores = |name, role| input(name, role, &["scores.parquet"]).gathered().optional();
    Spec {
        name: "select",
        summary: "chooses one of several trained models by the scores that a protocol allows",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("candidates", Role::Plain, &["model.safetensors", "config.json", "history.parquet"]).gathered(),
            scores("left_out_scores", Role::Plain),
            scores("held_out_scores", Role::Oracle),
        ],
        sources: vec![],
        requires: vec![],
        outputs: vec![
            output("model.safetensors"),
            output("config.json"),
            output("history.parquet"),
            output("selection.json"),
        ],
    }
    .into()
}

/// A candidate and what speaks for it.
#[derive(Debug, Serialize)]
struct Candidate {
    /// Its values on the axes that are chosen among.
    values: BTreeMap<String, String>,
    /// Mean of `scores`: what candidates are compared by.
    score: f64,
    /// Mean Dice by site; a training's own validation has one number for all its sites.
    scores: BTreeMap<String, f64>,
}

/// What was chosen from what.
#[derive(Debug, Serialize)]
struct Choice<'a> {
    protocol: Protocol,
    among: &'a [String],
    chosen: usize,
    candidates: Vec<Candidate>,
}

/// Chooses. Ties go to the first candidate in the order of names.
///
/// # Errors
/// Scores that cannot be read, or that are not there for each candidate alike.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let candidates: Vec<&RunInput> = ctx.inputs("candidates").collect();
    let weighed = candidates.iter().map(|candidate| weigh(ctx, &params, candidate)).collect::<Result<Vec<_>>>()?;
    let first = weighed.first().ok_or_else(|| StageError::Request("there is no candidate".into()))?;
    let by: Vec<&String> = first.scores.keys().collect();
    if let Some(other) = weighed.iter().find(|other| !other.scores.keys().eq(by.iter().copied())) {
        let sites = |candidate: &Candidate| candidate.scores.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(StageError::Request(format!(
            "the candidates {:?} and {:?} have scores of different sites: {} and {}",
            first.values,
            other.values,
            sites(first),
            sites(other)
        )));
    }
    let mut chosen = 0;
    for (place, candidate) in weighed.iter().enumerate() {
        if candidate.score > weighed[chosen].score {
            chosen = place;
        }
    }
    ctx.metric("score of the chosen", weighed[chosen].score);
    ctx.log(format!("chose {:?} of {} candidates", weighed[chosen].values, weighed.len()));
    for name in ["model.safetensors", "history.parquet"] {
        let (from, to) = (Ctx::file(candidates[chosen], name)?, ctx.output(name));
        std::fs::copy(from, &to).map_err(StageError::io(&to))?;
    }
    let mut config = read_config(Ctx::file(candidates[chosen], "config.json")?)?;
    let mut oracle = params.selection == Protocol::Oracle;
    for candidate in &candidates {
        let earlier = read_config(Ctx::file(candidate, "config.json")?)?;
        // Whatever chooses among what an oracle has chosen is an oracle's as well.
        oracle |= earlier.get("selection").is_some_and(|earlier| earlier["oracle"] == true);
    }
    config.insert(
        "selection".to_owned(),
        serde_json::json!({"protocol": params.selection, "among": params.among, "oracle": oracle}),
    );
    write_json(&ctx.output("config.json"), &config)?;
    let choice = Choice { protocol: params.selection, among: &params.among, chosen, candidates: weighed };
    write_json(&ctx.output("selection.json"), &choice)
}

fn weigh(ctx: &Ctx, params: &Params, candidate: &RunInput) -> Result<Candidate> {
    let value = |input: &RunInput, axis: &String| input.point.get(axis).cloned().unwrap_or_default();
    let values: BTreeMap<String, String> =
        params.among.iter().map(|axis| (axis.clone(), value(candidate, axis))).collect();
    let of_it = |input: &&RunInput| values.iter().all(|(axis, of)| input.point.get(axis) == Some(of));
    let on_sites = |input: &str| -> Result<BTreeMap<String, f64>> {
        let mut scores = BTreeMap::new();
        for scored in ctx.inputs(input).filter(of_it) {
            for (name, dice) in mean_dice(Ctx::file(scored, "scores.parquet")?)? {
                // What the scores call the site, unless the sweep has a name for it.
                let name = scored.point.get(&params.sites).cloned().unwrap_or(name);
                if scores.insert(name.clone(), dice).is_some() {
                    return Err(StageError::Request(format!("the candidate {values:?} has two scores of `{name}`")));
                }
            }
        }
        Ok(scores)
    };
    let scores = match params.selection {
        Protocol::TrainingDomainValidation => {
            let dice = validation_dice(candidate)?;
            BTreeMap::from([("training sites".to_owned(), dice)])
        }
        Protocol::LeaveOneDomainOut => on_sites("left_out_scores")?,
        Protocol::Oracle => on_sites("held_out_scores")?,
    };
    if scores.is_empty() {
        return Err(StageError::Request(format!("the candidate {values:?} has no scores to be compared by")));
    }
    let score = scores.values().sum::<f64>() / scores.len() as f64;
    Ok(Candidate { values, score, scores })
}

/// The validation Dice of the candidate's weights.
fn validation_dice(candidate: &RunInput) -> Result<f64> {
    let path = Ctx::file(candidate, "config.json")?;
    read_config(path)?.get("validation_dice").and_then(serde_json::Value::as_f64).ok_or_else(|| {
        StageError::data(path, "training had no validation images: give `ingest` a share of `validation`")
    })
}

/// The mean over images of each site in a file of scores.
fn mean_dice(path: &Path) -> Result<BTreeMap<String, f64>> {
    let mut reader = frame::Reader::open(path, Some(&["site", "dice"]))?;
    let mut by_site: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    while let Some(batch) = reader.next_batch()? {
        for row in batch.texts("site")?.into_iter().zip(batch.numbers("dice")?) {
            let (Some(site), Some(dice)) = row else { return Err(StageError::data(path, "a score is missing")) };
            by_site.entry(site).or_default().push(dice);
        }
    }
    Ok(by_site.into_iter().map(|(site, dice)| (site, dice.iter().sum::<f64>() / dice.len() as f64)).collect())
}

fn read_config(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    let bytes = std::fs::read(path).map_err(StageError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| StageError::data(path, e))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).expect("it is JSON");
    std::fs::write(path, json + "\n").map_err(StageError::io(path))
}
