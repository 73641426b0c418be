//! The masker: which share of each channel at each position is causal.

use tch::Tensor;
use tch::nn::{self, ModuleT};

use super::{ConvNorm, batch_norm, with_coordinates};

/// Coordinates and 3x3 convolution, 3x3 convolution, and both again, the last followed by a sigmoid in place of ReLU.
#[derive(Debug)]
pub struct Masker {
    layers: [ConvNorm; 3],
    last: nn::Conv2D,
    norm: nn::BatchNorm,
}

impl Masker {
    /// For maps of `channels`.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        let same = nn::ConvConfig { padding: 1, ..Default::default() };
        Self {
            layers: [
                ConvNorm::new(path / "0", channels + 2, channels, 3),
                ConvNorm::new(path / "1", channels, channels, 3),
                ConvNorm::new(path / "2", channels + 2, channels, 3),
            ],
            last: nn::conv2d(path / "last", channels, channels, 3, same),
            norm: batch_norm(path / "norm", channels),
        }
    }

    /// (B, C, h, w) to a mask of the same shape, between 0 and 1.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let x = self.layers[0].forward(&with_coordinates(x), train);
        let x = self.layers[1].forward(&x, train);
        let x = self.layers[2].forward(&with_coordinates(&x), train);
        self.norm.forward_t(&x.apply(&self.last), train).sigmoid()
    }
}
