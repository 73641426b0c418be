//! CLIP's modified ResNet (methods.md 5.4): three stem convolutions, average pools in place of strides, attention pool.

use tch::nn::{self, Module, ModuleT};
use tch::{Kind, Tensor};

use super::ClipConfig;
use crate::model::start::Start;
use crate::model::style::Mix;
use crate::model::transformer::{attend, batch_norm};

/// Channels of a bottleneck's output over those inside it.
const EXPANSION: i64 = 4;

fn conv(path: nn::Path, input: i64, output: i64, kernel: i64, stride: i64, start: Start) -> nn::Conv2D {
    nn::conv2d(path, input, output, kernel, start.convolution(stride, kernel / 2))
}

fn norm(path: nn::Path, channels: i64) -> nn::BatchNorm {
    batch_norm(path, channels)
}

/// 1x1, 3x3, average pool where the stage strides, 1x1 to four times the width; the shortcut pools likewise.
#[derive(Debug)]
struct Bottleneck {
    convs: [nn::Conv2D; 3],
    norms: [nn::BatchNorm; 3],
    shortcut: Option<(nn::Conv2D, nn::BatchNorm)>,
    stride: i64,
}

impl Bottleneck {
    fn new(path: &nn::Path, input: i64, width: i64, stride: i64, start: Start) -> Self {
        let output = width * EXPANSION;
        let named = |name: &str| path / name;
        // `downsample.-1` is the pool, which has no parameters.
        let shortcut = (stride > 1 || input != output)
            .then(|| path / "downsample")
            .map(|path| (conv(&path / "0", input, output, 1, 1, start), norm(&path / "1", output)));
        Self {
            convs: [
                conv(named("conv1"), input, width, 1, 1, start),
                conv(named("conv2"), width, width, 3, 1, start),
                conv(named("conv3"), width, output, 1, 1, start),
            ],
            norms: [norm(named("bn1"), width), norm(named("bn2"), width), norm(named("bn3"), output)],
            shortcut,
            stride,
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let inside = self.norms[0].forward_t(&self.convs[0].forward(x), train).relu();
        let inside = self.norms[1].forward_t(&self.convs[1].forward(&inside), train).relu();
        let inside = self.norms[2].forward_t(&self.convs[2].forward(&pooled(inside, self.stride)), train);
        let around = match &self.shortcut {
            None => x.shallow_clone(),
            Some((conv, norm)) => norm.forward_t(&conv.forward(&pooled(x.shallow_clone(), self.stride)), train),
        };
        (inside + around).relu()
    }
}

fn pooled(x: Tensor, stride: i64) -> Tensor {
    if stride == 1 { x } else { x.avg_pool2d([stride, stride], [stride, stride], [0, 0], false, true, None) }
}

/// The linear maps of the attention pool, and its positions: the mean first, then the grid row by row.
#[derive(Debug)]
pub struct AttentionPool {
    /// (1 + grid^2, channels).
    pub positional_embedding: Tensor,
    q: nn::Linear,
    k: nn::Linear,
    v: nn::Linear,
    c: nn::Linear,
    heads: i64,
}

impl AttentionPool {
    fn new(path: &nn::Path, config: &ClipConfig, start: Start) -> Self {
        let channels = config.vision_width * 32;
        let scale = start.normal((channels as f64).powf(-0.5));
        let linear = |name: &str, output: i64| {
            let bs_init = (start == Start::Filled).then_some(scale);
            nn::linear(path / name, channels, output, nn::LinearConfig { ws_init: scale, bs_init, bias: true })
        };
        let positions = config.grid() * config.grid() + 1;
        Self {
            positional_embedding: path.var("positional_embedding", &[positions, channels], scale),
            q: linear("q_proj", channels),
            k: linear("k_proj", channels),
            v: linear("v_proj", channels),
            c: linear("c_proj", config.embed_dim),
            heads: channels / config.vision_head_width,
        }
    }

    /// `map`: (B, channels, h, w). The mean looks at every position: (B, d).
    fn forward(&self, map: &Tensor) -> Tensor {
        let x = map.flatten(2, 3).transpose(1, 2);
        let mean = x.mean_dim(Some([1i64].as_slice()), true, None::<Kind>);
        let x = Tensor::cat(&[&mean, &x], 1) + &self.positional_embedding;
        self.attend(&x.narrow(1, 0, 1), &x).select(1, 0)
    }

    /// `queries` (B, Q, channels) look at `x` (B, N, channels): (B, Q, d).
    pub fn attend(&self, queries: &Tensor, x: &Tensor) -> Tensor {
        let mixed = attend(&self.q.forward(queries), &self.k.forward(x), &self.v.forward(x), self.heads, false);
        self.c.forward(&mixed)
    }

