//! What a method is to the trainer.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::loss;

/// Sizes that a method builds by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Dimension of the features.
    pub d: i64,
    /// Entries of the dictionary, 0 without one.
    pub confounders: i64,
    /// Classes of the dictionary, 0 without one.
    pub classes: i64,
    /// Training sites.
    pub sites: i64,
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

/// A training batch as it left the model: as many images of each site, site by site.
pub struct Seen<'a> {
    /// Features.
    pub encoded: &'a Encoded,
    /// What the method made of them.
    pub represented: &'a Represented,
    /// (B, 2, S, S).
    pub logits: &'a Tensor,
    /// (B, S, S), 0 or 1, whole numbers.
    pub masks: &'a Tensor,
    /// (B), class indices into the dictionary; for methods that need them.
    pub labels: Option<&'a Tensor>,
    /// Training sites.
    pub sites: i64,
    /// Steps that were made before this one.
    pub step: usize,
}

impl Seen<'_> {
    /// The segmentation loss of each site: (M).
    pub fn losses_by_site(&self) -> Tensor {
        loss::segmentation_by_image(self.logits, self.masks).view([self.sites, -1]).mean_dim(
            Some([1i64].as_slice()),
            false,
            Kind::Float,
        )
    }
}

/// What a method adds to the trainer.
pub trait Method {
    /// Turns encoded features into what the head sees: the features themselves, unless the method does more. `epoch` counts from 1;
    /// `None` is evaluation.
    fn represent(&self, encoded: &Encoded, _epoch: Option<usize>) -> Represented {
        Represented { map: encoded.dense.shallow_clone(), intervened: None }
    }

    /// Whether its penalties need every image's class.
    fn needs_labels(&self) -> bool {
        false
    }

    /// What is minimised, penalties left out: the segmentation loss of the batch.
    fn objective(&self, seen: &Seen) -> Tensor {
        loss::segmentation(seen.logits, seen.masks)
    }

    /// Penalties of a training batch.
    fn penalties(&self, _seen: &Seen) -> Vec<Penalty> {
        Vec::new()
    }

    /// The step in front of which the optimiser forgets its moments, because the objective changes.
    fn starts_anew_at(&self) -> Option<usize> {
        None
    }

    /// Tells the method how many epochs were trained when the weights were chosen, so that evaluation does as training did.
    fn trained_until(&mut self, _epoch: usize) {}
}
