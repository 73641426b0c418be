//! A model: encoder, adapter, method and head, or a network of its own; and its way to disk and back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use siteline_pipeline::manifest::selection::Protocol;
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint::{self, Tensors};
use crate::data::Origin;
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::method::contract::{At, Batch, Forward, Given, Method, Sizes};
use crate::method::{self, MethodName, MethodParams};
use crate::model::clip::ClipConfig;
use crate::model::clip::weights::{ClipWeights, tokenizer_of};
use crate::model::start::Start;
use crate::shared::{Encoder, EncoderConfig, Frozen, Shared, SharedConfig};
use crate::trainer::params::KeptEpoch;

/// Everything that a model is built by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmenterConfig {
    /// The method.
    pub method: MethodName,
    /// Its parameters.
    pub params: MethodParams,
    /// Sizes of features, masks and dictionary.
    pub sizes: Sizes,
    /// What it reads of each image.
    pub reads: Reads,
    /// What it shares with other methods; a network of its own shares nothing.
    pub shared: Option<SharedConfig>,
    /// The CLIP whose towers the method builds, or that made its features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipConfig>,
    /// The tokens of that CLIP's table, where it holds only some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<i64>>,
    /// The dictionary's classes, in the order of labels.
    pub classes: Vec<String>,
    /// The dictionary's class prompts, in the same order.
    pub class_prompts: Vec<String>,
    /// What made the features or activations that it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The epoch that the weights are of.
    pub epoch: usize,
    /// Which steps the weights are the mean of, for methods that average them; the epoch is then the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaged: Option<Averaged>,
    /// Of these weights: mean over the training sites of the mean Dice of their validation images.
    #[serde(default)]
    pub validation_dice: Option<f64>,
    /// How that epoch was chosen.
    pub kept_epoch: KeptEpoch,
    /// How the model was chosen among candidates, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selected>,
}

/// Which steps' weights a model is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Averaged {
    /// Those in the valley of the validation loss (SWAD).
    Valley,
    /// Those of the last epoch, as there was no valley.
    LastEpoch,
}

/// What a model reads of each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// Cached features.
    Features,
    /// Cached activations in front of so many last blocks.
    Activations(i64),
    /// Pixels, so many a side.
    Pixels(i64),
}

/// How a model was chosen among candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// By which scores.
    pub protocol: Protocol,
    /// The axes whose values the candidates were.
    pub among: Vec<String>,
    /// Whether scores on the held-out site had a part in it, here or in an earlier choice.
    pub oracle: bool,
}

impl SegmenterConfig {
    /// How the model was selected, in words for tables.
    pub fn selection_words(&self) -> String {
        let epoch = match self.averaged {
            Some(Averaged::Valley) => "the mean of the weights in the valley of the loss by training-domain validation",
            Some(Averaged::LastEpoch) => {
                "the mean of the weights of the last epoch, as the loss by training-domain validation had no valley"
            }
            None => self.kept_epoch.words(),
        };
        let Some(Selected { protocol, among, .. }) = &self.selection else { return epoch.to_owned() };
        let by = match protocol {
            Protocol::TrainingDomainValidation => "training-domain validation",
            Protocol::LeaveOneDomainOut => "leave-one-domain-out cross-validation among the training sites",
            Protocol::Oracle => "oracle: scores on the held-out site itself",
        };
        format!("{} by {by}; {epoch}", among.join(" and "))
    }
}

/// Variables of a method that start from CLIP's are named by this and OpenAI's names.
const BACKBONE: &str = "method.backbone.";

/// A model with its variables.
pub struct Segmenter {
    /// What it was built by.
    pub config: SegmenterConfig,
    /// Its variables.
    pub store: nn::VarStore,
    /// Its method.
    pub method: Box<dyn Method>,
    shared: Shared,
}

impl Segmenter {
    /// Builds a model at its initial values; what of it has values in `weights` starts from there. `frozen`: an encoder that is
    /// run and not trained. `seed`: that of initial values; none for a model that is read from a file.
    ///
    /// # Errors
    /// A method without what it needs.
    pub fn new(
        config: SegmenterConfig,
        dictionary: Option<&Dictionary>,
        weights: Option<&ClipWeights>,
        frozen: Option<Frozen>,
        seed: Option<u64>,
        device: Device,
    ) -> Result<Self> {
        let mut store = nn::VarStore::new(device);
        let root = store.root();
        if let Some(seed) = seed {
            tch::manual_seed(seed as i64);
        }
        let mut shared = match &config.shared {
            Some(shared) => Shared::new(&root, shared, frozen),
            None => Shared::nothing(),
        };
        let given = Given {
            sizes: config.sizes,
            trains: seed.is_some(),
            dictionary,
            clip: config.clip.as_ref(),
            weights,
            tokenizer: config.clip.as_ref().map(|_| tokenizer_of(config.token_ids.as_deref())),
            class_prompts: &config.class_prompts,
        };
        let method = method::build(config.method, &config.params, &(&root / "method"), given)?;
        if let Some(config) = &config.shared {
            shared.build_encoder(&root, config, Start::of(seed.is_some()))?;
        }
        if let Some(weights) = weights {
            for prefix in ["encoder.", BACKBONE] {
                weights.fill(&mut store, prefix)?;
            }
        }
        Ok(Self { config, store, method, shared })
    }

    /// From a batch to logits. `None` is evaluation.
    pub fn forward(&self, batch: &Batch, at: Option<At>) -> Forward {
        self.method.forward(&self.shared, batch, at)
    }

    /// Probabilities of lesion, without gradients: (B, S, S).
    pub fn probabilities(&self, batch: &Batch) -> Tensor {
        tch::no_grad(|| self.forward(batch, None).logits.softmax(1, Kind::Float).select(1, 1))
    }

    /// Writes `model.safetensors` and `config.json`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, weights: &Path, config: &Path) -> Result<()> {
        checkpoint::write(weights, &self.variables(), Kind::Float, &BTreeMap::new())?;
        let json = serde_json::to_string_pretty(&self.config).expect("a configuration is JSON");
        std::fs::write(config, json + "\n").map_err(StageError::io(config))
    }

    /// Its variables by name.
    pub fn variables(&self) -> Tensors {
        checkpoint::of_store(&self.store)
    }

    /// Reads what [`Segmenter::save`] wrote. `weights` are those of its CLIP, for models that keep a frozen part of it out of
    /// their own file.
    ///
    /// # Errors
    /// Files that do not hold a model.
    pub fn load(model: &Path, config: &Path, weights: Option<&ClipWeights>, device: Device) -> Result<Self> {
        let text = std::fs::read(config).map_err(StageError::io(config))?;
        let parsed: SegmenterConfig = serde_json::from_slice(&text).map_err(|e| StageError::data(config, e))?;
        let epoch = parsed.epoch;
        let mut built = Self::new(parsed, None, weights, None, None, device)?;
        checkpoint::fill(&mut built.store, &checkpoint::read(model)?, model)?;
        built.store.freeze();
        built.method.trained_until(epoch);
        Ok(built)
    }
}

/// An encoder that is run and not trained.
///
/// # Errors
/// Weights that do not fit.
pub fn frozen(weights: &ClipWeights, config: &EncoderConfig, device: Device) -> Result<Frozen> {
    let mut store = nn::VarStore::new(device);
    let encoder = Encoder::new(&store.root(), config, Start::Filled)?;
    weights.fill(&mut store, "")?;
    store.freeze();
    Ok(Frozen { store, encoder })
}
