//! CLIP checkpoints in OpenAI's, open_clip's and Hugging Face's naming (methods.md 5.5).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use super::{Activation, Clip, ClipConfig, Tokenizer};
use crate::checkpoint::{self, Tensors};
use crate::error::{Result, StageError};
use crate::model::start::Start;
use crate::model::transformer::HEAD_WIDTH;

/// Scalars and buffers that checkpoints carry beside their parameters.
const IGNORED: [&str; 6] = [
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
];

/// Name of the tensor that lists the tokens of a pruned vocabulary, one id for each row of the token table.
const TOKEN_IDS: &str = "token_ids";
/// Positions of a ResNet's attention pool.
const RESNET_POSITIONS: &str = "visual.attnpool.positional_embedding";

/// What cannot be read off a checkpoint's shapes, as the manifest says it of a backbone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Non-linearity of both towers.
    pub activation: Activation,
    /// Width of one attention head of the image tower.
    pub vision_head_width: i64,
    /// Side of the input images, where it is another than the weights were trained with: positions are interpolated.
    pub image_size: Option<i64>,
    /// Whether that interpolation filters first, as open_clip's does and CRIS's and CLIPSeg's do not.
    pub antialias: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let activation = Activation::QuickGelu;
        Self { activation, vision_head_width: HEAD_WIDTH, image_size: None, antialias: false }
    }
}

/// A checkpoint under OpenAI's names, with the sizes that follow from its shapes.
#[derive(Debug)]
pub struct ClipWeights {
    /// The sizes.
    pub config: ClipConfig,
    /// The parameters, and the statistics of a ResNet.
    pub tensors: Tensors,
    /// The tokens of the table's rows, where it holds only some.
    pub token_ids: Option<Vec<i64>>,
    /// Digest of the file that was published, where it is known.
    pub digest: Option<String>,
}

/// What is written beside a checkpoint's tensors.
#[derive(Serialize, Deserialize)]
struct About {
    config: ClipConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<i64>>,
    /// Of the file that they were read from.
    digest: Option<String>,
}

impl ClipWeights {
    /// Reads a checkpoint in any of the namings.
    ///
    /// # Errors
    /// A file that is no CLIP, or whose shapes do not fit together.
    pub fn read(path: &Path, settings: Settings) -> Result<Self> {
        let mut tensors = checkpoint::read(path)?;
        let token_ids = tensors.remove(TOKEN_IDS);
        let mut tensors = canonical(path, tensors)?;
        let mut config = config_of(path, &tensors, settings)?;
        if let Some(side) = settings.image_size {
            resize_positions(path, &mut tensors, &mut config, side, settings.antialias)?;
        }
        let token_ids = token_ids.map(|ids| {
            let ids = Vec::<i64>::try_from(&ids).map_err(|e| StageError::data(path, format!("`{TOKEN_IDS}`: {e}")))?;
            if ids.len() as i64 != config.vocab_size {
                let reason = format!("`{TOKEN_IDS}` lists {} tokens for {} rows", ids.len(), config.vocab_size);
                return Err(StageError::data(path, reason));
            }
            Ok(ids)
        });
        Ok(Self { token_ids: token_ids.transpose()?, config, tensors, digest: None })
    }

    /// Writes it in its one form: `weights` and what it is built by, `about`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, weights: &Path, about: &Path) -> Result<()> {
        checkpoint::write(weights, &self.tensors, Kind::Float, &BTreeMap::new())?;
        let Self { config, token_ids, digest, .. } = self;
        let json = About { config: config.clone(), token_ids: token_ids.clone(), digest: digest.clone() };
        let json = serde_json::to_string_pretty(&json).expect("sizes are JSON");
        std::fs::write(about, json + "\n").map_err(StageError::io(about))
    }

    /// Reads what [`ClipWeights::write`] wrote.
    ///
    /// # Errors
    /// Files that hold something else.
    pub fn read_written(weights: &Path, about: &Path) -> Result<Self> {
        let text = std::fs::read(about).map_err(StageError::io(about))?;
        let About { config, token_ids, digest } =
            serde_json::from_slice(&text).map_err(|e| StageError::data(about, e))?;
        Ok(Self { config, token_ids, tensors: checkpoint::read(weights)?, digest })
    }

    /// Texts to rows of the token table.
    pub fn tokenizer(&self) -> Tokenizer {
        tokenizer_of(self.token_ids.as_deref())
    }

    /// Puts those tensors that a model has into it; `prefix` is what the model puts in front of OpenAI's names.
    ///
    /// # Errors
    /// A variable of the model below `prefix` that is not there, or of another shape.
    pub fn fill(&self, store: &mut nn::VarStore, prefix: &str) -> Result<()> {
        tch::no_grad(|| {
            for (name, mut variable) in store.variables() {
                let Some(name) = name.strip_prefix(prefix) else { continue };
                let Some(found) = self.tensors.get(name).filter(|found| found.size() == variable.size()) else {
                    return Err(StageError::Request(format!(
                        "the CLIP has no `{name}` of shape {:?}",
                        variable.size()
                    )));
                };
                variable.copy_(found);
            }
            Ok(())
        })
    }
}

