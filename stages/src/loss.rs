//! Loss terms, one function an equation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::model::transformer::l2_normalise;

/// L_seg: pixel cross-entropy (methods.md 1.6). `logits`: (B, 2, S, S); `masks`: (B, S, S), 0 or 1, whole numbers.
pub fn segmentation(logits: &Tensor, masks: &Tensor) -> Tensor {
    logits.cross_entropy_loss(masks, None::<&Tensor>, Reduction::Mean, -100, 0.0)
}

/// The same for each image: (B).
pub fn segmentation_by_image(logits: &Tensor, masks: &Tensor) -> Tensor {
    let losses = logits.cross_entropy_loss(masks, None::<&Tensor>, Reduction::None, -100, 0.0);
    losses.mean_dim(Some([1i64, 2].as_slice()), false, None::<Kind>)
}

/// One logit a pixel (B, 1, S, S) as the two of background and lesion: cross-entropy on these is binary cross-entropy on that.
pub fn two_logits(lesion: &Tensor) -> Tensor {
    Tensor::cat(&[&lesion.zeros_like(), lesion], 1)
}

/// KL(q || p) of the softmaxes p of `logits` and q of `target`, both divided by `temperature`; summed over classes, mean over
/// images and pixels. Both (B, C, S, S).
pub fn divergence(logits: &Tensor, target: &Tensor, temperature: f64) -> Tensor {
    let own = (logits / temperature).log_softmax(1, None::<Kind>);
    let target = (target / temperature).log_softmax(1, None::<Kind>);
    (target.exp() * (target - own)).sum_dim_intlist(1, false, None::<Kind>).mean(None::<Kind>)
}

/// Mean over `logits`, each (B, C, S, S), of KL(p_i || m) of their softmaxes p_i and the mean m of these, the generalised
/// Jensen-Shannon divergence; summed over classes, mean over images and pixels.
pub fn disagreement(logits: &[Tensor]) -> Tensor {
    let each: Vec<Tensor> = logits.iter().map(|logits| logits.softmax(1, None::<Kind>)).collect();
    let all = Tensor::stack(&each, 0);
    let mean = all.mean_dim(Some([0i64].as_slice()), true, None::<Kind>).clamp(1e-7, 1.0);
    let terms = &all * (all.clamp_min(1e-30).log() - mean.log());
    terms.sum_dim_intlist(2, false, None::<Kind>).mean(None::<Kind>)
}

/// 1 - (2 sum p t + e) / (sum p + sum t + e) for each image, mean over the batch; p is the probability of lesion (Milletari et al.
/// 2016 with plain sums, as MONAI's `DiceLoss`).
pub fn dice(logits: &Tensor, masks: &Tensor) -> Tensor {
    const SMOOTH: f64 = 1e-5;
    let probabilities = logits.softmax(1, None::<Kind>).select(1, 1);
    let truth = masks.to_kind(probabilities.kind());
    let sum = |x: Tensor| x.sum_dim_intlist([1i64, 2].as_slice(), false, None::<Kind>);
    let overlap = sum(&probabilities * &truth) * 2.0 + SMOOTH;
    let both = sum(probabilities) + sum(truth) + SMOOTH;
    let missing: Tensor = 1.0 - overlap / both;
    missing.mean(None::<Kind>)
}

/// How the positions of an image become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Their mean.
    #[default]
    Mean,
    /// The largest value of each channel.
    Max,
}

impl Pool {
    /// (B, N, d) to (B, d).
    pub fn over_positions(self, x: &Tensor) -> Tensor {
        match self {
            Self::Mean => x.mean_dim(Some([1i64].as_slice()), false, x.kind()),
            Self::Max => x.amax([1i64].as_slice(), false),
        }
    }
}

/// L_causal = || Pool_n F_ca[n] - (1/M) sum_m t_{k,m} ||^2, summed over d, mean over the batch, both sides of unit length where
/// `unit_length` says so (methods.md 1.6; pooling, norm and reductions are inferred). `intervened`: (B, N, d); `targets`: (B, d), the
/// row of each image's class in the mean over m of t.
pub fn causal(intervened: &Tensor, targets: &Tensor, pool: Pool, unit_length: bool) -> Tensor {
    let side = |x: &Tensor| if unit_length { l2_normalise(x) } else { x.shallow_clone() };
    let difference = side(&pool.over_positions(intervened)) - side(targets);
    difference.square().sum_dim_intlist(-1, false, None::<Kind>).mean(None::<Kind>)
}

/// L_contrast = -log( exp(cos(F_vis, e_y) / tau) / sum_k exp(cos(F_vis, e_k) / tau) ), mean over the batch (methods.md
/// 1.6). `visual`: (B, d), image-level; `classes`: (K, d); `labels`: (B), whole numbers. 0 where K = 1.
pub fn contrastive(visual: &Tensor, classes: &Tensor, labels: &Tensor, tau: f64) -> Tensor {
    let logits = l2_normalise(visual).matmul(&l2_normalise(classes).tr()) / tau;
    logits.cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_contrastive_loss_vanishes_for_one_class_and_keeps_its_range_for_five() {
        tch::manual_seed(0);
        let visual = Tensor::randn([7, 16], (Kind::Float, Device::Cpu));
        let one = Tensor::randn([1, 16], (Kind::Float, Device::Cpu));
        let labels = Tensor::zeros([7], (Kind::Int64, Device::Cpu));
        assert!(contrastive(&visual, &one, &labels, 0.5).abs().double_value(&[]) < 1e-6);
        // With tau = 0.5 and K = 5 the loss lies in [0.0707, 5.3909] (methods.md 1.6): cosines of 1 against -1.
        let axis = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]);
        let texts = Tensor::cat(&[&axis, &-&axis, &-&axis, &-&axis, &-&axis], 0);
        let label = Tensor::from_slice(&[0i64]);
        let (least, most) = (contrastive(&axis, &texts, &label, 0.5), contrastive(&-&axis, &texts, &label, 0.5));
        assert!((least.double_value(&[]) - 0.0707).abs() < 1e-4, "{least:?}");
        assert!((most.double_value(&[]) - 5.3909).abs() < 1e-4, "{most:?}");
    }

    #[test]
    fn the_causal_loss_is_zero_on_target_and_four_opposite_to_it() {
        let target = Tensor::from_slice(&[3.0f32, 4.0]).view([1, 2]);
        let at = |scale: f64, pool: Pool, unit_length: bool| {
            let intervened = (&target * scale).view([1, 1, 2]).expand([1, 3, 2], false);
            causal(&intervened, &target, pool, unit_length).double_value(&[])
        };
        for pool in [Pool::Mean, Pool::Max] {
            assert!(at(2.0, pool, true).abs() < 1e-6);
            assert!((at(-1.0, pool, true) - 4.0).abs() < 1e-5);
            // As they are, the target's own length of 5 counts.
            assert!((at(2.0, pool, false) - 25.0).abs() < 1e-4);
        }
        let positions = Tensor::from_slice(&[1.0f32, 8.0, 3.0, 0.0]).view([1, 2, 2]);
        let pooled = |pool: Pool| Vec::<f32>::try_from(pool.over_positions(&positions).view(-1)).unwrap();
        assert_eq!((pooled(Pool::Mean), pooled(Pool::Max)), (vec![2.0, 4.0], vec![3.0, 8.0]));
    }
}
