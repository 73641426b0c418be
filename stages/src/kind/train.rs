//! `train`: features of the training sites to a segmentation model, by one of the registered methods.
//!
//! Writes `model.safetensors`, `config.json` (what the model is built by) and `history.parquet` (one row an epoch).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use siteline_pipeline::protocol::{Role, StageKind};
use tch::Device;

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::features::FeatureSet;
use crate::frame;
use crate::method::contract::Sizes;
use crate::segmenter::{Segmenter, SegmenterConfig};
use crate::trainer::{self, EpochRow, Params};

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "train",
        summary: "trains a segmentation method on the cached features of the training sites",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("features", Role::Plain, &["features.parquet"]).gathered(),
            input("dictionary", Role::Plain, &["dictionary.safetensors", "prompts.json"]).optional(),
        ],
        sources: vec![],
        outputs: vec![output("model.safetensors"), output("config.json"), output("history.parquet")],
    }
    .into()
}

/// Trains.
///
/// # Errors
/// Features that do not fit each other or the dictionary, a loss that is not a number.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let sites = ctx
        .inputs("features")
        .map(|input| {
            let site = input.point.get("site").map_or("all", String::as_str);
            FeatureSet::read(site, Ctx::file(input, "features.parquet")?)
        })
        .collect::<Result<Vec<_>>>()?;
    let first = sites.first().ok_or_else(|| StageError::Request("there is no site to train on".into()))?;
    if let Some(other) =
        sites.iter().find(|s| s.dense.size()[1..] != first.dense.size()[1..] || s.mask_side() != first.mask_side())
    {
        return Err(StageError::Request(format!(
            "the sites `{}` and `{}` have features of different sizes",
            first.site, other.site
        )));
    }
    let dictionary = match ctx.inputs("dictionary").next() {
        None => None,
        Some(input) => {
            Some(Dictionary::read(Ctx::file(input, "dictionary.safetensors")?, Ctx::file(input, "prompts.json")?)?)
        }
    };
    tch::manual_seed(params.seed as i64);
    let config = SegmenterConfig {
        method: params.method,
        params: params.of_methods(),
        sizes: Sizes {
            d: first.d(),
            confounders: dictionary.as_ref().map_or(0, |d| d.z.size()[0]),
            classes: dictionary.as_ref().map_or(0, |d| d.classes.size()[0]),
            sites: sites.len() as i64,
        },
        side: first.mask_side(),
        head_width: params.head_width,
        adapter: params.adapter,
        normalise: params.normalise,
        classes: dictionary.as_ref().map(|d| d.prompts.classes.clone()).unwrap_or_default(),
        epoch: 0,
        kept_epoch: params.kept_epoch,
        selection: None,
    };
    let mut model = Segmenter::new(config, dictionary.as_ref(), Device::cuda_if_available())?;
    let parameters: usize = model.store.trainable_variables().iter().map(tch::Tensor::numel).sum();
    ctx.log(format!("{parameters} trainable parameters, {} sites", sites.len()));
    ctx.metric("trainable parameters", parameters as f64);
    let tell = |epoch: usize, row: Option<&EpochRow>| {
        ctx.progress(epoch, params.epochs, "epochs");
        match row {
            Some(row) => ctx.log(serde_json::to_string(row).expect("numbers are JSON")),
            None => ctx.log(format!("goes on in epoch {}, from the checkpoint of an interrupted execution", epoch + 1)),
        }
    };
    let (rows, epoch) = trainer::train(&mut model, &params, &sites, &mut ctx.checkpoints(), &tell)?;
    ctx.metric("selected epoch", epoch as f64);
    if let Some(dice) = rows[epoch - 1].validation_dice {
        ctx.metric("validation dice", dice);
    }
    model.save(&ctx.output("model.safetensors"), &ctx.output("config.json"))?;
    write_history(ctx, &rows)
}

fn write_history(ctx: &Ctx, rows: &[EpochRow]) -> Result<()> {
    let number = |name, nullable| Field::new(name, DataType::Float64, nullable);
    let penalties: BTreeSet<&String> = rows.iter().flat_map(|row| row.penalties.keys()).collect();
    let mut fields = vec![Field::new("epoch", DataType::UInt32, false), number("segmentation_loss", false)];
    fields.extend(penalties.iter().map(|name| Field::new(format!("{name}_loss"), DataType::Float64, true)));
    fields.push(number("validation_dice", true));
    let schema = Schema::new(fields);
    let column =
        |of: &dyn Fn(&EpochRow) -> Option<f64>| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<Float64Array>()) };
    let mut writer = frame::Writer::new(&ctx.output("history.parquet"), schema, &[])?;
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.epoch as u32).collect::<UInt32Array>()),
        column(&|row| Some(row.segmentation)),
    ];
    columns.extend(penalties.iter().map(|name| column(&|row| row.penalties.get(*name).copied())));
    columns.push(column(&|row| row.validation_dice));
    writer.write(columns)?;
    writer.finish()
}
