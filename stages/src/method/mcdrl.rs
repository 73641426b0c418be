//! MCDRL (arXiv 2508.05008; methods.md 1): target region selection (MTRS) and causal intervention with a dictionary (CDRL).
//!
//! Stated by the paper: the similarity map and its maximum over classes, the mask of the N highest, the dictionary's items, the
//! attention of F over Z, depth 3, the three losses and their weights, tau, the intervention from the tenth epoch on.
//! Everything else is inferred, and so a parameter.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{Encoded, Given, Method, Penalty, Represented, Seen, Sizes, Takes, Wants};
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::loss::{self, Pool};
use crate::model::intervention::{Intervention, Shape, Variant};
use crate::model::transformer::{HEAD_WIDTH, l2_normalise};

/// What the head sees at positions that MTRS drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dropped {
    /// The features as they are, times a learned gate that starts at 0.
    #[default]
    Gated,
    /// Zeros.
    Zeros,
}

/// F_vis, what stands for an image in L_contrast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Visual {
    /// CLIP's image-level feature: the class token of a ViT, the attention pool of a ResNet.
    #[default]
    Pooled,
    /// The mean of the dense features.
    Dense,
}

/// Parameters of MCDRL. Marked [S]: stated by the paper; [I]: inferred, our choice.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Share of positions that MTRS keeps, N = alpha H W rounded half up, at least 1; 1 switches MTRS off. [I]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
    /// What the head sees at dropped positions. [I]
    pub dropped: Dropped,
    /// Whether the causal intervention is there at all; without it only MTRS is left.
    pub intervention: bool,
    /// How attention joins features. [I]
    pub variant: Variant,
    /// Layers of the intervention network. [S]
    #[schemars(range(min = 1, max = 64))]
    pub depth: i64,
    /// Width of its attention; 0 is the dimension of the features. [I]
    #[schemars(range(min = 0))]
    pub width: i64,
    /// Heads of its attention; 0 is one for every 64 of its width. [I]
    #[schemars(range(min = 0))]
    pub heads: i64,
    /// Width of its feed-forward, as a multiple of the dimension of the features. [I]
    #[schemars(range(min = 1, max = 16))]
    pub ratio: i64,
    /// The intervention works behind this epoch: 10 of 50. [S]
    pub after_epoch: usize,
    /// Weight of L_causal. [S]
    pub causal_weight: f64,
    /// How L_causal pools intervened features over positions. [I]
    pub pool: Pool,
    /// Whether both sides of L_causal are brought to unit length. [I]
    pub unit_length: bool,
    /// Weight of L_contrast. [S]
    pub contrast_weight: f64,
    /// What stands for an image in L_contrast. [I]
    pub visual: Visual,
    /// Temperature of L_contrast. [S]
    #[schemars(range(min = 0.001))]
    pub tau: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            alpha: 0.5,
            dropped: Dropped::Gated,
            intervention: true,
            variant: Variant::Residual,
            depth: 3,
            width: 0,
            heads: 0,
            ratio: 4,
            after_epoch: 10,
            causal_weight: 0.5,
            pool: Pool::Mean,
            unit_length: true,
            contrast_weight: 0.1,
            visual: Visual::Pooled,
            tau: 0.5,
        }
    }
}

impl Params {
    /// The intervention network's sizes for features of `d` channels.
    fn shape(&self, d: i64) -> Result<Shape> {
        let width = if self.width == 0 { d } else { self.width };
        if self.heads == 0 && width % HEAD_WIDTH != 0 {
            let message =
                format!("`mcdrl.width` is {width}: make it a multiple of {HEAD_WIDTH}, or say how many `heads`");
            return Err(StageError::Request(message));
        }
        let heads = if self.heads == 0 { width / HEAD_WIDTH } else { self.heads };
        if width % heads != 0 {
            return Err(StageError::Request(format!(
                "`mcdrl.width` of {width} is not shared out among {heads} `heads`"
            )));
        }
        Ok(Shape { d, width, heads, depth: self.depth, ratio: self.ratio })
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared).with_dictionary();

/// Builds the intervention network and takes in the dictionary.
///
/// # Errors
/// No dictionary, or one of another dimension.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Mcdrl::new(params, path, &given.sizes, given.dictionary)?))
}

