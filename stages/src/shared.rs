//! What methods share: the encoder (cached, frozen or fine-tuned) with its adapter, and the segmentation head.

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use crate::data::Content;
use crate::error::{Result, StageError};
use crate::method::contract::{Batch, Encoded, Represented};
use crate::model::clip::{ClipConfig, Dense, Tower, normalise};
use crate::model::head::{Adapter, Head};
use crate::model::start::Start;
use crate::model::transformer::l2_normalise;
use crate::precision::Autocast;

/// An image tower that is run during training, or its last blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// The sizes.
    pub clip: ClipConfig,
    /// How dense features are taken from it.
    pub dense: Dense,
    /// Only so many last blocks are built, and read activations; 0 is the whole tower, from pixels.
    pub blocks_left: i64,
}

/// An image tower at work on pixels, or its last blocks on activations.
#[derive(Debug)]
pub struct Encoder {
    /// What it was built by.
    pub config: EncoderConfig,
    tower: Tower,
}

impl Encoder {
    /// Builds a tower, its variables under `path` by OpenAI's names.
    ///
    /// # Errors
    /// More blocks than there are.
    pub fn new(path: &nn::Path, config: &EncoderConfig, start: Start) -> Result<Self> {
        let tower = match config.blocks_left {
            0 => Tower::new(&(path / "visual"), &config.clip, start),
            k => Tower::last_blocks(&(path / "visual"), &config.clip, k, start)
                .ok_or_else(|| StageError::Request(format!("this CLIP's image tower has no {k} last blocks")))?,
        };
        Ok(Self { config: config.clone(), tower })
    }

    /// Pooled (B, d) and dense (B, N, d) features of pixels or activations.
    fn forward(&self, batch: &Batch) -> (Tensor, Tensor) {
        match &batch.content {
            Content::Features { .. } => unreachable!("features are what an encoder makes"),
            Content::Activations { tokens, .. } => {
                self.tower.finish(tokens, self.config.blocks_left, self.config.dense)
            }
            Content::Pixels(pixels) => self.tower.forward(&normalise(pixels), self.config.dense, batch.mix.as_ref()),
        }
    }
}

/// What is built in every model that uses the shared encoder and head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SharedConfig {
    /// Dimension of the features.
    pub d: i64,
    /// Pixels along a side of the output.
    pub side: i64,
    /// Channels inside the head.
    pub head_width: i64,
    /// Whether features pass a trainable adapter.
    pub adapter: bool,
    /// Whether features are brought to unit root mean square first.
    pub normalise: bool,
    /// The encoder, where it is trained with the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderConfig>,
}

/// A frozen encoder that is run during training.
pub struct Frozen {
    /// Keeps its variables.
    pub store: nn::VarStore,
    /// The encoder.
    pub encoder: Encoder,
}

/// Encoder, adapter and head. A network of its own has none of them.
pub struct Shared {
    normalise: bool,
    encoder: Option<Encoder>,
    frozen: Option<Frozen>,
    parts: Option<(Head, Option<Adapter>)>,
}

impl Shared {
    /// Of a method that does without.
    pub fn nothing() -> Self {
        Self { normalise: false, encoder: None, frozen: None, parts: None }
    }

    /// Head and adapter at initial values. The head comes first: with one seed every method starts from the same head.
    pub fn new(root: &nn::Path, config: &SharedConfig, frozen: Option<Frozen>) -> Self {
        let head = Head::new(&(root / "head"), config.d, config.head_width, config.side);
        let adapter = config.adapter.then(|| Adapter::new(&(root / "adapter"), config.d));
        Self { normalise: config.normalise, encoder: None, frozen, parts: Some((head, adapter)) }
    }

    /// Builds the encoder that is trained, after all else: what it draws is replaced by CLIP's weights and moves no other
    /// initial value, whichever of its blocks are built.
    ///
    /// # Errors
    /// An encoder that cannot be built so.
    pub fn build_encoder(&mut self, root: &nn::Path, config: &SharedConfig, start: Start) -> Result<()> {
        let built = |encoder| Encoder::new(&(root / "encoder"), encoder, start);
        self.encoder = config.encoder.as_ref().map(built).transpose()?;
        Ok(())
    }

    /// Features as the method sees them.
    pub fn encode(&self, batch: &Batch) -> Encoded {
        let (pooled, dense) = match (&self.encoder, &self.frozen, &batch.content) {
            (_, _, Content::Features { pooled, dense }) => (pooled.shallow_clone(), dense.shallow_clone()),
            (Some(encoder), _, _) => encoder.forward(batch),
            (None, Some(frozen), _) => {
                // What is frozen makes what `clip-features` makes, whatever precision the rest is trained in.
                tch::no_grad(|| Autocast::paused(|| frozen.encoder.forward(batch)))
            }
            (None, None, _) => unreachable!("whoever builds a model gives it what its data need"),
        };
        let adapter = self.parts.as_ref().and_then(|(_, adapter)| adapter.as_ref());
        let prepare = |x: Tensor| {
            let d = *x.size().last().unwrap_or(&1) as f64;
            let scaled = if self.normalise { l2_normalise(&x) * d.sqrt() } else { x };
            adapter.map_or_else(|| scaled.shallow_clone(), |adapter| adapter.forward(&scaled))
        };
        Encoded { pooled: prepare(pooled), dense: prepare(dense) }
    }

    /// Logits (B, 2, S, S) of what the method made of the features.
    pub fn decode(&self, represented: &Represented) -> Tensor {
        match &self.parts {
            Some((head, _)) => head.forward(&represented.map),
            None => unreachable!("a network of its own makes its own logits"),
        }
    }
}
