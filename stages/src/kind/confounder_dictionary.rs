//! `confounder-dictionary`: a prompts file and CLIP's text tower to MCDRL's dictionary (methods.md 1.1 to 1.3).
//!
//! Writes `dictionary.safetensors`: `Z` (M, d), the confounders; `classes` (K, d), the class prompts; `class_domain` (K, M, d),
//! each class with each confounder; all rows of unit length unless `unit_length` is false. `prompts.json` lists the texts in the same order, and nothing of
//! how the file was laid out, so a comment in it changes no byte here.

use std::collections::BTreeMap;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_cache::Digest;
use siteline_pipeline::protocol::{SourceFrom, SourceSpec, StageKind};
use tch::{Device, Kind, Tensor};

use super::backbone;
use super::context::Ctx;
use super::spec::{Spec, output};
use crate::checkpoint::{self, Tensors};
use crate::dictionary::Prompts;
use crate::error::{Result, StageError};
use crate::model::clip::{l2_normalise, weights};

/// Parameters of `confounder-dictionary`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The prompts file, relative to the project.
    pub prompts: String,
    /// Entries to use, taken in turn from each family, so that every smaller dictionary is balanced. Defaults to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub size: Option<usize>,
    /// A control: with a seed, every embedding that names a confounder is a random vector of the same length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<u64>,
    /// Whether every embedding is brought to unit length. [I]
    #[serde(default = "yes")]
    pub unit_length: bool,
}

fn yes() -> bool {
    true
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "confounder-dictionary",
        summary: "embeds confounder and class prompts with CLIP's text tower",
        params: schemars::schema_for!(Params),
        inputs: vec![],
        sources: vec![
            SourceSpec { name: "weights".into(), from: SourceFrom::Backbone },
            SourceSpec { name: "prompts".into(), from: SourceFrom::Param("prompts".into()) },
        ],
        requires: vec![],
        outputs: vec![output("dictionary.safetensors"), output("prompts.json")],
    }
    .into()
}

/// A prompts file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptsFile {
    /// Template of a class prompt, with `{class}`.
    class_prompt: String,
    /// Template of a confounder's prompt, with `{domain}`.
    domain_prompt: String,
    /// Template of a class with a confounder, with both.
    class_domain_prompt: String,
    /// The classes.
    classes: Vec<String>,
    /// Families of confounders, each with its items in words.
    families: indexmap::IndexMap<String, Vec<String>>,
}

/// Embeds the prompts.
///
/// # Errors
/// A prompts file that cannot be understood, a prompt that is too long.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let (file, settings) = backbone::source(ctx)?;
    let source = ctx.source("prompts")?;
    let path = source.files.first().ok_or_else(|| StageError::Request("no prompts file".into()))?;
    let prompts = read_prompts(&path.path, params.size)?;
    let (_store, clip) = weights::load(&file.path, settings, Device::cuda_if_available())?;
    for text in prompts.domain_prompts.iter().chain(&prompts.class_prompts) {
        let unknown = clip.tokenizer.unknown_words(text);
        if !unknown.is_empty() {
            ctx.warn(format!(
                "the backbone `{}` was not trained on {} in `{text}`: they embed as nothing",
                ctx.source("weights")?.name,
                unknown.join(", ")
            ));
        }
    }
    let (k, m) = (prompts.classes.len() as i64, prompts.domains.len() as i64);
    let embed = |texts: &[String]| match params.unit_length {
        true => clip.embed_texts(texts),
        false => clip.text_features(texts),
    };
    let tensors = Tensors::from([
        ("Z".to_owned(), embed(&prompts.domain_prompts)?),
        ("classes".to_owned(), embed(&prompts.class_prompts)?),
        ("class_domain".to_owned(), embed(&prompts.class_domain_prompts)?.view([k, m, -1])),
    ]);
    let tensors = match params.random {
        None => tensors,
        Some(seed) => randomised(tensors, seed),
    };
    ctx.metric("confounders", m as f64);
    let notes = BTreeMap::from([("weights".to_owned(), file.digest.to_string())]);
    checkpoint::write(&ctx.output("dictionary.safetensors"), &tensors, Kind::Float, &notes)?;
    let path = ctx.output("prompts.json");
    let json = serde_json::to_string_pretty(&prompts).expect("prompts are JSON");
    std::fs::write(&path, json + "\n").map_err(StageError::io(&path))
}

/// Rows of confounders become random vectors of their own length; those of classes stay.
fn randomised(tensors: Tensors, seed: u64) -> Tensors {
    let random = |(name, tensor): (String, Tensor)| {
        if name == "classes" {
            return (name, tensor);
        }
        let digest = Digest::of_bytes(format!("random dictionary\0{seed}\0{name}").as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*digest.as_bytes());
        let draws: Vec<f32> = (0..tensor.numel()).map(|_| StandardNormal.sample(&mut rng)).collect();
        let draws = l2_normalise(&Tensor::from_slice(&draws).view(tensor.size().as_slice()));
        let length = tensor.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
        (name, draws.to_device(tensor.device()) * length)
    };
    tensors.into_iter().map(random).collect()
}

/// Reads a prompts file and spells out its templates.
///
/// # Errors
/// A file that cannot be understood, with line and column.
pub fn read_prompts(path: &Path, size: Option<usize>) -> Result<Prompts> {
    let text = std::fs::read_to_string(path).map_err(StageError::io(path))?;
    let file: PromptsFile = serde_yaml::from_str(&text).map_err(|e| StageError::data(path, e.without_snippet()))?;
    for (name, template, holes) in [
        ("class_prompt", &file.class_prompt, &["{class}"][..]),
        ("domain_prompt", &file.domain_prompt, &["{domain}"]),
        ("class_domain_prompt", &file.class_domain_prompt, &["{class}", "{domain}"]),
    ] {
        if let Some(hole) = holes.iter().find(|hole| !template.contains(**hole)) {
            return Err(StageError::data(path, format!("`{name}` lacks {hole}")));
        }
    }
    let mut ordered = Vec::new();
    let longest = file.families.values().map(Vec::len).max().unwrap_or(0);
    for turn in 0..longest {
        for (family, items) in &file.families {
            ordered.extend(items.get(turn).map(|item| (family.clone(), item.clone())));
        }
    }
    let available = ordered.len();
    let wanted = size.unwrap_or(available);
    if wanted > available || available == 0 || file.classes.is_empty() {
        return Err(StageError::data(
            path,
            format!("it has {} classes and {available} confounders; {} are wanted", file.classes.len(), wanted.max(1)),
        ));
    }
    ordered.truncate(wanted);
    let (families, domains): (Vec<_>, Vec<_>) = ordered.into_iter().unzip();
    let class_domain = |class: &String| -> Vec<String> {
        domains
            .iter()
            .map(|domain| file.class_domain_prompt.replace("{class}", class).replace("{domain}", domain))
            .collect()
    };
    Ok(Prompts {
        class_prompts: file.classes.iter().map(|class| file.class_prompt.replace("{class}", class)).collect(),
        domain_prompts: domains.iter().map(|domain| file.domain_prompt.replace("{domain}", domain)).collect(),
        class_domain_prompts: file.classes.iter().flat_map(class_domain).collect(),
        classes: file.classes,
        domains,
        families,
    })
}
