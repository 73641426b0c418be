//! CLIP (Radford et al. 2021): an image tower (ViT or modified ResNet) and a text tower that meet in one space.
//!
//! Parameters carry the names of OpenAI's checkpoints, so that a variable's path *is* its key; `weights` translates
//! Hugging Face's and open_clip's names. The arithmetic follows methods.md section 5 and agrees with `transformers`
//! within 1e-4 (tests/golden/clip).

mod resnet;
mod text;
pub mod tokenizer;
mod vision;
pub mod weights;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

pub use self::resnet::{AttentionPool, ModifiedResNet};
pub use self::text::TextTower;
pub use self::tokenizer::Tokenizer;
pub use self::vision::{Dense, VisionTower};
use super::start::Start;
use super::style::Mix;
pub use super::transformer::{Activation, l2_normalise};
use crate::error::Result;

/// Mean of red, green and blue that OpenAI's weights expect to be subtracted, of values from 0 to 1.
pub const IMAGE_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation that OpenAI's weights expect to be divided by.
pub const IMAGE_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The sizes of a CLIP; all but the activation can be read off a checkpoint's shapes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Dimension d of the joint space.
    pub embed_dim: i64,
    /// Side of the input image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels, 32 for a ResNet; the grid has `image_size / patch_size` positions a side.
    pub patch_size: i64,
    /// Width of the image tower: of its tokens, or of a ResNet's stem.
    pub vision_width: i64,
    /// Blocks of the image tower.
    pub vision_layers: i64,
    /// Blocks of each of a ResNet's four stages; absent for a ViT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resnet: Option<[i64; 4]>,
    /// Width of one attention head of the image tower: 64 but in open_clip's largest models.
    pub vision_head_width: i64,
    /// Tokens that a text may have, start and end included.
    pub context_length: i64,
    /// Rows of the token table.
    pub vocab_size: i64,
    /// Width of the text tower.
    pub text_width: i64,
    /// Blocks of the text tower.
    pub text_layers: i64,
    /// Non-linearity of both towers.
    #[serde(default)]
    pub activation: Activation,
}

impl ClipConfig {
    /// Whether a variable of the image tower, named below `visual.`, is one of its last `count` blocks or behind them.
    pub fn is_in_last_blocks(&self, name: &str, count: i64) -> bool {
        let first = self.vision_layers - count;
        if let Some(rest) = name.strip_prefix("transformer.resblocks.") {
            return rest.split('.').next().and_then(|number| number.parse::<i64>().ok()).is_some_and(|n| n >= first);
        }
        let Some(stages) = &self.resnet else { return name.starts_with("ln_post") || name == "proj" };
        let Some((stage, rest)) = name.strip_prefix("layer").and_then(|rest| rest.split_once('.')) else {
            return name.starts_with("attnpool");
        };
        let numbers = (stage.parse::<usize>(), rest.split('.').next().map(str::parse::<i64>));
        let (Ok(stage), Some(Ok(block))) = numbers else { return false };
        stages.iter().take(stage.saturating_sub(1)).sum::<i64>() + block >= first
    }

    /// The shape of activations in front of the last `left` blocks: positions and channels.
    pub fn shape_of_activations(&self, left: i64) -> (i64, i64) {
        match &self.resnet {
            None => (self.grid() * self.grid() + 1, self.vision_width),
            Some(blocks) => ModifiedResNet::shape_of_activations(self, blocks, left),
        }
    }

    /// Positions along one side of the dense feature grid.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

/// An image tower.
#[derive(Debug)]
pub enum Tower {
    /// A vision transformer.
    Vit(Box<VisionTower>),
    /// A modified ResNet.
    ResNet(Box<ModifiedResNet>),
}

impl Tower {
    /// The tower, its variables directly under `path`; drawn values are CLIP's initial ones.
    pub fn new(path: &nn::Path, config: &ClipConfig, start: Start) -> Self {
        match &config.resnet {
            None => Self::Vit(Box::new(VisionTower::new(path, config, start))),
            Some(blocks) => Self::ResNet(Box::new(ModifiedResNet::new(path, config, blocks, start))),
        }
    }

