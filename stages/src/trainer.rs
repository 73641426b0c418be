//! The one training loop: batches balanced by site, the method's penalties, selection by validation on the sources.

pub mod batch;
pub mod params;

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use self::batch::Facts;
use self::params::{EncoderMode, KeptEpoch, LrSchedule, Params};
use crate::checkpoint::{self, Tensors};
use crate::data::SiteData;
use crate::error::{Result, StageError};
use crate::method::contract::{At, Batch, Seen};
use crate::optimiser::AdamW;
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
    sites: &[SiteData],
    checkpoints: &mut Checkpoints,
    tell: &dyn Fn(usize, Option<&EpochRow>),
) -> Result<(Vec<EpochRow>, usize)> {
    let facts = sites.iter().map(|site| Facts::of(model, site, params.seed)).collect::<Result<Vec<_>>>()?;
    let mut training = Training {
        sampler: Sampler::new(params, sites)?,
        optimiser: AdamW::new(&model.store, params.weight_decay),
        rows: Vec::new(),
        best: None,
        model,
        params,
        sites,
        facts,
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
    sites: &'a [SiteData],
    facts: Vec<Facts>,
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
            let at = (epoch - 1) * steps + step;
            if self.model.method.starts_anew_at().is_some_and(|anew| anew == at && at > 0) {
                self.optimiser = AdamW::new(&self.model.store, params.weight_decay);
            }
            let chosen = self.sampler.next_batch();
            let device = self.model.store.device();
            let batch = batch::gather(self.sites, &self.facts, &chosen, device);
            let batch = self.model.method.augment(batch, self.sites.len() as i64, &mut step_rng(params.seed, at));
            for update in 0..self.model.method.updates(epoch) {
                self.update(&batch, epoch, at, update, lr, sums)?;
            }
            if step + 1 < steps {
                self.checkpoint(epoch, step + 1, sums)?;
            }
        }
        Ok(())
    }

    /// One update: forward, loss, gradient, step.
    fn update(
        &mut self,
        batch: &Batch,
        epoch: usize,
        step: usize,
        update: usize,
        lr: f64,
        sums: &mut Sums,
    ) -> Result<()> {
        let (model, params) = (&*self.model, self.params);
        let sites = self.sites.len() as i64;
        let mut total = total_loss(model, batch, At { epoch, update }, step, sites, Some(sums));
        if !total.double_value(&[]).is_finite() {
            let message = format!("the loss is not a number any more in epoch {epoch}; lower `lr`");
            return Err(StageError::Request(message));
        }
        let factor = |name: &str| {
            let encoder = params.encoder == EncoderMode::Finetune && name.starts_with("encoder.");
            let shared = if encoder { params.encoder_lr } else { 1.0 };
            if model.method.moves(update, name) { shared * model.method.lr_factor(name) } else { 0.0 }
        };
        let sharpness = model.method.sharpness();
        if sharpness > 0.0 {
            self.optimiser.climb(&total, sharpness);
            total = total_loss(model, batch, At { epoch, update }, step, sites, None);
            if !total.double_value(&[]).is_finite() {
                let message =
                    format!("the loss uphill is not a number any more in epoch {epoch}; lower `lr` or `sam.rho`");
                return Err(StageError::Request(message));
            }
            self.optimiser.descend_from_there(&total);
            self.optimiser.move_along(lr, params.clip_norm, &factor);
        } else {
            self.optimiser.step(&total, lr, params.clip_norm, &factor);
        }
        Ok(())
    }

    /// Validates, and keeps the weights if they are the best so far.
    fn end_epoch(&mut self, epoch: usize, sums: &Sums) -> EpochRow {
        self.model.method.trained_until(epoch);
        let validation_dice = batch::validate(self.model, self.sites, &self.facts);
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

/// What is drawn in a step is its own: a training that was interrupted draws the same.
fn step_rng(seed: u64, step: usize) -> ChaCha8Rng {
    let name = format!("augment\0{seed}\0{step}");
    ChaCha8Rng::from_seed(*siteline_cache::Digest::of_bytes(name.as_bytes()).as_bytes())
}

/// Objective and weighted penalties of a batch; their values are added to `sums`.
fn total_loss(model: &Segmenter, batch: &Batch, at: At, step: usize, sites: i64, sums: Option<&mut Sums>) -> Tensor {
    let forward = model.forward(batch, Some(at));
    let labels = batch.labels.as_ref();
    let seen = Seen { forward: &forward, masks: &batch.masks, labels, sites, step, update: at.update };
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
        }
    }
}
