//! MCDRL's causal intervention network A(F, Z): features attend over the confounder dictionary (methods.md 1.1, 1.4).
//!
//! P(Y | do(F)) = sum_z P(Y | F, z) P(z), the sum brought inside the network and approximated by one attention over all
//! entries of the dictionary. Depth is the paper's; heads, residual path, normalisation and feed-forward are inferred, as without a
//! residual every output row is a mixture of at most heads x M dictionary rows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{self, Module};

use super::transformer::{attend, layer_norm};

/// Sizes of the network.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Channels of features and dictionary rows.
    pub d: i64,
    /// Channels inside the attention.
    pub width: i64,
    /// Heads of the attention, a divisor of its width.
    pub heads: i64,
    /// Layers.
    pub depth: i64,
    /// Channels inside the feed-forward, as a multiple of `d`.
    pub ratio: i64,
}

/// How a layer joins what it attends to with what came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// x + MHA(LN x, Z, Z), then x + FFN(LN x).
    #[default]
    Residual,
    /// MHA(LN x, Z, Z) alone.
    AttnOnly,
    /// x - MHA(LN x, Z, Z), then x + FFN(LN x).
    Subtract,
    /// x minus its least-squares projection on the span of Z; no parameters, depth without effect.
    ProjectOut,
}

/// One cross-attention layer.
#[derive(Debug)]
struct Layer {
    ln_1: nn::LayerNorm,
    query: nn::Linear,
    key: nn::Linear,
    value: nn::Linear,
    out: nn::Linear,
    ln_2: nn::LayerNorm,
    expand: nn::Linear,
    contract: nn::Linear,
    heads: i64,
}

/// The network.
#[derive(Debug)]
pub struct Intervention {
    layers: Vec<Layer>,
    variant: Variant,
}

impl Intervention {
    /// The last linear of each residual branch starts at zero, so that switching the network on changes nothing at first.
    pub fn new(path: &nn::Path, shape: Shape, variant: Variant) -> Self {
        let Shape { d, width, heads, ratio, .. } = shape;
        let depth = if variant == Variant::ProjectOut { 0 } else { shape.depth };
        let zero = nn::LinearConfig { ws_init: nn::Init::Const(0.0), bs_init: Some(nn::Init::Const(0.0)), bias: true };
        // Without a residual path a zero output would be a dead network.
        let last = if variant == Variant::AttnOnly { nn::LinearConfig::default() } else { zero };
        let layer = |index: i64| {
            let path = path / index;
            Layer {
                ln_1: layer_norm(&(&path / "ln_1"), d),
                query: nn::linear(&path / "query", d, width, Default::default()),
                key: nn::linear(&path / "key", d, width, Default::default()),
                value: nn::linear(&path / "value", d, width, Default::default()),
                out: nn::linear(&path / "out", width, d, last),
                ln_2: layer_norm(&(&path / "ln_2"), d),
                expand: nn::linear(&path / "expand", d, ratio * d, Default::default()),
                contract: nn::linear(&path / "contract", ratio * d, d, zero),
                heads,
            }
        };
        Self { layers: (0..depth).map(layer).collect(), variant }
    }

    /// F_ca = A(F, Z). `f`: (B, N, d); `z`: (M, d). Returns (B, N, d).
    pub fn forward(&self, f: &Tensor, z: &Tensor) -> Tensor {
        if self.variant == Variant::ProjectOut {
            return project_out(f, z);
        }
        let batch = f.size()[0];
        let dictionary = z.unsqueeze(0).expand([batch, -1, -1], false);
        self.layers.iter().fold(f.shallow_clone(), |x, layer| layer.forward(&x, &dictionary, self.variant))
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, z: &Tensor, variant: Variant) -> Tensor {
        let query = self.query.forward(&self.ln_1.forward(x));
        let mixed = self.out.forward(&attend(&query, &self.key.forward(z), &self.value.forward(z), self.heads, false));
        let joined = match variant {
            Variant::AttnOnly => return mixed,
            Variant::Subtract => x - mixed,
            _ => x + mixed,
        };
        let hidden = self.expand.forward(&self.ln_2.forward(&joined)).gelu("none");
        &joined + self.contract.forward(&hidden)
    }
}

