//! `clip-weights`: a backbone's checkpoint in one form, for stages that run or train CLIP's towers themselves.
//!
//! Writes `weights.safetensors`, the parameters under OpenAI's names in 32 bits, and `clip.json`, the sizes that follow from
//! their shapes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_pipeline::protocol::{SourceFrom, SourceSpec, StageKind};

use super::backbone;
use super::context::Ctx;
use super::spec::{Spec, output};
use crate::error::Result;
use crate::model::clip::weights::ClipWeights;

/// It has no parameters: the backbone's settings say all.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "clip-weights",
        summary: "brings a backbone's checkpoint to one form, for stages that run its towers",
        params: schemars::schema_for!(Params),
        inputs: vec![],
        sources: vec![SourceSpec { name: "weights".into(), from: SourceFrom::Backbone }],
        requires: vec![],
        outputs: vec![output("weights.safetensors"), output("clip.json")],
    }
    .into()
}

/// Reads and writes them.
///
/// # Errors
/// A file that is no CLIP.
pub fn run(ctx: &Ctx) -> Result<()> {
    let (file, settings) = backbone::source(ctx)?;
    let mut weights = ClipWeights::read(&file.path, settings)?;
    ctx.metric("parameters", weights.tensors.values().map(|tensor| tensor.numel() as f64).sum());
    weights.digest = Some(file.digest.to_string());
    weights.write(&ctx.output("weights.safetensors"), &ctx.output("clip.json"))
}
