//! What a method is to the trainer.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::Content;
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::loss;
use crate::model::clip::weights::ClipWeights;
use crate::model::clip::{ClipConfig, Tokenizer};
use crate::model::style::Mix;
use crate::shared::Shared;

/// Sizes that a method builds by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Dimension of the features; 0 for a network of its own.
    pub d: i64,
    /// Pixels along a side of masks and logits.
    pub side: i64,
    /// Entries of the dictionary, 0 without one.
    pub confounders: i64,
    /// Classes of the dictionary, 0 without one.
    pub classes: i64,
    /// Training sites.
    pub sites: i64,
}

/// What of the training sites a method is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// The shared encoder and head, on cached features or on pixels.
    Shared,
    /// The shared head, on cached features.
    SharedOnFeatures,
    /// The shared encoder and head, on pixels.
    SharedOnPixels,
    /// Cached features for a network of its own.
    Features,
    /// Pixels at the working size for a network of its own.
    Pixels,
    /// Pixels at CLIP's size for a network that starts from CLIP's weights.
    PixelsForClip,
}

impl Takes {
    /// The inputs of `train` that hold it: each entry is enough.
    pub fn inputs(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Shared => &[&["features"], &["samples", "encoder"]],
            Self::SharedOnFeatures | Self::Features => &[&["features"]],
            Self::SharedOnPixels | Self::PixelsForClip => &[&["samples", "encoder"]],
            Self::Pixels => &[&["samples"]],
        }
    }

    /// The inputs of `evaluate` that its models are scored on: each is enough. What trains on a frozen encoder's pixels is scored on cached features.
    pub fn scored_inputs(self) -> &'static [&'static str] {
        match self {
            Self::Shared | Self::SharedOnPixels => &["features", "samples"],
            Self::SharedOnFeatures | Self::Features => &["features"],
            Self::Pixels | Self::PixelsForClip => &["samples"],
        }
    }
}

/// What a method has to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// What it is trained on.
    pub data: Takes,
    /// Whether it cannot do without a dictionary.
    pub dictionary: bool,
    /// The fewest training sites that it has a meaning for.
    pub sites: usize,
    /// Whether its models are scored with CLIP's weights at hand, a part of which they do not hold themselves.
    pub scored_with_encoder: bool,
}

impl Wants {
    /// Data of one site or more, and no dictionary.
    pub const fn of(data: Takes) -> Self {
        Self { data, dictionary: false, sites: 1, scored_with_encoder: false }
    }

    /// And a dictionary.
    pub const fn with_dictionary(self) -> Self {
        Self { dictionary: true, ..self }
    }

    /// Of two sites at least.
    pub const fn of_two_sites(self) -> Self {
        Self { sites: 2, ..self }
    }

    /// And CLIP's weights when its models are scored.
    pub const fn scored_with_encoder(self) -> Self {
        Self { scored_with_encoder: true, ..self }
    }

    /// Whether the method uses the shared encoder and head.
    pub fn shares(self) -> bool {
        matches!(self.data, Takes::Shared | Takes::SharedOnFeatures | Takes::SharedOnPixels)
    }
}

/// What a method is built from.
pub struct Given<'a> {
    /// Sizes.
    pub sizes: Sizes,
    /// Whether the model is to be trained; else its values come from a checkpoint.
    pub trains: bool,
    /// The dictionary, while training; its rows come from the checkpoint later.
    pub dictionary: Option<&'a Dictionary>,
    /// The sizes of the CLIP whose towers the method builds.
    pub clip: Option<&'a ClipConfig>,
    /// Its weights, where the stage was given them.
    pub weights: Option<&'a ClipWeights>,
    /// Texts to token rows, for methods that read texts.
    pub tokenizer: Option<Tokenizer>,
    /// The dictionary's class prompts.
    pub class_prompts: &'a [String],
}

