//! Parameters of training, the same for every method, and a group for each method that has its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::method::{MethodName, MethodParams};
use crate::model::clip::Dense;
use crate::precision::TrainingPrecision;

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
// Unknown names are refused by the schema: serde cannot refuse them beside a flattened group.
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
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
    /// What becomes of CLIP's image tower.
    pub encoder: EncoderMode,
    /// Fine-tuning: only so many last blocks of the image tower are trained; 0 is all of it.
    #[schemars(range(min = 0))]
    pub encoder_blocks: i64,
    /// Fine-tuning: what the learning rate is multiplied by for the image tower.
    #[schemars(range(min = 0.0))]
    pub encoder_lr: f64,
    /// Floats of the forward pass in training: `bf16` is mixed precision, weights and losses staying in 32 bits. Validation and
    /// evaluation are in 32 bits.
    pub precision: TrainingPrecision,
    /// How dense features are taken from an image tower that is run here; cached ones were taken by `clip-features`.
    pub dense: Dense,
    /// Groups of the methods' own parameters.
    #[serde(flatten)]
    pub methods: MethodParams,
}

/// What becomes of CLIP's image tower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EncoderMode {
    /// It stays as it is; a trainable adapter follows it, unless `adapter` says no.
    #[default]
    #[serde(rename = "frozen+adapter")]
    Frozen,
    /// It is trained with the rest, from pixels or from activations in front of its last blocks.
    #[serde(rename = "finetune")]
    Finetune,
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
            encoder: EncoderMode::Frozen,
            encoder_blocks: 0,
            encoder_lr: 0.002,
            precision: TrainingPrecision::Fp32,
            dense: Dense::Values,
            methods: MethodParams::default(),
        }
    }
}
