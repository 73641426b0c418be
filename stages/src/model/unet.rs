//! U-Net (Ronneberger et al., MICCAI 2015): four levels down, four up, skips between them.

use tch::Tensor;
use tch::nn::{self, Module};

/// Levels below the first.
const LEVELS: usize = 4;

/// Two 3x3 convolutions, each with group norm and ReLU. Group norm in place of batch norm: batch statistics would mix sites.
#[derive(Debug)]
struct Double {
    convs: [nn::Conv2D; 2],
    norms: [nn::GroupNorm; 2],
}

impl Double {
    fn new(path: nn::Path, input: i64, output: i64) -> Self {
        let same = nn::ConvConfig { padding: 1, ..Default::default() };
        let groups = (1..=8).rev().find(|groups| output % groups == 0).unwrap_or(1);
        let norm = |name: &str| nn::group_norm(&path / name, groups, output, Default::default());
        Self {
            convs: [
                nn::conv2d(&path / "conv_0", input, output, 3, same),
                nn::conv2d(&path / "conv_1", output, output, 3, same),
            ],
            norms: [norm("norm_0"), norm("norm_1")],
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        // Group norm keeps its input, not what it gave: that may be changed in place.
        let x = self.norms[0].forward(&self.convs[0].forward(x)).relu_();
        self.norms[1].forward(&self.convs[1].forward(&x)).relu_()
    }
}

/// The network.
#[derive(Debug)]
pub struct Unet {
    down: Vec<Double>,
    up: Vec<(nn::ConvTranspose2D, Double)>,
    last: nn::Conv2D,
}

impl Unet {
    /// `width` channels on the first level, twice as many on each further one.
    pub fn new(path: &nn::Path, width: i64) -> Self {
        let channels = |level: usize| width << level;
        let down = (0..=LEVELS).map(|level| {
            let input = if level == 0 { 3 } else { channels(level - 1) };
            Double::new(path / format!("down_{level}"), input, channels(level))
        });
        let up = (0..LEVELS).rev().map(|level| {
            let larger = nn::ConvTransposeConfig { stride: 2, ..Default::default() };
            let path = path / format!("up_{level}");
            let grow = nn::conv_transpose2d(&path / "grow", channels(level + 1), channels(level), 2, larger);
            (grow, Double::new(&path / "convs", channels(level) * 2, channels(level)))
        });
        Self {
            down: down.collect(),
            up: up.collect(),
            last: nn::conv2d(path / "last", width, 1, 1, Default::default()),
        }
    }

    /// `images`: (B, 3, s, s). One logit a pixel: (B, 1, s, s).
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let mut skips = Vec::with_capacity(LEVELS);
        let mut x = self.down[0].forward(images);
        for level in &self.down[1..] {
            skips.push(x.shallow_clone());
            x = level.forward(&x.max_pool2d_default(2));
        }
        for (grow, convs) in &self.up {
            let Some(skip) = skips.pop() else { break };
            let grown = grow.forward(&x);
            // A side that is not even lost its last row on the way down.
            let (missing_h, missing_w) = (skip.size()[2] - grown.size()[2], skip.size()[3] - grown.size()[3]);
            let grown =
                if missing_h + missing_w > 0 { grown.replication_pad2d([0, missing_w, 0, missing_h]) } else { grown };
            x = convs.forward(&Tensor::cat(&[&skip, &grown], 1));
        }
        self.last.forward(&x)
    }
}