impl Given<'_> {
    /// The CLIP's sizes.
    ///
    /// # Errors
    /// A stage without an encoder.
    pub fn clip(&self, method: &str) -> Result<&ClipConfig> {
        self.clip.ok_or_else(|| {
            StageError::Request(format!(
                "{method} needs CLIP's weights: give the stage `needs: {{encoder: ...}}`, a stage of the kind `clip-weights`"
            ))
        })
    }
}

/// A batch: as many images of each site, site by site.
pub struct Batch {
    /// What the model reads.
    pub content: Content,
    /// (B, S, S), 0 or 1, whole numbers.
    pub masks: Tensor,
    /// (B), class indices into the dictionary; for methods that need them.
    pub labels: Option<Tensor>,
    /// A sentence for each image, for methods that read them.
    pub texts: Vec<String>,
    /// Styles to be mixed within the encoder.
    pub mix: Option<Mix>,
}

/// A batch behind the encoder (and its adapter).
pub struct Encoded {
    /// Image-level features: (B, d).
    pub pooled: Tensor,
    /// Dense features: (B, N, d).
    pub dense: Tensor,
}

/// What the head sees, and what penalties need of the way there.
pub struct Represented {
    /// (B, N, d) on the whole grid.
    pub map: Tensor,
    /// Intervened features of the kept positions, while the intervention is on: (B, kept, d).
    pub intervened: Option<Tensor>,
}

/// A batch as it left the model.
pub struct Forward {
    /// (B, 2, S, S): background, lesion.
    pub logits: Tensor,
    /// Logits (B, 2, S, S) of a second branch, for methods that have one.
    pub other: Option<Tensor>,
    /// Features and what became of them; a network of its own has none.
    pub inner: Option<(Encoded, Represented)>,
}

impl Forward {
    /// The same, where it was made in mixed precision: losses are taken in 32 bits.
    pub fn in_32_bits(self) -> Self {
        let full = |x: &Tensor| x.to_kind(Kind::Float);
        let features = |(encoded, represented): (Encoded, Represented)| {
            let encoded = Encoded { pooled: full(&encoded.pooled), dense: full(&encoded.dense) };
            let intervened = represented.intervened.as_ref().map(full);
            (encoded, Represented { map: full(&represented.map), intervened })
        };
        Self { logits: full(&self.logits), other: self.other.as_ref().map(full), inner: self.inner.map(features) }
    }
}

/// A term that is added to the segmentation loss.
pub struct Penalty {
    /// Its name in the history.
    pub name: &'static str,
    /// Its weight.
    pub weight: f64,
    /// Its value, a scalar.
    pub value: Tensor,
}

/// A training batch and what the model made of it.
pub struct Seen<'a> {
    /// What the model made of it.
    pub forward: &'a Forward,
    /// (B, S, S), 0 or 1, whole numbers.
    pub masks: &'a Tensor,
    /// (B), class indices into the dictionary; for methods that need them.
    pub labels: Option<&'a Tensor>,
    /// Training sites.
    pub sites: i64,
    /// Where training stands.
    pub at: At,
    /// The teacher's logits of the batch (B, 2, S, S), for methods that have one.
    pub teacher: Option<&'a Tensor>,
}

impl Seen<'_> {
    /// The segmentation loss of each site: (M).
    pub fn losses_by_site(&self) -> Tensor {
        loss::segmentation_by_image(&self.forward.logits, self.masks).view([self.sites, -1]).mean_dim(
            Some([1i64].as_slice()),
            false,
            None::<Kind>,
        )
    }

    /// What the head saw, pooled over positions: (B, d).
    pub fn pooled_map(&self) -> Option<Tensor> {
        let (_, represented) = self.forward.inner.as_ref()?;
        Some(represented.map.mean_dim(Some([1i64].as_slice()), false, None::<Kind>))
    }
}

/// What a method reads beside an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sentence {
    /// Nothing.
    Unread,
    /// This text.
    Text(String),
    /// A text that there is not.
    Missing,
}

/// Where training stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Counts from 1.
    pub epoch: usize,
    /// Steps that were made before this one, in all epochs.
    pub step: usize,
    /// Which of the step's updates it is.
    pub update: usize,
}

