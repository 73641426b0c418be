//! The one training loop: batches balanced by site, the method's penalties, selection by validation on the sources.

mod ahead;
pub mod batch;
pub mod params;
mod teacher;
mod valley;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use self::ahead::{Ahead, Prepared, Supply};
use self::batch::{Facts, Samples};
use self::params::{EncoderMode, KeptEpoch, LrSchedule, Params};
use self::teacher::Teacher;
use self::valley::{Valley, ValleyState};
use crate::checkpoint::{self, Tensors};
use crate::data::SiteData;
use crate::error::{Result, StageError};
use crate::method::contract::{At, Batch, Forward, Seen};
use crate::optimiser::AdamW;
use crate::precision::Autocast;
use crate::resume::Checkpoints;
use crate::sampler::{OrderState, Sampler};
use crate::segmenter::Segmenter;

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
    /// Mean over sources of the mean segmentation loss of their validation images, where weights are averaged by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
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
    /// The search for a valley, for methods that average weights.
    #[serde(default)]
    valley: Option<ValleyState>,
}

/// What training came to.
pub struct Trained {
    /// One row an epoch.
    pub rows: Vec<EpochRow>,
    /// The epoch that was selected; the last where weights were averaged.
    pub epoch: usize,
    /// Of the weights that were kept: mean over sources of the mean Dice of their validation images; absent without any.
    pub validation_dice: Option<f64>,
}

/// Trains a model on the training samples of `sites` and leaves the selected weights in it. Where `checkpoints` has one of this
/// very training, it goes on from there, with the same results.
///
/// # Errors
/// No training sample, a loss that is not a number, no validation image where weights are averaged by validation.
pub fn train(
    model: &mut Segmenter,
    params: &Params,
    sites: &[SiteData],
    checkpoints: &mut Checkpoints,
    tell: &dyn Fn(usize, Option<&EpochRow>),
) -> Result<Trained> {
    let samples = |site| Ok(Samples::new(site, Facts::of(model, site, params.seed)?));
    let samples = sites.iter().map(samples).collect::<Result<Vec<_>>>()?;
    let mut sampler = Sampler::new(params, sites)?;
    let validates = sites.iter().any(|site| site.validates.contains(&true));
    if model.method.valley().is_some() && !validates {
        let word = model.config.method.word();
        let message = format!(
            "{word} averages weights by the loss on validation images, and there are none: raise `validation` of `ingest`"
        );
        return Err(StageError::Request(message));
    }
    let steps = sampler.steps_per_epoch();
    let mut training = Training {
        optimiser: AdamW::new(&model.store, params.weight_decay),
        autocast: Autocast::new(params.precision, model.store.device())?,
        teacher: model.method.teacher().map(|momentum| Teacher::new(model, momentum)),
        valley: model.method.valley().map(Valley::new),
        rows: Vec::new(),
        best: None,
        orders: sampler.state(),
        steps,
        model,
        params,
        sites,
        samples,
        checkpoints,
    };
    let (mut step, mut sums) = training.go_on(&mut sampler, tell);
    let mut ahead = training.supply(sampler, step);
    for epoch in training.rows.len() + 1..=params.epochs {
        training.epoch(epoch, std::mem::take(&mut step), &mut ahead, &mut sums)?;
        let row = training.end_epoch(epoch, &std::mem::take(&mut sums));
        tell(epoch, Some(&row));
        training.checkpoint(epoch + 1, 0, &sums)?;
    }
    training.finish()
}

/// A training under way.
struct Training<'a> {
    model: &'a mut Segmenter,
    params: &'a Params,
    sites: &'a [SiteData],
    samples: Vec<Samples>,
    checkpoints: &'a mut Checkpoints,
    /// Steps of an epoch.
    steps: usize,
    /// Where the sampler stood behind the last step.
    orders: Vec<OrderState>,
    optimiser: AdamW,
    autocast: Option<Autocast>,
    teacher: Option<Teacher>,
    valley: Option<Valley>,
    rows: Vec<EpochRow>,
    /// Score, epoch and weights of what would be kept.
    best: Option<(f64, usize, Tensors)>,
}

