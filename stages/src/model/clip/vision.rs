//! CLIP's ViT image tower, with dense features beside the pooled one (methods.md 1.7, 5.3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module};

use super::ClipConfig;
use crate::model::start::Start;
use crate::model::style::Mix;
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

/// Patches, class token, blocks, projection; or the last blocks and the projection alone.
#[derive(Debug)]
pub struct VisionTower {
    embedding: Option<Embedding>,
    blocks: Vec<Block>,
    ln_post: nn::LayerNorm,
    proj: Tensor,
}

/// From pixels to tokens.
#[derive(Debug)]
struct Embedding {
    conv1: nn::Conv2D,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: nn::LayerNorm,
}

impl Embedding {
    fn new(path: &nn::Path, config: &ClipConfig, start: Start) -> Self {
        let (width, positions) = (config.vision_width, config.grid() * config.grid() + 1);
        let scale = start.normal((width as f64).powf(-0.5));
        let conv = start.convolution(config.patch_size, 0);
        Self {
            conv1: nn::conv2d(path / "conv1", 3, width, config.patch_size, conv),
            class_embedding: path.var("class_embedding", &[width], scale),
            positional_embedding: path.var("positional_embedding", &[positions, width], scale),
            ln_pre: layer_norm(&(path / "ln_pre"), width),
        }
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let patches = self.conv1.forward(images).flatten(2, 3).transpose(1, 2);
        let (batch, _, width) = patches.size3().expect("patches are (B, N, width)");
        let class = self.class_embedding.view([1, 1, width]).expand([batch, 1, width], false);
        self.ln_pre.forward(&(Tensor::cat(&[class, patches], 1) + &self.positional_embedding))
    }
}

impl VisionTower {
    /// The whole tower; drawn values are CLIP's initial ones.
    pub fn new(path: &nn::Path, config: &ClipConfig, start: Start) -> Self {
        Self::with_blocks(path, config, config.vision_layers, Some(Embedding::new(path, config, start)), start)
    }

    /// The last `count` blocks and the projection.
    pub fn last_blocks(path: &nn::Path, config: &ClipConfig, count: i64, start: Start) -> Self {
        Self::with_blocks(path, config, count, None, start)
    }

    fn with_blocks(
        path: &nn::Path,
        config: &ClipConfig,
        count: i64,
        embedding: Option<Embedding>,
        start: Start,
    ) -> Self {
        let width = config.vision_width;
        let resblocks = path / "transformer" / "resblocks";
        let heads = width / config.vision_head_width;
        let (depth, activation) = (config.vision_layers, config.activation);
        let block = |i: i64| Block::with_heads(&(&resblocks / i), width, depth, heads, activation, false, start);
        let scale = start.normal((width as f64).powf(-0.5));
        Self {
            embedding,
            blocks: (config.vision_layers - count..config.vision_layers).map(block).collect(),
            ln_post: layer_norm(&(path / "ln_post"), width),
            proj: path.var("proj", &[width, config.embed_dim], scale),
        }
    }

    /// `images`: (B, 3, s, s), normalised. Returns the pooled feature (B, d) and the dense ones (B, N, d), N the grid's
    /// positions row by row; neither is normalised. Styles are mixed behind the first third of the blocks, among patches [I].
    pub fn forward(&self, images: &Tensor, dense: Dense, mix: Option<&Mix>) -> (Tensor, Tensor) {
        let mixed = self.blocks.len() / 3;
        let x = self.embed(images);
        let (early, late) = self.blocks.split_at(mixed);
        let mut x = early.iter().fold(x, |x, block| block.forward(&x));
        if let Some(mix) = mix {
            let positions = x.size()[1] - 1;
            x = Tensor::cat(&[x.narrow(1, 0, 1), mix.apply(&x.narrow(1, 1, positions))], 1);
        }
        self.through(x, late, dense)
    }

    /// Tokens in front of the last `left` blocks: (B, 1 + N, width).
    pub fn activations(&self, images: &Tensor, left: i64) -> Tensor {
        let count = self.blocks.len().saturating_sub(left as usize);
        self.blocks[..count].iter().fold(self.embed(images), |x, block| block.forward(&x))
    }

    /// The rest of the way for [`VisionTower::activations`] in front of the last `left` blocks, of as many as this tower has.
    pub fn finish(&self, tokens: &Tensor, left: i64, dense: Dense) -> (Tensor, Tensor) {
        let count = self.blocks.len().saturating_sub(left as usize);
        self.through(tokens.shallow_clone(), &self.blocks[count..], dense)
    }

    /// Tokens behind some blocks, counted from 0, the class token first: each (B, 1 + N, width). What CLIPSeg reads.
    pub fn tokens_behind(&self, images: &Tensor, blocks: &[usize]) -> Vec<Tensor> {
        let mut x = self.embed(images);
        let mut found = Vec::with_capacity(blocks.len());
        for (place, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x);
            if blocks.contains(&place) {
                found.push(x.shallow_clone());
            }
        }
        found
    }

    fn through(&self, x: Tensor, blocks: &[Block], dense: Dense) -> (Tensor, Tensor) {
        let (last, earlier) = blocks.split_last().expect("a tower has blocks");
        let x = earlier.iter().fold(x, |x, block| block.forward(&x));
        let positions = x.size()[1] - 1;
        let values = || last.forward_values(&x.narrow(1, 1, positions));
        let (class, patches) = match dense {
            // Of the last block only the class token is wanted. A training goes through all of it, so that weights which were
            // trained once come out the same again, to the last bit.
            Dense::Values if !x.requires_grad() && !last.trains() => (last.forward_first(&x), values()),
            Dense::Values => (last.forward(&x).narrow(1, 0, 1), values()),
            Dense::Tokens => {
                let whole = last.forward(&x);
                (whole.narrow(1, 0, 1), whole.narrow(1, 1, positions))
            }
        };
        (self.project(&class.select(1, 0)), self.project(&patches))
    }

    fn embed(&self, images: &Tensor) -> Tensor {
        let embedding = self.embedding.as_ref().expect("a tower that reads pixels was built whole");
        embedding.forward(images)
    }

    fn project(&self, x: &Tensor) -> Tensor {
        self.ln_post.forward(x).matmul(&self.proj)
    }
}
