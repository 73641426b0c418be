//! The one training loop: batches balanced by site, the method's penalties, selection by validation on the sources.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{self, Tensors};
use crate::error::{Result, StageError};
use crate::features::FeatureSet;
use crate::method::contract::Seen;
use crate::method::{MethodName, MethodParams, coral, groupdro, irm, mcdrl, vrex};
use crate::metric::Counts;
use crate::optimiser::AdamW;
use crate::resume::Checkpoints;
use crate::sampler::{OrderState, Sampler};
use crate::segmenter::Segmenter;

/// Which epoch's weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeptEpoch {
    /// That of the best mean over training sites of the Dice on their validation images.
    #[default]
    BestValidation,
    /// The last.
    Last,
}

impl KeptEpoch {
    /// In words, for captions.
    pub fn words(self) -> &'static str {
        match self {
            Self::BestValidation => "the epoch by training-domain validation",
            Self::Last => "the last epoch",
        }
    }
}

/// How the learning rate goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// Down to 0 along half a cosine.
    #[default]
    Cosine,
    /// The same throughout.
    Constant,
}

/// Parameters of `train`: the loop's and the model's, the same for every method, and a group for each method that has
/// its own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method; the baseline if nothing is said.
    pub method: MethodName,
    /// Seed of initial values and of the order of samples.
    pub seed: u64,
    /// Passes over the training images: 50 in MCDRL's paper.
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Images a step, as many from each site; rounded up to a multiple of the number of sites.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// Initial learning rate of AdamW: 0.005 in MCDRL's paper, here for new layers only, as the encoder is frozen.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// How the learning rate goes.
    pub lr_schedule: LrSchedule,
    /// Gradients are scaled down to this Euclidean norm; 0 leaves them.
    #[schemars(range(min = 0.0))]
    pub clip_norm: f64,
    /// Which epoch's weights are kept.
    pub kept_epoch: KeptEpoch,
    /// Whether frozen features pass a trainable adapter (a residual MLP that starts as the identity).
    pub adapter: bool,
    /// Whether each feature vector is brought to unit root mean square before all else.
    pub normalise: bool,
    /// Channels inside the segmentation head.
    #[schemars(range(min = 4))]
    pub head_width: i64,
    /// Parameters of GroupDRO; as those below they count for their own method alone.
    pub groupdro: groupdro::Params,
    /// Parameters of V-REx.
    pub vrex: vrex::Params,
    /// Parameters of IRM.
    pub irm: irm::Params,
    /// Parameters of CORAL.
    pub coral: coral::Params,
    /// Parameters of MCDRL.
    pub mcdrl: mcdrl::Params,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            method: MethodName::Erm,
            seed: 0,
            epochs: 50,
            batch: 16,
            lr: 0.005,
            weight_decay: 0.01,
            lr_schedule: LrSchedule::Cosine,
            clip_norm: 1.0,
            kept_epoch: KeptEpoch::BestValidation,
            adapter: true,
            normalise: true,
            head_width: 256,
            groupdro: groupdro::Params::default(),
            vrex: vrex::Params::default(),
            irm: irm::Params::default(),
            coral: coral::Params::default(),
            mcdrl: mcdrl::Params::default(),
        }
    }
}

impl Params {
    /// Those of the methods.
    pub fn of_methods(&self) -> MethodParams {
        MethodParams {
            groupdro: self.groupdro.clone(),
            vrex: self.vrex.clone(),
            irm: self.irm.clone(),
            coral: self.coral.clone(),
            mcdrl: self.mcdrl.clone(),
        }
    }
}

/// What one epoch came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochRow {
    /// Counts from 1.
    pub epoch: usize,
    /// Mean of the segmentation loss as the method weighs it.
    pub segmentation: f64,
    /// Means of the method's penalties, unweighted, by name; absent while it has none.
    pub penalties: BTreeMap<String, f64>,
    /// Mean over sources of the mean Dice of their validation images; absent without any.
    pub validation_dice: Option<f64>,
}

