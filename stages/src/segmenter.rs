//! The model that every frozen-feature method trains: adapter, method, head; and its way to disk and back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use siteline_pipeline::manifest::selection::Protocol;
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint;
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::method::contract::{Encoded, Method, Represented, Sizes};
use crate::method::{self, MethodName, MethodParams};
use crate::model::head::{Adapter, Head};
use crate::model::transformer::l2_normalise;
use crate::trainer::KeptEpoch;

/// Everything that a model is built by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmenterConfig {
    /// The method.
    pub method: MethodName,
    /// Its parameters.
    pub params: MethodParams,
    /// Sizes of features and dictionary.
    pub sizes: Sizes,
    /// Pixels along a side of the output.
    pub side: i64,
    /// Channels inside the head.
    pub head_width: i64,
    /// Whether features pass a trainable adapter.
    pub adapter: bool,
    /// Whether features are brought to unit root mean square first.
    pub normalise: bool,
    /// The dictionary's classes, in the order of labels.
    pub classes: Vec<String>,
    /// The epoch that the weights are of.
    pub epoch: usize,
    /// How that epoch was chosen.
    pub kept_epoch: KeptEpoch,
    /// How the model was chosen among candidates, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Selected>,
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
        let epoch = self.kept_epoch.words();
        let Some(Selected { protocol, among, .. }) = &self.selection else { return epoch.to_owned() };
        let by = match protocol {
            Protocol::TrainingDomainValidation => "training-domain validation",
            Protocol::LeaveOneDomainOut => "leave-one-domain-out cross-validation among the training sites",
            Protocol::Oracle => "oracle: scores on the held-out site itself",
        };
        format!("{} by {by}; {epoch}", among.join(" and "))
    }
}

/// A model with its variables.
pub struct Segmenter {
    /// What it was built by.
    pub config: SegmenterConfig,
    /// Its variables.
    pub store: nn::VarStore,
    /// Its method.
    pub method: Box<dyn Method>,
    adapter: Option<Adapter>,
    head: Head,
}

impl Segmenter {
    /// Builds a model at its initial values.
    ///
    /// # Errors
    /// A method without what it needs.
    pub fn new(config: SegmenterConfig, dictionary: Option<&Dictionary>, device: Device) -> Result<Self> {
        let store = nn::VarStore::new(device);
        let root = store.root();
        // The head comes first: with one seed every method starts from the same head.
        let head = Head::new(&(&root / "head"), config.sizes.d, config.head_width, config.side);
        let adapter = config.adapter.then(|| Adapter::new(&(&root / "adapter"), config.sizes.d));
        let method = method::build(config.method, &config.params, &(&root / "method"), &config.sizes, dictionary)?;
        Ok(Self { config, store, method, adapter, head })
    }

    /// Features as the method sees them. `pooled`: (B, d); `dense`: (B, N, d).
    pub fn encode(&self, pooled: &Tensor, dense: &Tensor) -> Encoded {
        let prepare = |x: &Tensor| {
            let scaled = if self.config.normalise {
                l2_normalise(x) * (self.config.sizes.d as f64).sqrt()
            } else {
                x.shallow_clone()
            };
            self.adapter.as_ref().map_or_else(|| scaled.shallow_clone(), |adapter| adapter.forward(&scaled))
        };
        Encoded { pooled: prepare(pooled), dense: prepare(dense) }
    }

    /// Logits (B, 2, S, S) of what the method made of the features.
    pub fn decode(&self, represented: &Represented) -> Tensor {
        self.head.forward(&represented.map)
    }

    /// Predicted masks of cached features, without gradients: (B, S, S), true for lesion.
    pub fn predict(&self, pooled: &Tensor, dense: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let represented = self.method.represent(&self.encode(pooled, dense), None);
            self.decode(&represented).argmax(1, false).to_kind(Kind::Bool)
        })
    }

    /// Writes `model.safetensors` and `config.json`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, weights: &Path, config: &Path) -> Result<()> {
        checkpoint::write(weights, &checkpoint::of_store(&self.store), Kind::Float, &BTreeMap::new())?;
        let json = serde_json::to_string_pretty(&self.config).expect("a configuration is JSON");
        std::fs::write(config, json + "\n").map_err(StageError::io(config))
    }

    /// Reads what [`Segmenter::save`] wrote.
    ///
    /// # Errors
    /// Files that do not hold a model.
    pub fn load(weights: &Path, config: &Path, device: Device) -> Result<Self> {
        let text = std::fs::read(config).map_err(StageError::io(config))?;
        let parsed: SegmenterConfig = serde_json::from_slice(&text).map_err(|e| StageError::data(config, e))?;
        let epoch = parsed.epoch;
        let mut model = Self::new(parsed, None, device)?;
        checkpoint::fill(&mut model.store, &checkpoint::read(weights)?, weights)?;
        model.store.freeze();
        model.method.trained_until(epoch);
        Ok(model)
    }
}
