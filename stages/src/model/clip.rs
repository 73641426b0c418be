//! CLIP (Radford et al. 2021): a ViT image tower and a text tower that meet in one space.
//!
//! Parameters carry the names of OpenAI's checkpoints, so that a variable's path *is* its key; `weights` translates
//! Hugging Face's and open_clip's names. The arithmetic follows methods.md section 5 and agrees with `transformers`
//! within 1e-4 (tests/golden/clip).

mod text;
pub mod tokenizer;
mod vision;
pub mod weights;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

pub use self::text::TextTower;
pub use self::tokenizer::Tokenizer;
pub use self::vision::{Dense, VisionTower};
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
    /// Side of a patch in pixels; the grid has `image_size / patch_size` positions a side.
    pub patch_size: i64,
    /// Width of the image tower.
    pub vision_width: i64,
    /// Blocks of the image tower.
    pub vision_layers: i64,
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
    /// Positions along one side of the dense feature grid.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

/// Both towers, with a tokenizer that knows which rows of the token table exist.
#[derive(Debug)]
pub struct Clip {
    /// The sizes.
    pub config: ClipConfig,
    /// Images to the joint space.
    pub vision: VisionTower,
    /// Texts to the joint space.
    pub text: TextTower,
    /// ln of the factor on the cosine.
    pub logit_scale: Tensor,
    /// Texts to token rows.
    pub tokenizer: Tokenizer,
}

impl Clip {
    /// Builds both towers under `path`, at CLIP's initial values.
    pub fn new(path: &nn::Path, config: &ClipConfig, tokenizer: Tokenizer) -> Self {
        Self {
            config: config.clone(),
            vision: VisionTower::new(&(path / "visual"), config),
            text: TextTower::new(path, config),
            logit_scale: path.var("logit_scale", &[], nn::Init::Const((1.0f64 / 0.07).ln())),
            tokenizer,
        }
    }

    /// Embeds texts, frozen. Returns (texts, d), each row of unit length.
    ///
    /// # Errors
    /// A text longer than the context.
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<Tensor> {
        let rows = texts
            .iter()
            .map(|text| self.tokenizer.encode(text.as_ref(), self.config.context_length as usize))
            .collect::<Result<Vec<_>>>()?;
        Ok(tch::no_grad(|| l2_normalise(&self.text.forward(&rows, self.logit_scale.device()))))
    }
}

/// Pixels to the normalised input of the image tower. `pixels`: RGB bytes of `count` images, each side x side x 3, row by
/// row. Returns (count, 3, side, side) on `device`.
pub fn normalise_pixels(pixels: &[u8], count: i64, side: i64, device: Device) -> Tensor {
    let bytes = Tensor::from_slice(pixels).view([count, side, side, 3]).to_device(device);
    let mean = Tensor::from_slice(&IMAGE_MEAN).to_device(device);
    let std = Tensor::from_slice(&IMAGE_STD).to_device(device);
    let scaled = bytes.to_kind(tch::Kind::Float) / 255.0;
    ((scaled - mean) / std).permute([0, 3, 1, 2]).contiguous()
}