/// MCDRL's own parameters and the dictionary that it works with.
pub struct Mcdrl {
    params: Params,
    intervention: Option<Intervention>,
    gate: Option<Tensor>,
    /// Confounders: (M, d).
    z: Tensor,
    /// Class prompts: (K, d).
    classes: Tensor,
    /// Mean over confounders of the class-by-confounder prompts: (K, d).
    targets: Tensor,
    trained_until: usize,
}

impl Mcdrl {
    /// Builds the intervention network and takes in the dictionary.
    ///
    /// # Errors
    /// No dictionary where sizes say that there is none, or one of another dimension.
    pub fn new(params: &Params, path: &nn::Path, sizes: &Sizes, dictionary: Option<&Dictionary>) -> Result<Self> {
        let d = sizes.d;
        if sizes.confounders == 0 || sizes.classes == 0 {
            return Err(StageError::Request(
                "mcdrl needs a dictionary: give the stage `needs: {dictionary: ...}`".into(),
            ));
        }
        let frozen = |name: &str, rows: i64, value: Option<Tensor>| -> Result<Tensor> {
            let value = value.unwrap_or_else(|| Tensor::zeros([rows, d], (Kind::Float, path.device())));
            if value.size() != [rows, d] {
                let found = value.size();
                return Err(StageError::Request(format!(
                    "the dictionary's rows have shape {found:?}, the features {d} dimensions: are both of one backbone?"
                )));
            }
            Ok((path / "dictionary").add(name, value.to_device(path.device()), false))
        };
        let targets = dictionary.map(|dict| dict.class_domain.mean_dim(Some([1i64].as_slice()), false, None::<Kind>));
        let shape = params.shape(d)?;
        Ok(Self {
            z: frozen("z", sizes.confounders, dictionary.map(|dict| dict.z.shallow_clone()))?,
            classes: frozen("classes", sizes.classes, dictionary.map(|dict| dict.classes.shallow_clone()))?,
            targets: frozen("targets", sizes.classes, targets)?,
            intervention: params
                .intervention
                .then(|| Intervention::new(&(path / "intervention"), shape, params.variant)),
            gate: (params.dropped == Dropped::Gated && params.alpha < 1.0)
                .then(|| path.var("gate", &[], nn::Init::Const(0.0))),
            params: params.clone(),
            trained_until: usize::MAX,
        })
    }

    /// Whether the intervention works in an epoch, or, in evaluation, worked when the weights were chosen.
    fn intervenes(&self, epoch: Option<usize>) -> bool {
        self.intervention.is_some() && epoch.unwrap_or(self.trained_until) > self.params.after_epoch
    }
}

impl Method for Mcdrl {
    fn represent(&self, encoded: &Encoded, epoch: Option<usize>) -> Represented {
        let dense = &encoded.dense;
        let kept = select(dense, &self.classes, self.params.alpha);
        let d = dense.size()[2];
        let index = kept.unsqueeze(-1).expand([-1, -1, d], false);
        let observed = dense.gather(1, &index, false);
        let (features, intervened) = match &self.intervention {
            Some(network) if self.intervenes(epoch) => {
                let features = network.forward(&observed, &self.z);
                (features.shallow_clone(), Some(features))
            }
            _ => (observed, None),
        };
        let rest = match &self.gate {
            Some(gate) => dense * gate,
            None => dense.zeros_like(),
        };
        Represented { map: rest.scatter(1, &index, &features), intervened }
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let (Some(labels), Some((encoded, represented))) = (seen.labels, &seen.forward.inner) else {
            return Vec::new();
        };
        let visual = match self.params.visual {
            Visual::Pooled => encoded.pooled.shallow_clone(),
            Visual::Dense => Pool::Mean.over_positions(&encoded.dense),
        };
        let mut penalties = vec![Penalty {
            name: "contrast",
            weight: self.params.contrast_weight,
            value: loss::contrastive(&visual, &self.classes, labels, self.params.tau),
        }];
        if let Some(intervened) = &represented.intervened {
            let targets = self.targets.index_select(0, labels);
            let value = loss::causal(intervened, &targets, self.params.pool, self.params.unit_length);
            penalties.push(Penalty { name: "causal", weight: self.params.causal_weight, value });
        }
        penalties
    }

