//! CausalCLIPSeg (arXiv 2503.15949, MICCAI 2024; methods.md 2.2): a CLIP ResNet with attention at every position, CARAFE, maskers
//! that part each feature into a causal and a confounding share, and two projectors whose kernels a text makes. The parts of the
//! released code that get no gradient are not built.

mod carafe;
mod masker;
mod projector;

use tch::Tensor;
use tch::nn::{self, ModuleT};

use self::carafe::Carafe;
use self::masker::Masker;
use self::projector::Projector;
use super::clip::{ClipConfig, ModifiedResNet, TextTower};
use super::start::Start;
use super::transformer::batch_norm;
use crate::precision::wide;

/// Convolution without bias, batch norm, ReLU.
#[derive(Debug)]
struct ConvNorm {
    conv: nn::Conv2D,
    norm: nn::BatchNorm,
}

impl ConvNorm {
    fn new(path: nn::Path, input: i64, output: i64, kernel: i64) -> Self {
        let config = nn::ConvConfig { padding: kernel / 2, bias: false, ..Default::default() };
        Self {
            conv: nn::conv2d(&path / "conv", input, output, kernel, config),
            norm: batch_norm(&path / "norm", output),
        }
    }

    /// Convolution and norm alone.
    fn linear(&self, x: &Tensor, train: bool) -> Tensor {
        self.norm.forward_t(&x.apply(&self.conv), train)
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        self.linear(x, train).relu()
    }
}

/// What the network makes of a batch.
#[derive(Debug)]
pub struct Branches {
    /// Logits of the causal branch: (B, 1, s, s).
    pub sup: Tensor,
    /// Logits of the confounding branch: (B, 1, s, s).
    pub inf: Tensor,
}

/// How masks are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masks {
    /// Features times mask, and times one minus mask.
    Split,
    /// All ones on both sides: the warm-up.
    Ones,
    /// Split, with the gradient into the confounding side's mask reversed.
    Reversed,
}

/// The network.
#[derive(Debug)]
pub struct CausalClipSeg {
    visual: ModifiedResNet,
    text: TextTower,
    shortcut: ConvNorm,
    adapter: Option<ConvNorm>,
    fourth: [ConvNorm; 2],
    carafe: Carafe,
    maskers: [Masker; 3],
    aggregate: ConvNorm,
    projectors: [Projector; 2],
    grid: i64,
}

impl CausalClipSeg {
    /// Builds the network; CLIP's own variables lie under `backbone` by OpenAI's names. Nothing for a CLIP without a ResNet.
    ///
    /// RN101 is built as released. A backbone whose joint space is not as wide as the neck (RN50: 1024 against 512) gets a 1x1
    /// convolution on its last scale. `start` is that of CLIP's variables.
    pub fn new(path: &nn::Path, clip: &ClipConfig, start: Start) -> Option<Self> {
        let blocks = clip.resnet.as_ref()?;
        let backbone = path / "backbone";
        // The second stage's channels: 512 for a stem of 64.
        let channels = clip.vision_width * 8;
        let neck = path / "neck";
        let fourth = [
            ConvNorm::new(&neck / "fourth_0", channels * 2, channels, 3),
            ConvNorm::new(&neck / "fourth_1", channels, channels, 3),
        ];
        let masker = |scale: i64| Masker::new(&(&neck / format!("masker_{scale}")), channels);
        let projector = |name: &str| Projector::new(&(path / name), channels, clip.embed_dim);
        Some(Self {
            visual: ModifiedResNet::new(&(&backbone / "visual"), clip, blocks, start),
            text: TextTower::new(&backbone, clip, start),
            shortcut: ConvNorm::new(&neck / "shortcut", clip.vision_width * 32, clip.embed_dim, 1),
            adapter: (clip.embed_dim != channels)
                .then(|| ConvNorm::new(&neck / "adapter", clip.embed_dim, channels, 1)),
            fourth,
            carafe: Carafe::new(&(&neck / "carafe"), channels),
            maskers: [masker(3), masker(4), masker(5)],
            aggregate: ConvNorm::new(&neck / "aggregate", channels * 3, channels, 1),
            projectors: [projector("projector"), projector("projector_ad")],
            grid: clip.grid(),
        })
    }

    /// Embeds texts: token rows as [`TextTower::forward`] takes them. (texts, d), not normalised.
    pub fn states(&self, rows: &[Vec<Option<i64>>], device: tch::Device) -> Tensor {
        self.text.forward(rows, device)
    }

    /// `images`: (B, 3, s, s), normalised, s a multiple of 32; `states`: (B, d). `train` takes batch statistics.
    pub fn forward(&self, images: &Tensor, states: &Tensor, masks: Masks, train: bool) -> Branches {
        let features = self.features(images, train);
        let mut parts = [Vec::with_capacity(3), Vec::with_capacity(3)];
        for (feature, masker) in features.iter().zip(&self.maskers) {
            let (sup, inf) = match masks {
                Masks::Ones => (feature.shallow_clone(), feature.shallow_clone()),
                // The maskers look at features and do not shape them.
                Masks::Split => {
                    let mask = masker.forward(&feature.detach(), train);
                    (feature * &mask, feature * (1.0 - mask))
                }
                Masks::Reversed => {
                    let mask = masker.forward(&feature.detach(), train);
                    let reversed = mask.detach() * 2.0 - &mask;
                    (feature * mask, feature * (1.0 - reversed))
                }
            };
            parts[0].push(sup);
            parts[1].push(inf);
        }
        let branch = |side: usize| {
            let joined = self.aggregate.forward(&Tensor::cat(&parts[side], 1), train);
            self.projectors[side].forward(&joined, states, train)
        };
        Branches { sup: branch(0), inf: branch(1) }
    }

    /// Three scales at stride 16: each (B, C, s/16, s/16).
    fn features(&self, images: &Tensor, train: bool) -> [Tensor; 3] {
        let maps = self.visual.maps(images, train, None);
        let last = self.attended(&maps[3], train);
        let last = self.adapter.as_ref().map_or_else(|| last.shallow_clone(), |adapter| adapter.forward(&last, train));
        [
            maps[1].avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None),
            self.fourth[1].forward(&self.fourth[0].forward(&maps[2], train), train),
            self.carafe.forward(&last),
        ]
    }

    /// The attention pool with every position as a query, and a shortcut around it: (B, d, h, w).
    fn attended(&self, map: &Tensor, train: bool) -> Tensor {
        let (batch, channels, height, width) = map.size4().expect("a map is (B, C, h, w)");
        let pool = &self.visual.pool;
        let positions = pool.positional_embedding.narrow(0, 1, self.grid * self.grid);
        let positions = positions.transpose(0, 1).reshape([1, channels, self.grid, self.grid]);
        let resized = positions.upsample_bicubic2d([height, width], false, None, None);
        let x = (map + resized).flatten(2, 3).transpose(1, 2);
        let mixed = pool.attend(&x, &x).transpose(1, 2).reshape([batch, -1, height, width]);
        (mixed + self.shortcut.linear(map, train)).relu()
    }
}

/// x with two channels of coordinates from -1 to 1 behind it: along the width, then along the height.
fn with_coordinates(x: &Tensor) -> Tensor {
    let (batch, _, height, width) = x.size4().expect("x is (B, C, h, w)");
    let line = |count: i64| Tensor::linspace(-1.0, 1.0, count, (wide(x.kind()), x.device()));
    let across = line(width).view([1, 1, 1, width]).expand([batch, 1, height, width], false);
    let down = line(height).view([1, 1, height, 1]).expand([batch, 1, height, width], false);
    Tensor::cat(&[x, &across, &down], 1)
}
