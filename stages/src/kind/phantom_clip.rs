//! `phantom-clip`: trains a small CLIP on phantoms, so that a machine without published weights has one that means
//! something.
//!
//! Contrastive training over a bank of captions, every caption that holds for an image counting as its match, plus
//! a *grounded* term: each patch must find the class of the lesion that it shows, or normal mucosa. Without it
//! prompts get a meaning but no place (patches inside a lesion score no better than those outside), and MCDRL's
//! target region selection is blind. Published CLIP weights are trained otherwise; this is a stand-in for trying Siteline.

mod captions;
mod pool;
mod score;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_pipeline::protocol::{OutputSpec, Purpose, StageKind};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

use self::captions::CaptionBank;
use self::pool::Pool;
use crate::error::Result;
use crate::kind::context::Ctx;
use crate::kind::spec::Spec;
use crate::model::clip::{Clip, ClipConfig, Dense, Tokenizer, l2_normalise, weights};
use crate::model::start::Start;
use crate::model::transformer::{Activation, HEAD_WIDTH};

/// Parameters of `phantom-clip`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Seed of the pool, the initial weights and the order of the batches.
    pub seed: u64,
    /// Phantoms in the training pool, which belongs to no site.
    #[schemars(range(min = 16))]
    pub pool: usize,
    /// Fresh phantoms that the result is scored on.
    #[schemars(range(min = 16))]
    pub fresh: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Images a step.
    #[schemars(range(min = 2))]
    pub batch: usize,
    /// Peak learning rate of AdamW, reached after 5% of the steps and lowered to 0 by a cosine.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the grounded term.
    pub grounded: f64,
    /// Side of the images in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Dimension of the joint space.
    pub embed_dim: i64,
    /// Width of the image tower.
    pub vision_width: i64,
    /// Blocks of the image tower.
    pub vision_layers: i64,
    /// Blocks of each stage of a modified ResNet, in place of a ViT; its patches have 32 pixels a side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resnet: Option<[i64; 4]>,
    /// Width of the text tower.
    pub text_width: i64,
    /// Blocks of the text tower.
    pub text_layers: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            seed: 0,
            pool: 8192,
            fresh: 1000,
            steps: 1200,
            batch: 128,
            lr: 1e-3,
            weight_decay: 0.05,
            grounded: 0.5,
            image_size: 96,
            patch_size: 12,
            embed_dim: 128,
            vision_width: 128,
            vision_layers: 4,
            resnet: None,
            text_width: 128,
            text_layers: 2,
        }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "phantom-clip",
        summary: "trains a small CLIP on phantoms and scores its prompts on fresh ones",
        params: schemars::schema_for!(Params),
        inputs: vec![],
        sources: vec![],
        requires: vec![],
        outputs: ["clip.safetensors", "scores.json", "scores.md"]
            .map(|path| OutputSpec { path: path.into(), purpose: Purpose::Result })
            .into(),
    }
    .into()
}

/// Trains, scores on fresh phantoms, and writes `clip.safetensors`, `scores.json` and `scores.md`.
///
/// # Errors
/// Outputs that cannot be written.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let bank = CaptionBank::new();
    let full = Tokenizer::full();
    let token_ids = bank.token_ids(&full);
    let config = ClipConfig {
        embed_dim: params.embed_dim,
        image_size: params.image_size,
        patch_size: if params.resnet.is_some() { 32 } else { params.patch_size },
        vision_width: params.vision_width,
        vision_layers: params.resnet.map_or(params.vision_layers, |stages| stages.iter().sum()),
        resnet: params.resnet,
        vision_head_width: HEAD_WIDTH,
        context_length: 77,
        vocab_size: token_ids.len() as i64,
        text_width: params.text_width,
        text_layers: params.text_layers,
        activation: Activation::QuickGelu,
    };
    let device = Device::cuda_if_available();
    tch::manual_seed(params.seed as i64);
    let store = nn::VarStore::new(device);
    let clip = Clip::new(&store.root(), &config, Tokenizer::pruned(&token_ids), Start::Drawn);
    ctx.log(format!("{} parameters, {} captions, {} tokens", parameters(&store), bank.captions.len(), token_ids.len()));

    let pool = Pool::draw("pool", params.seed, params.pool, &config);
    train(ctx, &params, &clip, &store, &bank, &pool)?;

    let notes = BTreeMap::from([
        ("trained-by".to_owned(), "siteline phantom-clip".to_owned()),
        ("trained-on".to_owned(), "phantoms (made images), grounded captions; no site, no patient".to_owned()),
        ("params".to_owned(), serde_json::to_string(&params).expect("parameters are JSON")),
    ]);
    let path = ctx.output("clip.safetensors");
    weights::save(&path, &store, &token_ids, &notes)?;
    // Scores are of the weights as stored, in half precision.
    let (_kept, clip) = weights::load(&path, weights::Settings::default(), device)?;
    let fresh = Pool::draw("fresh", params.seed, params.fresh, &config);
    score::write(ctx, &score::score(&clip, &bank, &fresh)?)
}

