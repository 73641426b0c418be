//! ERM (methods.md 3): the head on the encoder's features, the segmentation loss, sources pooled with equal samples a site.

use super::contract::Method;

/// Empirical risk minimisation.
pub struct Erm;

impl Method for Erm {}