/// Where training stands, tensors left out.
#[derive(Serialize, Deserialize)]
struct Progress {
    epoch: usize,
    /// Steps of that epoch that are done, and their losses.
    step: usize,
    sums: Sums,
    /// Steps of each variable.
    steps: BTreeMap<String, i32>,
    rows: Vec<EpochRow>,
    /// Score and epoch of the weights that would be kept; none within the first epoch.
    best: Option<(f64, usize)>,
    orders: Vec<OrderState>,
}

/// Trains a model on the training samples of `sites` and leaves the selected weights in it. Returns one row an epoch and
/// the selected epoch. Where `checkpoints` has one of this very training, it goes on from there, with the same results.
///
/// # Errors
/// No training sample, a loss that is not a number.
pub fn train(
    model: &mut Segmenter,
    params: &Params,
    sites: &[FeatureSet],
    checkpoints: &mut Checkpoints,
    tell: &dyn Fn(usize, Option<&EpochRow>),
) -> Result<(Vec<EpochRow>, usize)> {
    let labels = sites.iter().map(|site| labels(model, site)).collect::<Result<Vec<_>>>()?;
    let mut training = Training {
        sampler: Sampler::new(params, sites)?,
        optimiser: AdamW::new(&model.store, params.weight_decay),
        rows: Vec::new(),
        best: None,
        model,
        params,
        sites,
        labels,
        checkpoints,
    };
    let (mut step, mut sums) = training.go_on(tell);
    for epoch in training.rows.len() + 1..=params.epochs {
        training.epoch(epoch, std::mem::take(&mut step), &mut sums)?;
        let row = training.end_epoch(epoch, &std::mem::take(&mut sums));
        tell(epoch, Some(&row));
        training.checkpoint(epoch + 1, 0, &sums)?;
    }
    let (rows, best) = (training.rows, training.best);
    let (_, epoch, weights) = best.ok_or_else(|| StageError::Request("`epochs` must be at least 1".into()))?;
    checkpoint::fill(&mut model.store, &weights, std::path::Path::new("the selected weights"))?;
    model.config.epoch = epoch;
    model.method.trained_until(epoch);
    Ok((rows, epoch))
}

/// A training under way.
struct Training<'a> {
    model: &'a mut Segmenter,
    params: &'a Params,
    sites: &'a [FeatureSet],
    labels: Vec<Option<Vec<i64>>>,
    checkpoints: &'a mut Checkpoints,
    sampler: Sampler,
    optimiser: AdamW,
    rows: Vec<EpochRow>,
    /// Score, epoch and weights of what would be kept.
    best: Option<(f64, usize, Tensors)>,
}