fn parameters(store: &nn::VarStore) -> usize {
    store.trainable_variables().iter().map(Tensor::numel).sum()
}

fn train(ctx: &Ctx, params: &Params, clip: &Clip, store: &nn::VarStore, bank: &CaptionBank, pool: &Pool) -> Result<()> {
    let rows = bank.rows(&clip.tokenizer)?;
    let mut optimiser = nn::AdamW { wd: params.weight_decay, ..Default::default() }.build(store, params.lr)?;
    let warm_up = (params.steps / 20).max(1);
    for step in 0..params.steps {
        let rate = if step < warm_up {
            (step + 1) as f64 / warm_up as f64
        } else {
            let done = (step - warm_up) as f64 / (params.steps - warm_up).max(1) as f64;
            0.5 * (1.0 + (std::f64::consts::PI * done).cos())
        };
        optimiser.set_lr(params.lr * rate);
        let batch = pool.batch(params.seed, step, params.batch);
        let images = pool.images(&batch, store.device());
        let (pooled, patches) = clip.vision.forward(&images, Dense::Values, None);
        let texts = l2_normalise(&clip.text.forward(&rows, store.device()));
        let scale = clip.logit_scale.clamp(0.0, 100f64.ln()).exp();
        let logits = l2_normalise(&pooled).matmul(&texts.tr()) * &scale;
        let contrastive = contrastive_loss(&logits, &bank.holds(pool, &batch, store.device()));
        let grounded =
            grounded_loss(&patches, &bank.place_rows(&texts), &scale, &pool.patch_labels(&batch, store.device()));
        let loss = &contrastive + &grounded * params.grounded;
        optimiser.backward_step_clip_norm(&loss, 1.0);
        if step % 20 == 0 || step + 1 == params.steps {
            ctx.progress(step + 1, params.steps, "steps");
            ctx.log(format!(
                "step {step}: contrastive {:.4}, grounded {:.4}",
                contrastive.double_value(&[]),
                grounded.double_value(&[])
            ));
        }
    }
    Ok(())
}

/// Symmetric cross-entropy with several matches: each image against the captions that hold for it, each caption
/// against the images that it holds for. `logits` and `holds`: (B, captions), `holds` 0 or 1.
fn contrastive_loss(logits: &Tensor, holds: &Tensor) -> Tensor {
    let side = |axis: i64| {
        let matches = holds.sum_dim_intlist(axis, true, Kind::Float);
        let any = matches.gt(0.0).to_kind(Kind::Float);
        let log_share = logits.log_softmax(axis, Kind::Float) * holds / matches.clamp_min(1.0);
        -log_share.sum(Kind::Float) / any.sum(Kind::Float).clamp_min(1.0)
    };
    (side(1) + side(0)) * 0.5
}

/// Cross-entropy of each patch over the class prompts and normal mucosa. `patches`: (B, N, d); `texts`: (6, d), the last
/// being normal mucosa; `labels`: (B, N), -1 where a patch shows the edge of a lesion.
fn grounded_loss(patches: &Tensor, texts: &Tensor, scale: &Tensor, labels: &Tensor) -> Tensor {
    /// Most patches are normal: they count less.
    const NORMAL_WEIGHT: f32 = 0.15;
    let logits = l2_normalise(patches).matmul(&texts.tr()).flatten(0, 1) * scale;
    let classes = texts.size()[0];
    let mut weight = vec![1.0f32; classes as usize];
    weight[classes as usize - 1] = NORMAL_WEIGHT;
    let weight = Tensor::from_slice(&weight).to_device(logits.device());
    logits.cross_entropy_loss(&labels.flatten(0, 1), Some(weight), Reduction::Mean, -1, 0.0)
}
