//! `plant-confounder`: adds one row of a dictionary to cached features, on lesions or beside them: a confounder whose direction is
//! known exactly. With it controls can be run that must come out one way or the other (manifests/planted-confounder.yaml).

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_pipeline::protocol::{Role, StageKind};
use tch::{Kind, Tensor};

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::data::{Content, SiteData};
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::frame;

/// Where the confounder goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Positions of which at least half is lesion.
    #[default]
    Lesion,
    /// The lesion's shape on the other side of the image, whatever is there.
    Anywhere,
    /// The same, but never on the lesion.
    Elsewhere,
    /// Nowhere: the features stay as they are.
    Nowhere,
}

/// Parameters of `plant-confounder`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The dictionary's entry, by its words.
    pub confounder: String,
    /// Where it goes.
    pub place: Place,
    /// Its length, as a multiple of the root mean length of the site's features.
    #[schemars(range(min = 0.0))]
    pub strength: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { confounder: String::new(), place: Place::Lesion, strength: 1.0 }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "plant-confounder",
        summary: "adds a dictionary's entry to cached features, on lesions or beside them: for controls",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("features", Role::Plain, &["features.parquet"]),
            input("dictionary", Role::Plain, &["dictionary.safetensors", "prompts.json"]),
        ],
        sources: vec![],
        requires: vec![],
        outputs: vec![output("features.parquet")],
    }
    .into()
}

/// Plants it.
///
/// # Errors
/// An entry that the dictionary lacks, features of another dimension.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let input = ctx.input("features")?;
    let path = Ctx::file(input, "features.parquet")?;
    let site = input.point.get("site").map_or("all", String::as_str);
    let mut data = SiteData::features(site, path)?;
    let needed = ctx.input("dictionary")?;
    let dictionary =
        Dictionary::read(Ctx::file(needed, "dictionary.safetensors")?, Ctx::file(needed, "prompts.json")?)?;
    let known = &dictionary.prompts.domains;
    let row = known.iter().position(|domain| *domain == params.confounder).ok_or_else(|| {
        let list = known.join(", ");
        StageError::Request(format!("the dictionary has no confounder `{}`; it has {list}", params.confounder))
    })?;
    let Content::Features { pooled, dense } = &data.content else {
        return Err(StageError::Request("a confounder is planted in features, not in activations".into()));
    };
    let direction = dictionary.z.get(row as i64);
    if direction.size()[0] != dense.size()[2] {
        return Err(StageError::Request("the dictionary is of another backbone than the features".into()));
    }
    let length = dense.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).mean(Kind::Float).sqrt();
    let shown = places(&data.masks, dense.size()[1], params.place);
    let added = shown.unsqueeze(-1) * direction * length * params.strength;
    data.content = Content::Features { pooled: pooled.shallow_clone(), dense: dense + added };
    ctx.metric("positions", shown.sum(Kind::Float).double_value(&[]));
    rewrite(path, &ctx.output("features.parquet"), &data)
}

/// Where the confounder goes: (n, N), 0 or 1. `masks`: (n, S, S).
fn places(masks: &Tensor, positions: i64, place: Place) -> Tensor {
    let grid = (positions as f64).sqrt().round() as i64;
    let shares = masks.to_kind(Kind::Float).unsqueeze(1).adaptive_avg_pool2d([grid, grid]);
    let lesion = shares.flatten(1, 3).ge(0.5).to_kind(Kind::Float);
    match place {
        Place::Lesion => lesion,
        Place::Nowhere => lesion.zeros_like(),
        // Turned by half a circle: the positions in reverse.
        Place::Anywhere => lesion.flip([1]),
        Place::Elsewhere => lesion.flip([1]) * (1.0 - lesion),
    }
}

/// The file with other features, all else as it is.
fn rewrite(from: &Path, to: &Path, data: &SiteData) -> Result<()> {
    let Content::Features { dense, .. } = &data.content else { return Ok(()) };
    let width = (dense.size()[1] * dense.size()[2]) as usize;
    let mut reader = frame::Reader::open(from, None)?;
    let mut writer = frame::Writer::like(to, &reader)?;
    let mut done = 0;
    while let Some(batch) = reader.next_batch()? {
        let rows = batch.rows() as i64;
        let values = Vec::<f32>::try_from(dense.narrow(0, done, rows).contiguous().view(-1))?;
        writer.write(batch.with("dense", frame::floats(width, values)?))?;
        done += rows;
    }
    writer.finish()
}
