//! The projector: upsampled features through a kernel that the text makes.

use tch::Tensor;
use tch::nn::{self, Module};

use super::ConvNorm;

/// How far each of the two upsamplings goes.
const SCALE: i64 = 4;
/// Side of the text's kernel.
const KERNEL: i64 = 3;

/// Two times (bilinear x4, 3x3 convolution), 1x1 convolution, and a 3x3 kernel with bias from a text.
#[derive(Debug)]
pub struct Projector {
    layers: [ConvNorm; 2],
    mix: nn::Conv2D,
    text: nn::Linear,
    inside: i64,
}

impl Projector {
    /// For maps of `channels` and texts of `d` dimensions.
    pub fn new(path: &nn::Path, channels: i64, d: i64) -> Self {
        let inside = channels / 2;
        Self {
            layers: [ConvNorm::new(path / "0", channels, channels, 3), ConvNorm::new(path / "1", channels, inside, 3)],
            mix: nn::conv2d(path / "mix", inside, inside, 1, Default::default()),
            text: nn::linear(path / "text", d, inside * KERNEL * KERNEL + 1, Default::default()),
            inside,
        }
    }

    /// `x`: (B, C, h, w); `states`: (B, d). Logits (B, 1, 16 h, 16 w).
    pub fn forward(&self, x: &Tensor, states: &Tensor, train: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for layer in &self.layers {
            let size = x.size();
            let larger = x.upsample_bilinear2d([size[2] * SCALE, size[3] * SCALE], false, None, None);
            x = layer.forward(&larger, train);
        }
        let x = self.mix.forward(&x);
        let (batch, inside, height, width) = x.size4().expect("x is (B, C, h, w)");
        let words = self.text.forward(states);
        let kernel = words.narrow(1, 0, self.inside * KERNEL * KERNEL).reshape([batch, inside, KERNEL, KERNEL]);
        let bias = words.select(1, self.inside * KERNEL * KERNEL);
        // One group an image: each image has a kernel of its own.
        let all = x.reshape([1, batch * inside, height, width]);
        let side = KERNEL / 2;
        all.conv2d(&kernel, Some(&bias), [1i64, 1], [side, side], [1i64, 1], batch).view([batch, 1, height, width])
    }
}
