//! CLIP's ViT image tower, with dense features beside the pooled one (methods.md 1.7, 5.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module};

use super::ClipConfig;
use crate::model::transformer::{Block, layer_norm};

/// How dense features are taken from the last block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dense {
    /// MaskCLIP's value path: the last block without query-key attention.
    #[default]
    Values,
    /// The patch tokens after the whole last block.
    Tokens,
}

/// Patches, class token, blocks, projection.
#[derive(Debug)]
pub struct VisionTower {
    conv1: nn::Conv2D,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: nn::LayerNorm,
    blocks: Vec<Block>,
    ln_post: nn::LayerNorm,
    proj: Tensor,
}

impl VisionTower {
    /// The tower at CLIP's initial values.
    pub fn new(path: &nn::Path, config: &ClipConfig) -> Self {
        let (width, positions) = (config.vision_width, config.grid() * config.grid() + 1);
        let scale = nn::Init::Randn { mean: 0.0, stdev: (width as f64).powf(-0.5) };
        let conv = nn::ConvConfig { stride: config.patch_size, bias: false, ..Default::default() };
        let resblocks = path / "transformer" / "resblocks";
        Self {
            conv1: nn::conv2d(path / "conv1", 3, width, config.patch_size, conv),
            class_embedding: path.var("class_embedding", &[width], scale),
            positional_embedding: path.var("positional_embedding", &[positions, width], scale),
            ln_pre: layer_norm(&(path / "ln_pre"), width),
            blocks: (0..config.vision_layers)
                .map(|i| {
                    let heads = width / config.vision_head_width;
                    Block::with_heads(&(&resblocks / i), width, config.vision_layers, heads, config.activation, false)
                })
                .collect(),
            ln_post: layer_norm(&(path / "ln_post"), width),
            proj: path.var("proj", &[width, config.embed_dim], scale),
        }
    }

    /// `images`: (B, 3, s, s), normalised. Returns the pooled feature (B, d) and the dense ones (B, N, d), N the grid's
    /// positions row by row; neither is normalised.
    pub fn forward(&self, images: &Tensor, dense: Dense) -> (Tensor, Tensor) {
        let (last, earlier) = self.blocks.split_last().expect("a tower has blocks");
        let x = earlier.iter().fold(self.embed(images), |x, block| block.forward(&x));
        let whole = last.forward(&x);
        let pooled = self.project(&whole.select(1, 0));
        let positions = x.size()[1] - 1;
        let patches = match dense {
            Dense::Values => last.forward_values(&x.narrow(1, 1, positions)),
            Dense::Tokens => whole.narrow(1, 1, positions),
        };
        (pooled, self.project(&patches))
    }

    fn embed(&self, images: &Tensor) -> Tensor {
        let patches = self.conv1.forward(images).flatten(2, 3).transpose(1, 2);
        let (batch, _, width) = patches.size3().expect("patches are (B, N, width)");
        let class = self.class_embedding.view([1, 1, width]).expand([batch, 1, width], false);
        self.ln_pre.forward(&(Tensor::cat(&[class, patches], 1) + &self.positional_embedding))
    }

    fn project(&self, x: &Tensor) -> Tensor {
        self.ln_post.forward(x).matmul(&self.proj)
    }
}
