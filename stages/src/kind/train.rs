//! `train`: features or pixels of the training sites to a segmentation model, by one of the registered methods.
//!
//! Writes `model.safetensors`, `config.json` (what the model is built by) and `history.parquet` (one row an epoch).

pub mod setup;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::Map;
use siteline_pipeline::protocol::{InputCount, Requirement, Role, StageKind};
use tch::Device;

use super::backbone;
use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::frame;
use crate::method::MethodName;
use crate::method::contract::{Takes, Wants};
use crate::segmenter::{Averaged, Segmenter};
use crate::trainer::params::Params;
use crate::trainer::{self, EpochRow, Trained};

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "train",
        summary: "trains a segmentation method on the training sites, from cached features or from pixels",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("features", Role::Plain, &["features.parquet"]).gathered().optional(),
            input("samples", Role::Plain, &["samples.parquet", "pixels.parquet"]).gathered().optional(),
            input("encoder", Role::Plain, &["weights.safetensors", "clip.json"]).optional(),
            input("dictionary", Role::Plain, &["dictionary.safetensors", "prompts.json"]).optional(),
        ],
        sources: vec![],
        requires: MethodName::ALL.iter().flat_map(|method| required(*method)).collect(),
        outputs: vec![output("model.safetensors"), output("config.json"), output("history.parquet")],
    }
    .into()
}

/// What a method has to be given.
fn required(method: MethodName) -> Vec<Requirement> {
    let Wants { data, dictionary, sites, .. } = method.wants();
    let word = method.word();
    let of =
        |input: &&str| InputCount { input: (*input).to_owned(), least: if *input == "encoder" { 1 } else { sites } };
    let any: Vec<Vec<InputCount>> = data.inputs().iter().map(|set| set.iter().map(of).collect()).collect();
    let sites = if sites > 1 { format!("{sites} sites or more, by ") } else { String::new() };
    let told = |sets: &[&[&str]]| {
        let words =
            sets.iter().map(|set| set.iter().map(|input| format!("`{input}`")).collect::<Vec<_>>().join(" and "));
        words.collect::<Vec<_>>().join(", or by ")
    };
    let when = Map::from_iter([("method".to_owned(), word.into())]);
    let message = format!("{word} is trained on {sites}{}", told(data.inputs()));
    let mut all = vec![Requirement { when: when.clone(), any, message }];
    if !matches!(data, Takes::Shared | Takes::SharedOnPixels) {
        let mut when = when.clone();
        when.insert("encoder".to_owned(), "finetune".into());
        let message = format!("{word} has no encoder that could be fine-tuned: leave `encoder: finetune` out");
        all.push(Requirement { when, any: vec![], message });
    }
    if dictionary {
        let any = vec![vec![InputCount { input: "dictionary".into(), least: 1 }]];
        let message = format!("{word} needs a `dictionary`, a stage of the kind `confounder-dictionary`");
        all.push(Requirement { when, any, message });
    }
    all
}

/// Trains.
///
/// # Errors
/// Data that do not fit each other, the method or the dictionary; a loss that is not a number.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let device = Device::cuda_if_available();
    let weights = backbone::encoder(ctx)?;
    let sites = setup::read_sites(ctx, &params, weights.as_ref())?;
    let dictionary = match ctx.inputs("dictionary").next() {
        None => None,
        Some(input) => {
            Some(Dictionary::read(Ctx::file(input, "dictionary.safetensors")?, Ctx::file(input, "prompts.json")?)?)
        }
    };
    let (config, frozen) = setup::configure(&params, &sites, weights.as_ref(), dictionary.as_ref(), device)?;
    let mut model = Segmenter::new(config, dictionary.as_ref(), weights.as_ref(), frozen, Some(params.seed), device)?;
    setup::freeze_early_blocks(&mut model, &params)?;
    let trained = model.store.variables().into_values().filter(tch::Tensor::requires_grad);
    let parameters: usize = trained.map(|variable| variable.numel()).sum();
    ctx.log(format!("{parameters} trainable parameters, {} sites", sites.len()));
    ctx.metric("trainable parameters", parameters as f64);
    let tell = |epoch: usize, row: Option<&EpochRow>| {
        ctx.progress(epoch, params.epochs, "epochs");
        match row {
            Some(row) => ctx.log(serde_json::to_string(row).expect("numbers are JSON")),
            None => ctx.log(format!("goes on in epoch {}, from the checkpoint of an interrupted execution", epoch + 1)),
        }
    };
    let Trained { rows, epoch, validation_dice } =
        trainer::train(&mut model, &params, &sites, &mut ctx.checkpoints(), &tell)?;
    ctx.metric("selected epoch", epoch as f64);
    if let Some(dice) = validation_dice {
        ctx.metric("validation dice", dice);
    }
    if let Some(part) = model.method.lacks(epoch) {
        ctx.warn(format!(
            "the weights of epoch {epoch} were kept, which train without {part}: tables say so of this model"
        ));
    }
    if model.config.averaged == Some(Averaged::LastEpoch) {
        ctx.warn("the validation loss had no valley: the weights are the mean of the last epoch's steps".to_owned());
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
    let has_loss = rows.iter().any(|row| row.validation_loss.is_some());
    fields.extend(has_loss.then(|| number("validation_loss", true)));
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
    columns.extend(has_loss.then(|| column(&|row| row.validation_loss)));
    writer.write(columns)?;
    writer.finish()
}
