//! CoOp in its pixel form (Zhou et al., IJCV 2022; the pixel form is inferred, methods.md 3): learned context words stand before each
//! class, and a pixel's logits are its cosines with the texts. Encoders are frozen, nothing else is learned.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{At, Batch, Forward, Given, Method, Takes, Wants};
use crate::data::Content;
use crate::error::{Result, StageError};
use crate::model::clip::weights::ClipWeights;
use crate::model::clip::{TextTower, l2_normalise};
use crate::model::start::Start;
use crate::shared::Shared;

/// Parameters of CoOp.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Learned context words, shared by the classes: 16 in the paper.
    #[schemars(range(min = 1, max = 64))]
    pub context: i64,
    /// What stands for everything that is no lesion. [I]
    pub background: String,
}

impl Default for Params {
    fn default() -> Self {
        Self { context: 16, background: "background".into() }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Features).with_dictionary();

/// Builds the context; while training also the frozen text tower.
///
/// # Errors
/// No CLIP, a text that is too long, features of another CLIP.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    let clip = given.clip("coop")?;
    if clip.embed_dim != given.sizes.d {
        let (found, has) = (clip.embed_dim, given.sizes.d);
        return Err(StageError::Request(format!("the encoder's texts have {found} dimensions, the features {has}")));
    }
    let classes = 1 + given.sizes.classes.max(1);
    let normal = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
    let context = path.var("context", &[params.context, clip.text_width], normal);
    let tower = match given.weights.filter(|_| given.trains) {
        None => None,
        Some(weights) => Some(Frozen::new(params, weights, &given, path.device())?),
    };
    let zeros = Tensor::zeros([classes, given.sizes.d], (Kind::Float, path.device()));
    let scale = Tensor::zeros([], (Kind::Float, path.device()));
    let mut built = CoOp {
        context,
        texts: path.add("texts", zeros, false),
        logit_scale: path.add("logit_scale", scale, false),
        side: given.sizes.side,
        tower,
    };
    if let Some(value) = given.weights.and_then(|weights| weights.tensors.get("logit_scale")) {
        tch::no_grad(|| built.logit_scale.copy_(value));
    }
    Ok(Box::new(built))
}

/// The text tower, and the words of the classes.
struct Frozen {
    _store: nn::VarStore,
    text: TextTower,
    /// Start token: (1, width).
    start: Tensor,
    /// For each text what follows the context, its end included: (words, width).
    words: Vec<Tensor>,
}

impl Frozen {
    fn new(params: &Params, weights: &ClipWeights, given: &Given, device: tch::Device) -> Result<Self> {
        let mut store = nn::VarStore::new(device);
        let text = TextTower::new(&store.root(), &weights.config, Start::of(given.trains));
        weights.fill(&mut store, "")?;
        store.freeze();
        let tokenizer = weights.tokenizer();
        let no_classes = || StageError::Request("coop needs classes: give the stage `needs: {dictionary: ...}`".into());
        let lesions = given.dictionary.map(|dictionary| dictionary.prompts.classes.clone()).ok_or_else(no_classes)?;
        let room = (weights.config.context_length - params.context) as usize;
        if weights.config.context_length < params.context + 4 {
            let all = weights.config.context_length;
            return Err(StageError::Request(format!(
                "`coop.context` leaves no room for a class: this CLIP reads {all} tokens"
            )));
        }
        let encode = |name: &String| tokenizer.encode(&format!("{name}."), room);
        let rows = std::iter::once(&params.background).chain(&lesions).map(encode).collect::<Result<Vec<_>>>()?;
        let start = text.embed(&rows[0][..1]);
        let words = rows.iter().map(|row| text.embed(&row[1..])).collect();
        Ok(Self { _store: store, text, start, words })
    }

    /// Texts of unit length, background first: (1 + K, d).
    fn texts(&self, context: &Tensor) -> Tensor {
        let longest = self.words.iter().map(|words| words.size()[0]).max().unwrap_or(1);
        let padded = self.words.iter().map(|words| {
            let missing = longest - words.size()[0];
            Tensor::cat(&[&self.start, context, words], 0).constant_pad_nd([0, 0, 0, missing])
        });
        let tokens = Tensor::stack(&padded.collect::<Vec<_>>(), 0);
        let before = 1 + context.size()[0];
        let ends: Vec<i64> = self.words.iter().map(|words| before + words.size()[0] - 1).collect();
        l2_normalise(&self.text.encode(&tokens, &Tensor::from_slice(&ends).to_device(context.device())))
    }
}

struct CoOp {
    /// Learned words: (context, text width).
    context: Tensor,
    /// The texts that they make, kept for evaluation, which has no text tower: (1 + K, d).
    texts: Tensor,
    logit_scale: Tensor,
    side: i64,
    tower: Option<Frozen>,
}

impl Method for CoOp {
    /// exp(scale) cos(C[n], t_k); of several lesion classes the log of the summed exponentials counts [I].
    fn forward(&self, _shared: &Shared, batch: &Batch, at: Option<At>) -> Forward {
        let Content::Features { dense, .. } = &batch.content else { unreachable!("it asked for features") };
        let texts = match &self.tower {
            Some(tower) if at.is_some() => tower.texts(&self.context),
            _ => self.texts.shallow_clone(),
        };
        let cosines = l2_normalise(dense).matmul(&texts.tr()) * self.logit_scale.exp();
        let (batch, positions, classes) = cosines.size3().expect("cosines are (B, N, 1 + K)");
        let grid = (positions as f64).sqrt().round() as i64;
        let lesion = cosines.narrow(-1, 1, classes - 1).logsumexp([-1i64].as_slice(), true);
        let maps = Tensor::cat(&[cosines.narrow(-1, 0, 1), lesion], -1).transpose(1, 2).reshape([batch, 2, grid, grid]);
        let logits = maps.upsample_bilinear2d([self.side, self.side], false, None, None);
        Forward { logits, other: None, inner: None }
    }

    fn trained_until(&mut self, _epoch: usize) {
        if let Some(tower) = &self.tower {
            tch::no_grad(|| self.texts.copy_(&tower.texts(&self.context)));
        }
    }
}