    fn lacks(&self, epoch: usize) -> Option<&'static str> {
        (self.intervention.is_some() && epoch <= self.params.after_epoch).then_some("the intervention")
    }

    fn trained_until(&mut self, epoch: usize) {
        self.trained_until = epoch;
    }
}

/// MTRS: the positions of each image that look most like any class. S[n, k] = cos(C[n], e_k), S_hat = max over k, the N
/// highest are kept; ties go to the lower position. `dense`: (B, n, d); `classes`: (K, d). Returns indices (B, N).
///
/// The choice itself passes no gradient; it reaches `dense` through the rows that are kept.
pub fn select(dense: &Tensor, classes: &Tensor, alpha: f64) -> Tensor {
    let positions = dense.size()[1];
    let keep = ((alpha * positions as f64 + 0.5).floor() as i64).clamp(1, positions);
    tch::no_grad(|| {
        let similarity = l2_normalise(dense).matmul(&l2_normalise(classes).tr()).amax(-1, false);
        let (_, order) = similarity.sort_stable(true, 1, true);
        order.narrow(1, 0, keep)
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn dictionary(d: i64) -> Dictionary {
        let random = |shape: &[i64]| l2_normalise(&Tensor::randn(shape, (Kind::Float, Device::Cpu)));
        Dictionary {
            z: random(&[12, d]),
            classes: random(&[5, d]),
            class_domain: random(&[5, 12, d]),
            prompts: serde_json::from_str(
                r#"{"classes":[],"class_prompts":[],"domains":[],"families":[],"domain_prompts":[],"class_domain_prompts":[]}"#,
            )
            .unwrap(),
        }
    }

    fn encoded(d: i64) -> Encoded {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        Encoded { pooled: random(&[3, d]), dense: random(&[3, 16, d]) }
    }

    fn build(params: &Params) -> (nn::VarStore, Mcdrl) {
        let store = nn::VarStore::new(Device::Cpu);
        let sizes = Sizes { d: 64, side: 16, confounders: 12, classes: 5, sites: 3 };
        let method = Mcdrl::new(params, &store.root(), &sizes, Some(&dictionary(64))).unwrap();
        (store, method)
    }

    #[test]
    fn ties_go_to_the_lower_position_and_the_number_kept_is_rounded_half_up() {
        let classes = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]);
        let dense = Tensor::from_slice(&[0f32, 1., 1., 0., 1., 0., 1., 0., 0., 1.]).view([1, 5, 2]);
        let kept = Vec::<i64>::try_from(select(&dense, &classes, 0.5).view(-1)).unwrap();
        assert_eq!(kept, [1, 2, 3], "0.5 x 5 = 2.5 is rounded to 3");
        assert_eq!(select(&dense, &classes, 0.0).size(), [1, 1], "at least one position is kept");
    }

    /// Where the lesion takes more of the image than is kept, even the best choice finds only alpha H W positions of it: a lesion of
    /// 0.4 with alpha 0.25 caps Dice at 0.77 (methods.md 1.2).
    #[test]
    fn what_is_kept_caps_recall() {
        let classes = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]);
        let lesion: Vec<f32> = (0..100).map(|place| if place % 5 < 2 { 1.0 } else { -1.0 }).collect();
        let dense = Tensor::from_slice(&lesion).view([1, 100, 1]) * Tensor::from_slice(&[1.0f32, 0.3]);
        let kept = Vec::<i64>::try_from(select(&dense, &classes, 0.25).view(-1)).unwrap();
        let found = kept.iter().filter(|place| *place % 5 < 2).count();
        assert_eq!((kept.len(), found), (25, 25), "all that is kept is lesion");
        let dice = 2.0 * found as f64 / (kept.len() + 40) as f64;
        assert!((dice - 0.769).abs() < 1e-3, "{dice}");
    }

    #[test]
    fn with_alpha_one_and_a_fresh_intervention_mcdrl_sees_what_erm_sees() {
        tch::manual_seed(0);
        let (_store, method) = build(&Params { alpha: 1.0, ..Params::default() });
        let encoded = encoded(64);
        for epoch in [Some(1), Some(11), None] {
            let map = method.represent(&encoded, epoch).map;
            assert!(map.allclose(&encoded.dense, 1e-6, 1e-6, false), "epoch {epoch:?}");
        }
    }

    /// Also where the intervention does something: each position gets what the network makes of it alone, whatever the order in
    /// which positions were kept.
    #[test]
    fn with_alpha_one_the_intervention_works_as_without_any_selection() {
        tch::manual_seed(0);
        for variant in [Variant::Residual, Variant::AttnOnly, Variant::Subtract, Variant::ProjectOut] {
            let (store, method) = build(&Params { alpha: 1.0, after_epoch: 0, variant, ..Params::default() });
            let trained = store.trainable_variables().into_iter();
            tch::no_grad(|| trained.for_each(|variable| drop(variable.shallow_clone().normal_(0.0, 0.3))));
            let encoded = encoded(64);
            let network = method.intervention.as_ref().unwrap();
            let expected = network.forward(&encoded.dense, &method.z);
            assert!(!expected.allclose(&encoded.dense, 1e-2, 1e-2, false), "{variant:?} does nothing");
            let map = method.represent(&encoded, Some(1)).map;
            assert!(map.allclose(&expected, 1e-4, 1e-5, false), "{variant:?}");
        }
    }

    /// Through the head as well: a fresh intervention with alpha 1 has ERM's logits and, apart from its own terms, ERM's loss.
    #[test]
    fn a_fresh_intervention_has_erms_logits_and_loss() {
        tch::manual_seed(0);
        let (_store, method) = build(&Params { alpha: 1.0, after_epoch: 0, ..Params::default() });
        let store = nn::VarStore::new(Device::Cpu);
        let head = crate::model::head::Head::new(&store.root(), 64, 16, 16);
        let encoded = encoded(64);
        let masks = Tensor::randint(2, [3, 16, 16], (Kind::Int64, Device::Cpu));
        let erm = head.forward(&encoded.dense);
        let represented = method.represent(&encoded, Some(1));
        let logits = head.forward(&represented.map);
        assert!(represented.intervened.is_some());
        assert!(logits.allclose(&erm, 1e-5, 1e-6, false));
        let difference = loss::segmentation(&logits, &masks) - loss::segmentation(&erm, &masks);
        assert!(difference.abs().double_value(&[]) < 1e-6);
    }

    #[test]
    fn the_intervention_waits_for_its_epoch_and_evaluation_follows_training() {
        tch::manual_seed(0);
        let (_store, mut method) = build(&Params { variant: Variant::AttnOnly, ..Params::default() });
        let encoded = encoded(64);
        assert!(method.represent(&encoded, Some(10)).intervened.is_none());
        assert!(method.represent(&encoded, Some(11)).intervened.is_some());
        method.trained_until(9);
        assert!(method.represent(&encoded, None).intervened.is_none());
        method.trained_until(20);
        assert!(method.represent(&encoded, None).intervened.is_some());
    }

    #[test]
    fn dropped_positions_carry_nothing_at_first_and_gradients_reach_kept_rows_only() {
        tch::manual_seed(0);
        let (_store, method) = build(&Params { alpha: 0.25, dropped: Dropped::Zeros, ..Params::default() });
        let mut encoded = encoded(64);
        encoded.dense = encoded.dense.set_requires_grad(true);
        let map = method.represent(&encoded, Some(1)).map;
        let filled = map.abs().sum_dim_intlist(-1, false, Kind::Float).gt(0.0).sum_dim_intlist(1, false, Kind::Int64);
        assert_eq!(Vec::<i64>::try_from(filled).unwrap(), [4, 4, 4]);
        map.sum(Kind::Float).backward();
        let touched = encoded.dense.grad().abs().sum_dim_intlist(-1, false, Kind::Float).gt(0.0);
        let kept = map.abs().sum_dim_intlist(-1, false, Kind::Float).gt(0.0);
        assert!(touched.equal(&kept));
    }
}