/// x minus its least-squares projection on the span of the rows of `z`. `x`: (..., d); `z`: (M, d).
fn project_out(x: &Tensor, z: &Tensor) -> Tensor {
    let coefficients = x.matmul(&z.pinverse(1e-6));
    x - coefficients.matmul(z)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const SHAPE: Shape = Shape { d: 128, width: 128, heads: 2, depth: 3, ratio: 1 };

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    fn build(variant: Variant) -> (nn::VarStore, Intervention) {
        let mut store = nn::VarStore::new(Device::Cpu);
        let network = Intervention::new(&store.root(), SHAPE, variant);
        store.double();
        (store, network)
    }

    #[test]
    fn switching_the_residual_network_on_changes_nothing_at_first() {
        tch::manual_seed(0);
        for variant in [Variant::Residual, Variant::Subtract] {
            let (_store, network) = build(variant);
            let (f, z) = (random(&[2, 5, 128]), random(&[12, 128]));
            assert!(network.forward(&f, &z).allclose(&f, 1e-12, 1e-12, false), "{variant:?}");
        }
    }

    #[test]
    fn the_order_of_the_dictionary_does_not_matter_and_neither_does_a_second_copy() {
        tch::manual_seed(1);
        for variant in [Variant::Residual, Variant::AttnOnly, Variant::Subtract, Variant::ProjectOut] {
            let (store, network) = build(variant);
            // Branches that start at zero would agree on anything.
            tch::no_grad(|| store.trainable_variables().iter_mut().for_each(|v| _ = v.normal_(0.0, 0.1)));
            let (f, z) = (random(&[2, 5, 128]), random(&[12, 128]));
            let out = network.forward(&f, &z);
            let agrees = |z: &Tensor| network.forward(&f, z).allclose(&out, 1e-9, 1e-9, false);
            assert!(agrees(&z.flip([0])) && agrees(&Tensor::cat(&[&z, &z], 0)), "{variant:?}");
            assert!(!agrees(&z.narrow(0, 0, 11)), "{variant:?}");
        }
    }

    /// Without a residual path each head mixes M rows, so the rank is at most heads x M (methods.md 1.4).
    #[test]
    fn attention_alone_has_the_rank_of_heads_times_dictionary() {
        tch::manual_seed(2);
        let mut store = nn::VarStore::new(Device::Cpu);
        for heads in [1, 2, 4] {
            let shape = Shape { width: 64, heads, depth: 1, ..SHAPE };
            let network = Intervention::new(&(store.root() / heads), shape, Variant::AttnOnly);
            store.double();
            let out = network.forward(&random(&[1, 100, 128]), &random(&[12, 128])).squeeze();
            let centred = &out - out.mean_dim(Some([0i64].as_slice()), true, Kind::Double);
            let (_, values, _) = centred.svd(true, true);
            let rank = values.gt(1e-9).sum(Kind::Int64).int64_value(&[]);
            // More heads do reach further, or the bound would be no bound.
            assert!(rank <= 12 * heads && rank > 12 * (heads - 1), "rank {rank} of {heads} heads");
        }
    }

    #[test]
    fn projecting_out_leaves_nothing_along_the_dictionary() {
        tch::manual_seed(3);
        let (f, z) = (random(&[3, 4, 32]), random(&[5, 32]));
        let rest = project_out(&f, &z);
        assert!(rest.matmul(&z.tr()).abs().max().double_value(&[]) < 1e-9);
        assert!(project_out(&rest, &z).allclose(&rest, 1e-9, 1e-9, false));
    }
}
