//! What a method is to the trainer.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Sizes that a method builds by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Dimension of the features.
    pub d: i64,
    /// Entries of the dictionary, 0 without one.
    pub confounders: i64,
    /// Classes of the dictionary, 0 without one.
    pub classes: i64,
}

/// A batch behind the encoder (and its adapter).
pub struct Encoded {
    /// Image-level features: (B, d).
    pub pooled: Tensor,
    /// Dense features: (B, N, d).
    pub dense: Tensor,
}

/// What the head sees, and what penalties need of the way there.
pub struct Represented {
    /// (B, N, d) on the whole grid.
    pub map: Tensor,
    /// Intervened features of the kept positions, while the intervention is on: (B, kept, d).
    pub intervened: Option<Tensor>,
}

/// A term that is added to the segmentation loss.
pub struct Penalty {
    /// Its name in the history.
    pub name: &'static str,
    /// Its weight.
    pub weight: f64,
    /// Its value, a scalar.
    pub value: Tensor,
}

/// What a method adds to the trainer.
pub trait Method {
    /// Turns encoded features into what the head sees. `epoch` counts from 1; `None` is evaluation.
    fn represent(&self, encoded: &Encoded, epoch: Option<usize>) -> Represented;

    /// Whether its penalties need every image's class.
    fn needs_labels(&self) -> bool {
        false
    }

    /// Penalties of a training batch. `labels`: (B), class indices into the dictionary.
    fn penalties(&self, _encoded: &Encoded, _represented: &Represented, _labels: Option<&Tensor>) -> Vec<Penalty> {
        Vec::new()
    }

    /// Tells the method how many epochs were trained when the weights were chosen, so that evaluation does as training did.
    fn trained_until(&mut self, _epoch: usize) {}
}