/// What a method does to training batches, apart from the model: it is at work while the model trains on the batch before.
pub trait Augment: Send {
    /// Changes a batch of `sites` training sites. Whatever is drawn is drawn from `rng`, which is the step's own, so that a training
    /// that was interrupted goes on with the same draws.
    fn augment(&self, batch: Batch, sites: i64, rng: &mut ChaCha8Rng) -> Batch;
}

/// When the valley of the validation loss begins and ends, in which weights are averaged (SWAD).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValleyRule {
    /// N_s: it begins where the first of so many losses in a row is the least of them.
    pub converge: usize,
    /// N_e: it ends in front of so many losses in a row that are all above the threshold.
    pub tolerance: usize,
    /// r: the threshold, as a multiple of the mean of the first `converge` losses of the valley.
    pub ratio: f64,
}

/// What a method adds to the trainer.
pub trait Method {
    /// Turns encoded features into what the head sees: the features themselves, unless the method does more. `epoch` counts from 1;
    /// `None` is evaluation.
    fn represent(&self, encoded: &Encoded, _epoch: Option<usize>) -> Represented {
        Represented { map: encoded.dense.shallow_clone(), intervened: None }
    }

    /// From a batch to logits: through the shared encoder and head, unless the method is a network of its own. `None` is
    /// evaluation.
    fn forward(&self, shared: &Shared, batch: &Batch, at: Option<At>) -> Forward {
        let encoded = shared.encode(batch);
        let represented = self.represent(&encoded, at.map(|at| at.epoch));
        Forward { logits: shared.decode(&represented), other: None, inner: Some((encoded, represented)) }
    }

    /// What it does to training batches.
    fn augmentation(&self) -> Option<Box<dyn Augment>> {
        None
    }

    /// Whether its penalties need every image's class.
    fn needs_labels(&self) -> bool {
        false
    }

    /// The sentence that a sample is shown with; `own` is what the site says of it.
    fn sentence(&self, _own: Option<&str>, _class: Option<usize>) -> Sentence {
        Sentence::Unread
    }

    /// Whether sentences go to other samples of the site than their own: a control.
    fn shuffles_sentences(&self) -> bool {
        false
    }

    /// What is minimised, penalties left out: the segmentation loss of the batch.
    fn objective(&self, seen: &Seen) -> Tensor {
        loss::segmentation(&seen.forward.logits, seen.masks)
    }

    /// Penalties of a training batch.
    fn penalties(&self, _seen: &Seen) -> Vec<Penalty> {
        Vec::new()
    }

    /// Updates that make up a step, each with its own objective: one, unless the method alternates.
    fn updates(&self, _epoch: usize) -> usize {
        1
    }

    /// Whether an update moves a variable, by its name.
    fn moves(&self, _update: usize, _variable: &str) -> bool {
        true
    }

    /// What the learning rate is multiplied by for a variable.
    fn lr_factor(&self, _variable: &str) -> f64 {
        1.0
    }

    /// How far weights are moved up the gradient before the gradient that counts is taken (SAM); 0 is not at all.
    fn sharpness(&self) -> f64 {
        0.0
    }

    /// The momentum of a teacher that follows the model, for methods that have one.
    fn teacher(&self) -> Option<f64> {
        None
    }

    /// Over which steps weights are averaged in the end (SWAD), in place of the selection of an epoch.
    fn valley(&self) -> Option<ValleyRule> {
        None
    }

    /// The step in front of which the optimiser forgets its moments, because the objective changes.
    fn starts_anew_at(&self) -> Option<usize> {
        None
    }

    /// What of the method does not work yet in `epoch`, and so is no part of a model whose weights are that epoch's.
    fn lacks(&self, _epoch: usize) -> Option<&'static str> {
        None
    }

    /// Tells the method how many epochs were trained when the weights were chosen, so that evaluation does as training did.
    fn trained_until(&mut self, _epoch: usize) {}
}