/// Texts to the rows of a table that holds all tokens, or those listed.
pub fn tokenizer_of(token_ids: Option<&[i64]>) -> Tokenizer {
    token_ids.map_or_else(Tokenizer::full, Tokenizer::pruned)
}

/// Reads a CLIP whose sizes follow from its shapes. The parameters are frozen.
///
/// # Errors
/// A file that is no CLIP in one of the three namings, or whose shapes do not fit together.
pub fn load(path: &Path, settings: Settings, device: Device) -> Result<(nn::VarStore, Clip)> {
    let weights = ClipWeights::read(path, settings)?;
    let mut store = nn::VarStore::new(device);
    let clip = Clip::new(&store.root(), &weights.config, weights.tokenizer(), Start::Filled);
    checkpoint::fill(&mut store, &weights.tensors, path)?;
    store.freeze();
    Ok((store, clip))
}

/// Positions of the image tower for another grid: the class token's stays, the others are a picture that is resized.
fn resize_positions(
    path: &Path,
    tensors: &mut Tensors,
    config: &mut ClipConfig,
    side: i64,
    antialias: bool,
) -> Result<()> {
    if side < config.patch_size || side % config.patch_size != 0 {
        let reason =
            format!("`image_size` is {side}; it must be a multiple of {}, the side of a patch", config.patch_size);
        return Err(StageError::data(path, reason));
    }
    let (before, after) = (config.grid(), side / config.patch_size);
    config.image_size = side;
    if before == after {
        return Ok(());
    }
    let name = if config.resnet.is_some() { RESNET_POSITIONS } else { "visual.positional_embedding" };
    let positions = tensors.remove(name).ok_or_else(|| StageError::data(path, format!("it has no `{name}`")))?;
    tensors.insert(name.to_owned(), interpolated(&positions, before, after, antialias));
    Ok(())
}

/// `positions`: (1 + before^2, d), the class token's or the mean's first. Returns (1 + after^2, d): bicubic, corners not aligned.
pub fn interpolated(positions: &Tensor, before: i64, after: i64, antialias: bool) -> Tensor {
    let grid = positions.narrow(0, 1, before * before).view([1, before, before, -1]).permute([0, 3, 1, 2]);
    let resized = if antialias {
        grid.internal_upsample_bicubic2d_aa([after, after], false, None, None)
    } else {
        grid.upsample_bicubic2d([after, after], false, None, None)
    };
    Tensor::cat(&[positions.narrow(0, 0, 1), resized.flatten(2, 3).squeeze_dim(0).transpose(0, 1)], 0)
}

/// Writes a CLIP in half precision under OpenAI's names. `token_ids` lists the tokens of its table's rows.
///
/// # Errors
/// A file that cannot be written.
pub fn save(path: &Path, store: &nn::VarStore, token_ids: &[i64], notes: &BTreeMap<String, String>) -> Result<()> {
    let mut tensors = checkpoint::of_store(store);
    tensors.insert(TOKEN_IDS.to_owned(), Tensor::from_slice(token_ids));
    checkpoint::write(path, &tensors, Kind::Half, notes)
}

/// Translates names and layouts to OpenAI's.
fn canonical(path: &Path, tensors: Tensors) -> Result<Tensors> {
    let hugging_face = tensors.keys().any(|name| name.starts_with("vision_model."));
    let ignored =
        |name: &str| IGNORED.contains(&name) || name.ends_with(".num_batches_tracked") || name.ends_with(".attn_mask");
    let kept = tensors.into_iter().filter(|(name, _)| !ignored(name));
    if hugging_face {
        return from_hugging_face(path, kept.collect());
    }
    // open_clip prefixes the text tower of its models with a custom one.
    Ok(kept.map(|(name, tensor)| (name.strip_prefix("text.").map_or(name.clone(), str::to_owned), tensor)).collect())
}

fn from_hugging_face(path: &Path, mut tensors: Tensors) -> Result<Tensors> {
    let mut out = Tensors::new();
    let stems: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix("self_attn.q_proj.weight").map(str::to_owned)).collect();
    for stem in stems {
        for part in ["weight", "bias"] {
            let mut take = |letter: &str| {
                let name = format!("{stem}self_attn.{letter}_proj.{part}");
                tensors.remove(&name).ok_or_else(|| StageError::data(path, format!("parameters are missing: `{name}`")))
            };
            let packed = Tensor::cat(&[take("q")?, take("k")?, take("v")?], 0);
            out.insert(format!("{}attn.in_proj_{part}", openai_name(&stem)), packed);
        }
    }
    for (name, tensor) in tensors {
        let transposed = matches!(name.as_str(), "visual_projection.weight" | "text_projection.weight");
        out.insert(openai_name(&name), if transposed { tensor.tr().contiguous() } else { tensor });
    }
    Ok(out)
}