    /// MaskCLIP's way (methods.md 1.7): two linear maps at each position, no attention, no positions. (B, N, d).
    fn values(&self, map: &Tensor) -> Tensor {
        self.c.forward(&self.v.forward(&map.flatten(2, 3).transpose(1, 2)))
    }
}

/// Stem, four stages, attention pool.
#[derive(Debug)]
pub struct ModifiedResNet {
    stem: Vec<(nn::Conv2D, nn::BatchNorm)>,
    stages: Vec<Vec<Bottleneck>>,
    /// The attention pool.
    pub pool: AttentionPool,
}

impl ModifiedResNet {
    /// The tower; `blocks` are those of its four stages.
    pub fn new(path: &nn::Path, config: &ClipConfig, blocks: &[i64; 4], start: Start) -> Self {
        let width = config.vision_width;
        let half = width / 2;
        let stem = [(3, half, 2), (half, half, 1), (half, width, 1)].into_iter().enumerate();
        let stem = stem.map(|(i, (input, output, stride))| {
            let number = i + 1;
            let conv = conv(path / format!("conv{number}"), input, output, 3, stride, start);
            (conv, norm(path / format!("bn{number}"), output))
        });
        let stem = stem.collect();
        Self { stem, ..Self::last_blocks(path, config, blocks, blocks.iter().sum(), start) }
    }

    /// Its last `count` blocks, counted over all stages, and the attention pool: what is behind [`ModifiedResNet::activations`].
    pub fn last_blocks(path: &nn::Path, config: &ClipConfig, blocks: &[i64; 4], count: i64, start: Start) -> Self {
        let width = config.vision_width;
        let first = blocks.iter().sum::<i64>() - count;
        let (mut input, mut place) = (width, 0);
        let mut stage = |number: usize, count: i64| -> Vec<Bottleneck> {
            let inside = width << number;
            let path = path / format!("layer{}", number + 1);
            let stages = (0..count).filter_map(|i| {
                let stride = if i == 0 && number > 0 { 2 } else { 1 };
                let block = (place >= first).then(|| Bottleneck::new(&(&path / i), input, inside, stride, start));
                (input, place) = (inside * EXPANSION, place + 1);
                block
            });
            stages.collect()
        };
        Self {
            stem: Vec::new(),
            stages: blocks.iter().enumerate().map(|(number, count)| stage(number, *count)).collect(),
            pool: AttentionPool::new(&(path / "attnpool"), config, start),
        }
    }

    /// The shape of activations in front of the last `left` blocks: positions and channels.
    pub fn shape_of_activations(config: &ClipConfig, blocks: &[i64; 4], left: i64) -> (i64, i64) {
        let done = blocks.iter().sum::<i64>() - left;
        let side = config.image_size / 4;
        let mut behind = (side * side, config.vision_width);
        let mut first = 0;
        for (number, count) in blocks.iter().enumerate() {
            if first < done {
                let side = side >> number;
                behind = (side * side, (config.vision_width << number) * EXPANSION);
            }
            first += count;
        }
        behind
    }

    fn stem(&self, images: &Tensor, train: bool) -> Tensor {
        let mut x = images.shallow_clone();
        for (conv, norm) in &self.stem {
            x = norm.forward_t(&conv.forward(&x), train).relu();
        }
        pooled(x, 2)
    }

    /// Maps in front of the last `left` blocks, position by position: (B, N, channels).
    pub fn activations(&self, images: &Tensor, left: i64) -> Tensor {
        let blocks: Vec<&Bottleneck> = self.stages.iter().flatten().collect();
        let done = blocks.len().saturating_sub(left as usize);
        let map = blocks[..done].iter().fold(self.stem(images, false), |x, block| block.forward(&x, false));
        map.flatten(2, 3).transpose(1, 2).contiguous()
    }

    /// The rest of the way for [`ModifiedResNet::activations`] in front of the last `left` blocks, of as many as this tower has.
    pub fn finish(&self, tokens: &Tensor, left: i64) -> (Tensor, Tensor) {
        let blocks: Vec<&Bottleneck> = self.stages.iter().flatten().collect();
        let done = blocks.len().saturating_sub(left as usize);
        let (images, positions, channels) = tokens.size3().expect("activations are (B, N, channels)");
        let side = positions.isqrt();
        let map = tokens.transpose(1, 2).contiguous().view([images, channels, side, side]);
        let last = blocks[done..].iter().fold(map, |x, block| block.forward(&x, false));
        (self.pool.forward(&last), self.pool.values(&last))
    }

    /// `images`: (B, 3, s, s), normalised. The maps behind the four stages, at strides 4, 8, 16 and 32. `train` takes batch
    /// statistics. Styles are mixed behind the first two stages, as MixStyle's authors do.
    pub fn maps(&self, images: &Tensor, train: bool, mix: Option<&Mix>) -> Vec<Tensor> {
        let mut x = self.stem(images, train);
        let mut maps = Vec::with_capacity(self.stages.len());
        for (number, stage) in self.stages.iter().enumerate() {
            x = stage.iter().fold(x, |x, block| block.forward(&x, train));
            if let Some(mix) = mix.filter(|_| number < 2) {
                x = mix.apply(&x);
            }
            maps.push(x.shallow_clone());
        }
        maps
    }

    /// Pooled (B, d) and dense (B, N, d) features; statistics stay as they are [I].
    pub fn forward(&self, images: &Tensor, mix: Option<&Mix>) -> (Tensor, Tensor) {
        let maps = self.maps(images, false, mix);
        let last = &maps[3];
        (self.pool.forward(last), self.pool.values(last))
    }
}