    /// The last `count` blocks, a ResNet's counted over its stages; nothing if it has fewer.
    pub fn last_blocks(path: &nn::Path, config: &ClipConfig, count: i64, start: Start) -> Option<Self> {
        (1..=config.vision_layers).contains(&count).then(|| match &config.resnet {
            None => Self::Vit(Box::new(VisionTower::last_blocks(path, config, count, start))),
            Some(blocks) => Self::ResNet(Box::new(ModifiedResNet::last_blocks(path, config, blocks, count, start))),
        })
    }

    /// What the last `left` blocks are given: (B, N, channels); for a ViT tokens, the class token first, for a ResNet the positions of
    /// its map.
    pub fn activations(&self, images: &Tensor, left: i64) -> Tensor {
        match self {
            Self::Vit(tower) => tower.activations(images, left),
            Self::ResNet(tower) => tower.activations(images, left),
        }
    }

    /// `images`: (B, 3, s, s), normalised. Pooled (B, d) and dense (B, N, d) features, not normalised. A ResNet has one way to
    /// dense features: the linear maps of its attention pool.
    pub fn forward(&self, images: &Tensor, dense: Dense, mix: Option<&Mix>) -> (Tensor, Tensor) {
        match self {
            Self::Vit(tower) => tower.forward(images, dense, mix),
            Self::ResNet(tower) => tower.forward(images, mix),
        }
    }

    /// The rest of the way for activations in front of the last `left` blocks.
    pub fn finish(&self, tokens: &Tensor, left: i64, dense: Dense) -> (Tensor, Tensor) {
        match self {
            Self::Vit(tower) => tower.finish(tokens, left, dense),
            Self::ResNet(tower) => tower.finish(tokens, left),
        }
    }
}

/// Both towers, with a tokenizer that knows which rows of the token table exist.
#[derive(Debug)]
pub struct Clip {
    /// The sizes.
    pub config: ClipConfig,
    /// Images to the joint space.
    pub vision: Tower,
    /// Texts to the joint space.
    pub text: TextTower,
    /// ln of the factor on the cosine.
    pub logit_scale: Tensor,
    /// Texts to token rows.
    pub tokenizer: Tokenizer,
}

impl Clip {
    /// Builds both towers under `path`; drawn values are CLIP's initial ones.
    pub fn new(path: &nn::Path, config: &ClipConfig, tokenizer: Tokenizer, start: Start) -> Self {
        Self {
            config: config.clone(),
            vision: Tower::new(&(path / "visual"), config, start),
            text: TextTower::new(path, config, start),
            logit_scale: path.var("logit_scale", &[], nn::Init::Const((1.0f64 / 0.07).ln())),
            tokenizer,
        }
    }

    /// Embeds texts, frozen. Returns (texts, d), each row of unit length.
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<Tensor> {
        self.text_features(texts).map(|features| l2_normalise(&features))
    }

    /// Texts as the text tower gives them, of any length: (texts, d).
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn text_features<S: AsRef<str>>(&self, texts: &[S]) -> Result<Tensor> {
        let rows = texts
            .iter()
            .map(|text| self.tokenizer.encode(text.as_ref(), self.config.context_length as usize))
            .collect::<Result<Vec<_>>>()?;
        Ok(tch::no_grad(|| self.text.forward(&rows, self.logit_scale.device())))
    }
}

/// Colours to the normalised input of the image tower. `pixels`: (B, 3, s, s), 0 to 255.
pub fn normalise(pixels: &Tensor) -> Tensor {
    let constant = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(pixels.device());
    (pixels / 255.0 - constant(&IMAGE_MEAN)) / constant(&IMAGE_STD)
}

/// Pixels to the normalised input of the image tower. `pixels`: RGB bytes of `count` images, each side x side x 3, row by
/// row. Returns (count, 3, side, side) on `device`.
pub fn normalise_pixels(pixels: &[u8], count: i64, side: i64, device: Device) -> Tensor {
    let bytes = Tensor::from_slice(pixels).view([count, side, side, 3]).to_device(device);
    normalise(&bytes.permute([0, 3, 1, 2]).to_kind(tch::Kind::Float)).contiguous()
}
