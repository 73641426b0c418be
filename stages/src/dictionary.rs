//! A confounder dictionary as an artifact: embeddings and the prompts that they came from.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::checkpoint;
use crate::error::{Result, StageError};

/// The prompts in the order of the embeddings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Class names.
    pub classes: Vec<String>,
    /// Class prompts, one a class.
    pub class_prompts: Vec<String>,
    /// Confounders in words.
    pub domains: Vec<String>,
    /// The family of each.
    pub families: Vec<String>,
    /// Confounder prompts, one each.
    pub domain_prompts: Vec<String>,
    /// Class-by-confounder prompts, classes outermost.
    pub class_domain_prompts: Vec<String>,
}

/// The embeddings and prompts of a dictionary artifact.
pub struct Dictionary {
    /// Confounders: (M, d).
    pub z: Tensor,
    /// Class prompts: (K, d).
    pub classes: Tensor,
    /// Class-by-confounder prompts: (K, M, d).
    pub class_domain: Tensor,
    /// The texts.
    pub prompts: Prompts,
}

impl Dictionary {
    /// Reads a dictionary artifact.
    ///
    /// # Errors
    /// Files that do not hold one.
    pub fn read(tensors: &Path, prompts: &Path) -> Result<Self> {
        let mut all = checkpoint::read(tensors)?;
        let mut take =
            |name: &str| all.remove(name).ok_or_else(|| StageError::data(tensors, format!("it has no `{name}`")));
        let text = std::fs::read(prompts).map_err(StageError::io(prompts))?;
        Ok(Self {
            z: take("Z")?,
            classes: take("classes")?,
            class_domain: take("class_domain")?,
            prompts: serde_json::from_slice(&text).map_err(|e| StageError::data(prompts, e))?,
        })
    }
}