fn openai_name(name: &str) -> String {
    const WHOLE: [(&str, &str); 8] = [
        ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_projection.weight", "text_projection"),
        ("logit_scale", "logit_scale"),
    ];
    if let Some((_, openai)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return (*openai).to_owned();
    }
    const PARTS: [(&str, &str); 10] = [
        // The misspelling is Hugging Face's own.
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (theirs, openai)| name.replace(theirs, openai))
}

/// Reads the sizes off the shapes, as OpenAI's own loader does.
fn config_of(path: &Path, tensors: &Tensors, settings: Settings) -> Result<ClipConfig> {
    let shape = |name: &str, axes: usize| {
        let tensor = tensors.get(name).ok_or_else(|| {
            StageError::data(path, format!("no CLIP: it has no `{name}` (nor Hugging Face's name for it)"))
        })?;
        let shape = tensor.size();
        if shape.len() == axes && shape.iter().all(|n| *n > 0) {
            return Ok(shape);
        }
        Err(StageError::data(path, format!("`{name}` has shape {shape:?}; {axes} axes were expected")))
    };
    let tokens = shape("token_embedding.weight", 2)?;
    let vision = match tensors.contains_key(RESNET_POSITIONS) {
        true => resnet_of(path, tensors, &shape)?,
        false => vit_of(path, tensors, &shape)?,
    };
    let text_width = tokens[1];
    let text_layers = blocks(tensors, "transformer.resblocks.");
    if text_layers == 0 {
        return Err(StageError::data(path, "no CLIP: its text tower has no blocks"));
    }
    for (what, width, head) in
        [("image", vision.attention_width, settings.vision_head_width), ("text", text_width, HEAD_WIDTH)]
    {
        if head < 1 || width % head != 0 {
            let reason = format!("the {what} tower's width {width} is no multiple of the width {head} of its heads");
            return Err(StageError::data(path, reason));
        }
    }
    Ok(ClipConfig {
        embed_dim: shape("text_projection", 2)?[1],
        image_size: vision.grid * vision.patch,
        patch_size: vision.patch,
        vision_width: vision.width,
        vision_layers: vision.layers,
        resnet: vision.stages,
        vision_head_width: settings.vision_head_width,
        context_length: shape("positional_embedding", 2)?[0],
        vocab_size: tokens[0],
        text_width,
        text_layers,
        activation: settings.activation,
    })
}

/// Sizes of an image tower.
struct Vision {
    grid: i64,
    patch: i64,
    width: i64,
    attention_width: i64,
    layers: i64,
    stages: Option<[i64; 4]>,
}

type Shape<'a> = dyn Fn(&str, usize) -> Result<Vec<i64>> + 'a;

fn blocks(tensors: &Tensors, prefix: &str) -> i64 {
    tensors.keys().filter(|name| name.starts_with(prefix) && name.ends_with(".attn.in_proj_weight")).count() as i64
}

fn square(path: &Path, positions: i64) -> Result<i64> {
    let grid = ((positions - 1) as f64).sqrt().round() as i64;
    if grid >= 1 && grid * grid + 1 == positions {
        return Ok(grid);
    }
    Err(StageError::data(path, format!("{positions} visual positions are not a square grid and a class token")))
}

fn vit_of(path: &Path, tensors: &Tensors, shape: &Shape) -> Result<Vision> {
    let conv = shape("visual.conv1.weight", 4)?;
    let layers = blocks(tensors, "visual.transformer.resblocks.");
    if layers == 0 {
        return Err(StageError::data(path, "no CLIP: its image tower has no blocks"));
    }
    shape("visual.proj", 2)?;
    let grid = square(path, shape("visual.positional_embedding", 2)?[0])?;
    Ok(Vision { grid, patch: conv[2], width: conv[0], attention_width: conv[0], layers, stages: None })
}

fn resnet_of(path: &Path, tensors: &Tensors, shape: &Shape) -> Result<Vision> {
    let count = |stage: usize| {
        let prefix = format!("visual.layer{stage}.");
        tensors.keys().filter(|name| name.starts_with(&prefix) && name.ends_with(".conv1.weight")).count() as i64
    };
    let stages = [count(1), count(2), count(3), count(4)];
    if stages.contains(&0) {
        return Err(StageError::data(path, "no CLIP: a stage of its ResNet has no blocks"));
    }
    let width = shape("visual.layer1.0.conv1.weight", 4)?[0];
    let grid = square(path, shape(RESNET_POSITIONS, 2)?[0])?;
    let layers = stages.iter().sum();
    Ok(Vision { grid, patch: 32, width, attention_width: width * 32, layers, stages: Some(stages) })
}