impl Training<'_> {
    /// The batches from a step of the present epoch on.
    fn supply(&self, sampler: Sampler, step: usize) -> Ahead {
        let supply = Supply {
            samples: self.samples.iter().map(Samples::handles).collect(),
            sampler,
            augment: self.model.method.augmentation(),
            seed: self.params.seed,
            device: self.model.store.device(),
        };
        Ahead::start(supply, self.rows.len() * self.steps + step, self.params.epochs * self.steps)
    }

    /// The steps of an epoch that are still to be done.
    fn epoch(&mut self, epoch: usize, from: usize, ahead: &mut Ahead, sums: &mut Sums) -> Result<()> {
        let (params, steps) = (self.params, self.steps);
        for step in from..steps {
            let done = ((epoch - 1) * steps + step) as f64 / (params.epochs * steps) as f64;
            let lr = match params.lr_schedule {
                LrSchedule::Cosine => params.lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                LrSchedule::Constant => params.lr,
            };
            let at = (epoch - 1) * steps + step;
            if self.model.method.starts_anew_at().is_some_and(|anew| anew == at && at > 0) {
                self.optimiser = AdamW::new(&self.model.store, params.weight_decay);
            }
            let Prepared { batch, orders } = ahead.next();
            self.orders = orders;
            for update in 0..self.model.method.updates(epoch) {
                self.update(&batch, At { epoch, step: at, update }, lr, sums)?;
            }
            if let Some(teacher) = &mut self.teacher {
                teacher.follow(self.model, at + 1);
            }
            if let Some(valley) = &mut self.valley {
                let trained = checkpoint::of_store(&self.model.store).into_iter().filter(|(_, t)| t.requires_grad());
                valley.step(&trained.collect());
            }
            if step + 1 < steps {
                self.checkpoint(epoch, step + 1, sums)?;
            }
        }
        Ok(())
    }

    /// One update: forward, loss, gradient, step.
    fn update(&mut self, batch: &Batch, at: At, lr: f64, sums: &mut Sums) -> Result<()> {
        let (model, params) = (&*self.model, self.params);
        let factor = |name: &str| {
            let encoder = params.encoder == EncoderMode::Finetune && name.starts_with("encoder.");
            let shared = if encoder { params.encoder_lr } else { 1.0 };
            if model.method.moves(at.update, name) { shared * model.method.lr_factor(name) } else { 0.0 }
        };
        let _held = self.optimiser.hold(&factor);
        let mut total = self.total_loss(batch, at, Some(sums));
        if !total.double_value(&[]).is_finite() {
            let message = format!("the loss is not a number any more in epoch {}; lower `lr`", at.epoch);
            return Err(StageError::Request(message));
        }
        let sharpness = model.method.sharpness();
        if sharpness > 0.0 {
            self.optimiser.climb(&total, sharpness);
            total = self.total_loss(batch, at, None);
            if !total.double_value(&[]).is_finite() {
                let message =
                    format!("the loss uphill is not a number any more in epoch {}; lower `lr` or `sam.rho`", at.epoch);
                return Err(StageError::Request(message));
            }
            self.optimiser.descend_from_there(&total);
            self.optimiser.move_along(lr, params.clip_norm, &factor);
        } else {
            self.optimiser.step(&total, lr, params.clip_norm, &factor);
        }
        Ok(())
    }

    /// Objective and weighted penalties of a batch; their values are added to `sums`.
    fn total_loss(&self, batch: &Batch, at: At, sums: Option<&mut Sums>) -> Tensor {
        let model = &*self.model;
        let during = |forward: &dyn Fn() -> Forward| match &self.autocast {
            None => forward(),
            Some(autocast) => autocast.during(forward).in_32_bits(),
        };
        let teacher = self
            .teacher
            .as_ref()
            .map(|teacher| teacher.logits(model, &|| during(&|| model.forward(batch, Some(at))).logits));
        let forward = during(&|| model.forward(batch, Some(at)));
        let labels = batch.labels.as_ref();
        let sites = self.sites.len() as i64;
        let seen = Seen { forward: &forward, masks: &batch.masks, labels, sites, at, teacher: teacher.as_ref() };
        let mut total = model.method.objective(&seen);
        let objective = total.double_value(&[]);
        let penalties = model.method.penalties(&seen);
        if let Some(sums) = sums {
            // The history follows what the first update of a step minimises.
            sums.segmentation += if at.update == 0 { objective } else { 0.0 };
            for penalty in &penalties {
                *sums.penalties.entry(penalty.name.to_owned()).or_default() += penalty.value.double_value(&[]);
            }
        }
        for penalty in penalties {
            total += penalty.value * penalty.weight;
        }
        total
    }

    /// Validates, and keeps the weights if they are the best so far.
    fn end_epoch(&mut self, epoch: usize, sums: &Sums) -> EpochRow {
        self.model.method.trained_until(epoch);
        let validated = batch::validate(self.model, self.sites, &self.samples);
        let validation_dice = validated.as_ref().map(|validated| validated.dice);
        let mut row = sums.row(epoch, self.steps, validation_dice);
        if let Some(valley) = &mut self.valley {
            row.validation_loss = validated.map(|validated| validated.loss);
            row.validation_loss.into_iter().for_each(|loss| valley.validated(loss));
        }
        self.rows.push(row.clone());
        let selects = self.params.kept_epoch == KeptEpoch::BestValidation && validation_dice.is_some();
        let score = if selects { validation_dice.unwrap_or(0.0) } else { epoch as f64 };
        if self.best.as_ref().is_none_or(|(top, ..)| score > *top) {
            self.best = Some((score, epoch, copy_of(self.model)));
        }
        row
    }

    /// Leaves the weights that were selected in the model, or their mean.
    fn finish(self) -> Result<Trained> {
        let Self { model, rows, best, valley, sites, samples, .. } = self;
        let (_, mut epoch, mut weights) =
            best.ok_or_else(|| StageError::Request("`epochs` must be at least 1".into()))?;
        let mean = valley.and_then(|valley| valley.mean(&weights));
        let averaged = mean.as_ref().map(|(_, averaged)| *averaged);
        if let Some((mean, _)) = mean {
            // What is not trained is as it is now.
            (epoch, weights) = (rows.len(), copy_of(model));
            weights.extend(mean);
        }
        checkpoint::fill(&mut model.store, &weights, std::path::Path::new("the selected weights"))?;
        model.config.epoch = epoch;
        model.config.averaged = averaged;
        model.method.trained_until(epoch);
        let validation_dice = if averaged.is_some() {
            batch::validate(model, sites, &samples).map(|validated| validated.dice)
        } else {
            rows[epoch - 1].validation_dice
        };
        model.config.validation_dice = validation_dice;
        Ok(Trained { rows, epoch, validation_dice })
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
        let taught = self.teacher.iter().flat_map(|teacher| teacher.weights());
        tensors.extend(taught.map(|(name, tensor)| (name.clone(), tensor.copy())).map(named("teacher")));
        let valley = self.valley.as_ref().map(|valley| {
            let (state, means) = valley.state();
            tensors.extend(means.into_iter().map(named("valley")));
            state
        });
        let progress = Progress {
            epoch,
            step,
            sums: sums.clone(),
            steps,
            rows: self.rows.clone(),
            best: self.best.as_ref().map(|(top, at, _)| (*top, *at)),
            orders: self.orders.clone(),
            valley,
        };
        self.checkpoints.keep(&progress, &tensors)
    }

    /// Takes up the last checkpoint, if there is one of this very model. Returns how many steps of the present epoch are done,
    /// and their losses.
    fn go_on(&mut self, sampler: &mut Sampler, tell: &dyn Fn(usize, Option<&EpochRow>)) -> (usize, Sums) {
        let Some((progress, tensors)) = self.checkpoints.last::<Progress>() else { return Default::default() };
        let of = |prefix: &str| -> Tensors {
            let named =
                tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone())));
            named.collect()
        };
        // Nothing of the model is touched unless all of it fits.
        let fits = sampler.fits(&progress.orders)
            && self.valley.is_some() == progress.valley.is_some()
            && progress.epoch == progress.rows.len() + 1
            && self.optimiser.take_up(&tensors, &progress.steps)
            && self.teacher.as_mut().is_none_or(|teacher| teacher.take_up(of("teacher.")))
            && checkpoint::fill(&mut self.model.store, &of("now."), std::path::Path::new("the checkpoint")).is_ok();
        if !fits {
            self.optimiser = AdamW::new(&self.model.store, self.params.weight_decay);
            self.teacher = self.model.method.teacher().map(|momentum| Teacher::new(self.model, momentum));
            return Default::default();
        }
        sampler.take_up(&progress.orders);
        self.orders = progress.orders;
        if let (Some(valley), Some(state)) = (&mut self.valley, progress.valley) {
            valley.take_up(state, &of("valley."), self.model.store.device());
        }
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
            validation_loss: None,
        }
    }
}