impl Training<'_> {
    /// The steps of an epoch that are still to be done.
    fn epoch(&mut self, epoch: usize, from: usize, sums: &mut Sums) -> Result<()> {
        let params = self.params;
        let steps = self.sampler.steps_per_epoch();
        for step in from..steps {
            let done = ((epoch - 1) * steps + step) as f64 / (params.epochs * steps) as f64;
            let lr = match params.lr_schedule {
                LrSchedule::Cosine => params.lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                LrSchedule::Constant => params.lr,
            };
            let model = &*self.model;
            let batch = gather(self.sites, &self.labels, &self.sampler.next_batch(), model.store.device());
            let encoded = model.encode(&batch.pooled, &batch.dense);
            let represented = model.method.represent(&encoded, Some(epoch));
            let logits = model.decode(&represented);
            let seen = Seen {
                encoded: &encoded,
                represented: &represented,
                logits: &logits,
                masks: &batch.masks,
                labels: batch.labels.as_ref(),
                sites: self.sites.len() as i64,
                step: (epoch - 1) * steps + step,
            };
            if model.method.starts_anew_at().is_some_and(|at| at == seen.step && at > 0) {
                self.optimiser = AdamW::new(&model.store, params.weight_decay);
            }
            let mut total = model.method.objective(&seen);
            sums.segmentation += total.double_value(&[]);
            for penalty in model.method.penalties(&seen) {
                *sums.penalties.entry(penalty.name.to_owned()).or_default() += penalty.value.double_value(&[]);
                total += penalty.value * penalty.weight;
            }
            if !total.double_value(&[]).is_finite() {
                let message = format!("the loss is not a number any more in epoch {epoch}; lower `lr`");
                return Err(StageError::Request(message));
            }
            self.optimiser.step(&total, lr, params.clip_norm);
            if step + 1 < steps {
                self.checkpoint(epoch, step + 1, sums)?;
            }
        }
        Ok(())
    }

    /// Validates, and keeps the weights if they are the best so far.
    fn end_epoch(&mut self, epoch: usize, sums: &Sums) -> EpochRow {
        self.model.method.trained_until(epoch);
        let validation_dice = validate(self.model, self.sites);
        let row = sums.row(epoch, self.sampler.steps_per_epoch(), validation_dice);
        self.rows.push(row.clone());
        let selects = self.params.kept_epoch == KeptEpoch::BestValidation && validation_dice.is_some();
        let score = if selects { validation_dice.unwrap_or(0.0) } else { epoch as f64 };
        if self.best.as_ref().is_none_or(|(top, ..)| score > *top) {
            self.best = Some((score, epoch, copy_of(self.model)));
        }
        row
    }

    /// Keeps a checkpoint if it is time for one: `step` steps of `epoch` are done.
    fn checkpoint(&mut self, epoch: usize, step: usize, sums: &Sums) -> Result<()> {
        if !self.checkpoints.is_due() || epoch > self.params.epochs {
            return Ok(());
        }
        let (mut tensors, steps) = self.optimiser.state();
        let named = |prefix: &'static str| move |(name, tensor)| (format!("{prefix}.{name}"), tensor);
        tensors.extend(copy_of(self.model).into_iter().map(named("now")));
        let copies = self.best.iter().flat_map(|(.., weights)| weights.iter());
        tensors.extend(copies.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).map(named("best")));
        let progress = Progress {
            epoch,
            step,
            sums: sums.clone(),
            steps,
            rows: self.rows.clone(),
            best: self.best.as_ref().map(|(top, at, _)| (*top, *at)),
            orders: self.sampler.state(),
        };
        self.checkpoints.keep(&progress, &tensors)
    }

    /// Takes up the last checkpoint, if there is one of this very model. Returns how many steps of the present epoch are done,
    /// and their losses.
    fn go_on(&mut self, tell: &dyn Fn(usize, Option<&EpochRow>)) -> (usize, Sums) {
        let Some((progress, tensors)) = self.checkpoints.last::<Progress>() else { return Default::default() };
        let of = |prefix: &str| -> Tensors {
            let named =
                tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone())));
            named.collect()
        };
        // Nothing of the model is touched unless all of it fits.
        let fits = self.sampler.fits(&progress.orders)
            && progress.epoch == progress.rows.len() + 1
            && self.optimiser.take_up(&tensors, &progress.steps)
            && checkpoint::fill(&mut self.model.store, &of("now."), std::path::Path::new("the checkpoint")).is_ok();
        if !fits {
            self.optimiser = AdamW::new(&self.model.store, self.params.weight_decay);
            return Default::default();
        }
        self.sampler.take_up(&progress.orders);
        self.best = progress.best.map(|(score, epoch)| (score, epoch, of("best.")));
        self.rows = progress.rows;
        self.model.method.trained_until(progress.epoch - 1);
        tell(progress.epoch - 1, None);
        (progress.step, progress.sums)
    }
}

/// A model's variables as they are now.
fn copy_of(model: &Segmenter) -> Tensors {
    checkpoint::of_store(&model.store).into_iter().map(|(name, t)| (name, t.copy().detach())).collect()
}

/// Indices of each sample's class in the dictionary; `None` for a model that knows no classes.
fn labels(model: &Segmenter, site: &FeatureSet) -> Result<Option<Vec<i64>>> {
    let classes = &model.config.classes;
    if !model.method.needs_labels() {
        return Ok(None);
    }
    let of = |(id, class): (&String, &Option<String>)| {
        let class = class.as_ref().ok_or_else(|| {
            StageError::Request(format!(
                "`{id}` of the site `{}` has no class, which the method's losses need: give the site a `class`",
                site.site
            ))
        })?;
        let place = classes.iter().position(|known| known == class).ok_or_else(|| {
            let list = classes.join(", ");
            StageError::Request(format!(
                "the class `{class}` of `{id}` (site `{}`) is not in the dictionary, which has {list}",
                site.site
            ))
        })?;
        Ok(place as i64)
    };
    site.ids.iter().zip(&site.classes).map(of).collect::<Result<Vec<_>>>().map(Some)
}

