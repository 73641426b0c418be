//! CARAFE (Wang et al., ICCV 2019): upsampling by two, each output pixel a weighted sum of its source pixel's neighbourhood.

use tch::nn::{self, Module};
use tch::{Kind, Tensor};

/// Side of the neighbourhood.
const KERNEL: i64 = 3;
/// Output pixels along a source pixel's side.
const SCALE: i64 = 2;

/// Predicts the weights, applies them, and mixes channels.
#[derive(Debug)]
pub struct Carafe {
    down: nn::Conv2D,
    encode: nn::Conv2D,
    out: nn::Conv2D,
}

impl Carafe {
    /// For maps of `channels`.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        let same = nn::ConvConfig { padding: KERNEL / 2, ..Default::default() };
        let weights = SCALE * SCALE * KERNEL * KERNEL;
        Self {
            down: nn::conv2d(path / "down", channels, channels / 4, 1, Default::default()),
            encode: nn::conv2d(path / "encode", channels / 4, weights, KERNEL, same),
            out: nn::conv2d(path / "out", channels, channels, 1, Default::default()),
        }
    }

    /// (B, C, h, w) to (B, C, 2h, 2w).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (batch, channels, height, width) = x.size4().expect("x is (B, C, h, w)");
        let weights = self.encode.forward(&self.down.forward(x)).pixel_shuffle(SCALE).softmax(1, None::<Kind>);
        let near = x.im2col([KERNEL, KERNEL], [1, 1], [KERNEL / 2, KERNEL / 2], [1, 1]);
        let near = near.view([batch, channels, KERNEL * KERNEL, height, width]);
        // Every output pixel sees the neighbourhood of the source pixel that it lies in.
        let near = near.repeat_interleave_self_int(SCALE, 3, None).repeat_interleave_self_int(SCALE, 4, None);
        let sum = (near * weights.unsqueeze(1)).sum_dim_intlist([2i64].as_slice(), false, None::<Kind>);
        self.out.forward(&sum)
    }
}
