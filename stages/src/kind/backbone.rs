//! How stages come by CLIP's weights. Apart from [`Ctx`], which every kind reaches: what only some kinds read must not be in the
//! fingerprints of all.

use siteline_pipeline::protocol::SourceFile;

use super::context::Ctx;
use crate::error::{Result, StageError};
use crate::model::clip::weights::{ClipWeights, Settings};

/// The backbone's checkpoint, and what the manifest says of it.
///
/// # Errors
/// A backbone without a file, or with settings that do not fit.
pub fn source<'a>(ctx: &Ctx<'a>) -> Result<(&'a SourceFile, Settings)> {
    let source = ctx.source("weights")?;
    let file = source.files.first().ok_or_else(|| StageError::Request("the backbone has no weights".into()))?;
    let settings = serde_json::from_value(source.settings.clone())
        .map_err(|e| StageError::Request(format!("the backbone `{}`: {e}", source.name)))?;
    Ok((file, settings))
}

/// The weights in their one form, where the stage needs `encoder`.
///
/// # Errors
/// Files that hold something else.
pub fn encoder(ctx: &Ctx) -> Result<Option<ClipWeights>> {
    let read =
        |input| ClipWeights::read_written(Ctx::file(input, "weights.safetensors")?, Ctx::file(input, "clip.json")?);
    ctx.inputs("encoder").next().map(read).transpose()
}
