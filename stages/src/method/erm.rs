//! ERM (methods.md 3): the head on the encoder's features, the segmentation loss, sources pooled with equal samples a site.

use super::contract::{Encoded, Method, Represented};

/// Empirical risk minimisation.
pub struct Erm;

impl Method for Erm {
    fn represent(&self, encoded: &Encoded, _epoch: Option<usize>) -> Represented {
        Represented { map: encoded.dense.shallow_clone(), intervened: None }
    }
}
