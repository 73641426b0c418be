//! CLIP checkpoints in OpenAI's, open_clip's and Hugging Face's naming (methods.md 5.5).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor, nn};

use super::{Activation, Clip, ClipConfig, Tokenizer};
use crate::checkpoint::{self, Tensors};
use crate::error::{Result, StageError};
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

/// What cannot be read off a checkpoint's shapes, as the manifest says it of a backbone.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub struct Settings {
    /// Non-linearity of both towers.
    pub activation: Activation,
    /// Width of one attention head of the image tower.
    pub vision_head_width: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { activation: Activation::QuickGelu, vision_head_width: HEAD_WIDTH }
    }
}

/// Reads a CLIP whose sizes follow from its shapes. The parameters are frozen.
///
/// # Errors
/// A file that is no CLIP in one of the three namings, or whose shapes do not fit together.
pub fn load(path: &Path, settings: Settings, device: Device) -> Result<(nn::VarStore, Clip)> {
    let mut tensors = checkpoint::read(path)?;
    let token_ids = tensors.remove(TOKEN_IDS);
    let tensors = canonical(path, tensors)?;
    let config = config_of(path, &tensors, settings)?;
    let tokenizer = match token_ids {
        None => Tokenizer::full(),
        Some(ids) => {
            let ids = Vec::<i64>::try_from(&ids).map_err(|e| StageError::data(path, format!("`{TOKEN_IDS}`: {e}")))?;
            if ids.len() as i64 != config.vocab_size {
                return Err(StageError::data(
                    path,
                    format!("`{TOKEN_IDS}` lists {} tokens for {} rows", ids.len(), config.vocab_size),
                ));
            }
            Tokenizer::pruned(&ids)
        }
    };
    let mut store = nn::VarStore::new(device);
    let clip = Clip::new(&store.root(), &config, tokenizer);
    checkpoint::fill(&mut store, &tensors, path)?;
    store.freeze();
    Ok((store, clip))
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
    let kept = tensors.into_iter().filter(|(name, _)| !IGNORED.contains(&name.as_str()));
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
    let layers = |prefix: &str| {
        tensors.keys().filter(|name| name.starts_with(prefix) && name.ends_with(".attn.in_proj_weight")).count() as i64
    };
    let conv = shape("visual.conv1.weight", 4)?;
    let positions = shape("visual.positional_embedding", 2)?[0];
    let grid = ((positions - 1) as f64).sqrt().round() as i64;
    if grid < 1 || grid * grid + 1 != positions {
        return Err(StageError::data(
            path,
            format!("{positions} visual positions are not a square grid and a class token"),
        ));
    }
    let tokens = shape("token_embedding.weight", 2)?;
    let (vision_width, text_width) = (conv[0], tokens[1]);
    let (vision_layers, text_layers) = (layers("visual.transformer.resblocks."), layers("transformer.resblocks."));
    if vision_layers == 0 || text_layers == 0 {
        return Err(StageError::data(path, "no CLIP of the ViT kind: one of its towers has no blocks"));
    }
    for (what, width, head) in [("image", vision_width, settings.vision_head_width), ("text", text_width, HEAD_WIDTH)] {
        if head < 1 || width % head != 0 {
            let reason = format!("the {what} tower's width {width} is no multiple of the width {head} of its heads");
            return Err(StageError::data(path, reason));
        }
    }
    Ok(ClipConfig {
        embed_dim: shape("visual.proj", 2)?[1],
        image_size: grid * conv[2],
        patch_size: conv[2],
        vision_width,
        vision_layers,
        vision_head_width: settings.vision_head_width,
        context_length: shape("positional_embedding", 2)?[0],
        vocab_size: tokens[0],
        text_width,
        text_layers,
        activation: settings.activation,
    })
}
