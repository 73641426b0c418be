//! CLIPSeg's decoder (Lüddecke and Ecker, CVPR 2022): tokens of three layers of a frozen image tower, added from deep to shallow,
//! modulated by a text.

use tch::Tensor;
use tch::nn::{self, Module};

use crate::model::clip::ClipConfig;
use crate::model::transformer::{attend, layer_norm};

/// Heads of each decoder layer.
pub const HEADS: i64 = 4;
/// Width of its feed-forward, PyTorch's default.
const FEED_FORWARD: i64 = 2048;

/// A post-norm transformer layer with ReLU, as PyTorch's `TransformerEncoderLayer`, without dropout [I].
#[derive(Debug)]
struct Layer {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: nn::Linear,
    linear1: nn::Linear,
    linear2: nn::Linear,
    norm1: nn::LayerNorm,
    norm2: nn::LayerNorm,
}

impl Layer {
    fn new(path: nn::Path, width: i64) -> Self {
        let attn = &path / "self_attn";
        let bound = (6.0 / (4.0 * width as f64)).sqrt();
        Self {
            in_proj_weight: attn.var(
                "in_proj_weight",
                &[3 * width, width],
                nn::Init::Uniform { lo: -bound, up: bound },
            ),
            in_proj_bias: attn.var("in_proj_bias", &[3 * width], nn::Init::Const(0.0)),
            out_proj: nn::linear(&attn / "out_proj", width, width, Default::default()),
            linear1: nn::linear(&path / "linear1", width, FEED_FORWARD, Default::default()),
            linear2: nn::linear(&path / "linear2", FEED_FORWARD, width, Default::default()),
            norm1: layer_norm(&(&path / "norm1"), width),
            norm2: layer_norm(&(&path / "norm2"), width),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = x.linear(&self.in_proj_weight, Some(&self.in_proj_bias)).chunk(3, -1);
        let mixed = self.out_proj.forward(&attend(&qkv[0], &qkv[1], &qkv[2], HEADS, false));
        let x = self.norm1.forward(&(x + mixed));
        self.norm2.forward(&(&x + self.linear2.forward(&self.linear1.forward(&x).relu())))
    }
}

/// The decoder.
#[derive(Debug)]
pub struct Decoder {
    reduces: Vec<nn::Linear>,
    film_mul: nn::Linear,
    film_add: nn::Linear,
    layers: Vec<Layer>,
    grow: nn::ConvTranspose2D,
    grid: i64,
}

impl Decoder {
    /// For `count` layers of an image tower, `width` channels inside.
    pub fn new(path: &nn::Path, clip: &ClipConfig, count: usize, width: i64) -> Self {
        let linear = |name: String, input: i64| nn::linear(path / name, input, width, Default::default());
        let patch = clip.patch_size;
        let config = nn::ConvTransposeConfig { stride: patch, ..Default::default() };
        Self {
            reduces: (0..count).map(|i| linear(format!("reduces_{i}"), clip.vision_width)).collect(),
            film_mul: linear("film_mul".into(), clip.embed_dim),
            film_add: linear("film_add".into(), clip.embed_dim),
            layers: (0..count).map(|i| Layer::new(path / format!("blocks_{i}"), width)).collect(),
            grow: nn::conv_transpose2d(path / "trans_conv", width, 1, patch, config),
            grid: clip.grid(),
        }
    }

    /// `tokens`: those of each layer, shallow first, each (B, 1 + N, vision width); `text`: (B, d). Logits (B, 1, s, s).
    pub fn forward(&self, tokens: &[Tensor], text: &Tensor) -> Tensor {
        let mut x: Option<Tensor> = None;
        let parts = tokens.iter().rev().zip(&self.reduces).zip(&self.layers);
        for (place, ((tokens, reduce), layer)) in parts.enumerate() {
            let reduced = reduce.forward(tokens);
            let mut sum = x.map_or_else(|| reduced.shallow_clone(), |x| x + &reduced);
            if place == 0 {
                let (factor, shift) = (self.film_mul.forward(text), self.film_add.forward(text));
                sum = sum * factor.unsqueeze(1) + shift.unsqueeze(1);
            }
            x = Some(layer.forward(&sum));
        }
        let x = x.expect("a decoder has layers");
        let (batch, positions, width) = x.size3().expect("tokens are (B, 1 + N, width)");
        let map = x.narrow(1, 1, positions - 1).transpose(1, 2).reshape([batch, width, self.grid, self.grid]);
        self.grow.forward(&map)
    }
}
