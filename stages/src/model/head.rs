//! The segmentation head H that every frozen-feature method shares (methods.md 1.5; all of it inferred).

use tch::Tensor;
use tch::nn::{self, Module};

/// 1x1 convolution, two blocks of (bilinear x2, 3x3 convolution, group norm, ReLU), 1x1 convolution to two logits, bilinear
/// to full size. Group norm rather than batch norm: batch statistics would mix sites.
#[derive(Debug)]
pub struct Head {
    reduce: nn::Conv2D,
    blocks: Vec<(nn::Conv2D, nn::GroupNorm)>,
    classify: nn::Conv2D,
    side: i64,
}

impl Head {
    /// A head for features of `d` channels that answers at `side` x `side` pixels, `width` channels wide inside.
    pub fn new(path: &nn::Path, d: i64, width: i64, side: i64) -> Self {
        let same = nn::ConvConfig { padding: 1, ..Default::default() };
        // 32 groups at the default width of 256; never fewer than four channels a group.
        let groups = (1..=32.min((width / 4).max(1))).rev().find(|g| width % g == 0).unwrap_or(1);
        let block = |name: &str| {
            let conv = nn::conv2d(path / name / "conv", width, width, 3, same);
            let norm = nn::group_norm(path / name / "norm", groups, width, Default::default());
            (conv, norm)
        };
        Self {
            reduce: nn::conv2d(path / "reduce", d, width, 1, Default::default()),
            blocks: vec![block("block1"), block("block2")],
            classify: nn::conv2d(path / "classify", width, 2, 1, Default::default()),
            side,
        }
    }

    /// `features`: (B, N, d) on a square grid, row by row. Returns logits (B, 2, side, side): background, lesion.
    pub fn forward(&self, features: &Tensor) -> Tensor {
        let (batch, positions, d) = features.size3().expect("features are (B, N, d)");
        let grid = (positions as f64).sqrt().round() as i64;
        // Channels stay innermost, as features have them: convolutions then need no other order of their own.
        let map = features.reshape([batch, grid, grid, d]).permute([0, 3, 1, 2]);
        let mut x = self.reduce.forward(&map);
        for (conv, norm) in &self.blocks {
            let size = x.size();
            let larger = x.upsample_bilinear2d([size[2] * 2, size[3] * 2], false, None, None);
            // Group norm keeps its input, not what it gave: that may be changed in place.
            x = norm.forward(&conv.forward(&larger)).relu_();
        }
        self.classify.forward(&x).upsample_bilinear2d([self.side, self.side], false, None, None)
    }
}

/// The trainable stand-in for fine-tuning a frozen encoder: x + W2 relu(W1 x), d to d/4 to d, W2 zero at the start (methods.md
/// 1.6, inferred).
#[derive(Debug)]
pub struct Adapter {
    down: nn::Linear,
    up: nn::Linear,
}

impl Adapter {
    /// An adapter for features of `d` channels that changes nothing at first.
    pub fn new(path: &nn::Path, d: i64) -> Self {
        let zero = nn::LinearConfig { ws_init: nn::Init::Const(0.0), bs_init: Some(nn::Init::Const(0.0)), bias: true };
        Self {
            down: nn::linear(path / "down", d, (d / 4).max(1), Default::default()),
            up: nn::linear(path / "up", (d / 4).max(1), d, zero),
        }
    }

    /// Any shape whose last axis is d, to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x + self.up.forward(&self.down.forward(x).relu())
    }
}