struct Batch {
    pooled: Tensor,
    dense: Tensor,
    masks: Tensor,
    labels: Option<Tensor>,
}

/// `chosen`: samples of each site.
fn gather(sites: &[FeatureSet], labels: &[Option<Vec<i64>>], chosen: &[Vec<i64>], device: Device) -> Batch {
    let of = |take: &dyn Fn(&FeatureSet) -> &Tensor| {
        let parts: Vec<Tensor> = sites
            .iter()
            .zip(chosen)
            .map(|(site, rows)| take(site).index_select(0, &Tensor::from_slice(rows)))
            .collect();
        Tensor::cat(&parts, 0).to_device(device)
    };
    let all_labels: Option<Vec<i64>> = labels
        .iter()
        .zip(chosen)
        .map(|(labels, rows)| {
            labels.as_ref().map(|labels| rows.iter().map(|row| labels[*row as usize]).collect::<Vec<_>>())
        })
        .collect::<Option<Vec<_>>>()
        .map(|parts| parts.concat());
    Batch {
        pooled: of(&|site| &site.pooled),
        dense: of(&|site| &site.dense),
        masks: of(&|site| &site.masks).to_kind(Kind::Int64),
        labels: all_labels.map(|labels| Tensor::from_slice(&labels).to_device(device)),
    }
}

/// Mean over sites of the mean Dice of their validation images.
fn validate(model: &Segmenter, sites: &[FeatureSet]) -> Option<f64> {
    let means: Vec<f64> = sites
        .iter()
        .filter_map(|site| {
            let rows: Vec<i64> = (0..site.ids.len() as i64).filter(|i| site.validates[*i as usize]).collect();
            let counts = score(model, site, &rows);
            let dice: Vec<f64> = counts.iter().map(Counts::dice).collect();
            (!dice.is_empty()).then(|| dice.iter().sum::<f64>() / dice.len() as f64)
        })
        .collect();
    (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
}

/// Counts of the model's predictions for some samples of a site, in their order.
pub fn score(model: &Segmenter, site: &FeatureSet, rows: &[i64]) -> Vec<Counts> {
    let device = model.store.device();
    let mut counts = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(32) {
        let index = Tensor::from_slice(chunk);
        let of = |tensor: &Tensor| tensor.index_select(0, &index).to_device(device);
        let predicted = model.predict(&of(&site.pooled), &of(&site.dense));
        let truth = of(&site.masks).to_kind(Kind::Bool);
        let sum = |both: Tensor| -> Vec<i64> {
            let sums = both.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64).to_device(Device::Cpu);
            Vec::<i64>::try_from(sums).expect("sums are whole numbers in one row")
        };
        let (missed, outside) = (predicted.logical_not(), truth.logical_not());
        let all = [
            sum(predicted.logical_and(&truth)),
            sum(predicted.logical_and(&outside)),
            sum(missed.logical_and(&truth)),
            sum(missed.logical_and(&outside)),
        ];
        counts.extend((0..chunk.len()).map(|i| Counts {
            tp: all[0][i],
            fp: all[1][i],
            r#fn: all[2][i],
            tn: all[3][i],
        }));
    }
    counts
}

/// Losses of some steps, summed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sums {
    segmentation: f64,
    penalties: BTreeMap<String, f64>,
}

impl Sums {
    fn row(&self, epoch: usize, steps: usize, validation_dice: Option<f64>) -> EpochRow {
        let mean = |sum: f64| sum / steps as f64;
        EpochRow {
            epoch,
            segmentation: mean(self.segmentation),
            penalties: self.penalties.iter().map(|(name, sum)| (name.clone(), mean(*sum))).collect(),
            validation_dice,
        }
    }
}
