//! The pre-norm transformer block that both CLIP towers are made of (methods.md 5.3).

use tch::Tensor;
use tch::nn::{self, Module, Path};

use super::start::Start;
use crate::precision::wide;

/// Width of one attention head in OpenAI's models, and in all text towers.
pub const HEAD_WIDTH: i64 = 64;

/// The non-linearity of the MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x * sigmoid(1.702 x), as OpenAI's weights were trained.
    #[default]
    QuickGelu,
    /// Exact GELU, as open_clip's plain configurations were trained.
    Gelu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::QuickGelu => x * (x * 1.702).sigmoid_(),
            Self::Gelu => x.gelu("none"),
        }
    }
}

/// Layer norm over the last axis with CLIP's epsilon of 1e-5.
pub fn layer_norm(path: &Path, width: i64) -> nn::LayerNorm {
    nn::layer_norm(path, vec![width], nn::LayerNormConfig { eps: 1e-5, ..Default::default() })
}

/// Batch norm of maps with a gain of 1 and a shift of 0 at first, as PyTorch's; tch draws the gain.
pub fn batch_norm(path: Path, channels: i64) -> nn::BatchNorm {
    let config =
        nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), bs_init: nn::Init::Const(0.0), ..Default::default() };
    nn::batch_norm2d(path, channels, config)
}

/// Multi-head attention of `q` (B, N, d) over `k` and `v` (B, M, d); returns (B, N, d), before the output projection.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool) -> Tensor {
    let (batch, length, width) = q.size3().expect("queries are (B, N, d)");
    assert!(width % heads == 0, "a width of {width} is not shared out among {heads} heads");
    let split = |x: &Tensor| x.view([batch, -1, heads, width / heads]).transpose(1, 2);
    Tensor::scaled_dot_product_attention(&split(q), &split(k), &split(v), None::<&Tensor>, 0.0, causal, None, false)
        .transpose(1, 2)
        .reshape([batch, length, width])
}

/// x + `branch`, which a linear layer gave, and which is kept nowhere else: it is added to in place. In mixed precision the sum has
/// the precision of `x`.
fn joined(x: &Tensor, mut branch: Tensor) -> Tensor {
    if branch.kind() == x.kind() { branch.g_add_(x) } else { x + branch }
}

/// x + attn(ln_1 x), then x + mlp(ln_2 x).
#[derive(Debug)]
pub struct Block {
    ln_1: nn::LayerNorm,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: nn::Linear,
    ln_2: nn::LayerNorm,
    c_fc: nn::Linear,
    c_proj: nn::Linear,
    heads: i64,
    activation: Activation,
    causal: bool,
}

impl Block {
    /// A block of `width`, its parameters named as in OpenAI's checkpoints. `depth` is the number of blocks in the
    /// tower: it scales the initial values as CLIP does.
    pub fn new(path: &Path, width: i64, depth: i64, activation: Activation, causal: bool, start: Start) -> Self {
        Self::with_heads(path, width, depth, width / HEAD_WIDTH, activation, causal, start)
    }

    /// The same with a number of attention heads of its own.
    pub fn with_heads(
        path: &Path,
        width: i64,
        depth: i64,
        heads: i64,
        activation: Activation,
        causal: bool,
        start: Start,
    ) -> Self {
        let attn = path / "attn";
        let mlp = path / "mlp";
        let attn_std = (width as f64).powf(-0.5);
        let proj_std = attn_std * (2.0 * depth as f64).powf(-0.5);
        let fc_std = (2.0 * width as f64).powf(-0.5);
        let linear = |path: Path, input: i64, output: i64, stdev: f64| {
            let config =
                nn::LinearConfig { ws_init: start.normal(stdev), bs_init: Some(nn::Init::Const(0.0)), bias: true };
            nn::linear(path, input, output, config)
        };
        Self {
            ln_1: layer_norm(&(path / "ln_1"), width),
            in_proj_weight: attn.var("in_proj_weight", &[3 * width, width], start.normal(attn_std)),
            in_proj_bias: attn.var("in_proj_bias", &[3 * width], nn::Init::Const(0.0)),
            out_proj: linear(&attn / "out_proj", width, width, proj_std),
            ln_2: layer_norm(&(path / "ln_2"), width),
            c_fc: linear(&mlp / "c_fc", width, 4 * width, fc_std),
            c_proj: linear(&mlp / "c_proj", 4 * width, width, proj_std),
            heads: heads.max(1),
            activation,
            causal,
        }
    }

    /// (B, N, d) to (B, N, d).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.ln_1.forward(x).linear(&self.in_proj_weight, Some(&self.in_proj_bias)).chunk(3, -1);
        let mixed = attend(&qkv[0], &qkv[1], &qkv[2], self.heads, self.causal);
        self.feed_forward(&joined(x, self.out_proj.forward(&mixed)))
    }

    /// Whether gradients reach it.
    pub fn trains(&self) -> bool {
        self.in_proj_weight.requires_grad()
    }

    /// What [`Block::forward`] makes of the first position alone: (B, N, d) to (B, 1, d). All positions are looked at, one is
    /// computed.
    ///
    /// # Panics
    /// In a block that looks at earlier positions alone.
    pub fn forward_first(&self, x: &Tensor) -> Tensor {
        assert!(!self.causal, "the first position of a causal block looks at nothing but itself");
        let width = x.size().last().copied().expect("x has axes");
        let part = |from: i64, count: i64| {
            (
                self.in_proj_weight.narrow(0, from * width, count * width),
                self.in_proj_bias.narrow(0, from * width, count * width),
            )
        };
        let normal = self.ln_1.forward(x);
        let ((of_query, query_bias), (of_rest, rest_bias)) = (part(0, 1), part(1, 2));
        let query = normal.narrow(1, 0, 1).linear(&of_query, Some(&query_bias));
        let rest = normal.linear(&of_rest, Some(&rest_bias)).chunk(2, -1);
        let mixed = attend(&query, &rest[0], &rest[1], self.heads, false);
        self.feed_forward(&joined(&x.narrow(1, 0, 1), self.out_proj.forward(&mixed)))
    }

    /// MaskCLIP's value path through this block (methods.md 1.7): every position keeps its own value, none looks at
    /// another. (B, N, d) to (B, N, d).
    pub fn forward_values(&self, x: &Tensor) -> Tensor {
        let width = x.size().last().copied().expect("x has axes");
        let weight = self.in_proj_weight.narrow(0, 2 * width, width);
        let bias = self.in_proj_bias.narrow(0, 2 * width, width);
        let value = self.out_proj.forward(&self.ln_1.forward(x).linear(&weight, Some(&bias)));
        self.feed_forward(&joined(x, value))
    }

    fn feed_forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.activation.apply(&self.c_fc.forward(&self.ln_2.forward(x)));
        joined(x, self.c_proj.forward(&hidden))
    }
}

/// Each row of `x` divided by its Euclidean norm along the last axis; a zero row stays zero.
pub fn l2_normalise(x: &Tensor) -> Tensor {
    let norm = x.square().sum_dim_intlist(-1, true, wide(x.kind())).sqrt().clamp_min(1e-12);
    x / norm
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// The first token's row alone, as the whole block has it; of what other tokens become it knows nothing.
    #[test]
    fn the_first_token_alone_comes_out_as_with_all_others() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let block = Block::with_heads(&store.root(), 64, 2, 4, Activation::QuickGelu, false, Start::Drawn);
        store.double();
        store.freeze();
        let numbers = Tensor::arange(3 * 7 * 64, (Kind::Double, Device::Cpu)) * 12.9898;
        let x = numbers.sin().view([3, 7, 64]);
        let all = block.forward(&x);
        let first = block.forward_first(&x);
        assert_eq!(first.size(), [3, 1, 64]);
        assert!(first.allclose(&all.narrow(1, 0, 1), 1e-12, 1e-12, false));
        assert!(!first.allclose(&all.narrow(1, 6, 1), 1e-3, 1e-3, false));
        // It does depend on what the others were.
        let other = Tensor::cat(&[x.narrow(1, 0, 1), x.narrow(1, 1, 6).flip([2])], 1);
        assert!(!block.forward_first(&other).allclose(&first, 1e-3, 1e-3, false));
    }
}
